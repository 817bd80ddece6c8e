"""The Market-1501 layout, its grammar and its traps."""

import logging

import numpy as np
import pytest

from mmfa.data import catalog
from mmfa.data import counts as counting
from mmfa.data.attributes import DUKE as DUKE_ANNOTATIONS
from mmfa.data.attributes import DUKE_FIELDS, MARKET_FIELDS, write_mat
from mmfa.data.attributes import MARKET as MARKET_ANNOTATIONS
from mmfa.data.market_layout import DUKE, MARKET, count, load, read
from mmfa.data.records import AttributeCodes, Domain
from mmfa.errors import DataError

FILES = {
    "bounding_box_train": ["0002_c1s1_000451_03.jpg", "0002_c6s3_000451_01.jpg", "0007_c3s3_077419_03.jpg"],
    "query": ["0001_c2s1_000301_00.jpg"],
    "bounding_box_test": [
        "-1_c1s1_000401_03.jpg",
        "0000_c4s6_016750_02.jpg",
        "0001_c5s1_000301_00.jpg",
        "Thumbs.db",
        "readme.txt",
    ],
}


def write_market(data_root, layout="Market-1501-v15.09.15", *, files=FILES, pids=(1, 2, 7), mat_folder=""):
    root = data_root / layout
    for folder, names in files.items():
        (root / folder).mkdir(parents=True)
        for name in names:
            (root / folder / name).write_bytes(b"")
    (root / mat_folder).mkdir(exist_ok=True)
    codes = AttributeCodes(
        fields=MARKET_FIELDS, pids=np.array(pids), codes=np.ones((len(pids), len(MARKET_FIELDS)), np.uint8)
    )
    write_mat(root / mat_folder / "market_attribute.mat", codes, kind=MARKET_ANNOTATIONS, train_pids=np.array([2, 7]))
    return root


def test_junk_is_dropped_distractors_stay_and_cameras_count_from_zero(tmp_path):
    root = write_market(tmp_path)
    dataset = load(MARKET, tmp_path)
    domain = dataset.domain
    assert dataset.root == root and domain.name == "market1501"
    assert domain.paths == (
        "bounding_box_test/0000_c4s6_016750_02.jpg",
        "bounding_box_test/0001_c5s1_000301_00.jpg",
        "bounding_box_train/0002_c1s1_000451_03.jpg",
        "bounding_box_train/0002_c6s3_000451_01.jpg",
        "bounding_box_train/0007_c3s3_077419_03.jpg",
        "query/0001_c2s1_000301_00.jpg",
    )
    assert domain.pids.tolist() == [0, 1, 2, 2, 7, 1]
    assert domain.camids.tolist() == [3, 4, 0, 5, 2, 1]
    assert domain.splits.tolist() == ["gallery", "gallery", "train", "train", "train", "query"]
    assert domain.train_pids.tolist() == [2, 7]
    assert domain.attributes is not None and domain.attributes.pids.tolist() == [1, 2, 7]


def test_a_folder_named_like_a_camera_is_not_read(tmp_path):
    write_market(tmp_path / "run3_c5")
    assert load(MARKET, tmp_path / "run3_c5").domain.camids.tolist() == [3, 4, 0, 5, 2, 1]


@pytest.mark.parametrize("first", range(3))
def test_the_first_layout_wins(tmp_path, first):
    layouts = ["market1501/Market-1501-v15.09.15", "Market-1501-v15.09.15", "market1501"]
    for layout in layouts[first:]:
        write_market(tmp_path, layout)
    assert load(MARKET, tmp_path).root == tmp_path / layouts[first]


@pytest.mark.parametrize(
    "name",
    [
        "0002_c7s1_000451_03.jpg",
        "0002_c0s1_000451_03.jpg",
        "002_c1s1_000451_03.jpg",
        "0002_c1s1_00451_03.jpg",
        "0002_c1s1_000451_03.jpg.jpg",
        "x0002_c1s1_000451_03.jpg",
        "0002_c1s1_000451_03.JPG",
        "-2_c1s1_000451_03.jpg",
        "0000_c1s1_000451_03.jpg",
    ],
)
def test_a_jpg_outside_the_grammar_is_an_error(tmp_path, name):
    root = write_market(tmp_path)
    (root / "bounding_box_train" / name).write_bytes(b"")
    with pytest.raises(DataError, match=f"1 in .*bounding_box_train are not: {name}"):
        load(MARKET, tmp_path)


