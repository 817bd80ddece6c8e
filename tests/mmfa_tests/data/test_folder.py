"""People's own data: a folder in Market layout, and an unlabelled target."""

import dataclasses
import os
import re

import numpy as np
import pytest
import torch
from PIL import Image

from mmfa.config import DataConfig
from mmfa.data import catalog
from mmfa.data.attributes import MARKET, MARKET_FIELDS, write_mat
from mmfa.data.batches import Batches
from mmfa.data.folder import domain_name, load
from mmfa.data.records import AttributeCodes
from mmfa.data.store import build, open_store
from mmfa.errors import DataError

FILES = {
    "bounding_box_train": ["1_c0.png", "1_c17_anything at all.JPG", "20001_c3-x.jpeg"],
    "query": ["7_c1s1_000001_00.jpg"],
    "bounding_box_test": ["7_c2.bmp", "0_c1.jpg", "-1_c4.jpg", "7_c1s1_000001_00.jpg", "notes.txt"],
}


def write_folder(root, files=FILES):
    for folder, names in files.items():
        (root / folder).mkdir(parents=True)
        for name in names:
            (root / folder / name).write_bytes(b"")
    return root


def write_images(root, names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 16), (10, 20, 30)).save(root / name)
    return root


def named(path, **options):
    return catalog.load(f"folder:{path}", data_root=None, cache_dir=path, **options)


def test_any_cameras_and_any_names_after_them(tmp_path):
    dataset = named(write_folder(tmp_path / "mine"))
    domain = dataset.domain
    assert domain.name.startswith("folder-mine-") and domain.labelled and domain.attributes is None
    found = dict(zip(domain.paths, zip(domain.pids.tolist(), domain.camids.tolist(), strict=True), strict=True))
    assert found == {
        "bounding_box_train/1_c0.png": (1, 0),
        "bounding_box_train/1_c17_anything at all.JPG": (1, 17),
        "bounding_box_train/20001_c3-x.jpeg": (20001, 3),
        "query/7_c1s1_000001_00.jpg": (7, 1),
        "bounding_box_test/7_c2.bmp": (7, 2),
        "bounding_box_test/0_c1.jpg": (0, 1),
        "bounding_box_test/7_c1s1_000001_00.jpg": (7, 1),
    }
    assert dataset.num_junk == 1 and dataset.formats == ("JPEG", "PNG", "BMP") and not dataset.published


@pytest.mark.parametrize(
    "name", ["c1_0001.jpg", "0001.jpg", "0001_1.jpg", "-2_c1.jpg", "a_c1.jpg", "0_c1.jpg", "1_cx.jpg"]
)
def test_a_name_without_pid_and_camera_is_listed(tmp_path, name):
    write_folder(tmp_path / "mine")
    (tmp_path / "mine" / "bounding_box_train" / name).write_bytes(b"")
    with pytest.raises(DataError, match=f"Every image must be named <pid: digits or -1>.* are not: {name}"):
        named(tmp_path / "mine")


def test_a_training_image_in_the_test_is_an_error(tmp_path):
    write_folder(tmp_path / "mine")
    (tmp_path / "mine" / "query" / "1_c0.png").write_bytes(b"")
    with pytest.raises(DataError, match=r"1_c0\.png is in both bounding_box_train and query"):
        named(tmp_path / "mine")


def test_attributes_in_it_are_read(tmp_path):
    root = write_folder(tmp_path / "mine")
    codes = AttributeCodes(fields=MARKET_FIELDS, pids=np.array([1, 7]), codes=np.ones((2, 27), np.uint8))
    write_mat(root / "market_attribute.mat", codes, kind=MARKET, train_pids=np.array([1]))
    dataset = named(root)
    assert dataset.domain.attributes.pids.tolist() == [1, 7] and dataset.attribute_file.parent == root


def test_what_is_missing_is_named(tmp_path):
    root = write_folder(tmp_path / "mine", {"query": ["1_c1.jpg"]})
    with pytest.raises(DataError, match=f"but {root} has no bounding_box_test, bounding_box_train; add"):
        named(root)
    with pytest.raises(DataError, match="must name a folder, but .*nowhere is none"):
        named(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="or images for an unlabelled target, but .*empty has neither"):
        named(tmp_path / "empty", attributes_required=False)


@pytest.mark.parametrize(
    ("path", "name"),
    [("a", "folder-a"), ("My data (2)", "folder-My-data-2-"), ("été", "folder--t-"), ("a/../b.c_d", "folder-b.c_d")],
)
def test_the_domains_name_fits_a_file_name(tmp_path, path, name):
    found = domain_name(tmp_path / path)
    assert re.fullmatch(re.escape(name) + "-[0-9a-f]{6}", found) and found == catalog.slug(f"folder:{tmp_path / path}")


def test_two_folders_of_one_base_name_are_two_datasets(tmp_path):
    assert domain_name(tmp_path / "a" / "frames") != domain_name(tmp_path / "b" / "frames")


