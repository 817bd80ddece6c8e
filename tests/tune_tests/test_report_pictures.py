"""What pictures are made of: lines, intervals, and SVG that is the same for the same data."""

import math
import re

import pytest
from tune_tests.made_up import searching

from tune.outcomes import Outcome, Row
from tune.report import drawing, factor_pictures, search_pictures
from tune.report.blocks import Absent
from tune.report.drawing import LOOKS
from tune.report.facts import Facts, scale_of
from tune.report.lines import line_of
from tune.report.run_pictures import broken, mean_of

FILL = "opacity: 0.6"


def row(number, value, *, attr=1.0, mdal=1.0, pooling="max"):
    params = {"loss.lambda_attr": attr, "loss.lambda_mdal.on": mdal != 0, "model.pooling": pooling}
    params |= {"loss.lambda_mdal": mdal} if mdal else {}
    state = "complete" if value is not None else "diverged"
    metrics = {} if value is None else {"target/mAP": value}
    return Row(f"search/{number:04d}", "search", "candidate", state, params, value, metrics, "", {})


def facts_of(rows):
    return Facts(
        study_id="mine-0",
        plan=searching(trials=len(rows)),
        outcome=Outcome("target_val/mAP", "target_val", len(rows), rows),
        trainings=(),
    )


def grid(number):
    """Return trials whose objective is told by λ1 alone."""
    attrs = [0.01 * 3000 ** (index / (number - 1)) for index in range(number)]
    mdals = [0.03 * 1000 ** ((7 * index % number) / number) for index in range(number)]
    poolings = ["max" if index % 2 else "average" for index in range(number)]
    zipped = zip(range(number), attrs, mdals, poolings, strict=True)
    return [row(n, 0.3 + 0.03 * math.log(attr), attr=attr, mdal=mdal, pooling=p) for n, attr, mdal, p in zipped]


def test_lines_differ_without_their_colour():
    assert len({(str(look.style), look.marker) for look in LOOKS}) == len(LOOKS) == len({look.marker for look in LOOKS})


def test_a_mean_over_runs_ends_where_the_first_of_them_does():
    line = line_of("x", [{1: 0.1, 2: 0.3, 3: 0.5}, {1: 0.3, 2: 0.5}, {}])
    assert (line.at, line.n) == ([1, 2], 2) and line.mean == pytest.approx([0.2, 0.4])
    assert line.sd == pytest.approx([math.sqrt(0.02)] * 2)
    assert line_of("x", [{1: math.inf}]) is None and line_of("x", []) is None
    assert line_of("x", [{1: 1.0}]).sd == [0.0]


def test_an_interval_by_hand():
    """n = 4, mean 5, sd 2: 5 ± 3.182 · 2 / 2."""
    found = mean_of([5 - math.sqrt(6), 5.0, 5.0, 5 + math.sqrt(6)])
    assert (found.low, found.high) == (pytest.approx(5 - 3.1824, abs=1e-3), pytest.approx(5 + 3.1824, abs=1e-3))
    assert mean_of([3.0]).low is None
    wide = mean_of([1.0, 2.0, 3.0], overlapping=True)
    assert wide.high - wide.low > mean_of([1.0, 2.0, 3.0]).high - mean_of([1.0, 2.0, 3.0]).low


def test_the_same_data_gives_the_same_bytes_and_ids_of_its_own():
    facts = facts_of(grid(24))
    for draw in (search_pictures.trials, search_pictures.isolation, factor_pictures.contours):
        first, second = draw(facts), draw(facts)
        assert first == second
        assert all(name.startswith(f"{first.key}-") for name in re.findall(r' id="([^"]+)"', first.svg))
        assert (
            "<metadata" not in first.svg and "<style" not in first.svg and f'aria-label="{first.alt[:30]}' in first.svg
        )


def test_importance_finds_the_factor_that_matters():
    figure = factor_pictures.importance(facts_of(grid(40)))
    assert figure.data.rows[0][0] == "λ1" and float(figure.data.rows[0][1]) > 0.6
    assert sum(float(row[1]) for row in figure.data.rows) == pytest.approx(1, abs=0.01)
    assert "λ3 on or off" in {row[0] for row in figure.data.rows}
    few = factor_pictures.importance(facts_of(grid(9)))
    assert few == Absent("Importance", "n = 9 trials with a result are too few; importance is told from 10 on.")
    flat = factor_pictures.importance(facts_of([row(n, 0.5, attr=0.1 * (n + 1)) for n in range(12)]))
    assert flat.why == "All n = 12 trials have the same target_val/mAP."


def test_a_surface_is_drawn_only_between_enough_points():
    few, many = (factor_pictures.contours(facts_of(grid(number))) for number in (19, 20))
    assert "No surface is drawn: fewer than 20" in few.caption and "No surface" not in many.caption
    assert few.svg.count(FILL) == 0 < many.svg.count(FILL)
    line = [row(n, 0.3 + 0.01 * n, attr=0.1 * 1.1**n, mdal=0.1 * 1.1**n) for n in range(25)]
    assert factor_pictures.contours(facts_of(line)).svg.count(FILL) == 0, "points on a line have nothing between them"


def test_trials_without_a_result_are_shown_and_left_out():
    figure = search_pictures.trials(facts_of([*grid(5), row(5, None)]))
    assert "n = 5 trials with a result" in figure.caption and figure.data.rows[-1] == ["search/0005", "diverged", "–"]
    assert search_pictures.trials(facts_of([row(0, None)])) == Absent(
        "The trials against the seed noise", "No trial of the search has a result."
    )


def test_a_long_search_is_drawn_evenly():
    figure = search_pictures.parallel(facts_of(grid(250)))
    assert "Drawn are 84 of them, evenly by rank." in figure.caption and figure.data.rows[0][0] == "search/0249"


def test_what_is_written_in_a_picture_is_escaped():
    with drawing.canvas(2, key="x") as (figure, axes):
        axes[0][0].set_title("a <b> & $\\alpha$")
        svg = drawing.to_svg(figure, key="x", alt='say "<no>"')
    assert "a &lt;b&gt; &amp; $\\alpha$" in svg and 'aria-label="say &quot;&lt;no&gt;&quot;"' in svg


def test_numbers_and_titles():
    assert [drawing.plain(value) for value in (0.01, 10.0, 1e-6, 0)] == ["0.01", "10", "1e-06", "0"]
    assert broken("short") == "short" and broken("a setting − the paper's defaults").count("\n") == 1
    assert scale_of("target/mAP").text(0.4567) == "45.7" and scale_of("label_free/score").text(1.234) == "1.23"
    assert scale_of("train/loss_identity").unit == ""
