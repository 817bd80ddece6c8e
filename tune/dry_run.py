"""What ``--dry-run`` prints: the resolved plan and what it will cost."""

from __future__ import annotations

from mmfa.config import profile
from studies.plan import CONTROLS, Plan
from studies.spec import Choices
from tune.places import Places, safe_url
from tune.provenance import num_cores


def text(plan: Plan, where: Places, *, cpus_per_trial: int) -> str:
    """Return the plan as text: trials, space, baseline, differences from the paper, places, cost."""
    data = plan.baseline.data
    lines = [
        f"{plan.study.name}: {plan.study.question}",
        f"  {data.source} → {data.target}, profile {plan.profile}, seed {plan.baseline.run.seed}",
        f"  {plan.trials} trials (the paper's defaults first) and {len(CONTROLS)} controls ({', '.join(CONTROLS)}),",
        f"  chosen by {plan.study.objective.metric} (held-out target identities), Optuna TPE after "
        f"{plan.study.start_up} quasi-random points",
        "",
        "space (baseline):",
    ]
    baseline = plan.baseline_params()
    for name, dimension in plan.study.space.items():
        if isinstance(dimension, Choices):
            spread = " | ".join(map(str, dimension.labels()))
        else:
            spread = f"{dimension.low} … {dimension.high}{', logarithmic' if dimension.log else ''}"
        lines.append(f"  {name} in {spread} ({baseline[name]})")
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


def _cost(plan: Plan, cpus_per_trial: int) -> str:
    """Estimate the time from the study's own measurement."""
    measured = plan.study.measured
    if measured is None or measured.profile != plan.profile:
        return f"cost: not measured for the profile {plan.profile}."
    workers = max(1, num_cores() // cpus_per_trial)
    epochs = profile(plan.profile).with_overrides(plan.study.fixed).optim.num_epochs
    seconds = measured.trial_seconds * plan.baseline.optim.num_epochs / epochs
    minutes = seconds * (plan.trials + len(CONTROLS)) / workers / 60
    return (
        f"cost: about {minutes:.0f} min on {workers} workers here, from {measured.trial_seconds:g} s per trial "
        f"measured on {measured.cores} core ({measured.hardware}, {measured.date})."
    )
