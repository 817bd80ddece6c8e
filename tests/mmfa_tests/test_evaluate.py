"""The test report: directions, cosine distance, and the transfer of attributes, against plain loops and by hand."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from mmfa_tests.conftest import tiny_store
from references import attributes as reference

from mmfa import evaluate, ranking, reports
from mmfa.data.attributes import encode
from mmfa.errors import DataError
from mmfa.model import MMFA
from mmfa.ranking import mean_report
from mmfa.training import Training

HELD_OUT = {"data.num_val_ids": 0, "optim.num_epochs": 2}


def run(config, source, target):
    training = Training(config, source=source, target=target, device="cpu")
    list(training.epochs())
    return training


@pytest.fixture(scope="module")
def target(target):
    """The tiny target with so much noise that retrieval makes mistakes."""
    noise = np.random.default_rng(0).normal(0, 150, target.images.shape)
    return dataclasses.replace(target, images=(target.images + noise).clip(0, 255).astype(np.uint8))


@pytest.fixture(scope="module")
def finished(tiny, source, target):
    return run(tiny.with_overrides(HELD_OUT), source, target)


def with_target(training, target):
    """Return the same training before another target."""
    training = Training(training.config, source=training.source, target=target, device="cpu")
    list(training.epochs())
    return training


def two_ways(domain):
    """Return two directions between the first two cameras, as VIPeR has them."""
    one, other = (np.flatnonzero((domain.pids > 100) & (domain.camids == camid)) for camid in (0, 1))
    return {"a_to_b": (one, other), "b_to_a": (other, one)}


def test_one_direction_is_the_official_protocol(finished, target):
    report = finished.test()
    rows = target.domain.rows
    given = {"height": 32, "width": 16, "hardware": finished.hardware}
    plain = evaluate.evaluate(
        finished.evaluated_model, target, query_rows=rows("query"), gallery_rows=rows("gallery"), **given
    )
    assert set(report.retrieval) == {"target"}
    assert plain.mAP_cosine is None
    assert dataclasses.replace(report.retrieval["target"], mAP_cosine=None) == plain


def test_cosine_map_is_that_of_cosine_distances(finished, target):
    rows = target.domain.rows
    query, gallery = (
        evaluate.embed(
            finished.evaluated_model, target.images, rows(split), height=32, width=16, hardware=finished.hardware
        )
        for split in ("query", "gallery")
    )
    cosine = 1 - torch.nn.functional.cosine_similarity(query[:, None].double(), gallery[None].double(), dim=2)
    domain = target.domain
    expected = ranking.rank(
        cosine.numpy(),
        query_pids=domain.pids[rows("query")],
        query_camids=domain.camids[rows("query")],
        gallery_pids=domain.pids[rows("gallery")],
        gallery_camids=domain.camids[rows("gallery")],
    )
    report = finished.test().retrieval["target"]
    assert report.mAP_cosine == pytest.approx(expected.mAP, abs=1e-3)
    assert report.mAP_cosine != report.mAP
    assert finished.test().metrics()["target/mAP_cosine"] == report.mAP_cosine


def test_two_directions_and_their_mean_from_one_embedding_of_each_image(finished, target, monkeypatch):
    embedded, pooled = [], MMFA.pooled

    def counted(self, maps):
        embedded.append(len(maps))
        return pooled(self, maps)

    monkeypatch.setattr(MMFA, "pooled", counted)
    monkeypatch.setattr(evaluate, "directions", two_ways)
    report = finished.test()
    assert list(report.retrieval) == ["target", "target_a_to_b", "target_b_to_a"]
    assert sum(embedded) == np.isin(target.domain.camids, (0, 1))[target.domain.pids > 100].sum()
    one, other = report.retrieval["target_a_to_b"], report.retrieval["target_b_to_a"]
    assert one != other and report.retrieval["target"] == mean_report([one, other])
    assert {name.partition("/")[0] for name in report.metrics()} == set(report.retrieval)


def test_the_report_survives_json_and_names_its_metrics(finished):
    report = finished.test()
    assert reports.TestReport.from_json(report.to_json()) == report
    assert reports.TestReport.from_dict(json.loads(json.dumps(dataclasses.asdict(report)))) == report
    names = ("mAP", "mAP_trapezoid", "mAP_cosine", "mINP", "rank1", "rank5", "rank10", "rank20")
    attributes = ("attribute_accuracy", "attribute_balanced_accuracy")
    assert set(report.metrics()) == {f"target/{name}" for name in (*names, *attributes)}


def test_a_target_without_queries_is_refused(finished, target):
    splits = np.where(target.domain.splits == "query", "gallery", target.domain.splits)
    unlabelled = dataclasses.replace(target, domain=dataclasses.replace(target.domain, splits=splits))
    with pytest.raises(DataError, match="A test needs queries and a gallery, but tiny-target has 0 and"):
        with_target(finished, unlabelled).test()


@pytest.mark.parametrize("seed", range(8))
def test_attribute_accuracy_equals_the_plain_loops(seed):
    rng = np.random.default_rng(seed)
    shape = (int(rng.integers(2, 30)), int(rng.integers(1, 6)))
    outputs = rng.normal(size=shape).astype(np.float32)
    values, mask = rng.integers(0, 2, shape).astype(np.float32), rng.random(shape) < 0.7
    values[:, 0] = 1  # a class that does not occur
    mask[:, -1] &= shape[1] == 1 or seed % 2 == 0  # an attribute that nobody annotated
    mask[0, 0] = True
    given = outputs.tolist(), values.tolist(), mask.tolist()
    got = evaluate.attribute_accuracy(outputs, values, mask)
    assert got["attribute_accuracy"] == pytest.approx(reference.accuracy(*given), rel=1e-6)
    assert got["attribute_balanced_accuracy"] == pytest.approx(reference.balanced_accuracy(*given), rel=1e-6)


def test_attribute_accuracy_by_hand():
    outputs = np.array([[1, -1], [1, 1], [1, -1], [-1, 5]], dtype=np.float32)
    values = np.array([[1, 0], [1, 0], [1, 0], [0, 0]], dtype=np.float32)
    mask = np.array([[1, 1], [1, 1], [0, 1], [1, 0]], dtype=bool)
    got = evaluate.attribute_accuracy(outputs, values, mask)
    assert got["attribute_accuracy"] == pytest.approx(5 / 6)
    assert got["attribute_balanced_accuracy"] == pytest.approx((1 + 2 / 3) / 2)
    assert evaluate.attribute_accuracy(outputs, values, np.zeros_like(mask)) == {}


def test_the_transfer_is_of_the_common_attributes_by_name(finished, source):
    """A target that annotates one of the source's attributes, at another place, under the same name."""
    target = tiny_store("tiny-target", seed=2, fields=("gender", "hat"))
    training = with_target(finished, target)
    table = encode(target.domain.attributes, age="onehot")
    rows = target.domain.rows("query", "gallery")
    features = evaluate.embed(
        training.evaluated_model, target.images, rows, height=32, width=16, hardware=training.hardware
    )
    with torch.no_grad():
        outputs = training.evaluated_model.attributes(features)[:, [training.attribute_names.index("hat")]].numpy()
    values, mask = (part[:, [table.names.index("hat")]] for part in table.rows(target.domain.pids[rows]))
    assert training.test().attributes == pytest.approx(evaluate.attribute_accuracy(outputs, values, mask))


