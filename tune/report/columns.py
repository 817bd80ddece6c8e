"""``study.parquet``: one row per training and epoch; docs/report.md describes it."""

from __future__ import annotations

import json
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet

from mmfa.config import TrialConfig, field_type
from tune.report.facts import Facts, Training

SCHEMA = 1
FRACTION, SECONDS, NUMBER, LOSS = "fraction", "seconds", "count", "loss, unweighted"
FIXED: list[tuple[str, pa.DataType, str, str]] = [
    ("study", pa.string(), "", "name of the study, which ends in its hash"),
    ("lineage", pa.string(), "", "name of the training"),
    ("stage", pa.string(), "", "controls, search, confirm, or the arm"),
    ("role", pa.string(), "", "baseline, candidate, source_only, target_bn, the setting that it confirms, or its arm"),
    ("state", pa.string(), "", "complete, pruned, diverged; in an unfinished study also lost, running, waiting"),
    ("reason", pa.string(), "", "why it was pruned, diverged or was lost"),
    ("vetoed", pa.bool_(), "", "whether a guard took it out of the choice"),
    ("seed", pa.int64(), "", "seed of the training"),
    ("attempts", pa.int64(), NUMBER, "how often it was taken up"),
    ("epoch", pa.int64(), NUMBER, "epochs that were over; 0 where none is on record"),
    ("last", pa.bool_(), "", "whether this is the training's last row: one for each training"),
    ("ended_at", pa.timestamp("ms", tz="UTC"), "UTC", "end of the epoch"),
    ("objective", pa.float64(), "", "what the study chose by, in the last row of a training that has a result"),
    ("seconds", pa.float64(), SECONDS, "the whole training with its evaluation, in its last row"),
]
"""Columns of every study: name, type, unit, meaning."""
UNITS = {
    "train/loss_": (LOSS, "mean over the epoch, before its weight λ"),
    "train/loss_total": ("loss, weighted", "mean over the epoch of eq. 7, the weighted sum"),
    "train/learning_rate": ("", "of the epoch's last step"),
    "train/images_per_second": ("images per second", "source and target images over the wall time of the steps"),
    "train/seconds": (SECONDS, "wall time of the epoch, evaluation included"),
    "mmd/median_d2": ("", "median squared distance between features of a batch"),
    "mmd/plateau": ("0 or 1", "1: the loss sits where a dead kernel leaves it"),
    "mmd/": ("", "of the epoch's last batch"),
    "grad_share/": ("ratio", "norm of the weighted term's gradient over that of the identity loss"),
    "target_val/": (FRACTION, "held-out target identities"),
    "source_val/": (FRACTION, "held-out source identities"),
    "target/": (FRACTION, "official target split, after the last epoch"),
    "target_": (FRACTION, "official target split, after the last epoch"),
    "label_free/": ("baseline's sd", "weighted sum of label-free criteria"),
    "pseudo/num_clusters": (NUMBER, "clusters of the target probe"),
    "pseudo/": (FRACTION, "clusters of the target probe"),
    "cluster/silhouette": ("-1 to 1", "clusters of the target probe"),
    "attributes/information": ("bits", "how much the predicted attributes tell of an image, per attribute"),
    "probe/effective_rank": ("dimensions", "of the target probe's embeddings"),
    "probe/finite": ("0 or 1", "whether all embeddings are finite"),
    "system/process_cpu_percentage": ("%", "of one core, over the epoch"),
    "system/process_memory_megabytes": ("MB", "of the worker, at the end of the epoch"),
    "system/gpu_process_memory_megabytes": ("MB", "the most that the worker had reserved in the epoch"),
    "system/gpu_": ("%", "of the GPU, by all that run on it"),
    "model/gem_p": ("", "exponent of GeM as learnt so far"),
}
"""Unit and meaning by the beginning of a metric's name; the longest that fits holds."""


@dataclass(frozen=True, slots=True)
class _Row:
    """One row: the training, and an epoch of it."""

    training: Training
    epoch: int
    ended_at: int | None
    measured: Mapping[str, float]
    last: bool


def write(facts: Facts, path: Path) -> None:
    """Write ``study.parquet``; equal facts give equal bytes."""
    pa.parquet.write_table(table(facts), path, compression="zstd", version="2.6")


def table(facts: Facts) -> pa.Table:
    """Return one row per training and epoch, with units and meanings in the fields' metadata.

    A metric that was measured after every epoch stands in every row, one that was measured after the last epoch in the
    last row alone. A training without an epoch on record has one row, of epoch 0.
    """
    rows = [row for training in facts.trainings for row in _rows(training)]
    fields: list[pa.Field] = []
    arrays: list[pa.Array] = []
    for name, kind, unit, meaning in FIXED:
        meaning += f": {facts.outcome.metric}" if name == "objective" else ""
        fields.append(_field(name, kind, unit, meaning))
        arrays.append(pa.array([_fixed(facts, row, name) for row in rows], kind))
    for name in TrialConfig().flatten():
        values = [_plain(row.training.config[name]) for row in rows]
        kind = _kind(field_type(name))
        fields.append(_field(name, kind, "", "config field, docs/config.md"))
        arrays.append(pa.array(values, kind))
    for name in sorted({name for row in rows for name in row.measured}):
        unit, meaning = _unit(name)
        fields.append(_field(name, pa.float64(), unit, meaning))
        arrays.append(pa.array([row.measured.get(name) for row in rows], pa.float64()))
    about = {"mmfa.schema": str(SCHEMA), "mmfa.study": facts.study_id, "mmfa.question": facts.plan.study.question}
    about |= {"mmfa.objective": facts.outcome.metric, "mmfa.selection.labels": facts.plan.labels}
    return pa.Table.from_arrays(arrays, schema=pa.schema(fields, metadata=about))


def _rows(training: Training) -> list[_Row]:
    epochs = training.record.epochs
    if not epochs:
        return [_Row(training, 0, None, training.final, True)]
    rows = [_Row(training, epoch.number, epoch.ended_at, epoch.metrics, False) for epoch in epochs[:-1]]
    final = epochs[-1]
    return [*rows, _Row(training, final.number, final.ended_at, {**final.metrics, **training.final}, True)]


def _fixed(facts: Facts, row: _Row, name: str) -> Any:
    one = row.training
    values = {
        "study": facts.study_id,
        "lineage": one.name,
        "reason": one.reason or None,
        "vetoed": one.name in facts.outcome.vetoed,
        "epoch": row.epoch,
        "last": row.last,
        "ended_at": row.ended_at,
        "objective": one.value if row.last else None,
        "seconds": one.record.seconds if row.last else None,
    }
    return values[name] if name in values else getattr(one, name)


def _plain(value: Any) -> Any:
    """Return a config value as a scalar; a list as JSON."""
    return json.dumps(list(value)) if isinstance(value, tuple | list) else value


def _kind(hint: Any) -> pa.DataType:
    """Return the type of a config field's column by its type hint, so that the columns of all studies go together."""
    if typing.get_origin(hint) is types.UnionType:
        hint = next(one for one in typing.get_args(hint) if one is not type(None))
    if typing.get_origin(hint) is Literal:
        hint = type(typing.get_args(hint)[0])
    return {bool: pa.bool_(), int: pa.int64(), float: pa.float64()}.get(hint, pa.string())


def _unit(name: str) -> tuple[str, str]:
    found = [start for start in UNITS if name.startswith(start)]
    return UNITS[max(found, key=len)] if found else ("", "")


def _field(name: str, kind: pa.DataType, unit: str, meaning: str) -> pa.Field:
    return pa.field(name, kind, metadata={"unit": unit, "meaning": meaning})
