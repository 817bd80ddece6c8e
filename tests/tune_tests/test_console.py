"""What the live table shows on terminals of different widths."""

import io

import pytest

from studies import library
from studies.resolve import resolve
from tune.console import Console, _Trial

METRICS = {
    "train/loss_total": 4.922, "train/loss_identity": 3.867, "train/loss_attribute": 0.358, "train/loss_aal": 0.012,
    "train/loss_mdal": 0.021, "target_val/mAP": 0.3617, "mmd/kernel_liveness": 0.58,
}  # fmt: skip


def shown(study, names, *, width):
    plan = resolve(library.load(study), profile_name="embedded", overrides={})
    console = Console(plan, width=width)
    console.rich.file = io.StringIO()
    for name in names:
        values = ["0.077" for _ in plan.shown]
        console._trials[name] = _Trial(name, values, 12, epoch=12, metrics=METRICS, seconds=1.0)
    console.rich.print(console._table())
    return console.rich.file.getvalue()


@pytest.mark.parametrize("study", ["lambdas", "joint"])
@pytest.mark.parametrize("width", [80, 100, 112, 130, 200])
@pytest.mark.parametrize("names", [["search/0001"], ["controls/source_only-s0"], ["confirm/search-0003-matched-s1000"]])
def test_no_figure_is_cut_short(names, width, study):
    text = shown(study, names, width=width)
    for whole in (names[0].rpartition("/")[2], "12/12", "4.922", "36.2 %", "0.58", "running"):
        assert whole in text
    assert "…" not in text


def test_the_terms_stand_where_there_is_room():
    assert "3.867" in shown("lambdas", ["search/0001"], width=120)
    assert "3.867" not in shown("lambdas", ["search/0001"], width=80)