def test_the_first_few_odd_names_are_listed(tmp_path):
    root = write_market(tmp_path)
    for i in range(9):
        (root / "query" / f"odd{i}.jpg").write_bytes(b"")
    with pytest.raises(
        DataError, match=r"9 in .*query are not: odd0\.jpg, odd1\.jpg, odd2\.jpg, odd3\.jpg, odd4\.jpg;"
    ):
        load(MARKET, tmp_path)


def test_a_missing_layout_names_what_was_found(tmp_path):
    with pytest.raises(
        DataError, match="Market-1501-v15.09.15.* but that folder is empty; one of these places must hold"
    ):
        load(MARKET, tmp_path)
    (tmp_path / "DukeMTMC-reID").mkdir()
    with pytest.raises(DataError, match="but found DukeMTMC-reID;"):
        load(MARKET, tmp_path)
    (tmp_path / "market1501" / "query").mkdir(parents=True)
    with pytest.raises(DataError, match="but market1501 has no bounding_box_test, bounding_box_train;"):
        load(MARKET, tmp_path)
    with pytest.raises(DataError, match="but that is not a folder"):
        load(MARKET, tmp_path / "nowhere")
    root = write_market(tmp_path / "data")
    with pytest.raises(
        DataError, match="but that is the dataset itself, and what is asked for is the folder that hold"
    ):
        load(MARKET, root)


def test_an_empty_folder_is_an_error(tmp_path):
    write_market(tmp_path, files={**FILES, "query": ["-1_c1s1_000401_03.jpg"]})
    with pytest.raises(DataError, match="query has none"):
        load(MARKET, tmp_path)


def test_other_counts_than_published_are_a_loud_warning_or_an_error(tmp_path, caplog):
    write_market(tmp_path)
    with caplog.at_level(logging.WARNING):
        load(MARKET, tmp_path)
    assert "NOT THE PUBLISHED Market-1501" in caplog.text
    assert "training images: 3 found, 12,936 published" in caplog.text
    assert "distractor images: 1 found, 2,798 published" in caplog.text
    with pytest.raises(DataError, match="training identities: 2 found, 751 published"):
        load(MARKET, tmp_path, strict_counts=True)


def test_the_published_counts_pass_in_silence(caplog):
    counts = MARKET.published
    sizes = {
        "train": (counts["training images"], counts["training identities"], 1),
        "query": (counts["query images"], counts["query identities"], 1),
        "gallery": (counts["gallery images"] - counts["distractor images"], counts["query identities"], 1),
    }
    pids = [np.arange(images) % ids + first for images, ids, first in sizes.values()]
    splits = [np.full(images, split, dtype="<U11") for split, (images, _, _) in sizes.items()]
    pids.append(np.zeros(counts["distractor images"], dtype=np.int64))
    splits.append(np.full(counts["distractor images"], "gallery", dtype="<U11"))
    pids, splits = np.concatenate(pids), np.concatenate(splits)
    paths = tuple(f"{i:06d}" for i in range(len(pids)))
    domain = Domain(name="market1501", paths=paths, pids=pids, camids=np.zeros_like(pids), splits=splits)
    with caplog.at_level(logging.WARNING):
        counting.check("Market-1501", count(domain), MARKET.published, strict=True)
    assert not caplog.records


@pytest.mark.parametrize("mat_folder", ["", "Market-1501_Attribute", "..", "../Market-1501_Attribute"])
def test_the_attribute_file_is_found_beside_the_images_or_in_the_data_root(tmp_path, mat_folder):
    root = write_market(tmp_path, mat_folder=mat_folder)
    found = load(MARKET, tmp_path).attribute_file
    assert found is not None and found.resolve() == (root / mat_folder / "market_attribute.mat").resolve()


