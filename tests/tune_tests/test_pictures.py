"""Pictures of the method: what they show agrees with the evaluation, and the same models give the same pictures."""

import dataclasses
import json

import numpy as np
import pytest
from mmfa_tests.conftest import tiny_store
from PIL import Image

from mmfa.config import profile
from mmfa.errors import CheckpointError
from mmfa.evaluate import evaluate_test
from mmfa.retrieval import Embedder
from mmfa.training import Training
from tune import picture_charts, picture_facts, pictures
from tune.picture_facts import Model, Official, Seen, by_attribute, by_identity, grouped

SMALL = {
    "optim.average_decay": None, "model.id_head_width": 16, "data.num_val_ids": 0, "data.source_batch": 8,
    "data.target_batch": 8, "data.image_height": 32, "data.image_width": 16, "data.store_height": 32,
    "data.store_width": 16, "run.precision": "fp32",
}  # fmt: skip
ALL = [
    "gallery-best.jpg", "gallery-worst.jpg", "gallery-changed.jpg", "gains-cameras.png", "gains-attributes.png",
    "gains-identities.png", "figure-1.jpg", "feature-maps.jpg", "tsne.png",
]  # fmt: skip


@pytest.fixture(scope="module")
def stores():
    source = tiny_store("embedded-source", seed=1)
    return source, tiny_store("embedded-target", seed=2, fields=("gender", "upred"))


@pytest.fixture(scope="module")
def models(stores, tmp_path_factory):
    """Two models that were never trained: they differ in their seeds."""
    folder = tmp_path_factory.mktemp("models")
    found = []
    for seed in (0, 1):
        config = profile("embedded").with_overrides({**SMALL, "run.seed": seed})
        training = Training(config, source=stores[0], target=stores[1], device="cpu")
        found.append(Model(title=f"model {seed}", export=training.export(folder / f"export-{seed}")))
    return found


@pytest.fixture(scope="module")
def seen(models, stores):
    test = Official.of(stores[1])
    return [Seen(model.title, Embedder.load(model.export, device="cpu"), test) for model in models]


@pytest.fixture(scope="module")
def drawn(models, stores, tmp_path_factory):
    folder = tmp_path_factory.mktemp("drawn") / "pictures"
    found = pictures.draw(*models, source=stores[0], target=stores[1], folder=folder, device="cpu")
    return folder, found


def test_every_picture_is_there_small_and_described(drawn):
    folder, found = drawn
    assert [picture.file for picture in found] == ALL
    assert sorted(path.name for path in folder.iterdir()) == sorted([*ALL, "pictures.json"])
    assert json.loads((folder / "pictures.json").read_text()) == [dataclasses.asdict(picture) for picture in found]
    for picture in found:
        with Image.open(folder / picture.file) as image:
            assert min(image.size) > 150 and len(np.unique(np.asarray(image))) > 20
        assert (folder / picture.file).stat().st_size <= 200_000
        assert picture.title and len(picture.alt) > 40 and len(picture.caption) > 40
        assert "nan" not in picture.alt + picture.caption


def test_the_same_models_give_the_same_pictures(drawn, models, stores, tmp_path):
    folder, _ = drawn
    pictures.draw(*models, source=stores[0], target=stores[1], folder=tmp_path, device="cpu")
    for file in [*ALL, "pictures.json"]:
        assert (tmp_path / file).read_bytes() == (folder / file).read_bytes(), file


def test_the_precision_of_the_queries_is_that_of_the_evaluation(seen, models, stores):
    for one, model in zip(seen, models, strict=True):
        embedder = Embedder.load(model.export, device="cpu")
        report = evaluate_test(
            embedder.model, stores[1], config=embedder.config, attribute_names=(), hardware=embedder.hardware
        ).retrieval["target"]
        assert one.precision[0].mean() == pytest.approx(report.mAP, abs=1e-6)
        by_pid = {group.name: group for group in grouped(one, one, by_identity(one.test))}
        for pid, total, number in report.identities:
            group = by_pid[f"{pid:04d}"]
            assert (group.before, group.n) == (pytest.approx(total / number, abs=1e-6), number)


def test_the_best_and_worst_queries_are_the_extremes(drawn, seen):
    _, (best, worst, changed, *_) = drawn
    ap_Q = seen[1].precision[0]
    assert f"by model 1 AP {100 * ap_Q.max():.1f} %" in best.alt
    assert f"by model 1 AP {100 * ap_Q.min():.1f} %" in worst.alt
    change = ap_Q - seen[0].precision[0]
    query = int(change.argmax())
    pid = seen[0].test.domain.pids[seen[0].test.query[query]]
    first, second = (f"{100 * one.precision[0][query]:.1f} %" for one in seen)
    assert f"person {pid:04d}" in changed.alt and f"AP {first}" in changed.alt and f"AP {second}" in changed.alt


