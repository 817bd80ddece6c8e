"""The page: which part stands where, and how it is written out."""

from __future__ import annotations

import datetime
import importlib.resources
import statistics
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import jinja2

from studies import library
from studies.plan import CONFIRM
from tune import advice, comparison, search, summary, words
from tune.report import blocks, curve_pictures, embedded, factor_pictures, run_pictures, search_pictures, term_pictures
from tune.report.blocks import Absent, Block, Lines, Section, Table
from tune.report.facts import Facts, scale_of
from tune.wording import duration, percent, points, short, symbol

NO_PICTURES = "None are on record: they compare two trainings, and are drawn when the study ends."
"""Where nothing is known of why."""
MANY = 2
"""Judgements beyond which the table stands before the text."""
MAX_ROWS = 300
"""Rows of a table beyond which the page shows no more; ``study.parquet`` has them all."""


def render(facts: Facts, *, pictures: Path | None = None) -> str:
    """Return the page; equal facts and pictures give equal text.

    Args:
        facts: What there is to tell.
        pictures: Folder of pictures that were made elsewhere, with its ``pictures.json``.

    Raises:
        DataError: pictures that cannot be embedded.
    """
    sections = [section for section in _sections(facts, pictures) if section.blocks]
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    source = importlib.resources.files("tune.report").joinpath("page.html").read_text(encoding="utf-8")
    page = environment.from_string(source).render(
        facts=facts,
        sections=sections,
        kind=blocks.kind,
        max_rows=MAX_ROWS,
        question=facts.plan.study.question,
        subtitle=_subtitle(facts),
        states=[line for line in (_state(facts), _oracle(facts)) if line],
        words=_words(facts),
    )
    return page.rstrip() + "\n"


def _sections(facts: Facts, pictures: Path | None) -> list[Section]:
    embedded_pictures: Sequence[Block] = [] if pictures is None else embedded.read(pictures)
    if not embedded_pictures:
        embedded_pictures = [Absent("Pictures of the method", facts.no_pictures or NO_PICTURES)]
    return [
        Section(key="answer", title="The answer", blocks=_answer(facts)),
        Section(key="results", title="Results", blocks=_results(facts)),
        Section(key="search", title="The search", blocks=_search(facts)),
        Section(
            key="curves",
            title="How they learnt",
            blocks=[
                curve_pictures.cmc(facts),
                curve_pictures.learning(facts),
                term_pictures.losses(facts),
            ],
        ),
        Section(
            key="alignment",
            title="Did the alignment act?",
            blocks=[term_pictures.liveness(facts), term_pictures.shares(facts)],
        ),
        Section(key="method", title="Pictures of the method", blocks=embedded_pictures),
        Section(key="selection", title="What the choice is worth", blocks=_selection(facts)),
        Section(key="trainings", title="All trainings", blocks=_trainings(facts)),
        Section(key="reproduce", title="How to do it again", blocks=_reproduce(facts)),
    ]


def _subtitle(facts: Facts) -> str:
    pairs = list(dict.fromkeys(arm.pair for arm in facts.plan.arms))
    pair = pairs[0].replace(" to ", " → ") if len(pairs) == 1 else f"{len(pairs)} pairs of datasets"
    return f"{facts.study_id}: {pair}, profile {facts.plan.profile}"


def _state(facts: Facts) -> str:
    """Return a sentence where the study is not over."""
    if facts.closed:
        return ""
    over = len(facts.trainings) - facts.left
    why = "it was not judged and recorded in full" if facts.left == 0 else f"{facts.left} that are known are not"
    return (
        f"This study is not finished: {over} trainings are over, {why}. What stands here is what there is so far; "
        "nothing in it is a result. The command of the study goes on from there."
    )


def _oracle(facts: Facts) -> str:
    """Return the caveat of a study that chose by the labels by which it is judged."""
    return f"{words.LABELS['oracle']}." if facts.plan.labels == "oracle" else ""


def _words(facts: Facts) -> list[tuple[str, str]]:
    """Return the words of the verdict, each with what it is about, how sure and of how many runs."""
    judged = [] if facts.verdict is None else facts.verdict["judgements"]
    return [
        (
            one["word"],
            f"{words.title(facts.plan, one['candidate'])}{words.setting(facts.plan, one)} against "
            f"{words.title(facts.plan, one['baseline'])}, "
            f"{points(contrast['delta'])} points of target mAP ({run_pictures.interval(contrast)}, "
            f"n = {contrast['n_candidate']} and {contrast['n_other']})",
        )
        for one in judged
        for contrast in [one["contrast"]]
    ]


def _answer(facts: Facts) -> list[Block]:
    if not facts.closed:
        return [Absent("Verdict", "The study is not finished, so nothing is judged yet.")]
    if facts.verdict_lost:
        return [Absent("Verdict", run_pictures.LOST)]
    said = summary.sentences(summary.Report(facts.plan, facts.outcome, facts.verdict, {}, facts.readings))
    found: list[Block] = [run_pictures.forest(facts)]
    if facts.verdict is not None:
        found.insert(0, blocks.of_rich(summary.verdict_table(facts.plan, facts.verdict)))
    many = facts.verdict is not None and len(facts.verdict["judgements"]) > MANY
    text: list[Block] = [Lines(said)]
    return [
        *(found + text if many else text + found),
        *([Lines([facts.promotion])] if facts.promotion else []),
    ]


