"""Synthetic stand-ins for the four benchmarks: their layout, file names and published counts, and nobody in them.

They show that loaders, protocols and full-scale evaluation are right where the real images cannot be had. A figure
measured on one says nothing about the method.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from mmfa.data import market_layout, two_camera
from mmfa.data.attributes import AGES, AnnotationFile, write_mat
from mmfa.data.market_layout import Layout
from mmfa.data.records import AttributeCodes, Bytes, Ints, Progress, no_progress
from mmfa.data.splits.ten import PRID_IDS, VIPER_IDS
from mmfa.data.two_camera import TwoCameras
from mmfa.errors import DataError

NOTICE = "SYNTHETIC.txt"
"""File beside the folders that says what they are."""
MARKET_JUNK = 3_819
"""Images of pid -1, which the loader leaves out."""
DUKE_WITHOUT_TOP = (370, 679)
"""Training identities whose attribute ``top`` is missing in the release."""
_ONE_CAMERA_EVERY = 50
"""One in so many training identities is seen by one camera only, so that it cannot be held out."""
_REPORT_EVERY = 500
_NUM_NOISES = 64


@dataclass(frozen=True, slots=True)
class _Shot:
    """One image to be made."""

    path: str
    look: int
    """Whose clothes; equal for one person."""
    camid: int


def names() -> tuple[str, ...]:
    """Return the datasets that have a replica."""
    return tuple(_LAYOUTS)


def write_replica(
    name: str, data_root: Path, *, seed: int = 0, height: int = 32, width: int = 16, progress: Progress = no_progress
) -> Path:
    """Write a synthetic dataset with the published counts under a data root.

    Args:
        name: one of :func:`names`.
        data_root: made if missing; must not hold the dataset already.
        seed: of clothes, noise and attributes.
        height: of the images, pixels.
        width: of the images, pixels.
        progress: called as images are written.

    Returns:
        the folder of the dataset.

    Raises:
        DataError: no such dataset, one that is there already, or a folder that cannot be written.
    """
    if name not in _LAYOUTS:
        raise DataError(f"A replica is of one of {', '.join(names())}, but got {name!r}; name one of those.")
    layout = _LAYOUTS[name]
    for taken in (data_root / root for root in layout.roots):
        if taken.exists() and (not taken.is_dir() or any(taken.iterdir())):
            raise DataError(
                f"A replica is written beside nothing real, but {taken} is there already; choose another --data-root."
            )
    root = data_root / layout.roots[1]
    try:
        _write(root, layout, seed=seed, size=(height, width), progress=progress)
    except OSError as error:
        raise DataError(f"{root} cannot be written ({type(error).__name__}: {error}); make room there.") from error
    return root


def _write(root: Path, layout: Layout | TwoCameras, *, seed: int, size: tuple[int, int], progress: Progress) -> None:
    shots = _market_like(layout, seed) if isinstance(layout, Layout) else list(_two_views(layout))
    for folder in sorted({shot.path.split("/")[0] for shot in shots}):
        (root / folder).mkdir(parents=True)
        (root / folder / "Thumbs.db").write_bytes(b"")  # as the releases have it
    (root / NOTICE).write_text(f"A synthetic replica of {layout.title}: nobody is on these images. seed {seed}\n")
    if isinstance(layout, Layout):
        _write_attributes(root, layout, seed)
    painter = _Painter(seed, size)
    options: dict[str, Any] = {"quality": 90} if shots[0].path.endswith(".jpg") else {}
    for done, shot in enumerate(shots, start=1):
        Image.fromarray(painter.paint(shot)).save(root / shot.path, **options)
        if done % _REPORT_EVERY == 0 or done == len(shots):
            progress(f"writing {layout.name}", done, len(shots))


class _Painter:
    """Paints one person's two colours, in a camera's light, with noise."""

    def __init__(self, seed: int, size: tuple[int, int]) -> None:
        rng = np.random.default_rng(seed)
        self._seed, self._size = seed, size
        coarse = rng.normal(0, 14, (_NUM_NOISES, size[0] // 2, size[1] // 2, 3))
        self._noises = np.kron(coarse, np.ones((1, 2, 2, 1))).astype(np.int16)
        self._lights = rng.integers(-25, 26, (8, 3), dtype=np.int16)
        self._clothes: dict[int, np.ndarray] = {}

    def paint(self, shot: _Shot) -> Bytes:
        """Return the uint8 [H, W, 3] pixels of one image."""
        if shot.look not in self._clothes:
            rng = np.random.default_rng([self._seed, shot.look])
            colours = rng.integers(25, 231, (2, 3), dtype=np.int16)
            self._clothes[shot.look] = np.repeat(colours, self._size[0] // 2, axis=0)[:, None]
        noise = self._noises[zlib.crc32(shot.path.encode()) % _NUM_NOISES]
        pixels = self._clothes[shot.look] + self._lights[shot.camid] + noise
        return np.asarray(pixels.clip(0, 255), dtype=np.uint8)


def _market_like(layout: Layout, seed: int) -> list[_Shot]:
    """List the images of Market-1501 or DukeMTMC-reID."""
    published = layout.published
    is_market = layout.name == market_layout.MARKET.name
    num_cameras = 6 if is_market else 8
    train_pids, query_pids, distractor_pids = _people(layout, seed)
    files = _Namer(is_market)

    def cameras(index: int, num: int) -> list[int]:
        return [(index + offset) % num_cameras for offset in range(num)]

    shots: list[_Shot] = []
    for index, num in enumerate(_shares(published["training images"], len(train_pids))):
        seen = cameras(index, 1 if index % _ONE_CAMERA_EVERY == 0 else 2 + index % (num_cameras - 1))
        shots += files.shots("bounding_box_train", int(train_pids[index]), seen, num)
    num_true = published["gallery images"] - published.get("distractor images", 0)
    gallery = _shares(num_true, len(query_pids) + len(distractor_pids))
    for index, num in enumerate(_shares(published["query images"], len(query_pids))):
        seen, pid = cameras(index, num), int(query_pids[index])
        shots += files.shots("query", pid, seen, num)
        shots += files.shots("bounding_box_test", pid, seen, gallery[index])
    for index, pid in enumerate(distractor_pids.tolist()):
        shots += files.shots("bounding_box_test", pid, cameras(index, 1), gallery[len(query_pids) + index])
    if is_market:
        everywhere = list(range(num_cameras))
        shots += files.shots(
            "bounding_box_test", market_layout.DISTRACTOR_PID, everywhere, published["distractor images"]
        )
        shots += files.shots("bounding_box_test", market_layout.JUNK_PID, everywhere, MARKET_JUNK)
    return shots


class _Namer:
    """Gives every image of a folder a name of its own, by counting frames."""

    def __init__(self, is_market: bool) -> None:
        self._is_market, self._frame = is_market, 0

    def shots(self, folder: str, pid: int, cameras: list[int], num: int) -> Iterator[_Shot]:
        """Yield ``num`` images of a person by the cameras in turn; nobody has one look if the pid is 0 or less."""
        for take in range(num):
            self._frame += 1
            camid = cameras[take % len(cameras)]
            if self._is_market:
                who = f"{pid:04d}" if pid >= 0 else str(pid)
                file = f"{who}_c{camid + 1}s1_{self._frame:06d}_{0 if folder == 'query' else 1:02d}.jpg"
            else:
                file = f"{pid:04d}_c{camid + 1}_f{self._frame:07d}.jpg"
            yield _Shot(f"{folder}/{file}", pid if pid > 0 else 100_000 + self._frame, camid)


def _people(layout: Layout, seed: int) -> tuple[Ints, Ints, Ints]:
    """Return the pids that train, those that are queried, and those that are only in the gallery."""
    published = layout.published
    num_train, num_query = published["training identities"], published["query identities"]
    num_more = published.get("distractor identities", 0)
    rng = np.random.default_rng([seed, 1])
    if layout.name == market_layout.MARKET.name:
        pids = rng.permutation(np.arange(1, num_train + num_query + 1))
    else:
        others = np.setdiff1d(np.arange(1, 7141), DUKE_WITHOUT_TOP)
        chosen = rng.choice(others, num_train + num_query + num_more - len(DUKE_WITHOUT_TOP), replace=False)
        pids = np.concatenate([DUKE_WITHOUT_TOP, chosen])
    ends = [num_train, num_train + num_query]
    train, query, more = (np.sort(part) for part in np.split(pids, ends))
    return train, query, more


def _write_attributes(root: Path, layout: Layout, seed: int) -> None:
    """Write the annotations beside the images' folder, where the release would be unpacked."""
    kind: AnnotationFile = layout.annotations
    train_pids, *others = _people(layout, seed)
    pids = np.sort(np.concatenate([train_pids, *others]))
    rng = np.random.default_rng([seed, 2])
    codes = rng.integers(1, 3, (len(pids), len(kind.fields)), dtype=np.uint8)
    if "age" in kind.fields:
        codes[:, kind.fields.index("age")] = rng.integers(1, len(AGES) + 1, len(pids))
    if "top" in kind.fields:
        codes[np.isin(pids, DUKE_WITHOUT_TOP), kind.fields.index("top")] = 0
    folder = root / kind.release
    folder.mkdir()
    attributes = AttributeCodes(fields=kind.fields, pids=pids, codes=codes)
    write_mat(folder / kind.file, attributes, kind=kind, train_pids=train_pids)


def _two_views(layout: TwoCameras) -> Iterator[_Shot]:
    """List the images of VIPeR or PRID 2011."""
    if layout.name == two_camera.VIPER.name:
        for number in VIPER_IDS.tolist():
            angle = number % 4 * 45
            yield _Shot(f"cam_a/{number:03d}_{angle}.bmp", number, 0)
            yield _Shot(f"cam_b/{number:03d}_{angle + 45}.bmp", number, 1)
        return
    shared = int(PRID_IDS[-1])
    for camid, last in ((0, 385), (1, 749)):
        for number in range(1, last + 1):
            look = number if number <= shared else 1000 * (camid + 1) + number  # the same number, another person
            yield _Shot(f"{two_camera.FOLDERS[camid]}/person_{number:04d}.png", look, camid)


def _shares(total: int, num: int) -> list[int]:
    """Divide ``total`` among ``num`` so that no two shares differ by more than one."""
    return [total // num + (index < total % num) for index in range(num)]


_LAYOUTS: dict[str, Layout | TwoCameras] = {
    layout.name: layout for layout in (market_layout.MARKET, market_layout.DUKE, two_camera.VIPER, two_camera.PRID)
}
