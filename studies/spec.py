"""The schema of a study file: a question, what is fixed, what is searched."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal

import pydantic

from mmfa.config import PROFILES, TrialConfig, coerce, field_names, field_type
from mmfa.errors import ConfigError, did_you_mean
from studies.protocol import NO_PRUNING, Criteria, Objective, Protocol, Pruning, Strict

Scalar = bool | int | float | str
ON = ".on"
"""Behind a field's name: the choice between 0 and its range."""

CONTROLS: dict[str, dict[str, Any]] = {
    "source_only": {"loss.lambda_aal": 0.0, "loss.lambda_mdal": 0.0, "data.use_target": False},
    "target_bn": {"loss.lambda_aal": 0.0, "loss.lambda_mdal": 0.0},
}
"""Runs without alignment that every study is compared with; ``target_bn`` lets BatchNorm see target images."""


class Range(Strict):
    """Numbers between ``low`` and ``high``, both included; ``log`` spreads them evenly over orders of magnitude."""

    low: int | float
    high: int | float
    log: bool = False
    zero: bool = False
    """Whether 0, which a logarithmic range cannot reach, is a choice of its own: searched on or off, then how much."""
    when: dict[str, Scalar] = {}
    """Labels that other dimensions must have for this one to be searched; elsewhere it keeps the baseline's value."""

    @pydantic.model_validator(mode="after")
    def _ordered(self) -> Range:
        if not self.low < self.high:
            raise ValueError(f"`low < high` must hold, but got low={self.low}, high={self.high}")
        if self.log and self.low <= 0:
            raise ValueError(f"`log` needs low > 0, but got low={self.low}")
        if self.zero and self.low <= 0:
            raise ValueError(f"`zero` is for ranges that do not hold 0, but got low={self.low}")
        return self


class Choices(Strict):
    """A closed set: scalars, or labels that stand for values (``{paper = [1, 5, 10]}``)."""

    choices: dict[str, Any] | list[Scalar]
    when: dict[str, Scalar] = {}
    """As in :class:`Range`."""

    @pydantic.model_validator(mode="after")
    def _enough(self) -> Choices:
        if len(self.choices) < 2:
            raise ValueError(f"`choices` needs two or more, but got {self.choices}")
        return self

    def labels(self) -> list[Scalar]:
        """Return what the sampler draws from."""
        return list(self.choices)

    def value(self, label: Scalar) -> Any:
        """Return the config value that a label stands for."""
        return self.choices[str(label)] if isinstance(self.choices, dict) else label

    def label(self, value: Any) -> Scalar | None:
        """Return the label of a config value, or None where it is not among the choices."""
        if isinstance(value, tuple):
            value = list(value)
        return next((label for label in self.labels() if self.value(label) == value), None)


def _kind(value: Any) -> str:
    return "choices" if isinstance(value, Choices) or (isinstance(value, dict) and "choices" in value) else "range"


Dimension = Annotated[
    Annotated[Range, pydantic.Tag("range")] | Annotated[Choices, pydantic.Tag("choices")], pydantic.Discriminator(_kind)
]


class Measured(Strict):
    """What one trial of this study cost when it was last measured, for estimates."""

    trial_seconds: float = pydantic.Field(gt=0)
    profile: str
    cores: int = pydantic.Field(ge=1)
    hardware: str
    date: str


class ArmSpec(Strict):
    """One setting among those that a study compares."""

    title: str = ""
    set: dict[str, Any] = {}
    seed_offset: int = pydantic.Field(default=0, ge=0)
    """Added to the seeds of a comparison: two arms of one setting are two samples only with seeds of their own."""


Pair = Annotated[list[str], pydantic.Field(min_length=2, max_length=2)]
Percents = dict[Literal["mAP", "rank1", "rank5", "rank10"], float]