def _results(facts: Facts) -> list[Block]:
    plan, outcome = facts.plan, facts.outcome
    found: list[Block] = []
    if plan.study.is_comparison or any(row.value is not None for row in outcome.rows):
        title = "Means ± standard deviation over n runs; one run has no ±"
        found.append(blocks.of_rich(summary.table(plan, outcome), title=title))
    else:
        found.append(Absent("Results", "No training has a result."))
    found.append(_noise(facts))
    if plan.study.is_comparison and plan.study.reported:
        head, *lines = comparison.curves(plan, outcome)
        rows = [line.strip().rsplit(": ", 1) for line in lines]
        found.append(Table(headers=["arm", "rank-1 / 5 / 10 / mAP"], rows=rows, title=f"Ours and published. {head}"))
    else:
        found.append(_published(facts))
    return [*found, run_pictures.runs(facts), run_pictures.paired(facts)]


def _noise(facts: Facts) -> Block:
    """Return the seed noise in words."""
    title, outcome = "Seed noise", facts.outcome
    if facts.plan.study.is_comparison:
        return Lines(["The seed noise is the ± of each arm: its standard deviation over its own runs."])
    scale, noise = scale_of(outcome.metric), search_pictures.noise_of(outcome)
    if noise is None:
        return Absent(title, "The baseline has no result.")
    if noise.sd is None:
        return Absent(title, f"The baseline ran with one seed ({scale.text(noise.mean)}{scale.unit} {outcome.metric}).")
    values = ", ".join(scale.text(value) for value in outcome.noise)
    return Lines(
        [
            f"Seed noise: the baseline's {outcome.metric} over n = {noise.n} seeds is {scale.text(noise.mean)} ± "
            f"{scale.text(noise.sd)}{scale.unit} ({values}). This band goes through the pictures below."
        ]
    )


def _published(facts: Facts) -> Block:
    """Return what the study file reports, else what the paper does for MMFA: of this pair, or of its own ones."""
    reported, title, note = facts.plan.study.reported, "Published", ""
    if not reported:
        every = library.load("paper").reported
        own = {pair: every[pair] for pair in dict.fromkeys(arm.pair for arm in facts.plan.arms) if pair in every}
        reported = {pair: {"MMFA": rows["mmfa"]} for pair, rows in (own or every).items()}
        title = "Published for MMFA: Tables 1 and 2 of the paper"
        note = "" if own else "These are of other data, and not to be compared with numbers of this pair."
    rows = [
        [pair.replace(" to ", " → "), name, *(f"{known[key]:.1f}" if key in known else "–" for key in comparison.CURVE)]
        for pair, found in reported.items()
        for name, values in found.items()
        for known in [{str(key): value for key, value in values.items()}]
    ]
    return Table(headers=["pair", "method", *(f"{name} %" for name in comparison.CURVE)], rows=rows, title=title,
                 note=note, numeric=[False, False, *[True] * len(comparison.CURVE)])  # fmt: skip


def _search(facts: Facts) -> list[Block]:
    if facts.plan.study.is_comparison:
        return [Absent("Search", f"{search_pictures.NOTHING_SEARCHED} So there is no isolation, importance, contour or "
                       "parallel plot of factors, and no edge of a range to warn of.")]  # fmt: skip
    return [
        search_pictures.trials(facts),
        search_pictures.isolation(facts),
        factor_pictures.importance(facts),
        factor_pictures.contours(facts),
        search_pictures.parallel(facts),
        _boundaries(facts),
    ]


def _boundaries(facts: Facts) -> Block:
    """Return a warning for each range at whose edge the best trial lies, or why there is none."""
    best = facts.outcome.best
    if found := advice.boundaries(facts.plan, best):
        return Lines([f"Boundary: {line}" for line in found])
    if best is None:
        return Absent("Boundary warnings", "No trial may be chosen.")
    if best.name.endswith("/0000"):
        return Lines(["Boundary: the best trial is the baseline, whose place in the ranges is no finding."])
    inside = [symbol(name) for name in facts.plan.study.space if isinstance(best.params.get(name), float)]
    return Lines([f"Boundary: none; the best trial lies inside the ranges of {', '.join(inside) or 'all factors'}."])


def _selection(facts: Facts) -> list[Block]:
    found: list[Block] = []
    if facts.plan.study.is_comparison:
        found.append(Absent("Selection regret", "Nothing was selected."))
    elif facts.regret:
        found.append(blocks.of_rich(summary.regret_table(facts.regret)))
    elif not facts.plan.labelled:
        found.append(Absent("Selection regret", "The target has no labels, so no choice can be held against the best."))
    else:
        found.append(Absent("Selection regret", "It is computed when the study ends, and is not on record."))
    found.append(curve_pictures.fidelity(facts))
    vetoes = [f"{name} was vetoed: {'; '.join(why)}." for name, why in facts.outcome.vetoed.items()]
    if not facts.plan.study.is_comparison:
        found.append(Lines(vetoes or ["Vetoes: none; every trial with a result passed the guards."]))
    return [*found, _readings(facts)]


