"""What building an image store costs beyond decoding its images.

    python benchmarks/prepare.py

writes a Market-1501 replica at the real size (128 x 64 pixels, 32,217 images after junk), then builds its store and, in
turns, reads and decodes every file in as many threads as there are cores and keeps nothing: decoding alone. Rounds are
interleaved, and a ratio is the median of theirs. The store's time includes listing, the SHA-256 of every file, the
write, and the wait for the disk; a second line holds it against a limit in seconds. Both run on two cores. Prints one
JSON line for each; `--record` also writes them to benchmarks/results/.
"""

import argparse
import shutil
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import lines
import torch
from torchvision.io import ImageReadMode, decode_jpeg

from mmfa.data import catalog, replicas, store

BAR, SECONDS = 1.5, 8.0
"""Times decoding alone, and what two cores may take."""
CORES = 2
HEIGHT, WIDTH = 128, 64


def decode_all(dataset):
    """Return the seconds that reading and decoding every image takes with all cores."""
    started = time.perf_counter()
    paths = [f"{dataset.root}/{path}" for path in dataset.domain.paths]

    def decode(some):
        for path in some:
            with open(path, "rb", buffering=0) as file:  # noqa: PTH123
                content = bytearray(file.read())
            decode_jpeg(torch.frombuffer(content, dtype=torch.uint8), mode=ImageReadMode.RGB)

    with ThreadPoolExecutor(max_workers=CORES) as pool:
        list(pool.map(decode, [paths[begin : begin + 64] for begin in range(0, len(paths), 64)]))
    return time.perf_counter() - started


def build(dataset, cache_dir):
    """Return the seconds that a store takes, from nothing."""
    shutil.rmtree(cache_dir, ignore_errors=True)
    started = time.perf_counter()
    store.build(dataset, cache_dir=cache_dir, height=HEIGHT, width=WIDTH)
    return time.perf_counter() - started


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--record", action="store_true")
    options = parser.parse_args()
    cores = lines.confine(CORES)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        replicas.write_replica("market1501", root / "data", height=HEIGHT, width=WIDTH)
        dataset = catalog.load("market1501", data_root=root / "data", cache_dir=root / "cache")
        decode_all(dataset)  # the first pass reads from the disk
        found = lines.Pairs([], [])
        for _ in range(options.rounds):
            found.ours.append(build(dataset, root / "cache"))
            found.peer.append(decode_all(dataset))
    name = "building a store of Market-1501's size"
    result = [
        lines.line(f"{name}, against decoding alone", found, at_most=BAR, cores=cores),
        lines.limit(f"{name}, {cores} cores, against the limit of two", found.ours, SECONDS, cores=cores),
    ]
    lines.emit(result, "prepare", record=options.record)


if __name__ == "__main__":
    main()