class Study(Strict):
    """One study file.

    With a ``space`` it is a search; without one it is a comparison: every arm is trained ``trials`` times, with as many
    seeds, and nothing is selected. A search may have arms too: each is then searched on its own, with equal budgets.
    """

    question: str = pydantic.Field(min_length=1)
    trials: int = pydantic.Field(ge=1)
    start_up: int = pydantic.Field(default=5, ge=0)
    objective: Objective = Objective()
    pairs: dict[str, list[Pair]] = {}
    """Source and target by profile, where it is more than one pair."""
    fixed: dict[str, Any] = {}
    arms: dict[str, ArmSpec] = {}
    space: dict[str, Dimension] = {}
    scientific: list[str] = []
    """The dimensions that the question is about; the others are nuisances, tuned for fairness. Empty: all of them."""
    controls: bool = True
    """Whether a comparison has the two controls as arms; a search always runs them."""
    criteria: Criteria = Criteria()
    protocol: Protocol = Protocol()
    pruning: Pruning | None = None
    reported: dict[str, dict[str, Percents]] = {}
    """Published numbers in percent: by pair (``"market1501 to dukemtmc-reid"``), then by arm or by name of a method."""
    measured: Measured | None = None

    name: str = ""
    origin: str = ""

    @property
    def is_comparison(self) -> bool:
        """Whether arms are compared over seeds and nothing is searched."""
        return not self.space

    @property
    def suits_gaussian_process(self) -> bool:
        """Whether all dimensions are numbers, whatever the others are, and trials run to their ends."""
        depends = (isinstance(dimension, Choices) or dimension.when for dimension in self.dimensions.values())
        return self.pruning is None and not any(depends)

    @property
    def dimensions(self) -> dict[str, Dimension]:
        """The space as it is searched: a range with ``zero`` is a choice between on and off, and then a range."""
        result: dict[str, Dimension] = {}
        for name, dimension in self.space.items():
            if isinstance(dimension, Range) and dimension.zero:
                result[f"{name}{ON}"] = Choices(choices=[True, False], when=dimension.when)
                when = {**dimension.when, f"{name}{ON}": True}
                dimension = dimension.model_copy(update={"when": when})
            result[name] = dimension
        return result


def parse(text: str, *, name: str, origin: str) -> Study:
    """Return the study written in ``text``.

    Args:
        text: TOML.
        name: The study's name.
        origin: Where it came from, for messages.

    Raises:
        ConfigError: not TOML, an unknown key (the nearest is named), or a value that does not hold.
    """
    try:
        raw = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{origin}: a study must be TOML, but: {error}.") from None
    for reserved in ("name", "origin"):
        if reserved in raw:
            raise ConfigError(f"{origin}: {reserved!r} is not a key of a study; a study is named by its file.")
    _check_quotes(raw, origin)
    if not raw.get("space") and not raw.get("arms") and not raw.get("pairs"):
        raise ConfigError(f"{origin}: a study needs a [space] to search, or [arms] or [pairs] to compare.")
    try:
        study = Study.model_validate({**raw, "name": name, "origin": origin})
    except pydantic.ValidationError as error:
        raise ConfigError(f"{origin}: {_sentence(error)}") from None
    _check_fields(study)
    return study


def _check_quotes(raw: dict[str, Any], origin: str) -> None:
    """TOML reads ``[space.loss.lambda_aal]`` as tables in tables: say how a dotted name is written."""
    sections = {name.partition(".")[0] for name in field_names()}
    for part in ("fixed", "space"):
        inner = raw.get(part)
        inner = inner if isinstance(inner, dict) else {}
        for section in sorted(sections & set(inner)):
            key = next(iter(inner[section]), "field") if isinstance(inner[section], dict) else "field"
            raise ConfigError(f'{origin}: [{part}] names of fields are quoted: write "{section}.{key}".')


def read(path: Path) -> Study:
    """Return the study in a file, named by the file's stem.

    Raises:
        ConfigError: a file that cannot be read, is not text, or does not hold a study.
    """
    if not re.fullmatch(r"[\w.+-]{1,64}", path.stem):
        raise ConfigError(
            f"{path}: a study is named by its file: letters, digits and . + - _ only, at most 64; rename it."
        )
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise ConfigError(f"{path}: a study must be TOML in UTF-8 text, but this file is not text.") from None
    except OSError as error:
        raise ConfigError(f"{path}: the study cannot be read: {error.strerror}.") from None
    return parse(text, name=path.stem, origin=str(path))


def _sentence(error: pydantic.ValidationError) -> str:
    """Turn pydantic's most telling finding into one sentence with its key: a misspelt key before a missing one."""
    first = min(error.errors(), key=lambda found: found["type"] != "extra_forbidden")
    where = [str(part) for part in first["loc"] if part not in ("range", "choices")]
    key = ".".join(where)
    if first["type"] == "extra_forbidden":
        return f"{key!r} is not a key of a study{did_you_mean(where[-1], _siblings(where))}"
    if first["type"] == "missing":
        return f"{key!r} is missing."
    message = first["msg"].removeprefix("Value error, ")
    return (
        f"[{key}] {message}." if first["type"] == "value_error" else f"[{key}] {message}, but got {first['input']!r}."
    )


def _siblings(where: list[str]) -> list[str]:
    """Return the keys that are known where an unknown one was met."""
    if len(where) == 1:
        return [key for key in Study.model_fields if key not in ("name", "origin")]
    tables: dict[str, type[Strict]] = {"objective": Objective, "measured": Measured, "arms": ArmSpec}
    tables |= {"criteria": Criteria, "protocol": Protocol, "pruning": Pruning}
    if (table := tables.get(where[0])) is not None:
        return list(table.model_fields)
    if where[0] == "reported":
        return ["mAP", "rank1", "rank5", "rank10"]
    return [*Range.model_fields, *Choices.model_fields]


