"""How fast a training is fed images, against decoding JPEG files for every batch; and what layout of the store is best.

    python benchmarks/feeding.py
    python benchmarks/feeding.py --device cuda

Ours is the product's own stream of source and target batches, from stores on disk. The peer opens as many JPEG files
(of a size like Market-1501's, in the page cache) with Pillow and crops, flips and normalises each with torchvision's v2
transforms, one by one, into batches. Without a resize: 128 x 64 pixels, padded and cut back. With: a random area,
resized to 256 x 128. One core does each; on a GPU ours is timed until the batches are there.

Layouts, without a bar (the ratio is of times, below 1 where what was chosen is faster): the same random areas from
images of native size and from ones that were enlarged beforehand; and random rows out of one record batch, as the store
has them, against several record batches of fewer rows.
"""

import argparse
import contextlib
import dataclasses
import tempfile
from pathlib import Path

import lines
import numpy as np
import pyarrow as pa
import synthetic
import torch
from PIL import Image
from torchvision.transforms import v2

from mmfa.config import DataConfig
from mmfa.data.augment import IMAGENET_MEAN, IMAGENET_STD, MAX_ASPECT, MIN_AREA, padding, resize
from mmfa.data.batches import Batches
from mmfa.data.records import Dataset
from mmfa.data.store import build, open_store
from mmfa.hardware import Hardware

NUM, BATCH = 1024, 32
"""Images of each domain, and in a batch of it."""
HEIGHT, WIDTH = 128, 64
CASES = {
    "without resize": ({"crop": "pad", "image_height": HEIGHT, "image_width": WIDTH}, 12.0),
    "with resize": ({"crop": "random_area", "image_height": 2 * HEIGHT, "image_width": 2 * WIDTH}, 2.5),
}
MANY, ROWS = 8192, (64, 1024)
"""Images out of which random rows are taken, and rows of the smaller record batches."""


def write(root):
    """Write both domains as JPEG files; return them as datasets."""
    made = []
    for seed, name in enumerate(("source", "target")):
        store = synthetic.store(name, seed=seed, train=NUM, train_ids=64, query=0, gallery=0)
        folder = root / name
        folder.mkdir()
        for path, image_HWC in zip(store.domain.paths, store.images, strict=True):
            Image.fromarray(image_HWC).save(folder / path, quality=90)
        made.append(Dataset(root=folder, domain=store.domain, attribute_file=None))
    return made


def file_size(datasets):
    """Return the mean size of a JPEG file."""
    sizes = [(dataset.root / path).stat().st_size for dataset in datasets for path in dataset.domain.paths]
    return round(sum(sizes) / len(sizes))


def stream(stores, device, **changes):
    """Return a call that makes an epoch of batches, and the number of its images."""
    data = DataConfig(source_batch=BATCH, target_batch=BATCH, num_val_ids=0, **changes)
    hardware = Hardware.choose(device)
    batches = Batches(
        data, source=stores[0], target=stores[1], seed=0, device=hardware.device, channels_last=hardware.channels_last
    )

    def epoch():
        with contextlib.closing(batches.epoch(0)) as made:
            for _ in made:
                pass

    return epoch, batches.num_steps * 2 * BATCH


def from_files(datasets, *, crop, image_height, image_width):
    """Return the peer: a call that makes as many batches from the files."""
    size = (image_height, image_width)
    ratio = (0.5 / MAX_ASPECT, 0.5 * MAX_ASPECT)
    cut = (
        v2.RandomCrop(size, padding=padding(image_height))
        if crop == "pad"
        else v2.RandomResizedCrop(size, scale=(MIN_AREA, 1.0), ratio=ratio, antialias=True)
    )
    scaled = [v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(IMAGENET_MEAN, IMAGENET_STD)]
    transform = v2.Compose([cut, v2.RandomHorizontalFlip(), *scaled])
    paths = [dataset.root / path for dataset in datasets for path in dataset.domain.paths]

    def load(path):
        with Image.open(path) as image:
            return transform(image.convert("RGB"))

    def epoch():
        for begin in range(0, len(paths), BATCH):
            torch.stack([load(path) for path in paths[begin : begin + BATCH]])

    return epoch