def test_a_missing_attribute_file_says_where_it_was_looked_for(tmp_path):
    root = write_market(tmp_path)
    (root / "market_attribute.mat").unlink()
    with pytest.raises(DataError, match="not in any of") as caught:
        load(MARKET, tmp_path)
    for folder in (root, root / "Market-1501_Attribute", tmp_path, tmp_path / "Market-1501_Attribute"):
        assert str(folder) in str(caught.value)


def test_a_target_needs_no_attribute_file(tmp_path):
    root = write_market(tmp_path)
    with_file = load(MARKET, tmp_path, attributes_required=False)
    assert with_file.domain.attributes is not None
    (root / "market_attribute.mat").unlink()
    target = catalog.load("market1501", data_root=tmp_path, cache_dir=tmp_path, attributes_required=False)
    assert target.domain.attributes is None and target.attribute_file is None
    assert target.domain.paths == with_file.domain.paths
    with pytest.raises(DataError, match="A source needs its attribute annotations"):
        catalog.load("market1501", data_root=tmp_path, cache_dir=tmp_path)


def test_identities_that_are_not_trained_need_no_annotation(tmp_path):
    write_market(tmp_path, pids=(2, 7))
    assert load(MARKET, tmp_path).domain.attributes.pids.tolist() == [2, 7]


