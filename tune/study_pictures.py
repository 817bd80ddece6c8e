"""Which two models of a study its pictures compare, and where they are kept."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mmfa.data.store import open_store
from tune import confirm, pictures
from tune.job import EXPORT
from tune.outcomes import Outcome, Row
from tune.picture_facts import MADE_OF, Model, Picture
from tune.session import Session


def draw(
    session: Session, found: Outcome, folder: Path, *, verdict: Mapping[str, Any] | None = None
) -> list[Picture]:  # fmt: skip
    """Draw the pictures of a finished study, or find them drawn; see :func:`count` for the reading of test labels.

    Between the first fresh seed of the baseline and that of the setting that BEATS it (else of the first on the
    shortlist that has a result); without confirmations, the baseline and the best other trial; in a comparison, the
    first two arms that it judges. t-SNE's left side is the same setting and seed without alignment (λ2 = λ3 = 0), or
    else a control without alignment.

    Args:
        session: of the study.
        found: what it found.
        folder: appears complete or not at all; what was there is replaced, or goes where nothing is to be compared.
        verdict: the record of ``verdict.json``.

    Returns:
        what is in it; nothing where no two models are to be compared.

    Raises:
        MmfaError: an export that is missing or damaged, or one that embeds nan.
        OSError: the folder cannot be written.
    """
    pair = _pair(session, found, verdict)
    if pair is None:
        shutil.rmtree(folder, ignore_errors=True)
        return []
    before, after = pair
    unaligned, differing = _unaligned(found, after)
    made_of = {"version": pictures.VERSION, "runs": [row.name for row in (before, after, *unaligned)]}
    if (known := _known(folder, made_of)) is not None:
        return known

    def model(row: Row) -> Model:
        title = confirm.BASELINE if row.name == session.plan.baseline_run else _title(row)
        return Model(title=title, export=session.folder_of(row.name) / EXPORT)

    data = session.plan.baseline.data
    source, target = (open_store(session.stores.paths[name]) for name in (data.source, data.target))
    temporary = folder.with_name(f".{folder.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    drawn = pictures.draw(
        model(before),
        model(after),
        source=source,
        target=target,
        folder=temporary,
        unaligned=model(unaligned[0]) if unaligned else None,
        differing=differing,
    )
    (temporary / MADE_OF).write_text(json.dumps(made_of))
    shutil.rmtree(folder, ignore_errors=True)
    temporary.rename(folder)
    return drawn


def count(session: Session, found: Outcome) -> None:
    """Count the reading of the official test labels that the pictures take, before the verdict says how many it was."""
    if session.plan.labelled and _pair(session, found) is not None:
        session.count_reading(pictures.READING)


def _unaligned(found: Outcome, after: Row) -> tuple[list[Row], str]:
    """Return the same setting and seed without alignment, where it was confirmed beside it, else a control; and in a
    sentence what it differs in from the run after."""
    setting, dash, seed = after.name.rpartition("-s")
    matched = [row for row in found.rows if row.name == f"{setting}{confirm.MATCHED}{dash}{seed}"]
    if matched := [row for row in matched if row.value is not None]:
        return matched, "Both have the same setting and seed but for alignment: left λ2 = λ3 = 0."
    for role, more in (("target_bn", ""), ("source_only", ", and no target image in BatchNorm")):
        if control := found.control(role)[:1]:
            said = f"Left: the baseline's setting with λ2 = λ3 = 0{more}. Whatever else tells the settings apart, and "
            return control, f"{said}the seed, is in the difference too: not all of it is alignment's."
    return [], ""


def _pair(session: Session, found: Outcome, verdict: Mapping[str, Any] | None = None) -> tuple[Row, Row] | None:
    """Return the runs before and after; None where there are no two."""
    plan = session.plan
    if plan.study.is_comparison:
        of_pair = {arm.row: arm.name for arm in plan.arms if arm.pair == plan.arms[0].pair}
        for one, other in plan.study.protocol.judge:
            return _firsts(found.of_arm(of_pair[other]), found.of_arm(of_pair[one]))
        return None
    settled = confirm.read(session.registry)
    if settled is not None and settled.candidates:
        shown = _shown(found, settled.candidates, verdict)
        return _firsts(confirm.of_setting(found, confirm.BASELINE), confirm.of_setting(found, shown))
    allowed = [row for row in found.search if row.value is not None and row.name not in found.vetoed]
    others = sorted((row for row in allowed if row is not found.baseline), key=lambda row: row.value or 0)
    return _firsts(found.control(confirm.BASELINE), others[-1:])


def _shown(found: Outcome, candidates: Sequence[str], verdict: Mapping[str, Any] | None) -> str:
    """Return the candidate that BEATS the baseline by most, else the first that has a result."""
    judged = [] if verdict is None else verdict["judgements"]
    won = [one for one in judged if one["against"] == confirm.BASELINE and one["word"] == "BEATS"]
    if won:
        return str(max(won, key=lambda one: one["contrast"]["delta"])["candidate"])
    return next((name for name in candidates if confirm.of_setting(found, name)), candidates[0])


def _firsts(before: Sequence[Row], after: Sequence[Row]) -> tuple[Row, Row] | None:
    if not before or not after:
        return None
    first, second = (min(rows, key=lambda row: row.name) for rows in (before, after))
    return first, second


def _title(row: Row) -> str:
    """Return a run in a few words: ``baseline, seed 1000``."""
    name = row.name.partition("/")[2]
    setting, dash, seed = name.rpartition("-s")
    if dash and seed.isdigit():
        return f"{setting.replace('_', ' ')}, seed {seed}"
    return row.role.replace("_", " ") if row.role else row.name


def _known(folder: Path, made_of: dict[str, object]) -> list[Picture] | None:
    """Return what was drawn before of the same trainings, where all of it is there."""
    try:
        if json.loads((folder / MADE_OF).read_text()) != made_of:
            return None
        known = [Picture(**entry) for entry in json.loads((folder / pictures.INDEX).read_text())]
    except (OSError, ValueError, TypeError):
        return None
    return known if all((folder / picture.file).is_file() for picture in known) else None
