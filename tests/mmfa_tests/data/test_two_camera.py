"""VIPeR and PRID 2011: pairing by pid, and people who share a number."""

import logging

import numpy as np
import pytest

from mmfa.data import catalog
from mmfa.data.two_camera import PRID, SPLIT_PERSONS, VIPER, load
from mmfa.errors import DataError

VIPER_FILES = {
    "cam_a": ["000_45.bmp", "001_45.bmp", "002_0.bmp", "Thumbs.db"],
    "cam_b": ["000_45.bmp", "002_90.bmp", "003_180.bmp"],
}
PRID_FILES = {
    "cam_a": [f"person_{number:04d}.png" for number in (1, 200, 201, 385)],
    "cam_b": [f"person_{number:04d}.png" for number in (1, 200, 201, 749)],
}


def write(root, files):
    for folder, names in files.items():
        (root / folder).mkdir(parents=True)
        for name in names:
            (root / folder / name).write_bytes(b"")
    return root


def test_views_are_paired_by_pid_and_never_by_position(tmp_path):
    """One person is missing in each view: the n-th images of the two are of different people."""
    write(tmp_path / "VIPeR", VIPER_FILES)
    dataset = load(VIPER, tmp_path)
    domain = dataset.domain
    by_camera = [set(domain.pids[domain.camids == camid].tolist()) for camid in range(2)]
    assert by_camera == [{1, 2, 3}, {1, 3, 4}]
    assert dataset.counts == {"persons in cam_a": 3, "persons in cam_b": 3, "persons in both": 2, SPLIT_PERSONS: 2}
    assert dataset.formats == ("BMP",) and domain.attributes is None and (domain.splits == "unused").all()


def test_person_000_is_a_person_and_no_distractor(tmp_path):
    write(tmp_path / "VIPeR", VIPER_FILES)
    domain = load(VIPER, tmp_path).domain
    assert domain.pids[domain.paths.index("cam_a/000_45.bmp")] == 1
    assert (domain.pids > 0).all()


def test_prids_numbers_above_200_are_other_people_in_the_other_view(tmp_path):
    write(tmp_path / "prid_2011/single_shot", PRID_FILES)
    dataset = load(PRID, tmp_path)
    domain = dataset.domain
    in_a, in_b = (set(domain.pids[domain.camids == camid].tolist()) for camid in range(2))
    assert in_a & in_b == {1, 200}
    assert len(in_a | in_b) == 6 and dataset.counts["persons in both"] == 2
    assert dataset.formats == ("PNG",)


@pytest.mark.parametrize(
    ("layout", "files", "roots"),
    [
        (VIPER, VIPER_FILES, ["viper/VIPeR", "VIPeR"]),
        (PRID, PRID_FILES, ["prid2011/prid_2011/single_shot", "prid_2011/single_shot"]),
    ],
    ids=["viper", "prid2011"],
)
def test_the_first_layout_wins_and_the_catalogue_finds_it(tmp_path, layout, files, roots):
    for first in (1, 0):
        root = write(tmp_path / roots[first], files)
        dataset = catalog.load(layout.name, data_root=tmp_path, cache_dir=tmp_path / "cache")
        assert dataset.root == root and dataset.domain.name == layout.name


@pytest.mark.parametrize(
    ("layout", "root", "files", "name"),
    [(VIPER, "VIPeR", VIPER_FILES, name) for name in ("01_45.bmp", "0001_45.bmp", "001.bmp", "x001_45.bmp", "001_.bmp")]
    + [
        (PRID, "prid_2011/single_shot", PRID_FILES, name)
        for name in ("person_001.png", "person_0000.png", "Person_0001.png", "person_00001.png", "xperson_0001.png")
    ],
)
def test_names_outside_the_grammar_are_listed(tmp_path, layout, root, files, name):
    write(tmp_path / root, files)
    (tmp_path / root / "cam_b" / name).write_bytes(b"")
    with pytest.raises(DataError, match=f"but 1 in .*cam_b are not: {name}; rename"):
        load(layout, tmp_path)


def test_two_images_of_a_person_in_a_view_are_named(tmp_path):
    write(tmp_path / "VIPeR", VIPER_FILES)
    (tmp_path / "VIPeR" / "cam_a" / "001_90.bmp").write_bytes(b"")
    with pytest.raises(DataError, match=r"one image of a person .* both 001_45\.bmp and 001_90\.bmp; remove one"):
        load(VIPER, tmp_path)


def test_missing_and_empty_folders_are_named(tmp_path):
    with pytest.raises(DataError, match="VIPeR was looked for in viper/VIPeR, VIPeR .* that folder is empty"):
        load(VIPER, tmp_path)
    (tmp_path / "VIPeR" / "cam_a").mkdir(parents=True)
    with pytest.raises(DataError, match=r"VIPeR has no cam_b; .* files like 000_45\.bmp"):
        load(VIPER, tmp_path)
    (tmp_path / "VIPeR" / "cam_b").mkdir()
    with pytest.raises(DataError, match="cam_a has none; restore it"):
        load(VIPER, tmp_path)
    with pytest.raises(DataError, match=r"person_0001\.png"):
        load(PRID, tmp_path)


def test_other_counts_than_published_are_a_warning_or_an_error(tmp_path, caplog):
    write(tmp_path / "prid_2011/single_shot", PRID_FILES)
    with caplog.at_level(logging.WARNING):
        load(PRID, tmp_path)
    assert "NOT THE PUBLISHED PRID 2011" in caplog.text and "persons in cam_b: 4 found, 749 published" in caplog.text
    with pytest.raises(DataError, match="persons in both: 2 found, 200 published"):
        load(PRID, tmp_path, strict_counts=True)


def test_the_listing_ascends(tmp_path):
    write(tmp_path / "VIPeR", VIPER_FILES)
    paths = load(VIPER, tmp_path).domain.paths
    assert list(paths) == sorted(paths)
    np.testing.assert_array_equal(load(VIPER, tmp_path).domain.camids, [0, 0, 0, 1, 1, 1])
