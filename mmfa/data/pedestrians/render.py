"""Rendering a domain as a dataset in the Market-1501 layout, once, with all cores."""

from __future__ import annotations

import functools
import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import filelock
import numpy as np
import PIL

import mmfa
from mmfa.data.pedestrians.camera import Camera, draw_camera, photograph
from mmfa.data.pedestrians.domains import (
    DOMAINS,
    NUM_CAMERAS,
    SEED,
    SIGHTING_PROBABILITY,
    VERSION,
    Population,
    generator,
)
from mmfa.data.pedestrians.person import Person, draw_person
from mmfa.data.records import AttributeCodes, Progress, no_progress
from mmfa.data.splits import held_out_pids
from mmfa.errors import DataError

logger = logging.getLogger(__name__)

JPEG_QUALITY = 92
_PERSON, _SIGHTINGS, _CAMERA, _PICTURE = range(4)
"""First key of the random numbers of each kind."""


@dataclass(frozen=True, slots=True)
class Shot:
    """One picture to take."""

    path: str
    pid: int
    camid: int
    take: int
    """0 or 1: first or second picture of this identity in this camera."""


def ensure_rendered(
    name: str, *, cache_dir: Path, population: Population | None = None, num_processes: int | None = None,
    progress: Progress = no_progress,
) -> Path:  # fmt: skip
    """Render an embedded domain into ``cache_dir/datasets`` unless that has been done, and return its folder.

    The pictures depend on version, seed, name, population and Pillow, which name the folder, and a few of them by one
    grey level on whether numpy computes with AVX-512. A process killed in the middle leaves only a folder ``*.tmp``,
    which the next one removes; of two at once the second waits for the first.

    Args:
        name: one of :data:`DOMAINS`.
        cache_dir: folder of everything that can be made again.
        population: numbers of identities; none: the published ones.
        num_processes: none: one per core that this process may use.
        progress: called as pictures are written.

    Raises:
        DataError: something cannot be written.
    """
    population = population or Population()
    num_processes = num_processes or _num_cores()
    counts = f"{population.num_train}-{population.num_held_out}-{population.num_test}"
    folder = cache_dir / "datasets" / f"{name}-v{VERSION}-seed{SEED}-pillow{PIL.__version__}-{counts}"
    try:
        if not folder.exists():
            _render_once(folder, name, population, num_processes=num_processes, progress=progress)
    except OSError as error:
        raise _cannot(folder, name, f"{type(error).__name__}: {error}") from error
    return folder


def _render_once(folder: Path, name: str, population: Population, *, num_processes: int, progress: Progress) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    with filelock.FileLock(folder.parent / ".lock"):
        if folder.exists():  # another process was faster
            return
        _remove_leftovers(folder.parent)
        made = folder.with_name(f"{folder.name}.{os.getpid()}.tmp")
        try:
            render(made, name, population, num_processes=num_processes, progress=progress)
            made.rename(folder)
        finally:
            _remove_leftovers(folder.parent)  # again: workers of a killed process may have written on for a while


def _remove_leftovers(datasets: Path) -> None:
    for leftover in datasets.glob("*.tmp"):  # only the holder of the lock has any
        shutil.rmtree(leftover, ignore_errors=True)


def _cannot(folder: Path, name: str, reason: str) -> DataError:
    return DataError(
        f"{name} could not be rendered into {folder} ({reason}); make room there or choose another --cache-dir."
    )


def render(folder: Path, name: str, population: Population, *, num_processes: int, progress: Progress) -> None:
    """Write pictures and ``market_attribute.mat`` into a new folder.

    Raises:
        OSError: something cannot be written by this process.
        DataError: something cannot be written by another that it started.
    """
    from mmfa.data.attributes import MARKET, write_mat  # the workers, which import this module, do without scipy

    for subfolder in ("bounding_box_train", "bounding_box_test", "query"):
        (folder / subfolder).mkdir(parents=True)
    train_pids = np.arange(1, population.num_train + 1)
    write_mat(folder / MARKET.file, attribute_codes(name, population), kind=MARKET, train_pids=train_pids)
    total = len(plan(name, population))
    logger.info("rendering %d pictures of %s", total, name)
    done = 0
    for step in _in_processes(folder, name, population, num_processes):
        done += step
        progress(f"rendering {name}", done, total)