def test_a_row_marks_right_wrong_and_junk_by_the_protocol(seen):
    one = seen[1]
    test, domain = one.test, one.test.domain
    for query in range(0, len(test.query), 7):
        row, words = pictures._ranked(one, query)
        assert row.cells[0].mark == "query" and len(row.cells) == 11
        judged, distances_G = one.judged(query)
        assert f"AP {100 * one.precision[0][query]:.1f} %" in words
        own, rank = test.query[query], 0
        for cell, place in zip(row.cells[1:], judged.order_G, strict=False):
            image = test.gallery[place]
            same = domain.pids[image] == domain.pids[own]
            junk = same and domain.camids[image] == domain.camids[own]
            assert cell.mark == ("junk" if junk else "right" if same else "wrong")
            rank += not junk
            label = "junk" if junk else f"{rank}."
            assert cell.caption == (f"{label} c{domain.camids[image] + 1}", f"{distances_G[place]:.2f}")
            np.testing.assert_array_equal(cell.image_HWC, test.store.images[image])


def test_precision_by_camera_is_that_of_a_gallery_of_one_camera(seen, stores):
    domain, one = stores[1].domain, seen[0]
    for column, camera in enumerate(one.cameras.tolist()):
        gallery = one.test.gallery[domain.camids[one.test.gallery] == camera]
        alone = Official(store=stores[1], query=one.test.query, gallery=gallery, num_left_out=0)
        again = Seen.__new__(Seen)
        again.__dict__.update(title="", test=alone, _rows=one._rows, _features=one._features)
        np.testing.assert_allclose(again.precision[0], one.precision[1][:, column], rtol=1e-6)


def test_groups_by_attribute_count_annotated_people_only(seen, stores):
    test = seen[0].test
    members = dict(by_attribute(test))
    assert list(members) == ["female", "male", "red upper"]
    assert not (members["female"] & members["male"]).any()
    groups = {group.name: group for group in grouped(*seen, list(members.items()))}
    codes = stores[1].domain.attributes
    women = codes.pids[codes.codes[:, 0] == 2]
    of_women = np.isin(test.domain.pids[test.query], women)
    group = groups["female"]
    assert (group.n, group.num_ids) == (of_women.sum(), np.isin(women, test.domain.pids[test.query]).sum())
    assert group.after == pytest.approx(seen[1].precision[0][of_women].mean())
    assert group.gain == group.after - group.before


def test_groups_come_in_the_order_of_their_gain(seen):
    gains = [group.gain for group in grouped(*seen, by_identity(seen[0].test))]
    assert gains == sorted(gains, reverse=True)


def test_without_annotations_there_are_no_attributes(models, stores, tmp_path):
    domain = dataclasses.replace(stores[1].domain, attributes=None)
    target = dataclasses.replace(stores[1], domain=domain)
    found = pictures.draw(*models, source=stores[0], target=target, folder=tmp_path, device="cpu")
    assert [picture.file for picture in found] == [file for file in ALL if file != "gains-attributes.png"]


def test_an_unlabelled_target_has_what_needs_no_labels(models, stores, tmp_path):
    old = stores[1].domain
    domain = dataclasses.replace(
        old, attributes=None, labelled=False, pids=np.full_like(old.pids, -1), splits=np.full_like(old.splits, "train")
    )
    target = dataclasses.replace(stores[1], domain=domain)
    found = pictures.draw(*models, source=stores[0], target=target, folder=tmp_path, device="cpu")
    assert [picture.file for picture in found] == ["figure-1.jpg", "feature-maps.jpg", "tsne.png"]
    assert "official" not in found[0].caption and "training split" in found[-1].caption


def test_t_sne_has_the_control_without_alignment_on_its_left(models, stores, tmp_path):
    first, second = models
    found = pictures.draw(
        first, second, source=stores[0], target=stores[1], folder=tmp_path, device="cpu",
        unaligned=dataclasses.replace(first, title="source only"),
    )  # fmt: skip
    assert "% are of the same domain by source only" in found[-1].alt and "by model 1" in found[-1].alt


def test_the_share_of_neighbours_of_the_same_domain():
    rng = np.random.default_rng(0)
    is_target = np.repeat([False, True], 200)
    mixed = rng.normal(size=(400, 2)).astype(np.float32)
    assert picture_charts.own_share(mixed, is_target) == pytest.approx(0.5, abs=0.03)
    apart = mixed + 100 * is_target[:, None]
    assert picture_charts.own_share(apart, is_target) == 1.0


def test_a_large_test_split_is_sampled_by_identity(stores, monkeypatch):
    monkeypatch.setattr(picture_facts, "LIMIT", 40)
    whole, sample = stores[1].domain, Official.of(stores[1])
    rows = np.r_[sample.query, sample.gallery]
    assert len(rows) <= 40 and len(rows) + sample.num_left_out == len(whole.rows("query", "gallery"))
    kept = np.unique(whole.pids[rows])
    assert len(rows) == np.isin(whole.pids[whole.rows("query", "gallery")], kept).sum(), "people are whole"
    assert "a sample of identities" in sample.said


def test_models_that_do_not_differ_have_no_changed_queries(models, stores, tmp_path):
    found = pictures.draw(models[0], models[0], source=stores[0], target=stores[1], folder=tmp_path, device="cpu")
    assert "gallery-changed.jpg" not in [picture.file for picture in found]


def test_a_model_that_is_not_there_leaves_no_index(models, stores, tmp_path):
    gone = Model(title="gone", export=tmp_path / "gone")
    (tmp_path / "pictures.json").write_text("[]")
    with pytest.raises(CheckpointError, match="is missing"):
        pictures.draw(models[0], gone, source=stores[0], target=stores[1], folder=tmp_path, device="cpu")
    assert not (tmp_path / "pictures.json").exists()
