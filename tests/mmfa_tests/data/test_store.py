"""The image store."""

import dataclasses
import json
import os
import pickle
import resource
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from mmfa.data.attributes import MARKET_FIELDS
from mmfa.data.records import AttributeCodes, Dataset, Domain
from mmfa.data.store import FORMAT, build, open_store
from mmfa.errors import DataError


def write_images(root, *, num=10, height=128, width=64, attributes=True, seed=0):
    """A small dataset of smooth random images."""
    rng = np.random.default_rng(seed)
    (root / "bounding_box_train").mkdir(parents=True)
    paths = [f"bounding_box_train/{i // 2 + 1:04d}_c{i % 2 + 1}s1_000000_00.jpg" for i in range(num)]
    for path in paths:
        pixels = Image.fromarray(rng.integers(0, 256, (8, 4, 3), dtype=np.uint8)).resize((width, height))
        pixels.save(root / path, quality=92)
    pids = np.arange(num) // 2 + 1
    codes = AttributeCodes(
        fields=MARKET_FIELDS, pids=np.unique(pids), codes=rng.integers(1, 3, (num // 2, 27), dtype=np.uint8)
    )
    domain = Domain(
        name="small",
        paths=tuple(paths),
        pids=pids,
        camids=np.arange(num) % 2,
        splits=np.full(num, "train", dtype="<U11"),
        attributes=codes if attributes else None,
    )
    return Dataset(root=root, domain=domain, attribute_file=None)


def opened(dataset, cache_dir, *, height=128, width=64):
    return open_store(build(dataset, cache_dir=cache_dir, height=height, width=width))


def pil_pixels(dataset):
    return np.stack([np.asarray(Image.open(dataset.root / path)) for path in dataset.domain.paths])


@pytest.mark.parametrize("attributes", [True, False])
def test_what_is_stored_comes_back(tmp_path, attributes):
    dataset = write_images(tmp_path / "data", attributes=attributes)
    store = opened(dataset, tmp_path / "cache")
    np.testing.assert_array_equal(store.images, pil_pixels(dataset))
    for column in ("paths", "pids", "camids", "splits", "name"):
        np.testing.assert_array_equal(getattr(store.domain, column), getattr(dataset.domain, column))
    assert store.domain.pids.dtype == store.domain.camids.dtype == np.int64
    wanted = dataset.domain.attributes
    if wanted is None:
        assert store.domain.attributes is None
    else:
        found = store.domain.attributes
        assert found.fields == wanted.fields and found.codes.dtype == np.uint8
        np.testing.assert_array_equal(found.pids, wanted.pids)
        np.testing.assert_array_equal(found.codes, wanted.codes)


def test_images_are_mapped_and_not_copied(tmp_path):
    store = opened(write_images(tmp_path / "data"), tmp_path / "cache")
    assert not store.images.flags.writeable and not store.images.flags.owndata
    assert store.images.flags.c_contiguous
    address = store.images.__array_interface__["data"][0]
    with Path("/proc/self/maps").open() as maps:
        mapped = [line for line in maps if line.rstrip().endswith(str(store.path))]
    ranges = [tuple(int(end, 16) for end in line.split()[0].split("-")) for line in mapped]
    assert any(begin <= address and address + store.images.nbytes <= end for begin, end in ranges)


def test_images_of_another_size_are_resized_with_antialiasing(tmp_path):
    dataset = write_images(tmp_path / "data")
    store = opened(dataset, tmp_path / "cache", height=64, width=32)
    wanted = np.stack(
        [
            np.asarray(Image.fromarray(image).resize((32, 64), Image.Resampling.BILINEAR))
            for image in pil_pixels(dataset)
        ]
    )
    assert store.images.shape == wanted.shape
    assert np.abs(store.images.astype(int) - wanted).max() <= 1


def test_a_second_build_reads_no_image(tmp_path):
    dataset = write_images(tmp_path / "data")
    path = build(dataset, cache_dir=tmp_path / "cache", height=128, width=64)
    steps = []
    assert (
        build(dataset, cache_dir=tmp_path / "cache", height=128, width=64, progress=lambda *now: steps.append(now))
        == path
    )
    assert not steps


@pytest.mark.parametrize("version", ["PIL.__version__", "torch.__version__", "mmfa.data.store.version"])
def test_another_decoder_builds_again(tmp_path, monkeypatch, version):
    dataset = write_images(tmp_path / "data")
    path = build(dataset, cache_dir=tmp_path / "cache", height=128, width=64)
    monkeypatch.setattr(version, (lambda package: "0.0.1") if version.endswith(".version") else "0.0.1")
    assert build(dataset, cache_dir=tmp_path / "cache", height=128, width=64) != path


@pytest.fixture
def little_room():
    """Let no file grow beyond 1 MB."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, limits[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@pytest.mark.usefixtures("little_room")
def test_no_room_for_the_store_is_an_error(tmp_path):
    dataset = write_images(tmp_path / "data", num=200)
    with pytest.raises(DataError, match=r"small-128x64-\w+\.arrow must be written .* make room there or .*--cache-dir"):
        build(dataset, cache_dir=tmp_path / "cache", height=128, width=64)
    assert [path.name for path in (tmp_path / "cache" / "stores").iterdir()] == [".lock"]


def test_a_cache_that_is_no_folder_is_an_error(tmp_path):
    dataset = write_images(tmp_path / "data")
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(DataError, match="must be written"):
        build(dataset, cache_dir=tmp_path / "cache", height=128, width=64)


def with_other_image(dataset, path, image, **options):
    """Put another image in the place of the first, and maybe under another name."""
    (dataset.root / dataset.domain.paths[0]).unlink()
    image.save(dataset.root / path, **options)
    domain = dataclasses.replace(dataset.domain, paths=(path, *dataset.domain.paths[1:]))
    return dataclasses.replace(dataset, domain=domain)


@pytest.mark.parametrize(("suffix", "image_format"), [("png", "PNG"), ("bmp", "BMP")])
def test_other_formats_are_decoded_where_the_dataset_has_them(tmp_path, suffix, image_format):
    pixels = np.random.default_rng(0).integers(0, 256, (128, 64, 3), dtype=np.uint8)
    dataset = write_images(tmp_path / "data")
    dataset = with_other_image(dataset, f"bounding_box_train/0001_c1.{suffix}", Image.fromarray(pixels))
    with pytest.raises(DataError, match=rf"must be an intact JPEG, but .*0001_c1\.{suffix} cannot be decoded"):
        build(dataset, cache_dir=tmp_path / "cache", height=128, width=64)
    dataset = dataclasses.replace(dataset, formats=("JPEG", image_format))
    np.testing.assert_array_equal(opened(dataset, tmp_path / "cache").images[0], pixels)
    only = dataclasses.replace(dataset, formats=(image_format,))
    with pytest.raises(DataError, match=f"must be an intact {image_format}, but .* cannot be decoded"):
        build(only, cache_dir=tmp_path / "other", height=128, width=64)


@pytest.mark.parametrize("mode", ["L", "CMYK", "progressive"])
def test_every_kind_of_jpeg_is_decoded_as_pillow_does(tmp_path, mode):
    smooth = Image.fromarray(np.random.default_rng(0).integers(0, 256, (8, 4, 3), dtype=np.uint8)).resize((64, 128))
    dataset = write_images(tmp_path / "data")
    path = dataset.domain.paths[0]
    if mode == "progressive":
        smooth.save(dataset.root / path, progressive=True)
    else:
        smooth.convert(mode).save(dataset.root / path)
    wanted = np.asarray(Image.open(dataset.root / path).convert("RGB")).astype(int)
    found = opened(dataset, tmp_path / "cache").images[0]
    assert np.abs(found - wanted).max() <= (2 if mode == "CMYK" else 0)


def test_an_unlabelled_domain_comes_back_unlabelled(tmp_path):
    dataset = write_images(tmp_path / "data", attributes=False)
    domain = dataclasses.replace(dataset.domain, pids=np.full(10, -1), labelled=False)
    store = opened(dataclasses.replace(dataset, domain=domain), tmp_path / "cache")
    assert store.domain.labelled is False and (store.domain.pids == -1).all()


def test_progress_reaches_the_total(tmp_path):
    steps = []
    dataset = write_images(tmp_path / "data", num=140, height=16, width=8)
    build(dataset, cache_dir=tmp_path / "cache", height=16, width=8, progress=lambda *now: steps.append(now))
    assert steps == [("decoding small", done, 140) for done in (64, 128, 140)]


def test_the_fingerprint_is_of_the_content_alone(tmp_path):
    dataset = write_images(tmp_path / "data")
    first = opened(dataset, tmp_path / "cache")
    assert len(first.fingerprint) == 12
    assert opened(dataset, tmp_path / "cache", height=64, width=32).fingerprint == first.fingerprint
    for path in dataset.domain.paths:
        os.utime(dataset.root / path, (1, 1))
    again = opened(dataset, tmp_path / "cache")
    assert again.path != first.path, "other times are looked at again"
    assert again.fingerprint == first.fingerprint
    assert opened(write_images(tmp_path / "copy"), tmp_path / "cache").fingerprint == first.fingerprint


def one_pixel(dataset):
    path = dataset.root / dataset.domain.paths[3]
    pixels = np.asarray(Image.open(path)).copy()
    pixels[5, 5] = 255 - pixels[5, 5]
    Image.fromarray(pixels).save(path, quality=92)
    return dataset


def one_label(column, value):
    def change(dataset):
        labels = getattr(dataset.domain, column).copy()
        labels[3] = value
        os.utime(dataset.root / dataset.domain.paths[3], (2, 2))
        return dataclasses.replace(dataset, domain=dataclasses.replace(dataset.domain, **{column: labels}))

    return change


def one_code(dataset):
    dataset.domain.attributes.codes[1, 2] ^= 3
    os.utime(dataset.root / dataset.domain.paths[3], (2, 2))
    return dataset


@pytest.mark.parametrize(
    "change", [one_pixel, one_label("pids", 1), one_label("camids", 0), one_label("splits", "query"), one_code]
)
def test_the_fingerprint_changes_with_a_pixel_a_label_and_a_code(tmp_path, change):
    first = opened(write_images(tmp_path / "data"), tmp_path / "cache").fingerprint
    changed = change(write_images(tmp_path / "other"))
    assert opened(changed, tmp_path / "cache").fingerprint != first


@pytest.mark.parametrize("damage", ["truncated", "empty", "text"])
def test_an_image_that_cannot_be_decoded_is_named(tmp_path, damage):
    dataset = write_images(tmp_path / "data")
    path = dataset.root / dataset.domain.paths[7]
    path.write_bytes({"truncated": path.read_bytes()[:-300], "empty": b"", "text": b"no image" * 99}[damage])
    with pytest.raises(DataError, match=f"{path} cannot be decoded"):
        build(dataset, cache_dir=tmp_path / "cache", height=128, width=64)
    assert [entry.name for entry in (tmp_path / "cache" / "stores").iterdir()] == [".lock"]


def test_a_damaged_store_says_delete_and_run_again(tmp_path):
    path = build(write_images(tmp_path / "data"), cache_dir=tmp_path / "cache", height=128, width=64)
    content = path.read_bytes()
    for damaged in (content[: len(content) // 2], content[:-1], b"", b"x" * 5000):
        path.write_bytes(damaged)
        with pytest.raises(DataError, match="not an intact image store .* delete it and run again"):
            open_store(path)
    path.unlink()
    with pytest.raises(DataError, match="not an intact image store"):
        open_store(path)


def test_another_arrow_file_is_no_store(tmp_path):
    path = tmp_path / "other.arrow"
    batch = pa.record_batch({"a": [1]})
    with pa.ipc.new_file(str(path), batch.schema) as writer:
        writer.write_batch(batch)
    with pytest.raises(DataError, match="not an intact image store"):
        open_store(path)


def test_another_format_version_says_delete_and_run_again(tmp_path):
    path = build(write_images(tmp_path / "data"), cache_dir=tmp_path / "cache", height=128, width=64)
    batch = pa.ipc.open_file(str(path)).get_batch(0)
    metadata = json.loads(batch.schema.metadata[b"mmfa"])
    other = batch.replace_schema_metadata({b"mmfa": json.dumps(metadata | {"format": FORMAT + 1})})
    with pa.ipc.new_file(str(tmp_path / "other.arrow"), other.schema) as writer:
        writer.write_batch(other)
    with pytest.raises(DataError, match=f"must have format {FORMAT}, but .* has {FORMAT + 1}; delete it"):
        open_store(tmp_path / "other.arrow")


SCRIPT = """
import os, pickle, signal, sys
from pathlib import Path
from mmfa.data.store import build

dataset = pickle.loads(Path(sys.argv[1]).read_bytes())
steps = []

def progress(what, done, total):
    steps.append(done)
    if sys.argv[3] == "kill":
        os.kill(os.getpid(), signal.SIGKILL)

print(build(dataset, cache_dir=Path(sys.argv[2]), height=128, width=64, progress=progress).name, len(steps) > 0)
"""


def start_build(tmp_path, dataset, what):
    (tmp_path / "dataset.pickle").write_bytes(pickle.dumps(dataset))
    arguments = [str(tmp_path / "dataset.pickle"), str(tmp_path / "cache"), what]
    return subprocess.Popen([sys.executable, "-c", SCRIPT, *arguments], stdout=subprocess.PIPE, text=True)


def test_a_kill_in_the_middle_leaves_nothing_taken_for_a_store(tmp_path):
    dataset = write_images(tmp_path / "data", num=200)
    process = start_build(tmp_path, dataset, "kill")
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    left = [path.suffix for path in (tmp_path / "cache" / "stores").iterdir() if path.name != ".lock"]
    assert left == [".tmp"]
    store = opened(dataset, tmp_path / "cache")
    np.testing.assert_array_equal(store.images, pil_pixels(dataset))
    assert sorted(path.name for path in store.path.parent.iterdir()) == [".lock", store.path.name]


def test_two_processes_at_once_build_once(tmp_path):
    dataset = write_images(tmp_path / "data", num=200)
    both = [start_build(tmp_path, dataset, "build") for _ in range(2)]
    printed = [process.communicate()[0].split() for process in both]
    assert printed[0][0] == printed[1][0]
    assert sorted(did for _, did in printed) == ["False", "True"]
    np.testing.assert_array_equal(opened(dataset, tmp_path / "cache").images, pil_pixels(dataset))


def test_an_image_that_cannot_be_read_is_named(tmp_path):
    dataset = write_images(tmp_path / "data")
    file = dataset.root / dataset.domain.paths[3]
    target = file.with_suffix(".other")
    file.rename(target)
    file.mkdir()  # what a read refuses, whoever runs the test
    with pytest.raises(DataError, match=rf"All of a dataset must be readable, but .*{file.name}: Is a directory"):
        build(dataset, cache_dir=tmp_path / "cache", height=16, width=8)
