"""The four ways of source and target through BatchNorm: of one network, and of whole trainings."""

import copy
import dataclasses

import pytest
import torch
import torchvision

from mmfa import checkpoint
from mmfa.backbone import resolve_weights
from mmfa.config import ModelConfig, profile
from mmfa.data.augment import prepare
from mmfa.errors import DivergedError
from mmfa.evaluate import embed
from mmfa.model import MMFA, build
from mmfa.training import Training

EMBEDDED = profile("embedded").with_overrides({"model.dropout": 0.0, "model.id_head_width": 8})
MODES = ["separate", "joint", "domain", "frozen"]
SHORT = {"optim.num_epochs": 2}
CLOCK = {"train/seconds", "train/images_per_second", "system/process_cpu_percentage", "system/process_memory_megabytes"}


def images(num, *, seed, shift=0.0):
    return torch.randn(num, 3, 32, 16, generator=torch.Generator().manual_seed(seed)) + shift


def network(mode, **overrides):
    torch.manual_seed(0)
    return MMFA(dataclasses.replace(EMBEDDED.model, bn_mode=mode, **overrides), num_ids=5, num_attributes=3)


def statistics(model):
    return {name: value for name, value in model.state_dict().items() if "running_" in name}


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())


def run(config, source, target):
    training = Training(config, source=source, target=target, device="cpu")
    list(training.epochs())
    return training


def numbers(training):
    return [{k: v for k, v in report.metrics().items() if k not in CLOCK} for report in training.history]


def test_only_domain_adds_to_the_state():
    names = {mode: network(mode).state_dict().keys() for mode in MODES}
    assert names["separate"] == names["joint"] == names["frozen"]
    added = names["domain"] - names["separate"]
    assert {name.rpartition(".")[2] for name in added} == {
        "target_running_mean", "target_running_var", "target_num_batches_tracked",
    }  # fmt: skip
    assert names["separate"] < names["domain"]
    parameters = [[p.shape for p in network(mode).parameters()] for mode in MODES]
    assert all(shapes == parameters[0] for shapes in parameters)


@pytest.mark.parametrize("attr_head_width", [0, 4])
def test_domains_keep_statistics_of_their_own_and_share_the_rest(attr_head_width):
    split = network("domain", attr_head_width=attr_head_width)
    alone = {domain: network("separate", attr_head_width=attr_head_width) for domain in ("source", "target")}
    for step in range(3):
        for domain, shift in (("source", 0.0), ("target", 2.0)):
            given = images(6, seed=step, shift=shift)
            features, expected = split(given, domain=domain), alone[domain](given, domain=domain)
            assert all(torch.equal(a, b) for a, b in zip(features, expected, strict=True) if a is not None)
    found = split.state_dict()
    for domain, prefix in (("source", ""), ("target", "target_")):
        for name, value in alone[domain].state_dict().items():
            part, _, last = name.rpartition(".")
            own = f"{part}.{prefix}{last}" if last.startswith(("running", "num_batches")) else name
            assert torch.equal(found[own], value), own
    split.eval()
    for domain in ("source", "target"):
        pooled = alone[domain].eval().embed(images(4, seed=9))
        assert torch.equal(split.embed(images(4, seed=9), domain=domain), pooled)
        assert torch.equal(split.attributes(pooled, domain=domain), alone[domain].attributes(pooled))
    assert torch.equal(split.embed(images(4, seed=9)), split.embed(images(4, seed=9), domain="target"))


def test_joint_is_one_batch_of_which_the_identity_head_sees_the_source():
    source, target = images(6, seed=1), images(5, seed=2, shift=2.0)
    joint, plain = network("joint"), network("separate")
    got = joint.forward_joint(source, target)
    pooled = plain.embed(torch.cat([source, target]))
    attributes, _ = plain.attribute_heads(pooled)
    identity = plain.identity_head(pooled[:6])
    assert torch.equal(torch.cat([features.pooled_BD for features in got]), pooled)
    assert torch.equal(torch.cat([features.attributes_BM for features in got]), attributes)
    assert torch.equal(got[0].identity_BK, identity) and got[1].identity_BK is None
    assert same(statistics(joint), statistics(plain))
    apart = network("separate")
    assert not torch.allclose(apart(source).pooled_BD, got[0].pooled_BD, atol=1e-2)
    hidden = network("joint", attr_head_width=4, attribute_features="hidden").forward_joint(source, target)
    assert [features.hidden_BMH.shape for features in hidden] == [(6, 3, 4), (5, 3, 4)]


def test_frozen_keeps_the_backbones_statistics_and_trains_its_affine_weights():
    frozen = network("frozen").train()
    frozen.backbone.bn1.running_mean.fill_(0.5)
    before, heads = statistics(frozen.backbone), statistics(frozen.identity_head)
    before = {name: value.clone() for name, value in before.items()}
    heads = {name: value.clone() for name, value in heads.items()}
    frozen(images(6, seed=1)).identity_BK.square().sum().backward()
    assert same(before, statistics(frozen.backbone))
    assert not same(heads, statistics(frozen.identity_head))
    assert frozen.backbone.bn1.weight.grad.abs().max() > 0
    assert torch.equal(frozen.embed(images(4, seed=2)), frozen.eval().embed(images(4, seed=2)))
    assert not any(module.training for module in copy.deepcopy(frozen).eval().modules())


