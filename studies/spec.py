"""The schema of a study file: a question, what is fixed, what is searched."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal

import pydantic

from mmfa.config import TrialConfig, coerce, field_names, field_type
from mmfa.errors import ConfigError, did_you_mean

Scalar = bool | int | float | str


class _Strict(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="forbid", frozen=True, strict=True)


class Range(_Strict):
    """Numbers between ``low`` and ``high``, both included; ``log`` spreads them evenly over orders of magnitude."""

    low: int | float
    high: int | float
    log: bool = False

    @pydantic.model_validator(mode="after")
    def _ordered(self) -> Range:
        if not self.low < self.high:
            raise ValueError(f"`low < high` must hold, but got low={self.low}, high={self.high}")
        if self.log and self.low <= 0:
            raise ValueError(f"`log` needs low > 0, but got low={self.low}")
        return self


class Choices(_Strict):
    """A closed set: scalars, or labels that stand for values (``{paper = [1, 5, 10]}``)."""

    choices: dict[str, Any] | list[Scalar]

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


class Objective(_Strict):
    """What a trial is scored by."""

    metric: Literal["target_val/mAP"] = "target_val/mAP"


class Measured(_Strict):
    """What one trial of this study cost when it was last measured, for estimates."""

    trial_seconds: float = pydantic.Field(gt=0)
    profile: str
    cores: int = pydantic.Field(ge=1)
    hardware: str
    date: str


class Study(_Strict):
    """One study file."""

    question: str = pydantic.Field(min_length=1)
    trials: int = pydantic.Field(ge=1)
    start_up: int = pydantic.Field(default=5, ge=0)
    objective: Objective = Objective()
    fixed: dict[str, Any] = {}
    space: dict[str, Dimension] = pydantic.Field(min_length=1)
    measured: Measured | None = None

    name: str = ""
    origin: str = ""


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
    if where[0] == "objective":
        return list(Objective.model_fields)
    if where[0] == "measured":
        return list(Measured.model_fields)
    return [*Range.model_fields, *Choices.model_fields]


def _check_fields(study: Study) -> None:
    """Check every name and value of [fixed] and [space] against the config."""
    for section, names in (("fixed", study.fixed), ("space", study.space)):
        for name in names:
            try:
                field_type(name)
            except ConfigError as error:
                raise ConfigError(f"{study.origin}: [{section}] {error}") from None
    both = sorted(set(study.fixed) & set(study.space))
    if both:
        raise ConfigError(f"{study.origin}: {both[0]!r} is in [fixed] and in [space]; keep one.")
    for name, dimension in study.space.items():
        ends = (
            [dimension.low, dimension.high]
            if isinstance(dimension, Range)
            else [dimension.value(label) for label in dimension.labels()]
        )
        for value in ends:
            _check_value(study, name, value)


def _check_value(study: Study, name: str, value: Any) -> None:
    if name in ("run.seed", "data.source", "data.target"):
        raise ConfigError(f"{study.origin}: [space] {name!r} cannot be searched; use --{name.split('.')[1]}.")
    try:
        value = coerce(name, value, field_type(name))
        TrialConfig().with_overrides({name: value})
    except ConfigError as error:
        raise ConfigError(f"{study.origin}: [space] {error}") from None
