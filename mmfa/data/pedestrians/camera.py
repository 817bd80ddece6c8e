"""A camera: one fixed scene, and what its optics and sensor do to a picture."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFilter

from mmfa.data.pedestrians.domains import Look
from mmfa.data.pedestrians.figure import VIEWS, Figure, Pose
from mmfa.data.pedestrians.person import Person

HEIGHT, WIDTH = 128, 64
"""Pixels of a picture: Market-1501's."""
SUPERSAMPLING = 2
SCENE_HEIGHT, SCENE_WIDTH = 176, 104
"""Pixels of a scene, out of which every picture's background is cut."""
OCCLUSION_PROBABILITY = 0.12

EXPOSURE_SPREAD, CAST_SPREAD, GAMMA_SPREAD = 0.08, 0.03, 0.06
"""Deviations of a camera's logarithmic gain, its gain by colour, and its gamma."""
WALL_SPREAD = 10.0
"""Deviation of a scene's own colour, grey levels."""
FLICKER = 0.07
"""Deviation of a picture's logarithmic gain."""
FINE, COARSE = 0.6, 0.8
"""Shares of the noise whose grain is one and two pixels wide."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Camera:
    """One camera of a domain."""

    scene: Image.Image
    """Supersampled background."""
    gain: npt.NDArray[np.float32]
    """[3] factors of red, green and blue: exposure and cast."""
    gamma: float
    contrast: float
    blur: float
    """Radius of the Gaussian, pixels."""
    noise: float
    """Deviation, grey levels."""
    scale: float
    """Height of an adult man, as a share of the picture."""
    views: npt.NDArray[np.float64]
    """[4] probabilities of :data:`VIEWS`."""


def draw_camera(generator: np.random.Generator, look: Look) -> Camera:
    """Draw a camera of a domain."""
    cast = np.array([look.red, look.green, look.blue]) * np.exp(generator.normal(0, CAST_SPREAD, 3))
    return Camera(
        scene=_draw_scene(generator, look),
        gain=(cast * np.exp(generator.normal(-0.08, EXPOSURE_SPREAD))).astype(np.float32),
        gamma=float(np.exp(generator.normal(0, GAMMA_SPREAD))),
        contrast=look.contrast * float(generator.uniform(0.9, 1.1)),
        blur=float(generator.uniform(0.0, 0.8)),
        noise=look.noise * float(generator.uniform(0.8, 1.2)),
        scale=look.scale * float(generator.uniform(0.92, 1.05)),
        views=generator.dirichlet(np.full(len(VIEWS), 1.5)),
    )


def _draw_scene(generator: np.random.Generator, look: Look) -> Image.Image:
    size = (SCENE_WIDTH * SUPERSAMPLING, SCENE_HEIGHT * SUPERSAMPLING)
    base = 165 + generator.normal(0, WALL_SPREAD, 3) + generator.normal(0, WALL_SPREAD)
    blotches = generator.normal(0, 1, (SCENE_HEIGHT // 8, SCENE_WIDTH // 8, 1)) * 0.9
    blotches = blotches + generator.normal(0, 0.3, (*blotches.shape[:2], 3))
    coarse = np.clip(base + look.texture * blotches, 0, 255).astype(np.uint8)
    scene = Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC)
    draw = ImageDraw.Draw(scene)
    for _ in range(round(look.clutter)):
        _draw_object(generator, draw, size)
    return scene


def _draw_object(generator: np.random.Generator, draw: ImageDraw.ImageDraw, size: tuple[int, int]) -> None:
    red, green, blue = generator.integers(20, 256, 3).tolist()
    colour = (red, green, blue)
    x, y = generator.uniform(-0.05, 1.0, 2) * size
    wide, tall = generator.uniform(10, 52, 2) * SUPERSAMPLING * (0.6, 1.0)
    kind = generator.choice(4, p=(0.5, 0.2, 0.1, 0.2))
    if kind == 0:
        draw.rectangle((x, y, x + wide, y + tall), fill=colour)
    elif kind == 1:
        draw.ellipse((x, y, x + wide, y + wide), fill=colour)
    elif kind == 2:
        draw.rectangle((x, y - tall, x + 0.2 * wide, y + 2 * tall), fill=colour)
    else:
        ends = (x, y, x + generator.normal(0, 1.5) * wide, y + generator.normal(0, 1) * tall)
        draw.line(ends, fill=colour, width=int(generator.integers(2, 6)))


def photograph(generator: np.random.Generator, camera: Camera, person: Person) -> Image.Image:
    """Take one picture of a person: HEIGHT x WIDTH, RGB."""
    full_width, full_height = WIDTH * SUPERSAMPLING, HEIGHT * SUPERSAMPLING
    left = int(generator.integers(camera.scene.width - full_width, endpoint=True))
    top = int(generator.integers(camera.scene.height - full_height, endpoint=True))
    picture = camera.scene.crop((left, top, left + full_width, top + full_height))
    pose = Pose(
        view=VIEWS[int(generator.choice(len(VIEWS), p=camera.views))],
        phase=float(generator.uniform(0, 2 * np.pi)),
        axis=full_width * float(np.clip(generator.normal(0.5, 0.045), 0.38, 0.62)),
        soles=full_height * float(np.clip(generator.normal(0.965, 0.015), 0.9, 0.995)),
        height=full_height * camera.scale * person.height * float(np.clip(generator.normal(1, 0.03), 0.92, 1.06)),
    )
    Figure(picture, person, pose).draw()
    if generator.random() < OCCLUSION_PROBABILITY:
        _occlude(generator, picture)
    small = picture.reduce(SUPERSAMPLING)
    if camera.blur > 0.2:  # after reducing, or the reduction would hide it
        small = small.filter(ImageFilter.GaussianBlur(camera.blur))
    return _expose(generator, camera, small)


def _occlude(generator: np.random.Generator, picture: Image.Image) -> None:
    red, green, blue = generator.integers(20, 230, 3).tolist()
    share = float(generator.uniform(0.15, 0.32))
    width, height = picture.size
    side = generator.choice(3, p=(0.6, 0.2, 0.2))
    box = (
        (0.0, height * (1 - share), width, height),
        (0.0, 0.0, width * share, height),
        (width * (1 - share), 0.0, width, height),
    )[int(side)]
    ImageDraw.Draw(picture).rectangle(box, fill=(red, green, blue))


def _expose(generator: np.random.Generator, camera: Camera, picture: Image.Image) -> Image.Image:
    light = np.asarray(picture, dtype=np.float32) / 255
    light = 255 * light**camera.gamma * camera.gain * np.float32(np.exp(generator.normal(0, FLICKER)))
    light = 128 + camera.contrast * (light - 128)
    fine = generator.standard_normal(light.shape, dtype=np.float32)
    coarse = (
        generator.standard_normal((HEIGHT // 2, WIDTH // 2, 3), dtype=np.float32).repeat(2, axis=0).repeat(2, axis=1)
    )
    light += camera.noise * (FINE * fine + COARSE * coarse)  # fine grain alone would be gone at half the size
    return Image.fromarray(np.clip(np.rint(light), 0, 255).astype(np.uint8))