def test_nothing_is_written_into_the_data_root(tmp_path):
    write_market(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    load(MARKET, tmp_path)
    assert sorted(tmp_path.rglob("*")) == before


def test_listing_order_does_not_depend_on_the_file_system(tmp_path):
    backwards = {folder: names[::-1] for folder, names in FILES.items()}
    one = read(MARKET, write_market(tmp_path / "a")).domain
    other = read(MARKET, write_market(tmp_path / "b", files=backwards)).domain
    assert one.paths == other.paths and one.pids.tolist() == other.pids.tolist()


def test_the_catalogue_loads_market(tmp_path):
    write_market(tmp_path)
    assert "market1501" in catalog.names()
    assert catalog.load("market1501", data_root=tmp_path, cache_dir=tmp_path / "cache").domain.name == "market1501"
    with pytest.raises(DataError, match="--data-root"):
        catalog.load("market1501", data_root=None, cache_dir=tmp_path / "cache")
    with pytest.raises(DataError, match="did you mean 'embedded-source'"):
        catalog.load("embeded-source", data_root=None, cache_dir=tmp_path / "cache")


def test_the_cache_folder_follows_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("MMFA_CACHE_DIR", str(tmp_path / "a"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "b"))
    assert catalog.default_cache_dir() == tmp_path / "a"
    monkeypatch.delenv("MMFA_CACHE_DIR")
    assert catalog.default_cache_dir() == tmp_path / "b" / "mmfa"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert catalog.default_cache_dir().parts[-2:] == (".cache", "mmfa")


def test_an_image_in_two_folders_is_an_error(tmp_path):
    root = write_market(tmp_path)
    (root / "query" / "0002_c1s1_000451_03.jpg").write_bytes(b"")
    with pytest.raises(DataError, match=r"0002_c1s1_000451_03\.jpg is in both bounding_box_train and query of"):
        load(MARKET, tmp_path)
    (root / "query" / "0002_c1s1_000451_03.jpg").unlink()
    (root / "query" / "0001_c5s1_000301_00.jpg").write_bytes(b"")
    with pytest.raises(DataError, match="is in both bounding_box_test and query"):
        load(MARKET, tmp_path)


def test_junk_is_counted(tmp_path):
    write_market(tmp_path)
    dataset = load(MARKET, tmp_path)
    assert dataset.num_junk == 1
    assert dataset.counts["distractor images"] == 1 and dataset.counts["gallery identities"] == 1


# DukeMTMC-reID

DUKE_FILES = {
    "bounding_box_train": ["0370_c2_f0046182.jpg", "0370_c8_f0046183.jpg", "0001_c1_f0044158.jpg"],
    "query": ["0005_c2_f0046985.jpg"],
    "bounding_box_test": ["0005_c5_f0051341.jpg", "7139_c8_f0180402.jpg", "Thumbs.db"],
}


def write_duke(data_root, layout="DukeMTMC-reID", *, files=DUKE_FILES, annotated=True):
    root = data_root / layout
    for folder, names in files.items():
        (root / folder).mkdir(parents=True)
        for name in names:
            (root / folder / name).write_bytes(b"")
    if annotated:
        codes = AttributeCodes(
            fields=DUKE_FIELDS, pids=np.array([1, 5, 370, 7139]), codes=np.ones((4, len(DUKE_FIELDS)), np.uint8)
        )
        (data_root / "DukeMTMC-attribute").mkdir()
        file = data_root / "DukeMTMC-attribute" / "duke_attribute.mat"
        write_mat(file, codes, kind=DUKE_ANNOTATIONS, train_pids=np.array([1, 370]))
    return root


@pytest.mark.parametrize("layout", ["dukemtmc-reid/DukeMTMC-reID", "DukeMTMC-reID"])
def test_dukes_labels_are_read_and_its_distractors_have_ordinary_ids(tmp_path, layout):
    root = write_duke(tmp_path, layout)
    dataset = catalog.load("dukemtmc-reid", data_root=tmp_path, cache_dir=tmp_path / "cache")
    domain = dataset.domain
    assert dataset.root == root and domain.name == "dukemtmc-reid" and dataset.num_junk == 0
    assert domain.pids.tolist() == [5, 7139, 1, 370, 370, 5]
    assert domain.camids.tolist() == [4, 7, 0, 1, 7, 1]
    assert domain.splits.tolist() == ["gallery", "gallery", "train", "train", "train", "query"]
    assert dataset.counts["distractor identities"] == 1 and dataset.counts["gallery identities"] == 2
    assert domain.attributes.fields == DUKE_FIELDS and domain.attributes.pids.tolist() == [1, 5, 370, 7139]


@pytest.mark.parametrize(
    "name",
    [
        "0001_c9_f0044158.jpg",
        "0001_c0_f0044158.jpg",
        "0000_c1_f0044158.jpg",
        "-1_c1_f0044158.jpg",
        "001_c1_f0044158.jpg",
        "0001_c1_f044158.jpg",
        "0001_c1s1_000451_03.jpg",
        "x0001_c1_f0044158.jpg",
        "0001_c1_f0044158.jpg.jpg",
    ],
)
def test_dukes_grammar_is_anchored(tmp_path, name):
    root = write_duke(tmp_path)
    (root / "bounding_box_test" / name).write_bytes(b"")
    with pytest.raises(DataError, match=f"_c<1-8>_f<frame:7>.jpg, but 1 in .*_test are not: {name}"):
        load(DUKE, tmp_path)


def test_a_folder_named_like_one_of_dukes_cameras_is_not_read(tmp_path):
    write_duke(tmp_path / "run3_c5_f0000001")
    assert load(DUKE, tmp_path / "run3_c5_f0000001").domain.camids.tolist() == [4, 7, 0, 1, 7, 1]


def test_dukes_counts_are_a_warning_or_an_error(tmp_path, caplog):
    write_duke(tmp_path)
    with caplog.at_level(logging.WARNING):
        load(DUKE, tmp_path)
    assert "NOT THE PUBLISHED DukeMTMC-reID" in caplog.text
    assert "distractor identities: 1 found, 408 published" in caplog.text
    with pytest.raises(DataError, match="gallery images: 2 found, 17,661 published"):
        load(DUKE, tmp_path, strict_counts=True)


def test_a_missing_duke_names_the_layout(tmp_path):
    with pytest.raises(DataError, match="DukeMTMC-reID was looked for in dukemtmc-reid/.* with files like 0001_c2_f"):
        load(DUKE, tmp_path)
    write_duke(tmp_path, annotated=False)
    with pytest.raises(DataError, match=r"duke_attribute\.mat is not in any of .* DukeMTMC-attribute release"):
        load(DUKE, tmp_path)
    assert load(DUKE, tmp_path, attributes_required=False).domain.attributes is None


def test_the_layouts_are_the_published_ones():
    assert MARKET.published["gallery images"] - MARKET.published["distractor images"] == 13_115
    assert DUKE.published["gallery identities"] - 702 == DUKE.published["distractor identities"]