def _readings(facts: Facts) -> Block:
    title = "Readings of the official test labels"
    if not facts.readings:
        return Absent(title, "The count is written when the study ends, and is not on record.")
    rows = [[why, str(number)] for why, number in facts.readings["why"].items()]
    total = facts.readings["total"]
    if facts.replays:
        rows.append(["replays of criteria since (replays.jsonl)", str(facts.replays)])
        total += facts.replays
    return Table(headers=["why", "times"], rows=rows, title=f"{title}: {total}")


def _trainings(facts: Facts) -> list[Block]:
    plan, metric = facts.plan, facts.outcome.metric
    scale = scale_of(metric)
    fields = list(plan.study.space) or [name for name in plan.shown if name != "run.seed"]
    official = ["target/mAP", "target/rank1"] if plan.labelled and metric != "target/mAP" else ["target/rank1"]
    official = official if plan.labelled else []
    headers = ["training", "role", "state", "seed", *map(symbol, fields), f"{metric}{scale.unit}"]
    headers += [f"{name} %" for name in official] + ["epochs", "seconds"]
    rows = [
        [
            one.name,
            one.role,
            one.state + (", vetoed" if one.name in facts.outcome.vetoed else ""),
            str(one.seed),
            *(short(one.config[name]) for name in fields),
            scale.text(one.value),
            *(percent(one.final.get(name)) for name in official),
            str(len(one.record.epochs)),
            "–" if one.record.seconds is None else f"{one.record.seconds:.1f}",
        ]
        for one in facts.trainings
    ]
    numeric = [False, False, False, *[True] * (len(headers) - 3)]
    ended = [one for one in facts.trainings if one.reason and one.state in ("diverged", "pruned", "lost")]
    told = [f"{one.name}, {one.state}: {one.reason}." for one in ended[:MAX_ROWS]]
    table = Table(headers=headers, rows=rows, numeric=numeric, title=_counts(facts), folded=True)
    waiting = f"; {facts.left} are not over" if facts.left else ""
    return [table, Lines(told or [f"No training was pruned, diverged or was lost{waiting}."])]


def _counts(facts: Facts) -> str:
    """Return how many trainings of which stage ended how."""
    own = "of the arms" if facts.plan.study.is_comparison else "of the search"
    titles = {search.CONTROLS: "controls", CONFIRM: "confirmations"}
    stages = Counter(titles.get(one.stage, own) for one in facts.trainings)
    states = Counter(one.state for one in facts.trainings)
    parts = [f"{number} {name}" for name, number in stages.items()]
    return f"{len(facts.trainings)} trainings ({', '.join(parts)}): " + ", ".join(
        f"{number} {state}" for state, number in states.items()
    )


def _reproduce(facts: Facts) -> list[Block]:
    seconds = [one.record.seconds for one in facts.trainings if one.record.seconds is not None]
    rows = [
        ["command", facts.command or "not on record"],
        ["code", ", ".join(facts.commits) or "not on record"],
        ["hardware", facts.hardware or "not on record"],
        ["versions", ", ".join(f"{name} {version}" for name, version in facts.versions.items()) or "not on record"],
        ["data", ", ".join(f"{name} {value}" for name, value in facts.fingerprints.items()) or "not on record"],
        ["baseline", f"config {facts.plan.baseline.fingerprint()}, seed {facts.plan.baseline.run.seed}"],
        ["time", _time(seconds)],
        ["protocol", ", ".join(f"{key} = {value}" for key, value in facts.plan.study.protocol.model_dump().items())],
        ["objective", f"{facts.outcome.metric} (selection.labels = {facts.plan.labels})"],
    ]
    rows += [["amended", f"{one['what']}: {one['from']} → {one['to']}, {_day(one['at'])}"] for one in facts.amendments]
    if (retried := [one.name for one in facts.trainings if one.attempts > 1]) != []:
        rows.append(["taken up again", f"{', '.join(retried)}: interrupted, and continued from the last checkpoint"])
    numeric = [False, False]
    found: list[Block] = [Table(headers=["what", "value"], rows=rows, numeric=numeric)]
    return [*found, *([Lines(list(facts.unknown))] if facts.unknown else [])]


def _day(at: float) -> str:
    return datetime.datetime.fromtimestamp(at, tz=datetime.UTC).date().isoformat()


def _time(seconds: Sequence[float]) -> str:
    if not seconds:
        return "not on record"
    spread = f", sd {statistics.stdev(seconds):.1f} s" if len(seconds) > 1 else ""
    mean = f"{statistics.fmean(seconds):.1f} s a training (n = {len(seconds)}{spread})"
    return f"{mean}, {duration(sum(seconds))} together; several ran at once where there were workers"