def _check_fields(study: Study) -> None:
    """Check every name and value of [fixed], [arms] and [space] against the config."""
    sections = [("fixed", study.fixed), ("space", study.space)]
    sections += [(f"arms.{name}.set", arm.set) for name, arm in study.arms.items()]
    for section, names in sections:
        for name in names:
            try:
                field_type(name)
            except ConfigError as error:
                raise ConfigError(f"{study.origin}: [{section}] {error}") from None
            if name in study.space and section != "space":
                raise ConfigError(f"{study.origin}: {name!r} is in [{section}] and in [space]; keep one.")
            if section != "fixed":
                _check_settable(study, section, name)
    for name, dimension in study.space.items():
        ends = (
            [dimension.low, dimension.high]
            if isinstance(dimension, Range)
            else [dimension.value(label) for label in dimension.labels()]
        )
        for value in [*ends, 0.0] if isinstance(dimension, Range) and dimension.zero else ends:
            _check_value(study, name, value)
        _check_when(study, name, dimension)
    _check_arms(study)


def _check_settable(study: Study, section: str, name: str) -> None:
    ways = {"data.split": "[pairs] do that", "data.num_val_ids": "put it under [fixed]"}
    if name in ("run.seed", "data.source", "data.target", *ways):
        verb = "searched" if section == "space" else "set by an arm"
        way = ways.get(name, f"use --{name.split('.')[1]}")
        raise ConfigError(f"{study.origin}: [{section}] {name!r} cannot be {verb}; {way}.")


def _check_value(study: Study, name: str, value: Any) -> None:
    try:
        value = coerce(name, value, field_type(name))
        TrialConfig().with_overrides({name: value})
    except ConfigError as error:
        raise ConfigError(f"{study.origin}: [space] {error}") from None


def _check_when(study: Study, name: str, dimension: Range | Choices) -> None:
    """A condition names an earlier dimension of choices and one of its labels."""
    earlier = list(study.space)[: list(study.space).index(name)]
    for other, label in dimension.when.items():
        known = study.space.get(other)
        if other not in earlier or not isinstance(known, Choices) or known.when:
            raise ConfigError(
                f"{study.origin}: [space.{name}] `when` names dimensions of choices that stand before it and have no "
                f"`when` of their own, but got {other!r}."
            )
        if label not in known.labels():
            raise ConfigError(
                f"{study.origin}: [space.{name}] `when` {other} = {label!r} never holds; its choices are "
                f"{', '.join(map(repr, known.labels()))}."
            )


def _check_arms(study: Study) -> None:
    for name, arm in study.arms.items():
        if not re.fullmatch(r"[a-z0-9_]{1,32}", name) or name in ("search", "controls", "confirm", *CONTROLS):
            raise ConfigError(
                f"{study.origin}: [arms] a name has a-z, 0-9 and _ only, and is not 'search', 'controls', 'confirm' or "
                f"a control, but got {name!r}."
            )
        if arm.seed_offset and study.space:
            raise ConfigError(f"{study.origin}: [arms.{name}] `seed_offset` is for comparisons; a search has one seed.")
    for name in study.pairs:
        if name not in PROFILES:
            raise ConfigError(f"{study.origin}: [pairs] {name!r} is not a profile{did_you_mean(name, PROFILES)}")
    _check_protocol(study)


def _check_protocol(study: Study) -> None:
    """What is judged, searched for and pruned must exist."""
    controls = list(CONTROLS) if study.is_comparison and study.controls else []
    known = [*study.arms, *controls]
    for pair in study.protocol.judge:
        for name in pair:
            if name not in known:
                near = did_you_mean(name, known)
                raise ConfigError(f"{study.origin}: [protocol] `judge` {name!r} is not an arm{near}")
        if pair[0] == pair[1]:
            raise ConfigError(f"{study.origin}: [protocol] `judge` needs two arms, but got {pair[0]!r} twice.")
    for name in study.scientific:
        if name not in study.space:
            near = did_you_mean(name, study.space)
            raise ConfigError(f"{study.origin}: `scientific` {name!r} is not in [space]{near}")
    if study.pruning is not None and study.is_comparison:
        raise ConfigError(f"{study.origin}: [pruning] ends trials of a search early; a comparison trains all of them.")
    if study.pruning is not None and study.objective.metric != "target_val/mAP":
        raise ConfigError(f"{study.origin}: [pruning] {NO_PRUNING}, but it is {study.objective.metric}.")
    if not study.controls and not study.is_comparison:
        raise ConfigError(f"{study.origin}: a search always runs its controls; take `controls` out.")
    if study.objective.metric == "label_free/score" and study.protocol.baseline_seeds < 3:
        raise ConfigError(
            f"{study.origin}: [protocol] label_free/score is measured in the baseline's seed noise and needs "
            f"baseline_seeds >= 3, but got {study.protocol.baseline_seeds}."
        )
