"""A verdict in plain words: what was asked, found, how sure it is, which labels were used, what to do next."""

from __future__ import annotations

import ast
import shlex
from collections.abc import Mapping
from typing import Any

from studies.plan import CONFIRM, Plan
from tune import confirm
from tune.outcomes import Outcome
from tune.power import looks_factor
from tune.wording import percent, points, short, symbol

VERBS = {"BEATS": "beats", "WORSE": "is worse than", "UNDETERMINED": "is not told apart from"}
LABELS = {
    "target_val": "labels of held-out target identities chose (selection.labels = target_val)",
    "oracle": "THE OFFICIAL TEST LABELS CHOSE (selection.labels = oracle): no number here holds for new data",
    "none": "no label of the target chose (selection.labels = none)",
}


def sentences(
    plan: Plan, outcome: Outcome, record: Mapping[str, Any] | None, *, readings: Mapping[str, Any] | None = None
) -> list[str]:
    """Return the verdict of a study, or why there is none, as paragraphs that begin with what they tell.

    Args:
        plan: What was asked.
        outcome: What came out.
        record: That of ``verdict.json``, where there is one.
        readings: How often the official test labels were read, where it is on record and the verdict does not tell.
    """
    lines = [f"Asked: {plan.study.question}"]
    if record is None:
        lines += [f"Found: {_unjudged(plan, outcome)}"]
    else:
        lines += [f"Found: {_found(plan, one)}" for one in record["judgements"]]
        lines += [f"How sure: {line}" for line in _how_sure(record)]
    lines += [f"Labels: {_labels(plan, record, readings)}", f"Next: {_next(plan, record)}"]
    return lines


def reproducing(plan: Plan, typed: str) -> str:
    """Return the command that asks for the study as it is: an earlier call may have asked for more than the last one.

    Args:
        plan: With the numbers of trials and of fresh seeds that the ledger has.
        typed: The last call, of the command or of :func:`tune.run`.
    """
    numbers = {"trials": (plan.trials, plan.study.trials)}
    if plan.judges:
        numbers["confirm_seeds"] = (plan.confirm_seeds, plan.study.protocol.confirm_seeds)
    if typed.startswith("tune.run("):
        return _call(typed, numbers, quick=plan.quick)
    words = [word for word in shlex.split(typed) if word != "--quick" or plan.quick]
    for name, (number, usual) in numbers.items():
        option = f"--{name.replace('_', '-')}"
        at = next((place for place, word in enumerate(words) if word.partition("=")[0] == option), None)
        if at is not None:
            words[at : at + (1 if "=" in words[at] else 2)] = [option, str(number)]
        elif number != usual:
            words += [option, str(number)]
    return shlex.join(words)


def _call(typed: str, numbers: Mapping[str, tuple[int, int]], *, quick: bool) -> str:
    call = ast.parse(typed, mode="eval").body
    assert isinstance(call, ast.Call)
    call.keywords = [one for one in call.keywords if one.arg != "quick" or quick]
    for name, (number, usual) in numbers.items():
        own = [one for one in call.keywords if one.arg == name]
        if own:
            own[0].value = ast.Constant(number)
        elif number != usual:
            call.keywords.append(ast.keyword(name, ast.Constant(number)))
    return ast.unparse(call)


def _unjudged(plan: Plan, outcome: Outcome) -> str:
    best = outcome.best
    searched = sum(row.value is not None for row in outcome.search)
    if best is None or best.value is None:
        return "no trial has a result."
    name = "the baseline itself" if best is outcome.baseline else best.name
    shown = short(best.value) if plan.metric == "label_free/score" else f"{percent(best.value)} %"
    head = f"the highest {plan.metric} of n = {searched} trials, {shown}, is {name}'s. Nothing is confirmed"
    if not plan.labelled:
        return f"{head}: the target has no labels, so no accuracy can be judged."
    if plan.quick:
        return f"{head} (--quick): every trial ran with one seed, and the highest of many is high by luck too."
    over = [row for row in outcome.rows if row.arm == CONFIRM]
    if gone := [name for name in dict.fromkeys(row.role for row in over) if not confirm.of_setting(outcome, name)]:
        return f"{head}: all fresh seeds of {', '.join(gone)} diverged."
    return f"{head}: no trial but the baseline passed the guards."


