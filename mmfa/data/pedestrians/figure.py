"""Drawing a person from one of four sides.

Lengths are shares of the body's height: 0 is the top of the head, 1 the soles; x is 0 on the body's axis and grows to
the right of the picture, or, seen from the side, in the direction of walking.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from PIL import Image, ImageDraw

from mmfa.data.pedestrians.person import Cloth, Colour, Person

View = Literal["front", "back", "left", "right"]
VIEWS: tuple[View, ...] = ("front", "back", "left", "right")
Point = tuple[float, float]

NECK, SHOULDER, KNEE = 0.13, 0.165, 0.5
"""Levels of the body; the knee as a share of the leg."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Pose:
    """How and where a person is seen; pixels of the picture being drawn on."""

    view: View
    phase: float
    """Of the walk, radians."""
    axis: float
    """x of the body's axis."""
    soles: float
    """y of the soles."""
    height: float
    """Of the whole body."""

    @property
    def sideways(self) -> bool:
        """Whether the person is seen from the side."""
        return self.view in ("left", "right")


class Figure:
    """A person in a pose, drawn onto a picture part by part, back to front."""

    def __init__(self, picture: Image.Image, person: Person, pose: Pose) -> None:
        self._picture, self._person, self._pose = picture, person, pose
        self._draw = ImageDraw.Draw(picture)
        self._swing = math.sin(pose.phase)
        self._hip = 1 - person.legs
        self._shoulders = person.shoulders * person.build * (0.62 if pose.sideways else 1.0)
        self._hips = person.hips * person.build * (0.8 if pose.sideways else 1.0)

    def draw(self) -> None:
        """Draw everything."""
        person, view = self._person, self._pose.view
        if person.has("hair") and view == "front":
            self._box(-0.085, 0.05, 0.085, 0.27, person.hair, radius=0.05)
        if person.has("backpack") and self._pose.sideways:
            self._box(-self._shoulders - 0.095, 0.17, -self._shoulders + 0.05, 0.4, person.backpack, radius=0.03)
        if self._pose.sideways:
            self._arm(-0.3 * self._swing, near=False)
        self._legs()
        self._torso()
        if person.codes["clothes"] == 1:
            self._skirt()
        self._load()
        if self._pose.sideways:
            self._arm(0.3 * self._swing, near=True)
        else:
            self._arm(-1.0, near=True)
            self._arm(1.0, near=True)
        self._head()
        if person.has("handbag"):
            self._handbag()

    # Parts

    def _legs(self) -> None:
        person, reach = self._person, self._person.stride * self._swing
        half = 0.038 * person.build
        for side in (-1, 1):
            if self._pose.sideways:
                hip_x, foot_x, lift = 0.012 * side, side * reach, 0.0
            else:
                hip_x, foot_x = side * self._hips * 0.52, side * self._hips * 0.62
                lift = max(0.0, side * self._swing) * person.stride * 0.4
            knee_x, knee_y = (hip_x + foot_x) / 2 + 0.012 * self._pose.sideways, self._hip + KNEE * person.legs
            ankle_y = 0.965 - lift
            thigh = _limb((hip_x, self._hip - 0.02), (knee_x, knee_y), half * 1.2, half)
            shin = _limb((knee_x, knee_y), (foot_x, ankle_y), half, half * 0.8)
            self._shoe(foot_x, ankle_y, side)
            if person.codes["clothes"] == 1:
                self._polygon(thigh, person.skin)
                self._polygon(shin, person.skin)
                continue
            self._cloth([thigh], person.lower)
            if person.codes["down"] == 1:
                self._cloth([shin], person.lower)
            else:
                self._polygon(shin, person.skin)

    def _shoe(self, x: float, y: float, side: int) -> None:
        toe = 0.065 if self._pose.sideways else 0.03 + 0.012 * side
        heel = 0.03 if self._pose.sideways else 0.03 - 0.012 * side
        self._box(x - heel, y - 0.012, x + toe, y + 0.035, self._person.shoes, radius=0.015)

    def _torso(self) -> None:
        waist = 0.88 * min(self._shoulders, self._hips) if self._person.has("gender") else 0.9 * self._shoulders
        middle = (SHOULDER + self._hip) / 2
        outline = [
            (-0.035, NECK + 0.005), (0.035, NECK + 0.005), (self._shoulders, SHOULDER + 0.01), (waist, middle),
            (self._hips, self._hip + 0.015), (-self._hips, self._hip + 0.015), (-waist, middle),
            (-self._shoulders, SHOULDER + 0.01),
        ]  # fmt: skip
        self._box(-0.028, 0.1, 0.028, NECK + 0.03, self._person.skin)
        self._cloth([outline], self._person.upper)

    def _skirt(self) -> None:
        person = self._person
        length = (0.9 if person.codes["down"] == 1 else 0.42) * person.legs
        flare = self._hips + (0.05 if person.codes["down"] == 1 else 0.04)
        sway = 0.02 * self._swing
        hem = self._hip + length
        outline = [
            (-self._hips, self._hip - 0.03),
            (self._hips, self._hip - 0.03),
            (flare + sway, hem),
            (-flare + sway, hem),
        ]
        self._cloth([outline], person.lower)

    def _arm(self, swing: float, *, near: bool) -> None:
        person = self._person
        long_sleeve = person.codes["up"] == 1
        if self._pose.sideways:
            shoulder, hand = (0.0, SHOULDER + 0.03), (0.55 * swing, 0.5)
        else:
            shoulder = (swing * (self._shoulders - 0.012), SHOULDER + 0.03)
            hand = (swing * (self._shoulders + 0.035), 0.5 + 0.012 * swing * self._swing)
        elbow = ((shoulder[0] + hand[0]) / 2 + (0.01 * swing), (shoulder[1] + hand[1]) / 2 - 0.03)
        half = 0.03 * person.build
        shade = person.upper if near else Cloth(
            colour=_darker(person.upper.colour), second=person.upper.second, pattern="plain", period=1.0, phase=0.0
        )  # fmt: skip
        self._polygon(_limb(elbow, hand, half * 0.85, half * 0.7), person.skin)
        self._disc(hand, 0.024, person.skin)
        if long_sleeve:
            self._polygon(_limb(elbow, (hand[0], hand[1] - 0.015), half, half * 0.85), _darker(shade.colour))
        self._polygon(_limb(shoulder, elbow, half * 1.1, half), _darker(shade.colour))

    def _load(self) -> None:
        """Backpack and bag, where they show in front of the body."""
        person, view, width = self._person, self._pose.view, self._shoulders
        if person.has("backpack"):
            if view == "back":
                self._box(-0.8 * width, 0.175, 0.8 * width, 0.42, person.backpack, radius=0.03)
                self._box(-0.55 * width, 0.31, 0.55 * width, 0.4, _darker(person.backpack), radius=0.02)
            elif view == "front":
                for side in (-1, 1):
                    self._line([(side * 0.6 * width, NECK + 0.02), (side * 0.62 * width, 0.38)], person.backpack, 0.03)
            else:
                self._line(
                    [(-0.2 * width, NECK + 0.025), (0.55 * width, 0.24), (-0.4 * width, 0.36)], person.backpack, 0.026
                )
        if person.has("bag"):
            side = -1 if view in ("back", "left") else 1  # worn on the same hip whatever side is seen
            hip = (side * (0.4 if self._pose.sideways else 1.0) * (self._hips + 0.01), self._hip + 0.03)
            self._line([(-side * 0.7 * width, NECK + 0.03), hip], person.bag, 0.024)
            self._box(hip[0] - 0.055, hip[1] - 0.03, hip[0] + 0.055, hip[1] + 0.06, person.bag, radius=0.015)

    def _handbag(self) -> None:
        person = self._person
        side = -1 if self._pose.view in ("back", "left") else 1
        x = 0.16 * self._swing if self._pose.sideways else -side * (self._shoulders + 0.045)
        self._line([(x - 0.03, 0.575), (x, 0.51), (x + 0.03, 0.575)], person.handbag, 0.016)
        self._box(x - 0.058, 0.565, x + 0.058, 0.655, person.handbag, radius=0.01)

    def _head(self) -> None:
        person, view, radius = self._person, self._pose.view, self._person.head
        top, bottom, wide = 0.005, 0.005 + 2.15 * radius, radius * 0.86
        middle = (top + bottom) / 2
        self._ellipse(-wide, top, wide, bottom, person.hair if view == "back" else person.skin)
        if view == "front":
            self._pie(
                -wide - 0.006, top - 0.004, wide + 0.006, bottom, person.hair, 180, 360, cut=middle - 0.3 * radius
            )
            if person.has("hair"):
                for side in (-1, 1):
                    self._line([(side * wide, middle - 0.02), (side * wide * 1.15, 0.24)], person.hair, 0.034)
        elif view == "back":
            if person.has("hair"):
                self._box(-wide - 0.012, middle - 0.01, wide + 0.012, 0.3, person.hair, radius=0.03)
        else:
            self._pie(-wide - 0.006, top - 0.004, wide * 0.2, bottom, person.hair, 0, 360)
            self._pie(
                -wide - 0.006, top - 0.004, wide + 0.004, bottom, person.hair, 180, 360, cut=middle - 0.35 * radius
            )
            if person.has("hair"):
                self._box(-wide - 0.03, middle - 0.02, -wide * 0.1, 0.29, person.hair, radius=0.03)
        if person.has("hat"):
            self._hat(wide, top, middle)

    def _hat(self, wide: float, top: float, middle: float) -> None:
        brim = middle - 0.012
        self._pie(-wide - 0.014, top - 0.03, wide + 0.014, 2 * brim - top + 0.03, self._person.hat, 180, 360)
        front = {"front": (-wide, wide), "back": (-wide, wide)}.get(self._pose.view, (-wide, wide + 0.06))
        self._box(
            front[0] - 0.012, brim - 0.014, front[1] + 0.012, brim + 0.014, _darker(self._person.hat), radius=0.01
        )

    # Shapes, from body coordinates to pixels

    def _at(self, point: Point) -> Point:
        x = -point[0] if self._pose.view == "left" else point[0]
        return self._pose.axis + x * self._pose.height, self._pose.soles - (1 - point[1]) * self._pose.height

    def _corners(self, left: float, top: float, right: float, bottom: float) -> tuple[float, float, float, float]:
        (x0, y0), (x1, y1) = self._at((left, top)), self._at((right, bottom))
        return min(x0, x1), y0, max(x0, x1), y1

    def _polygon(self, points: Sequence[Point], colour: Colour) -> None:
        self._draw.polygon([self._at(point) for point in points], fill=colour)

    def _line(self, points: Sequence[Point], colour: Colour, width: float) -> None:
        pixels = max(2, round(width * self._pose.height))
        self._draw.line([self._at(point) for point in points], fill=colour, width=pixels, joint="curve")

    def _box(
        self, left: float, top: float, right: float, bottom: float, colour: Colour, *, radius: float = 0.0
    ) -> None:
        corners = self._corners(left, top, right, bottom)
        self._draw.rounded_rectangle(corners, radius=radius * self._pose.height, fill=colour)

    def _ellipse(self, left: float, top: float, right: float, bottom: float, colour: Colour) -> None:
        self._draw.ellipse(self._corners(left, top, right, bottom), fill=colour)

    def _disc(self, centre: Point, radius: float, colour: Colour) -> None:
        self._ellipse(centre[0] - radius, centre[1] - radius, centre[0] + radius, centre[1] + radius, colour)

    def _pie(
        self, left: float, top: float, right: float, bottom: float, colour: Colour, start: int, end: int, *,
        cut: float | None = None,
    ) -> None:  # fmt: skip
        """Draw part of an ellipse; with ``cut``, the part of it above that level."""
        corners = self._corners(left, top, right, bottom)
        if cut is not None:
            share = max(-1.0, min(1.0, ((top + bottom) / 2 - cut) / ((bottom - top) / 2)))
            tilt = round(math.degrees(math.asin(share)))
            self._draw.chord(corners, 180 + tilt, 360 - tilt, fill=colour)
        else:
            self._draw.pieslice(corners, start, end, fill=colour)

    def _cloth(self, outlines: Sequence[Sequence[Point]], cloth: Cloth) -> None:
        for outline in outlines:
            pixels = [self._at(point) for point in outline]
            if cloth.pattern == "plain":
                self._draw.polygon(pixels, fill=cloth.colour)
            else:
                self._patterned(pixels, cloth)

    def _patterned(self, pixels: Sequence[Point], cloth: Cloth) -> None:
        left, top = math.floor(min(x for x, _ in pixels)), math.floor(min(y for _, y in pixels))
        size = (math.ceil(max(x for x, _ in pixels)) - left + 1, math.ceil(max(y for _, y in pixels)) - top + 1)
        mask = Image.new("L", size)
        ImageDraw.Draw(mask).polygon([(x - left, y - top) for x, y in pixels], fill=255)
        self._picture.paste(_swatch(size, cloth, self._pose.height), (left, top), mask)