def test_a_name_that_is_not_utf8_is_refused(tmp_path):
    frames = tmp_path / "frames"
    frames.mkdir()
    (frames / os.fsdecode(b"caf\xe9.jpg")).write_bytes(b"")
    with pytest.raises(
        DataError, match=r"File names must be UTF-8, but 1 in .*frames are not: 'caf.udce9.jpg'; rename"
    ):
        load(frames, unlabelled_allowed=True)


def test_nobody_is_trained_on_and_queried(tmp_path):
    files = {
        "bounding_box_train": ["1_c1_a.jpg", "2_c2_a.jpg"],
        "query": ["2_c1_q.jpg"],
        "bounding_box_test": ["2_c3_g.jpg"],
    }
    for folder, names in files.items():
        (tmp_path / folder).mkdir()
        for name in names:
            (tmp_path / folder / name).write_bytes(b"")
    with pytest.raises(
        DataError, match="Nobody may be trained on and tested, but .* has identity 2 in bounding_box_train"
    ):
        load(tmp_path, unlabelled_allowed=False)


def test_the_slug_of_another_name_is_the_name():
    assert [catalog.slug(name) for name in catalog.names()] == list(catalog.names())
    with pytest.raises(DataError, match="'vipr' is not a dataset; did you mean 'viper'"):
        catalog.slug("vipr")


# Unlabelled


@pytest.fixture
def unlabelled(tmp_path):
    names = ["b/2.png", "b/deep/1.jpg", "a/1.JPG", "0.jpg", "c/x.bmp"]
    root = write_images(tmp_path / "frames", names)
    (root / "a" / "Thumbs.db").write_bytes(b"")
    (root / "a" / "._1.jpg").write_bytes(b"what macOS leaves")
    return root


def test_images_alone_are_an_unlabelled_target_with_a_camera_per_subfolder(unlabelled):
    dataset = named(unlabelled, attributes_required=False)
    domain = dataset.domain
    assert domain.paths == ("0.jpg", "a/1.JPG", "b/2.png", "b/deep/1.jpg", "c/x.bmp")
    assert domain.camids.tolist() == [0, 1, 2, 2, 3]
    assert not domain.labelled and (domain.pids == -1).all() and (domain.splits == "train").all()
    assert dataset.counts == {"unlabelled images": 5, "cameras": 4}


def test_it_cannot_be_a_source(unlabelled):
    with pytest.raises(DataError, match="A source needs identities, but .* is unlabelled; use it as a target"):
        named(unlabelled)
    with pytest.raises(DataError, match="unlabelled"):
        load(unlabelled, unlabelled_allowed=False)


def stores(tmp_path, unlabelled):
    files = [f"bounding_box_train/{pid}_c{cam}_{take}.png" for pid in range(1, 7) for cam in (1, 2) for take in (1, 2)]
    labelled = write_images(tmp_path / "people", [*files, "query/9_c1.png", "bounding_box_test/9_c2.png"])
    datasets = named(labelled), named(unlabelled, attributes_required=False)
    size = {"height": 16, "width": 8}
    return [open_store(build(dataset, cache_dir=tmp_path / "cache", **size)) for dataset in datasets]


def batches(source, target, **changes):
    config = DataConfig(
        image_height=16, image_width=16, store_height=16, store_width=16, source_batch=2, target_batch=2, **changes
    )
    return Batches(config, source=source, target=target, seed=0, device=torch.device("cpu"), channels_last=False)


def test_a_training_takes_its_images_and_holds_nobody_out_of_it(tmp_path, unlabelled):
    source, target = stores(tmp_path, unlabelled)
    made = batches(source, target, num_val_ids=2)
    assert made.target_domain is target.domain and len(made.source_domain.rows("val_query")) == 4
    assert made.attribute_names == (), "no annotations: L_attr and L_AAL are off"
    assert next(iter(made.epoch(0))).target_BCHW.shape == (2, 3, 16, 16)
    with pytest.raises(DataError, match="A source needs identities, but folder-frames-.* is unlabelled"):
        batches(target, source, num_val_ids=0)


def test_batches_assign_the_split_of_the_config(tmp_path, unlabelled):
    source, _ = stores(tmp_path, unlabelled)
    pids = np.repeat(np.arange(1, 201), 2)
    small = dataclasses.replace(
        source.domain,
        name="prid2011",
        paths=tuple(f"{n:04d}" for n in range(400)),
        pids=pids,
        camids=np.arange(400) % 2,
        splits=np.full(400, "unused", dtype="<U11"),
    )
    target = dataclasses.replace(source, domain=small, images=np.zeros((400, 16, 8, 3), np.uint8))
    for split in (0, 7):
        made = batches(source, target, num_val_ids=0, split=split)
        np.testing.assert_array_equal(made.target_domain.splits, small.with_split(split).splits)
    with pytest.raises(DataError, match="prid2011 is too small to hold out from"):
        batches(source, target, num_val_ids=2)
