"""What CMC and mAP cost at Market-1501's size beyond the product of matrices in them.

    python benchmarks/ranking.py                       # with one thread, as a trial has, and with one for each core
    python benchmarks/ranking.py --device cuda

3,368 queries, 15,913 gallery images, 2048-D: clustered features with Market's numbers of identities, cameras and
distractors. The whole evaluation (`mmfa.ranking.rank_features`, as every trial calls it) stands against the
product of matrices alone; ranking a finished matrix against fastreid's Cython evaluator and against one `np.argsort`
of the same matrix; on a GPU, where ranking does not come apart, the whole against distances and one `torch.argsort` of
each row. fastreid's wheel is downloaded from PyPI, its one file of Cython is compiled in a temporary folder
and its mAP compared with ours. Where that fails its line is left out and the reason said. Memory is the peak of
private memory over the evaluation, above what stood there before, features included.
"""

import argparse
import functools
import importlib.util
import os
import subprocess
import sys
import tempfile
import threading
import zipfile
from pathlib import Path
from typing import NamedTuple

import lines
import numpy as np
import torch

from mmfa import ranking
from mmfa.data import catalog

QUERIES, GALLERY, DISTRACTORS, IDENTITIES, CAMERAS, DIMENSIONS = 3368, 15_913, 2798, 750, 6, 2048
CYTHON, ARGSORT, WHOLE, MEMORY = 20.0, 4.0, 1.2, 65.2
"""Bars: times faster, twice; times the product of matrices; MB, 1,024 rows of distances."""
PEER = "fastreid==1.4.0"
EVALUATOR = "fastreid/evaluation/rank_cylib/rank_cy.pyx"


class TestSet(NamedTuple):
    """Features and labels of queries and gallery."""

    query_QD: torch.Tensor
    gallery_GD: torch.Tensor
    labels: dict[str, np.ndarray]
    """As ``mmfa.ranking.rank`` takes them."""


