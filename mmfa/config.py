"""Configuration of one training: frozen dataclasses whose defaults are the paper.

Standard library only: ``studies`` and the command line read it without importing torch.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import math
import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Self

from mmfa.errors import ConfigError, did_you_mean

Backbone = Literal["resnet50", "resnet18", "small"]
Pooling = Literal["max", "average", "gem"]
BatchNormMode = Literal["separate", "joint", "domain", "frozen"]
Scale = Literal["dim", "absolute", "l2norm", "median"]
Age = Literal["onehot", "binary", "drop"]
Placement = Literal["auto", "host", "device"]

GEM_P_MIN, GEM_P_MAX = 1.0, 64.0
"""Range of the exponent of the generalised mean, also while it is learnt."""


def _ranged(default: Any, **limits: float) -> Any:
    """Return a dataclass field with limits among ``ge``, ``gt``, ``le``, ``lt``."""
    return field(default=default, metadata=limits)


class _Section:
    """Checks that every dataclass below shares: types, closed sets, ranges."""

    __slots__ = ()

    def __post_init__(self) -> None:
        hints = _hints(type(self))  # type: ignore[arg-type]  # a class is hashable, whatever its instances are
        for spec in dataclasses.fields(self):  # type: ignore[arg-type]
            value = coerce(f"{_section_name(type(self))}.{spec.name}", getattr(self, spec.name), hints[spec.name])
            check_limits(f"{_section_name(type(self))}.{spec.name}", value, spec.metadata)
            object.__setattr__(self, spec.name, value)


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelConfig(_Section):
    """The network of sec. 3.1."""

    backbone: Backbone = "resnet50"
    """Feature extractor: torchvision's ResNet-50 (the paper), ResNet-18, or the embedded pair's ``small``."""
    weights: str = "imagenet"
    """``imagenet`` (torchvision's published weights), ``none`` (random start) or the path of a ``.pth`` file."""
    last_stride: Literal[1, 2] = 2
    """Stride of the last stage."""
    pooling: Pooling = "max"
    """Global pooling of the last feature maps: ``max`` is the paper's GMP, ``gem`` the generalised mean."""
    gem_p: float = _ranged(3.0, ge=GEM_P_MIN, le=GEM_P_MAX)
    """``gem`` only: where the learnt exponent starts; 1 is the average, a large one nears the maximum."""
    bn_mode: BatchNormMode = "separate"
    """How source and target share BatchNorm.

    ``separate``: one after the other through shared statistics; ``joint``: as one batch; ``domain``: statistics of each
    domain, shared affine weights; ``frozen``: the backbone keeps the statistics that it was loaded with.
    """
    id_head_width: int = _ranged(512, ge=0, le=8192)
    """Hidden width of the identity head; 0 leaves BN, dropout and one linear layer."""
    attr_head_width: int = _ranged(512, ge=0, le=8192)
    """Hidden width of each attribute head; 0 leaves BN, dropout and one linear layer."""
    attribute_features: Literal["logit", "hidden"] = "logit"
    """What L_AAL aligns of an attribute: its 1-D pre-sigmoid output, or the hidden layer of its head."""
    dropout: float = _ranged(0.5, ge=0, lt=1)
    """Dropout rate of the heads."""

    def __post_init__(self) -> None:
        _Section.__post_init__(self)
        if self.attribute_features == "hidden" and self.attr_head_width == 0:
            raise ConfigError(
                "model.attribute_features='hidden' needs a hidden layer in the attribute heads, but got "
                "model.attr_head_width=0; set the width above 0, or the features to 'logit'."
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class LossConfig(_Section):
    """Weights of eq. 7."""

    lambda_id: float = _ranged(1.0, ge=0)
    """Weight of the identity loss, eq. 1; 1 but in ablations."""
    lambda_attr: float = _ranged(0.1, ge=0)  # λ1
    """Weight of the attribute loss, eq. 2."""
    lambda_aal: float = _ranged(1.0, ge=0)  # λ2
    """Weight of the attribute feature adaptation loss, eq. 3."""
    lambda_mdal: float = _ranged(1.0, ge=0)  # λ3
    """Weight of the mid-level deep feature adaptation loss, eq. 6."""


@dataclass(frozen=True, kw_only=True, slots=True)
class KernelConfig(_Section):
    """The RBF mixture of eq. 5."""

    bandwidths: tuple[float, ...] = (1.0, 5.0, 10.0)  # α
    """Bandwidths whose kernels are averaged."""
    centre: float | None = _ranged(None, gt=0)
    """In place of ``bandwidths``: one bandwidth about which the others lie by factors of two; none: ``bandwidths``."""
    octaves: int = _ranged(0, ge=0, le=6)
    """``centre`` only: α are centre · 2^j for every whole j from -octaves to octaves."""
    scale: Scale = "dim"
    """How d² is scaled.

    ``dim``: divided by the number of dimensions; ``absolute``: not at all (eq. 5 to the letter); ``l2norm``: between
    features of unit length; ``median``: divided by its median over the batch.
    """

    def __post_init__(self) -> None:
        _Section.__post_init__(self)
        if not self.bandwidths or min(self.bandwidths) <= 0:
            raise ConfigError(
                f"kernel.bandwidths must be one or more numbers above 0, but got {list(self.bandwidths)}."
            )

    @property
    def alphas(self) -> tuple[float, ...]:
        """The bandwidths α in use."""
        if self.centre is None:
            return self.bandwidths
        return tuple(self.centre * 2.0**octave for octave in range(-self.octaves, self.octaves + 1))


@dataclass(frozen=True, kw_only=True, slots=True)
class OptimConfig(_Section):
    """SGD and its schedule."""

    learning_rate: float = _ranged(0.01, gt=0)
    """Rate before the schedule."""
    momentum: float = _ranged(0.9, ge=0, lt=1)
    """Momentum of SGD."""
    nesterov: bool = True
    """Nesterov's form of momentum."""
    weight_decay: float = _ranged(5e-4, ge=0)
    """L2 penalty."""
    decay_on: Literal["all", "matrices"] = "all"
    """Which parameters weight decay touches: all, or only those of two or more dimensions."""
    num_epochs: int = _ranged(25, ge=1)
    """Epochs: passes over the source, last partial batch dropped."""
    schedule: Literal["step", "cosine"] = "step"
    """``step``: the rate is multiplied once, after ``decay_epoch``; ``cosine``: to 0 over all steps."""
    decay_epoch: int = _ranged(20, ge=1)
    """``step`` only: the last epoch at the full rate."""
    decay_factor: float = _ranged(0.1, gt=0, le=1)
    """``step`` only: what the rate is multiplied by."""
    warmup_epochs: int = _ranged(0, ge=0)
    """Epochs over which the rate grows linearly from 0, by the step."""
    backbone_lr_mult: float = _ranged(1.0, gt=0)
    """Rate of the backbone relative to the heads'."""
    clip_norm: float | None = _ranged(None, gt=0)
    """Largest norm of the whole gradient; none: not clipped."""
    average_decay: float | None = _ranged(None, gt=0, lt=1)
    """Decay of the running average of weights and BatchNorm buffers that is evaluated; none: the weights themselves."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DataConfig(_Section):
    """Datasets, batches and augmentation."""

    source: str = "market1501"
    """Catalogue name of the labelled dataset."""
    target: str = "dukemtmc-reid"
    """Catalogue name of the unlabelled dataset."""
    num_val_ids: int = _ranged(100, ge=0)
    """Training identities of each domain that are held out for validation; 0: none (no ``target_val``)."""
    split: int = _ranged(0, ge=0, le=9)
    """Which of the ten train/test splits of VIPeR or PRID 2011; ignored elsewhere."""
    age: Age = "onehot"
    """Reading of Market's four-valued age: four columns, one, or none."""
    image_height: int = _ranged(256, ge=16)
    """Height of the network's input, pixels."""
    image_width: int = _ranged(128, ge=16)
    """Width of the network's input, pixels."""
    store_height: int = _ranged(128, ge=16)
    """Height at which images are kept in the store, pixels (128 is Market-1501's own)."""
    store_width: int = _ranged(64, ge=16)
    """Width at which images are kept in the store, pixels (64 is Market-1501's own)."""
    source_batch: int = _ranged(32, ge=2)
    """Source images in a step."""
    target_batch: int = _ranged(32, ge=2)
    """Target images in a step."""
    crop: Literal["random_area", "pad"] = "random_area"
    """``random_area``: a box of 0.64–1 of the area, resized; ``pad``: zero-padded by height/16 and cut back."""
    flip: float = _ranged(0.5, ge=0, le=1)
    """Probability of a horizontal flip (not in the paper)."""
    use_target: bool = True
    """Whether target images pass through the network in training; false only for the control ``source_only``."""
    placement: Placement = "auto"
    """Where decoded images wait.

    ``device``: all on the GPU; ``host``: each batch is sent there; ``auto``: on the GPU if all take no more than a
    quarter of the memory that is free there.
    """


@dataclass(frozen=True, kw_only=True, slots=True)
class RunConfig(_Section):
    """How one training runs."""

    seed: int = _ranged(0, ge=0, lt=2**31)
    """Seed of initial weights, batches, augmentation and dropout."""
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    """Autocast of the backbone; ``auto``: bf16 where the hardware has it."""
    channels_last: Literal["auto", "on", "off"] = "auto"
    """Memory format of images and weights; ``auto``: on for a CPU, and for a GPU with bf16."""
    compile: Literal["auto", "on", "off"] = "auto"
    """Compiled backbone, as long as its gradient is right; ``auto``: on GPUs; ``on`` is refused on a CPU: no faster."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TrialConfig:
    """Everything that decides the result of one training.

    Raises:
        ConfigError: a value of the wrong type, out of range, or at odds with another.
    """

    model: ModelConfig = field(default_factory=ModelConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    kernel: KernelConfig = field(default_factory=KernelConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    data: DataConfig = field(default_factory=DataConfig)
    run: RunConfig = field(default_factory=RunConfig)

    def __post_init__(self) -> None:
        if not self.data.use_target and (self.loss.lambda_aal or self.loss.lambda_mdal):
            raise ConfigError(
                "data.use_target=false leaves nothing to align, but got "
                f"loss.lambda_aal={self.loss.lambda_aal} and loss.lambda_mdal={self.loss.lambda_mdal}; set both to 0."
            )
        if not (self.loss.lambda_id or self.loss.lambda_attr):
            raise ConfigError(
                "loss.lambda_id and loss.lambda_attr are both 0: nothing would be learned; set one above 0."
            )
        if self.optim.warmup_epochs >= self.optim.num_epochs:
            raise ConfigError(
                "optim.warmup_epochs < optim.num_epochs must hold, but got "
                f"{self.optim.warmup_epochs} and {self.optim.num_epochs}; lower the first or raise the second."
            )

    def with_overrides(self, overrides: Mapping[str, Any]) -> Self:
        """Return a copy with dotted names replaced, e.g. ``{"loss.lambda_aal": 3.0}``.

        Raises:
            ConfigError: a name that is not a field (the nearest one is named) or a value that does not hold.
        """
        sections: dict[str, dict[str, Any]] = {}
        for name, value in overrides.items():
            field_type(name)
            section, key = name.split(".")
            sections.setdefault(section, {})[key] = value
        changed = {name: dataclasses.replace(getattr(self, name), **keys) for name, keys in sections.items()}
        return dataclasses.replace(self, **changed)

    def flatten(self) -> dict[str, Any]:
        """Return ``{"section.field": value}`` in the order of definition."""
        return {
            f"{section.name}.{key.name}": getattr(getattr(self, section.name), key.name)
            for section in dataclasses.fields(self)
            for key in dataclasses.fields(getattr(self, section.name))
        }

    def to_json(self) -> str:
        """Return canonical JSON: sorted dotted names, no white space."""
        return canonical_json(self.flatten())

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Read what :meth:`to_json` wrote.

        Raises:
            ConfigError: unknown names or values that do not hold.
        """
        return cls().with_overrides(json.loads(text))

    def fingerprint(self) -> str:
        """Return the first 12 hexadecimal digits of the SHA-256 of :meth:`to_json`."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()[:12]


EMBEDDED: dict[str, Any] = {
    "model.backbone": "small",
    "model.weights": "none",
    "model.last_stride": 1,
    "model.id_head_width": 128,
    "model.attr_head_width": 0,
    "optim.learning_rate": 0.05,
    "optim.decay_on": "matrices",
    "optim.num_epochs": 12,
    "optim.schedule": "cosine",
    "optim.warmup_epochs": 2,
    "optim.clip_norm": 10.0,
    "optim.average_decay": 0.98,
    "data.source": "embedded-source",
    "data.target": "embedded-target",
    "data.image_height": 64,
    "data.image_width": 32,
    "data.store_height": 64,
    "data.store_width": 32,
    "data.crop": "pad",
}
"""The recipe from scratch for the embedded pair; λ's and bandwidths stay the paper's."""

PROFILES: dict[str, dict[str, Any]] = {"paper": {}, "embedded": EMBEDDED}


def profile(name: str) -> TrialConfig:
    """Return the named profile.

    Raises:
        ConfigError: an unknown name.
    """
    if name not in PROFILES:
        raise ConfigError(f"{name!r} is not a profile{did_you_mean(name, PROFILES)}")
    return TrialConfig().with_overrides(PROFILES[name])


def field_names() -> list[str]:
    """Return every dotted field name, in the order of definition."""
    return list(TrialConfig().flatten())


def field_type(name: str) -> Any:
    """Return the type of a dotted field name.

    Raises:
        ConfigError: not a field; the nearest one is named.
    """
    section, _, key = name.partition(".")
    types_by_section = {spec.name: spec.default_factory for spec in dataclasses.fields(TrialConfig)}
    factory = types_by_section.get(section)
    if factory is None or key not in _hints(typing.cast(type, factory)):
        raise ConfigError(f"{name!r} is not a config field{did_you_mean(name, field_names())}")
    return _hints(typing.cast(type, factory))[key]


def canonical_json(value: Any) -> str:
    """Return JSON with sorted keys and no white space: equal values, equal text."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


@functools.cache
def _hints(section: type) -> dict[str, Any]:
    return typing.get_type_hints(section)


def _section_name(section: type) -> str:
    return section.__name__.removesuffix("Config").lower()


def coerce(name: str, value: Any, hint: Any) -> Any:
    """Return ``value`` as the type ``hint`` (an int where a float is asked, a list for a tuple).

    Raises:
        ConfigError: a value of another type, or outside a closed set.
    """
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        if value in args and type(value) in {type(arg) for arg in args}:
            return value
        raise ConfigError(f"{name} must be one of {', '.join(map(repr, args))}, but got {value!r}.")
    if origin is types.UnionType:
        return None if value is None else coerce(name, value, next(arg for arg in args if arg is not type(None)))
    if origin is tuple:
        if not isinstance(value, list | tuple):
            raise ConfigError(f"{name} must be a list of numbers, but got {value!r}.")
        return tuple(coerce(name, item, args[0]) for item in value)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if type(value) is not hint:
        raise ConfigError(f"{name} must be of type {hint.__name__}, but got {value!r} ({type(value).__name__}).")
    if hint is float and not math.isfinite(value):
        raise ConfigError(f"{name} must be a finite number, but got {value}.")
    return value


_COMPARE: dict[str, tuple[str, Callable[[Any, Any], bool]]] = {
    "ge": (">=", lambda a, b: a >= b),
    "gt": (">", lambda a, b: a > b),
    "le": ("<=", lambda a, b: a <= b),
    "lt": ("<", lambda a, b: a < b),
}


def check_limits(name: str, value: Any, limits: Mapping[str, float]) -> None:
    """Raise ConfigError where a number is outside its limits."""
    for key, limit in limits.items():
        sign, holds = _COMPARE[key]
        if value is not None and not holds(value, limit):
            raise ConfigError(f"{name} {sign} {limit} must hold, but got {value}.")