def _swatch(size: tuple[int, int], cloth: Cloth, height: float) -> Image.Image:
    """Draw a rectangle of cloth; ``height`` is the body's."""
    swatch = Image.new("RGB", size, cloth.colour)
    draw = ImageDraw.Draw(swatch)
    period, (width, tall) = max(4.0, cloth.period * height), size
    if cloth.pattern in ("stripes", "checks"):
        for start in _steps(cloth.phase, period, tall):
            draw.rectangle((0, start, width, start + 0.33 * period), fill=cloth.second)
    if cloth.pattern in ("pinstripes", "checks"):
        for start in _steps(cloth.phase, period, width):
            draw.rectangle((start, 0, start + 0.28 * period, tall), fill=cloth.second)
    if cloth.pattern == "two_tone":
        draw.rectangle((0, tall * (0.62 + 0.18 * cloth.phase), width, tall), fill=cloth.second)
    if cloth.pattern == "seam":
        draw.rectangle((width * 0.38, 0, width * 0.62, tall), fill=cloth.second)
    if cloth.pattern == "logo":
        reach, middle = 0.9 * period, tall * (0.3 + 0.25 * cloth.phase)
        shape = (width / 2 - reach, middle - reach, width / 2 + reach, middle + reach)
        draw.ellipse(shape, fill=cloth.second) if cloth.phase < 0.5 else draw.rectangle(shape, fill=cloth.second)
    return swatch


def _steps(phase: float, period: float, length: int) -> list[float]:
    return [(phase - 1 + i) * period for i in range(math.ceil(length / period) + 2)]


def _limb(start: Point, end: Point, start_half: float, end_half: float) -> list[Point]:
    """Return the four corners of a tapering limb."""
    dx, dy = end[0] - start[0], end[1] - start[1]
    length = math.hypot(dx, dy)
    across = (-dy / length, dx / length)
    return [
        (start[0] + across[0] * start_half, start[1] + across[1] * start_half),
        (start[0] - across[0] * start_half, start[1] - across[1] * start_half),
        (end[0] - across[0] * end_half, end[1] - across[1] * end_half),
        (end[0] + across[0] * end_half, end[1] + across[1] * end_half),
    ]


def _darker(colour: Colour) -> Colour:
    return int(colour[0] * 0.85), int(colour[1] * 0.85), int(colour[2] * 0.85)
