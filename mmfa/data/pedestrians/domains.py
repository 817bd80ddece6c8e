"""What a rendered domain looks like, and how many people it has."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np

VERSION = 3
"""Raised whenever any rendered pixel or label changes: it names the folder, so that no older rendering is reused."""
SEED = 1
"""Decides who the people are and where the cameras stand."""

NUM_CAMERAS = 6
SIGHTING_PROBABILITY = 0.55
"""Chance that a camera sees an identity; every identity is seen by two cameras at least."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Look:
    """The means of a domain."""

    clutter: float
    """Objects in a camera's scene."""
    texture: float
    """Deviation of the background's blotches, grey levels."""
    noise: float
    """Deviation of the pixel noise, grey levels."""
    red: float
    """Colour cast: mean factor of the red channel."""
    green: float
    """Mean factor of the green channel."""
    blue: float
    """Mean factor of the blue channel."""
    contrast: float
    """Mean contrast about mid-grey."""
    scale: float
    """Mean height of an adult, as a share of the picture."""
    dark: float
    """Share of clothes drawn from the dark palette instead of evenly from all colours."""
    long_sleeves: float
    """Chance of long sleeves."""


SOURCE = Look(
    clutter=8, texture=6, noise=3,
    red=1.0, green=1.0, blue=1.0, contrast=1.0, scale=0.88,
    dark=0.0, long_sleeves=0.35,
)  # fmt: skip
FAR = Look(
    clutter=62, texture=34, noise=12,
    red=0.82, green=0.95, blue=1.2, contrast=0.55, scale=0.74,
    dark=0.6, long_sleeves=0.65,
)  # fmt: skip
"""The other end of every gap."""

TARGET_GAPS = {
    "clutter": 0.5, "texture": 0.5, "noise": 1.0,
    "red": 0.3, "green": 0.3, "blue": 0.3, "contrast": 1.0, "scale": 0.3,
    "dark": 0.5, "long_sleeves": 0.5,
}  # fmt: skip
"""Clutter and contrast make the gap; colours, by which attributes are told, shift little."""


def blend(source: Look, far: Look, gaps: dict[str, float]) -> Look:
    """Go from one look towards another, each mean by its own share in [0, 1]."""
    ends = ((field.name, getattr(source, field.name), getattr(far, field.name)) for field in dataclasses.fields(Look))
    return Look(**{name: start + gaps[name] * (end - start) for name, start, end in ends})


@dataclass(frozen=True, kw_only=True, slots=True)
class RenderedDomain:
    """One of the embedded domains."""

    stream: int
    """Separates the random numbers of the domains: their people and cameras are all different."""
    look: Look
    """Its means."""


DOMAINS = {
    "embedded-source": RenderedDomain(stream=1, look=SOURCE),
    "embedded-target": RenderedDomain(stream=2, look=blend(SOURCE, FAR, TARGET_GAPS)),
    "embedded-null": RenderedDomain(stream=3, look=SOURCE),
}
"""The pair, and the twin of the source on which alignment has nothing to gain."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Population:
    """How many identities a domain has."""

    num_train: int = 700
    """Training identities."""
    num_held_out: int = 100
    """Those of them with two images in each camera, which validation needs; the others have one."""
    num_test: int = 80
    """Test identities: one query and one gallery image in each camera."""


def generator(stream: int, *key: int) -> np.random.Generator:
    """Return the generator of one person, camera or picture: no draw depends on any other's."""
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence([SEED, stream, *key])))
