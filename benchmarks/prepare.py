"""What building an image store costs beyond decoding its images.

    python benchmarks/prepare.py

writes a Market-1501 replica at the real size (128 x 64 pixels, 32,217 images after junk), then builds its
store and, in turns, does less with as many threads: reads and decodes every file, once into an array of all images and
once for nothing. Rounds are interleaved, and a ratio is the median of theirs. The store's time includes listing, the
SHA-256 of every file, the write, and the wait for the disk. Prints one JSON line for each peer; `--record` also
writes them to benchmarks/results/.
"""

import argparse
import os
import shutil
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import lines
import numpy as np
import torch
from torchvision.io import ImageReadMode, decode_jpeg

from mmfa.data import catalog, replicas, store

BAR = 1.3
HEIGHT, WIDTH = 128, 64


def decode_all(dataset, *, keep):
    """Return the seconds that reading and decoding every image takes with all cores; ``keep``: into one array."""
    started = time.perf_counter()
    paths = [dataset.root / path for path in dataset.domain.paths]
    images = np.empty((len(paths) if keep else 0, HEIGHT, WIDTH, 3), np.uint8)

    def decode(rows):
        for row in rows:
            encoded = torch.frombuffer(bytearray(paths[row].read_bytes()), dtype=torch.uint8)
            image_Chw = decode_jpeg(encoded, mode=ImageReadMode.RGB)
            if keep:
                images[row] = image_Chw.permute(1, 2, 0).numpy()

    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        list(pool.map(decode, [range(n, min(n + 64, len(paths))) for n in range(0, len(paths), 64)]))
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
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        replicas.write_replica("market1501", root / "data", height=HEIGHT, width=WIDTH)
        dataset = catalog.load("market1501", data_root=root / "data", cache_dir=root / "cache")
        decode_all(dataset, keep=False)  # the first pass reads from the disk
        rounds = [
            (build(dataset, root / "cache"), decode_all(dataset, keep=True), decode_all(dataset, keep=False))
            for _ in range(options.rounds)
        ]
    ours, kept, dropped = zip(*rounds, strict=True)
    what = "building a store of Market-1501's size, against decoding"
    found = [
        lines.line(f"{what} {how}", lines.Pairs(list(ours), list(peer)), at_most=BAR)
        for how, peer in (("into an array", kept), ("for nothing", dropped))
    ]
    lines.emit(found, "prepare", record=options.record)


if __name__ == "__main__":
    main()
