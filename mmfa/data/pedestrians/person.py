"""A person: Market-1501's attributes, and everything else that makes an identity."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mmfa.data.pedestrians.domains import Look

Colour = tuple[int, int, int]

UPPER_RGB: dict[str, Colour] = {
    "black": (26, 26, 30), "white": (236, 236, 234), "red": (205, 32, 40), "purple": (128, 44, 158),
    "yellow": (234, 206, 48), "gray": (128, 128, 132), "blue": (36, 72, 198), "green": (42, 142, 62),
}  # fmt: skip
LOWER_RGB: dict[str, Colour] = {
    "black": (26, 26, 30), "white": (236, 236, 234), "pink": (242, 138, 178), "purple": (128, 44, 158),
    "yellow": (234, 206, 48), "gray": (128, 128, 132), "blue": (44, 76, 178), "green": (52, 128, 62),
    "brown": (112, 68, 36),
}  # fmt: skip
DARK_WEIGHTS = {"black": 0.35, "gray": 0.25, "blue": 0.2, "purple": 0.1, "green": 0.1}
ACCENT_RGB: tuple[Colour, ...] = (
    (24, 24, 28), (232, 232, 230), (208, 36, 40), (40, 80, 205), (236, 200, 50), (48, 148, 66), (130, 46, 160),
    (120, 72, 38), (236, 120, 40),
)  # fmt: skip
SKIN_RGB: tuple[Colour, ...] = ((250, 214, 188), (228, 180, 146), (190, 138, 100), (138, 92, 62), (92, 60, 42))
HAIR_RGB: tuple[Colour, ...] = ((24, 20, 20), (70, 44, 26), (124, 76, 38), (206, 166, 92), (148, 62, 30))
GRAY_HAIR_RGB: Colour = (186, 186, 188)
COLOUR_JITTER = 9.0
"""Deviation of an exact colour from its name's, grey levels."""

LONG_LOWER_PROBABILITY = 0.55
AGE_PROBABILITIES = (0.12, 0.3, 0.42, 0.16)
AGE_HEIGHTS = (0.7, 0.88, 1.0, 0.94)
UPPER_PATTERNS = ("plain", "plain", "stripes", "pinstripes", "checks", "logo", "two_tone")
LOWER_PATTERNS = ("plain", "plain", "plain", "plain", "seam", "stripes", "two_tone")


@dataclass(frozen=True, kw_only=True, slots=True)
class Cloth:
    """Colour and pattern of a garment; lengths are shares of the body's height."""

    colour: Colour
    second: Colour
    pattern: str
    period: float
    phase: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Person:
    """One identity as it is drawn."""

    codes: dict[str, int]
    """Market-1501's annotation codes by field."""
    height: float
    """Relative to an adult man."""
    build: float
    """Width relative to the average."""
    shoulders: float
    """Half width, as a share of the height."""
    hips: float
    """Half width, as a share of the height."""
    head: float
    """Radius, as a share of the height."""
    legs: float
    """Length, as a share of the height."""
    stride: float
    """Reach of a step, as a share of the height."""
    skin: Colour
    hair: Colour
    upper: Cloth
    lower: Cloth
    shoes: Colour
    hat: Colour
    backpack: Colour
    bag: Colour
    handbag: Colour

    def has(self, field: str) -> bool:
        """Whether a two-valued attribute has its second value (female, long hair, hat ...)."""
        return self.codes[field] == 2


def draw_person(generator: np.random.Generator, look: Look) -> Person:
    """Draw attributes first, then everything they leave open."""
    codes = _draw_codes(generator, look)
    female, age = codes["gender"] == 2, codes["age"] - 1
    upper = next(name for name in UPPER_RGB if codes[f"up{name}"] == 2)
    lower = next(name for name in LOWER_RGB if codes[f"down{name}"] == 2)
    young = age == 0
    hair = GRAY_HAIR_RGB if age == 3 else HAIR_RGB[generator.integers(len(HAIR_RGB))]
    return Person(
        codes=codes,
        height=AGE_HEIGHTS[age] * (0.95 if female else 1.02) * float(generator.normal(1.0, 0.025)),
        build=float(generator.uniform(0.88, 1.12)) * (1.08 if age == 3 else 1.0),
        shoulders=0.1 if female else 0.118,
        hips=0.092 if female else 0.082,
        head=0.078 if young else 0.062,
        legs=float(generator.uniform(0.43, 0.5)) - (0.03 if young else 0.0),
        stride=float(generator.uniform(0.06, 0.14)),
        skin=_jitter(generator, SKIN_RGB[generator.integers(len(SKIN_RGB))]),
        hair=_jitter(generator, hair),
        upper=_draw_cloth(generator, UPPER_RGB[upper], UPPER_PATTERNS),
        lower=_draw_cloth(generator, LOWER_RGB[lower], LOWER_PATTERNS),
        **{item: _accent(generator) for item in ("shoes", "hat", "backpack", "bag", "handbag")},
    )


def _draw_codes(generator: np.random.Generator, look: Look) -> dict[str, int]:
    female = generator.random() < 0.45
    dress = female and generator.random() < 0.45
    upper = _draw_colour(generator, tuple(UPPER_RGB), look)
    lower = _draw_colour(generator, tuple(LOWER_RGB), look)
    return {
        "gender": 1 + female,
        "age": 1 + int(generator.choice(4, p=AGE_PROBABILITIES)),
        "hair": 1 + (generator.random() < (0.75 if female else 0.1)),
        "up": 1 + (generator.random() >= look.long_sleeves),
        "down": 1 + (generator.random() >= LONG_LOWER_PROBABILITY),
        "clothes": 1 if dress else 2,
        "hat": 1 + (generator.random() < 0.2),
        "backpack": 1 + (generator.random() < 0.3),
        "bag": 1 + (generator.random() < 0.25),
        "handbag": 1 + (generator.random() < 0.2),
        **{f"up{name}": 1 + (name == upper) for name in UPPER_RGB},
        **{f"down{name}": 1 + (name == lower) for name in LOWER_RGB},
    }


def _draw_colour(generator: np.random.Generator, names: Sequence[str], look: Look) -> str:
    dark = np.array([DARK_WEIGHTS.get(name, 0.0) for name in names])
    index = int(generator.choice(len(names), p=(1 - look.dark) / len(names) + look.dark * dark))
    return names[index]


def _draw_cloth(generator: np.random.Generator, colour: Colour, patterns: Sequence[str]) -> Cloth:
    return Cloth(
        colour=_jitter(generator, colour),
        second=_accent(generator),
        pattern=patterns[int(generator.integers(len(patterns)))],
        period=float(generator.uniform(0.04, 0.075)),
        phase=float(generator.random()),
    )


def _accent(generator: np.random.Generator) -> Colour:
    return _jitter(generator, ACCENT_RGB[generator.integers(len(ACCENT_RGB))])


def _jitter(generator: np.random.Generator, colour: Colour) -> Colour:
    red, green, blue = np.clip(np.rint(np.array(colour) + generator.normal(0, COLOUR_JITTER, 3)), 0, 255).astype(int)
    return int(red), int(green), int(blue)