def plan(name: str, population: Population) -> list[Shot]:
    """List every picture of a domain."""
    held_out = set(held_out_pids(np.arange(1, population.num_train + 1), num_ids=population.num_held_out).tolist())
    shots = []
    for pid in range(1, population.num_train + population.num_test + 1):
        is_test = pid > population.num_train
        for camid in _sightings(name, pid):
            for take in range(2 if is_test or pid in held_out else 1):
                folder = ("query", "bounding_box_test")[take] if is_test else "bounding_box_train"
                file = f"{pid:04d}_c{camid + 1}s1_{take + 1:06d}_00.jpg"
                shots.append(Shot(f"{folder}/{file}", pid, camid, take))
    return shots


def _sightings(name: str, pid: int) -> list[int]:
    """Return the cameras that see an identity."""
    rng = generator(DOMAINS[name].stream, _SIGHTINGS, pid)
    while True:
        cameras = np.flatnonzero(rng.random(NUM_CAMERAS) < SIGHTING_PROBABILITY).tolist()
        if len(cameras) >= 2:
            return cameras


def attribute_codes(name: str, population: Population) -> AttributeCodes:
    """Return the annotations of every identity of a domain."""
    from mmfa.data.attributes import MARKET_FIELDS

    pids = np.arange(1, population.num_train + population.num_test + 1)
    people = [_person(name, pid) for pid in pids.tolist()]
    codes = np.array([[person.codes[field] for field in MARKET_FIELDS] for person in people], dtype=np.uint8)
    return AttributeCodes(fields=MARKET_FIELDS, pids=pids, codes=codes)


def _person(name: str, pid: int) -> Person:
    domain = DOMAINS[name]
    return draw_person(generator(domain.stream, _PERSON, pid), domain.look)


@functools.lru_cache(maxsize=NUM_CAMERAS)
def _camera(name: str, camid: int) -> Camera:
    domain = DOMAINS[name]
    return draw_camera(generator(domain.stream, _CAMERA, camid), domain.look)


def render_shots(folder: Path, name: str, shots: Sequence[Shot]) -> Iterator[int]:
    """Take the pictures one by one, yielding 1 for each."""
    for shot in shots:
        rng = generator(DOMAINS[name].stream, _PICTURE, shot.pid, shot.camid, shot.take)
        picture = photograph(rng, _camera(name, shot.camid), _person(name, shot.pid))
        picture.save(folder / shot.path, quality=JPEG_QUALITY, subsampling=0)
        yield 1


def _in_processes(folder: Path, name: str, population: Population, num_processes: int) -> Iterator[int]:
    """Yield the number of pictures taken since the last time.

    Fresh interpreters running ``worker.py``, not multiprocessing: forking a process that has threads can hang, and
    spawning runs the caller's main module again.
    """
    if num_processes == 1:
        yield from render_shots(folder, name, plan(name, population))
        return
    numbers = [str(number) for number in (population.num_train, population.num_held_out, population.num_test)]
    command = [sys.executable, "-P", "-m", "mmfa.data.pedestrians.worker", str(folder), name, *numbers]
    search = [str(Path(mmfa.__file__).parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(search), "OMP_NUM_THREADS": "1"}
    read_end, write_end = os.pipe()
    workers = []
    with os.fdopen(read_end) as reports:
        try:
            with os.fdopen(write_end, "w") as reports_in:
                for shard in range(num_processes):
                    arguments = [*command, str(shard), str(num_processes)]
                    workers.append(
                        subprocess.Popen(
                            arguments, stdout=reports_in, stderr=subprocess.PIPE, env=environment, text=True
                        )
                    )
            for line in reports:  # ends when the last worker has
                yield int(line)
            for worker in workers:
                _, stderr = worker.communicate()
                if worker.returncode:
                    reason = (stderr.strip().splitlines() or [f"exit code {worker.returncode}"])[-1]
                    raise _cannot(folder, name, reason)
        finally:
            for worker in workers:
                worker.kill()
                worker.wait()
                if worker.stderr:
                    worker.stderr.close()


def _num_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