def test_set(num_queries=QUERIES, num_gallery=GALLERY, num_dimensions=DIMENSIONS, device="cpu"):
    """Return a test set as Market-1501's: each identity seen by several cameras, and distractors that match nobody."""
    rng = np.random.default_rng(0)
    num_distractors = num_gallery * DISTRACTORS // GALLERY
    num_pids = max(2, num_queries * IDENTITIES // QUERIES)
    gallery_pids = np.concatenate(
        [np.arange(num_gallery - num_distractors) % num_pids + 1, np.zeros(num_distractors, np.int64)]
    )
    labels = {
        "query_pids": np.arange(num_queries) % num_pids + 1,
        "query_camids": rng.integers(0, CAMERAS, num_queries),
        "gallery_pids": gallery_pids,
        "gallery_camids": rng.integers(0, CAMERAS, num_gallery),
    }
    generator = torch.Generator().manual_seed(0)
    people_ID = torch.randn(num_pids + 1, num_dimensions, generator=generator)
    views_CD = 0.5 * torch.randn(CAMERAS, num_dimensions, generator=generator)

    def features(pids, camids):
        found_ND = torch.randn(len(pids), num_dimensions, generator=generator).mul_(2.5)
        found_ND += people_ID[torch.from_numpy(pids)] * torch.from_numpy(pids > 0)[:, None]
        found_ND += views_CD[torch.from_numpy(camids)]
        return found_ND.add_(1.0).to(device)  # off the origin, as pooled features are

    query_QD = features(labels["query_pids"], labels["query_camids"])
    return TestSet(query_QD, features(labels["gallery_pids"], labels["gallery_camids"]), labels)


def whole(given):
    """Evaluate as every trial does."""
    return ranking.rank_features(given.query_QD, given.gallery_GD, **given.labels)


def product(given, buffer_qG):
    """Multiply chunk by chunk into one buffer: what no evaluation can go below."""
    for query_qD in torch.split(given.query_QD, len(buffer_qG)):
        torch.mm(query_qD, given.gallery_GD.T, out=buffer_qG[: len(query_qD)])


def matrix(given):
    """Return all distances."""
    return np.concatenate([rows_qG.copy() for rows_qG in ranking.distances(given.query_QD, given.gallery_GD)])


def evaluator(folder):
    """Return fastreid's compiled evaluator; raises where it cannot be had."""
    kept = catalog.default_cache_dir() / "peers"
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q"]
    run = functools.partial(subprocess.run, check=True, capture_output=True, text=True, timeout=300, cwd=folder)
    if not list(kept.glob("fastreid-*.whl")):
        run([*pip, "download", "--no-deps", "--only-binary=:all:", "-d", str(kept), PEER])
    with zipfile.ZipFile(next(iter(sorted(kept.glob("fastreid-*.whl"))))) as wheel:
        (folder / "rank_cy.pyx").write_bytes(wheel.read(EVALUATOR))
    run([*pip, "install", "--target", str(folder / "tools"), "cython>=3,<4", "setuptools"])
    setup = (
        "import numpy; from setuptools import Extension, setup; from Cython.Build import cythonize\n"
        "made = Extension('rank_cy', ['rank_cy.pyx'], include_dirs=[numpy.get_include()])\n"
        "setup(ext_modules=cythonize([made]), script_args=['-q', 'build_ext', '--inplace'])\n"
    )
    run([sys.executable, "-c", setup], env={**os.environ, "PYTHONPATH": str(folder / "tools")})
    spec = importlib.util.spec_from_file_location("rank_cy", next(iter(folder.glob("rank_cy*.so"))))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.evaluate_cy


def ranked(given, found_QG, n):
    """Return the lines of ranking a finished matrix."""

    def ours():
        ranking.rank(found_QG, **given.labels)

    def argsort():
        np.argsort(found_QG, axis=1)

    result = [
        lines.line("ranking, against one np.argsort of the matrix", lines.pairs(ours, argsort, n=n), at_least=ARGSORT)
    ]
    with tempfile.TemporaryDirectory() as folder:
        try:
            theirs = evaluator(Path(folder))
        except (subprocess.SubprocessError, OSError, StopIteration, KeyError) as error:
            reason = str(getattr(error, "stderr", None) or repr(error)).strip().splitlines()[-1]
            sys.stderr.write(f"fastreid's evaluator is not compared with: {reason}\n")
            return result
        labels = given.labels
        four = [labels[name] for name in ("query_pids", "gallery_pids", "query_camids", "gallery_camids")]
        _, precisions, _ = theirs(found_QG, *four, 50)
        difference = abs(float(np.mean(precisions)) - ranking.rank(found_QG, **labels).mAP)
        assert difference < 1e-6, f"mAP differs by {difference}"
        found = lines.pairs(ours, lambda: theirs(found_QG, *four, 50), n=n)
    more = {"peer_version": PEER, "mAP_difference": difference}
    return [lines.line("ranking, against fastreid's Cython evaluator", found, at_least=CYTHON, **more), *result]


def ranked_on_gpu(given, n):
    """Return the line of a whole evaluation against distances and an argsort of each row, both on the device."""

    def argsort():
        for rows_qG in ranking._distances(given.query_QD, given.gallery_GD, chunk=ranking.CHUNK):
            rows_qG.argsort(dim=1)

    found = lines.pairs(functools.partial(whole, given), argsort, n=n)
    return lines.line("whole evaluation, against distances and torch.argsort of each row, GPU", found)


def private():
    """Return the private memory of this process in MB."""
    fields = dict(line.split(":") for line in Path("/proc/self/smaps_rollup").read_text().splitlines()[1:])
    return sum(int(fields[name].split()[0]) for name in ("Private_Clean", "Private_Dirty")) * 1024 / 1e6


def memory(given):
    """Return the line of the peak of private memory over an evaluation."""
    small = TestSet(given.query_QD[:300], given.gallery_GD[:3000], {})
    for rows_qG in ranking.distances(small.query_QD, small.gallery_GD):  # what torch and BLAS keep for themselves
        np.sort(rows_qG[:1])
    before, done = private(), threading.Event()
    seen = [before]

    def watch():
        while not done.wait(0.002):
            seen.append(private())

    watcher = threading.Thread(target=watch)
    watcher.start()
    whole(given)
    done.set()
    watcher.join()
    peak = max(seen) - before
    return lines.figure(
        "private memory of an evaluation above its features, against 1,024 rows of distances",
        ours=peak, peer=MEMORY, ratio=peak / MEMORY, at_most=1.0, unit="MB", n=1, samples=len(seen),
    )  # fmt: skip


def gpu_memory(given):
    """Return the same of the device's memory."""
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    whole(given)
    peak = (torch.cuda.max_memory_allocated() - before) / 1e6
    return lines.figure(
        "GPU memory of an evaluation above its features, against 1,024 rows of distances",
        ours=peak, peer=MEMORY, ratio=peak / MEMORY, unit="MB", n=1,
    )  # fmt: skip


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--record", action="store_true")
    options = parser.parse_args()
    given = test_set(device=options.device)
    on_cpu = options.device == "cpu"
    cores = torch.get_num_threads()
    found = []
    for threads in sorted({1, cores}) if on_cpu else [cores]:
        torch.set_num_threads(threads)
        buffer_qG = given.gallery_GD.new_empty(1024, GALLERY)
        took = lines.pairs(functools.partial(whole, given), lambda: product(given, buffer_qG), n=options.rounds)  # noqa: B023
        name = f"whole evaluation, against the product of matrices, {f'{threads} threads' if on_cpu else 'GPU'}"
        found.append(lines.line(name, took, at_most=WHOLE, mAP=round(whole(given).mAP, 4)))
    found += ranked(given, matrix(given), options.rounds) if on_cpu else [ranked_on_gpu(given, options.rounds)]
    found.append(memory(given) if on_cpu else gpu_memory(given))
    lines.emit(found, f"ranking-{torch.device(options.device).type}", record=options.record)


if __name__ == "__main__":
    main()