def setting(plan: Plan, one: Mapping[str, Any]) -> str:
    """Return what a judged setting differs in from the baseline, in brackets; "" where there is none to tell."""
    values = one["setting"]
    if values is None:
        return ""
    base = plan.baseline.flatten()
    shown = (f"{symbol(name)} = {_short(value)}" for name, value in values.items() if value != base[name])
    return f" ({', '.join(shown)})"


def _short(value: Any) -> str:
    return short(tuple(value)) if isinstance(value, list) else short(value)


def title(plan: Plan, name: str) -> str:
    """Return how a setting or an arm is called."""
    if name == "baseline":
        return "the baseline" if plan.deviations() else "the paper's defaults"
    if name == "champion":
        return "the standing champion"
    return next((arm.title or name for arm in plan.arms if arm.name == name), name)


def _found(plan: Plan, one: Mapping[str, Any]) -> str:
    contrast = one["contrast"]
    sds = [contrast["sd_candidate"], contrast["sd_other"]]
    spread = [f" ± {100 * sd:.1f}" if sd is not None else "" for sd in sds]
    line = (
        f"{one['word']}: {title(plan, one['candidate'])}{setting(plan, one)} {VERBS[one['word']]} "
        f"{title(plan, one['baseline'])}: {percent(contrast['mean_candidate'])}{spread[0]} % against "
        f"{percent(contrast['mean_other'])}{spread[1]} % target mAP over n = {contrast['n_candidate']} and "
        f"{contrast['n_other']} fresh seeds, {points(contrast['delta'])} points{_interval(contrast)}, adjusted "
        f"p = {one['p_adjusted']:.2g}."
    )
    if one["alignment"] is not None:
        line += (
            f" Of that, {points(one['alignment']['delta'])}{_interval(one['alignment'])} is alignment's (against the "
            f"same setting with λ2 = λ3 = 0 and target images in BatchNorm, n = {one['alignment']['n_other']}), and "
            f"{points(one['rest']['delta'])}{_interval(one['rest'])} the rest of the setting's."
        )
    elif one["against"] == "baseline":
        line += " Alignment's share is not known: the setting does not align, or its control has no result."
    if (search := one["search"]) is not None:
        unit = "" if search["metric"] == "label_free/score" else " %"
        score, confirmed = (
            f"{search[key]:.2f}" if not unit else percent(search[key]) for key in ("score", "confirmed")
        )
        line += (
            f" In the search it scored {score}{unit} {search['metric']} (n = 1), confirmed {confirmed}{unit} "
            f"(n = {search['confirmed_n']}): it {_shrinkage(search['shrinkage'], unit)}. By the official test "
            f"labels the best trial of the search lies {100 * search['oracle_gap']:.1f} points of target mAP above it "
            "(oracle gap, n = 1 each)."
        )
    return line


def _shrinkage(value: float, unit: str) -> str:
    """Return what became of a score: luck of the search shrinks, but by luck of the fresh seeds it may grow too."""
    size = f"{100 * abs(value):.1f} points" if unit else f"{abs(value):.2f}"
    return f"{'shrank' if value >= 0 else 'grew'} by {size}"


def _interval(contrast: Mapping[str, Any]) -> str:
    if contrast["interval"] is None:
        return ""
    low, high = contrast["interval"]
    return f" (95 %: {points(low)} to {points(high)})"