def test_loaded_statistics_are_where_both_domains_start(tmp_path):
    theirs = torchvision.models.resnet18(weights=None).state_dict()
    theirs["bn1.running_mean"].fill_(0.25)
    torch.save(theirs, tmp_path / "w.pth")
    config = ModelConfig(backbone="resnet18", weights=str(tmp_path / "w.pth"), bn_mode="domain")
    model = MMFA(config, num_ids=2, num_attributes=1, weights=resolve_weights(config))
    assert (model.backbone.bn1.running_mean == 0.25).all() and (model.backbone.bn1.target_running_mean == 0.25).all()
    model.backbone.bn1.running_mean.zero_()
    assert (model.backbone.bn1.target_running_mean == 0.25).all()


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("use_target", [True, False])
def test_a_training_has_the_modules_of_its_mode(mode, use_target):
    off = {} if use_target else {"data.use_target": False, "loss.lambda_aal": 0.0, "loss.lambda_mdal": 0.0}
    config = EMBEDDED.with_overrides({"model.bn_mode": mode, **off})
    names = build(config, num_ids=3, num_attributes=2).state_dict()
    assert any("target_" in name for name in names) == (mode == "domain" and use_target)


EXTRAS = {
    "separate": {"model.pooling": "gem", "optim.backbone_lr_mult": 0.3},
    "joint": {"run.precision": "bf16", "run.channels_last": "on"},
    "domain": {"model.attr_head_width": 4, "model.attribute_features": "hidden", "kernel.scale": "median"},
    "frozen": {"optim.average_decay": None, "kernel.scale": "l2norm"},
}


@pytest.mark.parametrize("mode", MODES)
def test_resumed_exported_and_evaluated_in_each_mode(tiny, source, target, tmp_path, mode):
    config = tiny.with_overrides({**SHORT, "model.bn_mode": mode, **EXTRAS[mode]})
    whole = Training(config, source=source, target=target, device="cpu")
    saved = [whole.save(tmp_path / str(report.epoch)) for report in whole.epochs()]
    resumed = Training(config, source=source, target=target, device="cpu")
    resumed.resume(checkpoint.load(saved[0]))
    list(resumed.epochs())
    assert numbers(resumed) == numbers(whole)
    assert same(resumed.model.state_dict(), whole.model.state_dict())
    assert same(resumed.evaluated_model.state_dict(), whole.evaluated_model.state_dict())
    assert resumed.test() == whole.test()
    assert whole.history[-1].losses["identity"] < whole.history[0].losses["identity"]
    assert all(share > 0 for share in whole.history[-1].grad_share.values())
    exported, _ = checkpoint.load_model(whole.export(tmp_path / "model"))
    rows = target.domain.rows("query")
    given = {"height": 32, "width": 16, "hardware": whole.hardware}
    expected = embed(whole.evaluated_model, target.images, rows, **given)
    assert torch.equal(embed(exported, target.images, rows, **given), expected)


def test_exports_embed_with_the_targets_statistics(tiny, source, target, tmp_path):
    training = run(tiny.with_overrides({**SHORT, "model.bn_mode": "domain"}), source, target)
    exported, _ = checkpoint.load_model(training.export(tmp_path / "model"))
    given = prepare(target.images[:5], height=32, width=16)
    with torch.no_grad():
        embedded = exported.embed(given)
        assert torch.equal(embedded, exported.embed(given, domain="target"))
        assert not torch.allclose(embedded, exported.embed(given, domain="source"), atol=1e-3)


def test_each_validation_uses_the_statistics_of_its_domain(tiny, source, target):
    training = run(tiny.with_overrides({**SHORT, "model.bn_mode": "domain"}), source, target)
    last = {split: report.mAP for split, report in training.history[-1].retrieval.items()}
    for name, value in training.evaluated_model.state_dict().items():
        if "target_running_mean" in name:
            value.fill_(100.0)
    broken = {split: training._evaluate(split, epoch=2).mAP for split in last}
    assert broken["source_val"] == last["source_val"] and broken["target_val"] != last["target_val"]


def test_statistics_of_the_target_that_are_not_finite_are_divergence(tiny, source, target):
    training = Training(
        tiny.with_overrides({"model.bn_mode": "domain"}), source=source, target=target, device="cpu"
    )  # fmt: skip
    training.model.backbone.bn1.target_running_var.fill_(torch.inf)
    with pytest.raises(DivergedError, match=r"^epoch 1, step 7: the BatchNorm statistics are not finite"):
        next(training.epochs())


@pytest.mark.parametrize("mode", ["joint", "domain"])
def test_without_target_images_a_mode_of_two_domains_is_separate(tiny, source, target, mode):
    off = {**SHORT, "data.use_target": False, "loss.lambda_aal": 0.0, "loss.lambda_mdal": 0.0}
    one, other = (
        run(tiny.with_overrides({**off, "model.bn_mode": name}), source, target) for name in (mode, "separate")
    )
    assert numbers(one) == numbers(other)
    assert same(one.model.state_dict(), other.model.state_dict())
    assert one.test() == other.test()


@pytest.mark.parametrize("mode", MODES)
def test_target_bn_moves_the_statistics_but_aligns_nothing(tiny, source, target, mode):
    off = {**SHORT, "loss.lambda_aal": 0.0, "loss.lambda_mdal": 0.0, "model.bn_mode": mode}
    training = run(tiny.with_overrides(off), source, target)
    report = training.history[-1]
    assert report.losses["mdal"] > 0 and report.grad_share["mdal"] == report.grad_share["aal"] == 0
    if mode == "domain":
        norm = training.model.backbone.bn1
        assert norm.target_num_batches_tracked == norm.num_batches_tracked == 14
        assert not torch.equal(norm.target_running_mean, norm.running_mean)