def enlarged(stores):
    """Return the stores with every image enlarged to the network's input."""
    size = {"height": 2 * HEIGHT, "width": 2 * WIDTH}
    return [
        dataclasses.replace(store, images=resize(torch.from_numpy(store.images.copy()), **size).numpy())
        for store in stores
    ]


def in_record_batches(images, path, *, num_rows):
    """Write images as record batches of so many rows; return them mapped, one array each."""
    kind = pa.fixed_shape_tensor(pa.uint8(), images.shape[1:])
    schema = pa.schema([("image", kind)])
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, schema) as writer:
        for begin in range(0, len(images), num_rows):
            part = np.ascontiguousarray(images[begin : begin + num_rows])
            writer.write_batch(
                pa.record_batch([pa.FixedShapeTensorArray.from_numpy_ndarray(part).cast(kind)], schema=schema)
            )
    reader = pa.ipc.open_file(pa.memory_map(str(path)))
    return [reader.get_batch(number).column(0).to_numpy_ndarray() for number in range(reader.num_record_batches)]


def gather(arrays, num_rows, orders):
    """Return a call that takes batches of random rows out of one array, or out of several one after the other."""

    def one():
        for rows in orders:
            arrays[0][rows]

    def several():
        for rows in orders:
            found = np.empty((len(rows), *arrays[0].shape[1:]), dtype=np.uint8)
            of_each, places = rows // num_rows, np.arange(len(rows))
            for number in np.unique(of_each).tolist():
                own = places[of_each == number]
                found[own] = arrays[number][rows[own] % num_rows]

    return one if len(arrays) == 1 else several


def layouts(stores, folder, device, rounds):
    """Return the lines about layouts."""
    changes, _ = CASES["with resize"]
    native, num = stream(stores, device, **changes)
    larger, _ = stream(enlarged(stores), device, **changes)
    found = [
        lines.line(
            "random areas of images of native size, against images enlarged in the store",
            lines.pairs(native, larger, rounds), unit="img/s", work=num, chosen="native", times_the_bytes=4,
        )
    ]  # fmt: skip
    images = np.concatenate([stores[0].images] * (MANY // NUM))
    orders = [np.random.default_rng(seed).permutation(MANY)[:BATCH] for seed in range(200)]
    one = in_record_batches(images, folder / "one.arrow", num_rows=MANY)
    for num_rows in ROWS:
        parts = in_record_batches(images, folder / f"{num_rows}.arrow", num_rows=num_rows)
        found.append(
            lines.line(
                f"random rows of one record batch, against record batches of {num_rows} rows",
                lines.pairs(gather(one, MANY, orders), gather(parts, num_rows, orders), rounds),
                unit="img/s", work=len(orders) * BATCH, chosen="one",
            )
        )  # fmt: skip
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", help="cpu (default), cuda or cuda:N")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--record", action="store_true")
    options = parser.parse_args()
    lines.one_core()
    kind = torch.device(options.device).type
    found = []
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        datasets = write(root)
        stores = [
            open_store(build(dataset, cache_dir=root / "cache", height=HEIGHT, width=WIDTH)) for dataset in datasets
        ]
        for name, (changes, bar) in CASES.items():
            for placement in ("host", "device") if kind == "cuda" else ("host",):
                ours, num = stream(stores, options.device, placement=placement, **changes)
                measured = lines.pairs(ours, from_files(datasets, **changes), options.rounds)
                title = f"feeding the {kind} {name}, pixels on the {placement}, against JPEG files"
                size = file_size(datasets)
                found.append(lines.line(title, measured, at_least=bar, unit="img/s", work=num, bytes_per_file=size))
        found += layouts(stores, root, "cpu", options.rounds)
    lines.emit(found, f"feeding-{kind}", options.record)


if __name__ == "__main__":
    main()
