"""What ``--dry-run`` prints: the resolved plan and what it will cost."""

from __future__ import annotations

from mmfa.config import profile
from studies import library
from studies.plan import Arm, Plan
from studies.spec import CONTROLS, Choices
from tune.places import Places, safe_url
from tune.provenance import num_cores
from tune.wording import duration

REFERENCE = "lambdas"
"""The shipped study whose cost stands in for a study that was never measured."""


def text(plan: Plan, where: Places, *, cpus_per_trial: int) -> str:
    """Return the plan as text: trials, space, baseline, differences from the paper, places, cost."""
    pairs = dict.fromkeys(arm.pair.replace(" to ", " → ") for arm in plan.arms)
    lines = [
        f"{plan.study.name}: {plan.study.question}",
        f"  {', '.join(pairs)}, profile {plan.profile}, seed {plan.baseline.run.seed}",
        *(_comparison(plan) if plan.study.is_comparison else _search(plan)),
    ]
    differences = plan.differences()
    lines += ["", f"fields in which this differs from the paper ({len(differences)}):"]
    lines += [f"  {name} = {here!r} (paper: {paper!r})" for name, (paper, here) in differences.items()]
    lines += [
        "",
        f"ledger    {safe_url(where.ledger)}",
        f"MLflow    {safe_url(where.tracking)}",
        f"storage   {where.storage}",
    ]
    lines += [f"cache     {where.cache_dir}", "", _cost(plan, cpus_per_trial), "Nothing was touched."]
    return "\n".join(lines) + "\n"


def _search(plan: Plan) -> list[str]:
    each = f" in each of {len(plan.arms)} arms" if len(plan.arms) > 1 else ""
    number = len(plan.control_seeds)
    seeds = f"{number} seed{'s' * (number > 1)}"
    chosen = {"target_val": "held-out target identities", "none": "no target labels", "oracle": "THE TEST LABELS"}
    sampler = "Gaussian process" if plan.study.suits_gaussian_process else "TPE"
    lines = [
        f"  the baseline and {len(CONTROLS)} controls ({', '.join(CONTROLS)}) with {seeds} each,",
        f"  {plan.trials} trials{each} (the baseline first), chosen by {plan.metric} ({chosen[plan.labels]}),",
        f"  Optuna's {sampler} after {plan.study.start_up} quasi-random points,",
        *_protocol(plan),
    ]
    if len(plan.arms) > 1:
        lines += ["", "arms:", *(_arm(plan, arm) for arm in plan.arms)]
    lines += ["", "space (baseline):"]
    baseline = plan.baseline_params()
    for name, dimension in plan.study.space.items():
        if isinstance(dimension, Choices):
            spread = " | ".join(map(str, dimension.labels()))
        else:
            spread = f"{dimension.low} … {dimension.high}{', logarithmic' if dimension.log else ''}"
            spread += ", or 0" if dimension.zero else ""
        where = " and ".join(f"{other} = {label}" for other, label in dimension.when.items())
        lines.append(f"  {name} in {spread} ({baseline.get(name, '–')}){f', where {where}' if where else ''}")
    return lines


def _protocol(plan: Plan) -> list[str]:
    """Return how the study comes to its verdict."""
    if not plan.judges:
        why = "--quick" if plan.quick else "the target has no labels"
        return [f"  nothing is confirmed ({why})"]
    protocol = plan.study.protocol
    each = "the best of each arm" if plan.study.arms else f"the best {protocol.shortlist}"
    lines = [
        f"  then {each}, its control without alignment and the baseline on {plan.confirm_seeds} fresh seeds "
        f"({plan.fresh_seeds[0]} to {plan.fresh_seeds[-1]}): {plan.num_confirmations} trainings;",
        f"  judged on target/mAP: Welch's test, Holm over the candidates, smallest difference that matters "
        f"{protocol.delta_min:g} points",
    ]
    if plan.study.pruning is not None:
        lines.append(f"  trials may end early after {plan.study.pruning.grace_period} epochs (ASHA)")
    return lines


def _comparison(plan: Plan) -> list[str]:
    return [
        f"  a comparison of {len(plan.arms)} arms, {plan.num_trials} trainings; nothing is selected",
        *(f"  verdict: {candidate} against {other}" for candidate, other in plan.study.protocol.judge),
        "",
        "arms:",
        *(_arm(plan, arm) for arm in plan.arms),
    ]


def _arm(plan: Plan, arm: Arm) -> str:
    ours, base = arm.config.flatten(), plan.baseline.flatten()
    set_here = [f"{name} = {value}" for name, value in ours.items() if value != base[name]]
    points = plan.points(arm)
    seeds = f", seeds {points[0]['run.seed']} to {points[-1]['run.seed']}" if plan.study.is_comparison else ""
    return f"  {arm.name} × {plan.num_trials_of(arm)}{seeds}: {', '.join(set_here) or 'the baseline'}"


def _cost(plan: Plan, cpus_per_trial: int) -> str:
    """Estimate the time from the study's own measurement."""
    basis = plan.study if plan.study.measured is not None else library.load(REFERENCE)
    measured = basis.measured
    if measured is None or measured.profile != plan.profile:
        return f"cost: not measured for the profile {plan.profile}."
    workers = max(1, num_cores() // cpus_per_trial)
    epochs = profile(plan.profile).with_overrides(basis.fixed).optim.num_epochs
    seconds = measured.trial_seconds * plan.baseline.optim.num_epochs / epochs
    total = seconds * plan.num_trainings / workers
    return (
        f"cost: about {duration(total)} of training on {workers} workers here, from {measured.trial_seconds:g} s per "
        f"trial of {basis.name} measured on {measured.cores} core ({measured.hardware}, {measured.date})."
    )