@pytest.mark.parametrize("fields", [(), ("gender", "hair")], ids=["no attributes", "nothing in common"])
def test_where_nothing_is_common_there_is_no_transfer(finished, fields):
    report = with_target(finished, tiny_store("tiny-target", seed=2, fields=fields)).test()
    assert report.attributes == {}
    assert not [name for name in report.metrics() if "attribute" in name]


def test_identities_without_annotation_are_left_out_of_the_transfer(finished, target):
    codes = target.domain.attributes
    for kept in (codes.pids <= 100, codes.pids <= 104):
        fewer = dataclasses.replace(codes, pids=codes.pids[kept], codes=codes.codes[kept])
        partly = dataclasses.replace(target, domain=dataclasses.replace(target.domain, attributes=fewer))
        report = with_target(finished, partly).test()
        assert bool(report.attributes) == (kept.sum() == 20)


def test_a_source_without_attributes_transfers_none(tiny, unannotated, target):
    assert run(tiny.with_overrides(HELD_OUT), unannotated, target).test().attributes == {}


def test_the_model_is_left_in_the_mode_it_came_in(finished):
    for training in (True, False):
        finished.evaluated_model.train(training)
        finished.test()
        assert finished.evaluated_model.training is training


TABLE = [
    {"model.attribute_features": "hidden", "model.attr_head_width": 8},
    {"model.attr_head_width": 8},
    {"model.id_head_width": 0},
    *({"model.pooling": value} for value in ("average", "gem")),
    {"model.pooling": "gem", "model.gem_p": 64},
    *({"kernel.scale": value} for value in ("absolute", "l2norm", "median")),
    *({"model.bn_mode": value} for value in ("joint", "domain", "frozen")),
    {"optim.backbone_lr_mult": 0.1},
    {"optim.schedule": "step", "optim.decay_epoch": 1},
    {"data.crop": "random_area"},
]
"""What docs/paper.md names beside the default, but for the backbones, which cost too much here, and age."""


@pytest.mark.parametrize("overrides", TABLE, ids=str)
def test_every_other_reading_of_the_paper_trains_and_is_tested(finished, source, target, overrides):
    training = run(finished.config.with_overrides(overrides), source, target)
    first, last = training.history
    assert np.isfinite(list((last.metrics() | training.test().metrics()).values())).all()
    assert last.losses["identity"] < first.losses["identity"]
    given = {"rows": target.domain.rows("query"), "height": 32, "width": 16, "hardware": training.hardware}
    ours, theirs = (evaluate.embed(one.evaluated_model, target.images, **given) for one in (training, finished))
    assert not torch.equal(ours, theirs)