def _how_sure(record: Mapping[str, Any]) -> list[str]:
    lines = [one["reason"] for one in record["judgements"]] if len(record["judgements"]) < 3 else []
    for chance in record["power"]:
        if chance["power"] is not None:
            lines.append(
                f"a true difference of {100 * chance['effect']:g} points would have been found with a chance of "
                f"{100 * chance['power']:.0f} % at the seed noise seen (sd {100 * chance['sd']:.1f} points within "
                f"{chance['settings']} settings, n = {chance['runs']} runs; {chance['seeds']} seeds each, "
                f"{chance['challenges']} challenge{'s' * (chance['challenges'] > 1)})."
            )
    noise = record["seed_noise"]
    if noise["expected_max"] is not None and noise["metric"] != "label_free/score":
        lines.append(
            f"the baseline's {noise['metric']} varies with the seed by sd {100 * noise['sd']:.1f} points "
            f"(n = {noise['n']}); by that alone the highest of {noise['trials']} equal trials would look "
            f"{100 * noise['expected_max']:.1f} points better than their mean, which is why fresh seeds judge."
        )
    if record["looks"] > 1:
        lines.append(
            f"the seeds were judged at {record['looks']} sizes as they grew; for that p was multiplied by "
            f"{record['looks_factor']}."
        )
    if min(one["contrast"]["n_candidate"] for one in record["judgements"]) < 5:
        lines.append("fewer than 5 seeds of a setting are few, and make no champion.")
    return lines


def read_times(readings: Mapping[str, Any]) -> str:
    """Return how often the official test labels were read, and why."""
    why = "; ".join(f"{number} × {reason}" for reason, number in readings["why"].items())
    return f"{readings['total']} times: {why}"


def _labels(plan: Plan, record: Mapping[str, Any] | None, readings: Mapping[str, Any] | None) -> str:
    if plan.study.is_comparison:
        chose = "nothing was chosen (selection.labels = none)"
    else:
        chose = f"{LABELS[plan.labels]}, by {plan.metric}"
    if not plan.labelled:
        return f"{chose}; the target has none."
    if record is not None:
        return f"{chose}; the official test labels judged. They were read {read_times(record['readings'])}."
    counted = f" They were read {read_times(readings)}." if readings and readings["total"] else ""
    return f"{chose}; the official test labels judged nothing.{counted}"


def _next(plan: Plan, record: Mapping[str, Any] | None) -> str:
    if record is None:
        if not plan.labelled:
            return "label a few hundred target images to know what the choice is worth."
        return "run the same command without --quick: it goes on from here." if plan.quick else "widen the space."
    if plan.labels == "oracle":
        return "choose by target_val/mAP or label_free/score, and confirm that."
    judged = [one for one in record["judgements"] if one["against"] != "champion"]
    words = {one["word"] for one in judged}
    open_ones = [one for one in judged if one["word"] == "UNDETERMINED"]
    option = "--trials" if plan.study.is_comparison else "--confirm-seeds"
    needed = [one["seeds_needed"] for one in open_ones if one["seeds_needed"] is not None]
    more = ""
    if needed:
        least = [one["seeds_for_delta_min"] for one in open_ones if one["seeds_for_delta_min"]]
        small = f", and {max(least)} to tell the smallest difference that matters" if least else ""
        factor = looks_factor(record["looks"] + 1)
        more = (
            f"to settle a difference as large as the one seen takes about {max(needed)} seeds of each setting "
            f"({option} {max(needed)}; p is then multiplied by {factor}){small}. Until then treat what is UNDETERMINED "
            "as equal."
        )
    if words == {"UNDETERMINED"}:
        return more or "treat the settings as equal."
    if "BEATS" in words:
        won = [
            one["candidate"]
            for one in record["judgements"]
            if one["word"] == "BEATS"
            and one["alignment"] is not None
            and (one["alignment"]["interval"] is None or one["alignment"]["interval"][0] <= 0)
        ]
        credit = " Do not credit alignment: its own share of the gain is not told from 0." if won else ""
        stays = [one for one in record["judgements"] if one["against"] == "champion" and one["word"] != "BEATS"]
        rule = " It does not beat the standing champion, which stays." if stays else ""
        use = f"use the setting that BEATS, and report these means with n, sd and the interval.{rule}{credit}"
        return f"{use} Of the others: {more}" if more else use
    if plan.study.is_comparison:
        return "report these means with n, sd and the interval."
    return f"keep the defaults, or search on: --trials {2 * plan.trials}."
