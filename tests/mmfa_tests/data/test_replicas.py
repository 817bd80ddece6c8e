"""Replicas: the four benchmarks at their published counts, from listing to evaluation."""

import json
import logging

import numpy as np
import pytest

from mmfa.commands.main import main
from mmfa.data import catalog, replicas
from mmfa.data.protocols import directions
from mmfa.errors import DataError


@pytest.fixture(scope="module")
def data_root(tmp_path_factory):
    root = tmp_path_factory.mktemp("replicas")
    for name in replicas.names():
        replicas.write_replica(name, root)
    return root


@pytest.fixture(scope="module")
def cache_dir(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


def loaded(name, data_root):
    return catalog.load(name, data_root=data_root, cache_dir=data_root, strict_counts=True)


def test_the_small_replicas_have_the_published_counts_and_repeat(tmp_path):
    for name in ("viper", "prid2011"):
        one = replicas.write_replica(name, tmp_path / "one")
        other = replicas.write_replica(name, tmp_path / "other")
        dataset = loaded(name, tmp_path / "one")
        assert dataset.root == one and (one / replicas.NOTICE).read_text().startswith("A synthetic replica")
        assert (one / "cam_a" / "Thumbs.db").exists()
        for path in dataset.domain.paths[::97]:
            assert (one / path).read_bytes() == (other / path).read_bytes()


def test_nothing_is_written_over(tmp_path):
    replicas.write_replica("viper", tmp_path)
    with pytest.raises(DataError, match="VIPeR is there already; choose another --data-root"):
        replicas.write_replica("viper", tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="cannot be written"):
        replicas.write_replica("viper", tmp_path / "file")
    with pytest.raises(DataError, match="one of market1501, dukemtmc-reid, viper, prid2011, but got 'x'"):
        replicas.write_replica("x", tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["market1501", "dukemtmc-reid"])
def test_identities_are_held_out_at_published_counts(data_root, name, caplog):
    """HONESTY.md, sec. 1: distractors and identities of one camera are never held out, the test stays as it is."""
    domain = loaded(name, data_root).domain
    train = domain.rows("train")
    cameras = {pid: len(set(domain.camids[train][domain.pids[train] == pid])) for pid in domain.train_pids.tolist()}
    alone = [pid for pid, num in cameras.items() if num == 1]
    assert len(alone) >= 14
    with caplog.at_level(logging.WARNING):
        held = domain.with_held_out(100)
    assert not caplog.records, "every query has an image by another camera"
    query, gallery = held.rows("val_query"), held.rows("val_gallery")
    chosen = np.unique(held.pids[query])
    assert len(chosen) == 100 and not np.isin(chosen, [0, *alone]).any()
    assert len(held.train_pids) == len(domain.train_pids) - 100
    assert not np.isin(held.train_pids, chosen).any()
    assert len(query) + len(gallery) + len(held.rows("train")) == len(train)
    for split in ("query", "gallery"):
        np.testing.assert_array_equal(held.rows(split), domain.rows(split))


@pytest.mark.slow
def test_the_attributes_are_joined_and_duke_lacks_two_tops(data_root):
    market, duke = (loaded(name, data_root).domain for name in ("market1501", "dukemtmc-reid"))
    assert market.attributes.codes.shape == (1501, 27) and (market.attributes.codes > 0).all()
    assert duke.attributes.codes.shape == (1812, 23)
    missing = np.argwhere(duke.attributes.codes == 0)
    assert duke.attributes.pids[missing[:, 0]].tolist() == [370, 679]
    assert {duke.attributes.fields[column] for column in missing[:, 1]} == {"top"}
    assert np.isin([370, 679], duke.train_pids).all()
    for domain in (market, duke):
        people = np.unique(domain.pids[domain.pids > 0])
        np.testing.assert_array_equal(domain.attributes.pids, people)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "num_query", "num_gallery"),
    [("market1501", 3_368, 15_913), ("dukemtmc-reid", 2_228, 17_661), ("prid2011", 100, 649), ("viper", 316, 316)],
)
def test_every_query_has_a_positive_by_another_camera(data_root, name, num_query, num_gallery):
    domain = loaded(name, data_root).domain.with_split(0)
    for query, gallery in directions(domain).values():
        assert (len(query), len(gallery)) == (num_query, num_gallery)
        seen = set(zip(domain.pids[gallery].tolist(), domain.camids[gallery].tolist(), strict=True))
        for row in query.tolist():
            assert {camid for camid in range(8) if (int(domain.pids[row]), camid) in seen} - {int(domain.camids[row])}


@pytest.mark.slow
def test_check_prepare_train_and_evaluate_at_full_scale(data_root, cache_dir, tmp_path, capsys):
    places = ["--data-root", str(data_root), "--cache-dir", str(cache_dir)]
    assert main(["check", "--strict-counts", *places]) == 0
    printed = capsys.readouterr().out
    assert printed.count("  fine") == 4 and "PROBLEM" not in printed and "3,819 junk detections" in printed
    assert main(["prepare", *replicas.names(), "--height", "32", "--width", "16", *places]) == 0
    assert "market1501: 32,217 images of 32 x 16" in capsys.readouterr().out

    fields = [f"data.{of}_{side}" for of in ("image", "store") for side in ("height=32", "width=16")]
    fields += ["data.source_batch=2000", "data.target_batch=64", "optim.num_epochs=1", "optim.warmup_epochs=0"]
    settings = [word for field in (*fields, "data.num_val_ids=0") for word in ("--set", field)]
    pair = ["--profile", "embedded", "--source", "market1501", "--target", "dukemtmc-reid"]
    assert main(["train", "--out", str(tmp_path / "out"), *pair, *settings, *places]) == 0
    result = json.loads((tmp_path / "out" / "result.json").read_text())
    assert result["num_train_ids"] == 751 and len(result["attributes"]) == 30
    assert 0 < result["metrics"]["target/mAP"] < 1

    for dataset, mode, num_queries in (
        ("market1501", "the model's own source", {"": 3_368}),
        ("dukemtmc-reid", "adapted on this dataset's unlabelled training images", {"": 2_228}),
        ("viper", "direct (no adaptation to this dataset)", {"a_to_b": 316, "b_to_a": 316}),
        ("prid2011", "direct (no adaptation to this dataset)", {"": 100}),
    ):
        file = tmp_path / f"{dataset}.json"
        export = str(tmp_path / "out" / "export")
        assert main(["evaluate", export, "--dataset", dataset, "--json", str(file), *places]) == 0
        found = json.loads(file.read_text())
        assert (found["mode"], found["num_queries"]) == (mode, num_queries)
        assert not any(found["num_skipped"].values())
        if dataset == "dukemtmc-reid":
            assert found["summary"][""]["mAP"]["mean"] == pytest.approx(result["metrics"]["target/mAP"], abs=1e-6)
            for name, value in found["attributes"].items():
                assert value == pytest.approx(result["metrics"][f"target/{name}"], abs=1e-6)
            assert "attributes that both annotate: accuracy" in capsys.readouterr().out
