"""Training: the same numbers again, after a resume too; divergence; controls; what is evaluated and exported."""

import dataclasses
import json
import math

import numpy as np
import pytest
import torch
from mmfa_tests.conftest import tiny_store

from mmfa import checkpoint
from mmfa.errors import CheckpointError, ConfigError, DataError, DivergedError
from mmfa.evaluate import embed, evaluate
from mmfa.hardware import Hardware
from mmfa.training import EpochReport, Training

FAST = {"run.precision": "bf16", "run.channels_last": "on"}
CLOCK = {"train/seconds", "train/images_per_second", "system/process_cpu_percentage", "system/process_memory_megabytes"}


def numbers(reports):
    """Return what must repeat exactly."""
    return [{k: v for k, v in report.metrics().items() if k not in CLOCK} for report in reports]


def run(config, source, target, *, disturb=False):
    training = Training(config, source=source, target=target, device="cpu")
    for _ in training.epochs():
        if disturb:
            torch.manual_seed(123)
            torch.rand(5)
    return training


def same_weights(one, other):
    theirs = other.model.state_dict()
    return all(torch.equal(value, theirs[name]) for name, value in one.model.state_dict().items())


@pytest.fixture(scope="module")
def finished(tiny, source, target):
    return run(tiny, source, target)


def test_learns_and_reports_everything(finished):
    first, _, last = finished.history
    assert last.losses["identity"] < first.losses["identity"]
    assert set(last.metrics()) == {
        *(f"system/process_{name}" for name in ("cpu_percentage", "memory_megabytes")),
        *(f"train/loss_{name}" for name in ("total", "identity", "attribute", "aal", "mdal")),
        *(f"mmd/{name}" for name in ("kernel_liveness", "median_d2", "plateau", "unbiased")),
        *(f"mmd/attribute_{name}" for name in ("liveness", "unbiased")),
        *(f"grad_share/{name}" for name in ("attr", "aal", "mdal")),
        *(
            f"{split}/{name}"
            for split in ("target_val", "source_val")
            for name in ("mAP", "mAP_trapezoid", "mINP", "rank1", "rank5", "rank10", "rank20")
        ),
        *("train/learning_rate", "train/images_per_second", "train/seconds"),
    }
    assert set(first.retrieval) == {"target_val"}
    assert all(math.isfinite(value) for value in last.metrics().values())
    assert last.retrieval["source_val"].mAP > 0.5
    assert all(0 < share < 50 for share in last.grad_share.values())
    assert (last.epoch, last.num_epochs) == (3, 3)
    assert EpochReport.from_dict(json.loads(json.dumps(dataclasses.asdict(last)))) == last


def test_the_total_is_the_weighted_sum(finished, tiny):
    losses = finished.history[0].losses
    expected = losses["identity"] + 0.1 * losses["attribute"] + losses["aal"] + losses["mdal"]
    assert losses["total"] == pytest.approx(expected, rel=1e-6)


def test_the_official_test_split_only_after_the_last_epoch(finished, tiny, source, target):
    assert finished.test().retrieval["target"].num_queries == 16 * 3
    with pytest.raises(ConfigError, match="0 of 3 epochs"):
        Training(tiny, source=source, target=target, device="cpu").test()


@pytest.mark.parametrize("overrides", [{}, FAST], ids=["fp32", "bf16"])
def test_the_same_again_whatever_the_caller_does_to_the_generator(tiny, source, target, overrides):
    config = tiny.with_overrides(overrides)
    one, other = run(config, source, target), run(config, source, target, disturb=True)
    assert numbers(one.history) == numbers(other.history)
    assert same_weights(one, other)
    another = run(config.with_overrides({"run.seed": 1}), source, target)
    assert another.history[-1].losses["identity"] != one.history[-1].losses["identity"]


@pytest.mark.parametrize(
    "overrides", [{}, FAST, {"optim.average_decay": None, "optim.schedule": "step"}], ids=["fp32", "bf16", "plain"]
)
def test_resumed_after_any_epoch_is_bit_identical(tiny, source, target, tmp_path, overrides):
    config = tiny.with_overrides(overrides)
    whole = Training(config, source=source, target=target, device="cpu")
    saved = [whole.save(tmp_path / str(report.epoch)) for report in whole.epochs()]
    for path in saved[:-1]:
        resumed = Training(config, source=source, target=target, device="cpu")
        resumed.resume(checkpoint.load(path))
        list(resumed.epochs())
        assert numbers(resumed.history) == numbers(whole.history)
        assert same_weights(resumed, whole)
        assert resumed.test() == whole.test()


def test_the_generator_continues_where_it_stopped(tiny, source, target, finished):
    training = Training(tiny, source=source, target=target, device="cpu")
    next(training.epochs())
    list(training.epochs())
    assert numbers(training.history) == numbers(finished.history)
    assert list(training.epochs()) == []


def test_divergence_names_epoch_step_and_term(tiny, source, target):
    config = tiny.with_overrides({"optim.learning_rate": 1e30, "optim.clip_norm": None})
    with pytest.raises(DivergedError, match=r"^epoch 1, step [2-9]: train/loss_\w+ is (nan|inf)"):
        run(config, source, target)


def test_a_last_step_that_breaks_the_weights_is_divergence(tiny, source, target):
    one_step = {"data.num_val_ids": 0, "data.source_batch": 96, "optim.warmup_epochs": 0, "optim.learning_rate": 1e38}
    with pytest.raises(DivergedError, match=r"epoch 1, step 1: the weights are not finite"):
        run(tiny.with_overrides(one_step | {"optim.clip_norm": None}), source, target)


UNBOUND = {"optim.learning_rate": 10.0, "optim.clip_norm": None, "optim.average_decay": None, "optim.warmup_epochs": 0}


def test_divergence_that_only_evaluation_sees_is_divergence(tiny, source, target):
    with pytest.raises(DivergedError, match=r"^epoch 1, evaluation of target_val: the features are not finite\.$"):
        run(tiny.with_overrides(UNBOUND), source, target)


def test_a_test_of_features_that_are_not_finite_is_divergence(tiny, source, target):
    training = run(tiny.with_overrides({"data.num_val_ids": 0, "optim.num_epochs": 2}), source, target)
    training.evaluated_model.backbone.conv1.weight.data.fill_(torch.nan)
    with pytest.raises(DivergedError, match=r"^epoch 2, evaluation of test: the features are not finite\.$"):
        training.test()


def test_statistics_and_averages_that_are_not_finite_are_divergence(tiny, source, target):
    training = Training(tiny, source=source, target=target, device="cpu")
    training.model.backbone.bn1.running_var.fill_(torch.inf)
    with pytest.raises(DivergedError, match=r"^epoch 1, step 7: the BatchNorm statistics are not finite"):
        next(training.epochs())
    training = Training(tiny, source=source, target=target, device="cpu")
    training.evaluated_model.backbone.conv1.weight.data.fill_(torch.nan)
    with pytest.raises(DivergedError, match=r"^epoch 1, step 7: the averaged model is not finite"):
        next(training.epochs())
    assert training.history == []


def test_a_validation_without_matches_is_refused_before_training(tiny, source, target):
    alone = tiny_store("alone", seed=3, shots=1)
    for stores in ({"source": source, "target": alone}, {"source": alone, "target": target}):
        with pytest.raises(DataError, match=r"same identity by another camera.* none of the 18 of alone .*num_val_ids"):
            Training(tiny, **stores, device="cpu")
    Training(tiny.with_overrides({"data.num_val_ids": 0}), source=alone, target=alone, device="cpu")


def test_unmatched_queries_are_told_once(tiny, source, target, caplog):
    pid = target.domain.with_held_out(6).pids[target.domain.with_held_out(6).rows("val_query")[0]]
    splits = target.domain.splits.astype("<U11")
    second = [path.endswith(("c1_1.jpg", "c2_1.jpg")) for path in target.domain.paths]
    splits[(target.domain.pids == pid) & np.array(second)] = "gallery"
    fewer = dataclasses.replace(target, domain=dataclasses.replace(target.domain, splits=splits))
    run(tiny.with_overrides({"optim.num_epochs": 2}), source, fewer)
    assert [record.getMessage() for record in caplog.records] == [
        "tiny-target: 1 of 18 held-out queries have no second image in another camera and will be skipped"
    ]


@pytest.fixture
def forwards(monkeypatch):
    """Record the batch size and grad mode of every forward pass in training mode."""
    from mmfa.model import MMFA

    seen, forward = [], MMFA.forward

    def recorded(self, images, **kwargs):
        if self.training:
            seen.append((len(images), torch.is_grad_enabled()))
        return forward(self, images, **kwargs)

    monkeypatch.setattr(MMFA, "forward", recorded)
    return seen


def test_source_only_never_forwards_the_target(tiny, source, target, forwards):
    off = {"data.use_target": False, "loss.lambda_aal": 0.0, "loss.lambda_mdal": 0.0}
    training = run(tiny.with_overrides(off), source, target)
    assert set(forwards) == {(8, True)}
    assert training.history[-1].losses["mdal"] == 0
    assert training.history[-1].mmd == {}


def test_target_bn_forwards_the_target_without_a_graph(tiny, source, target, forwards):
    training = run(tiny.with_overrides({"loss.lambda_aal": 0.0, "loss.lambda_mdal": 0.0}), source, target)
    assert set(forwards) == {(8, True), (6, False)}
    report = training.history[-1]
    assert report.losses["mdal"] > 0 and report.grad_share["mdal"] == 0
    assert report.losses["total"] == pytest.approx(
        report.losses["identity"] + 0.1 * report.losses["attribute"], rel=1e-6
    )


def test_a_source_without_attributes_trains(tiny, unannotated, target):
    training = run(tiny, unannotated, target)
    assert training.attribute_names == ()
    assert training.history[-1].losses["attribute"] == 0
    assert "attribute_liveness" not in training.history[-1].mmd


def test_attributes_alone_train_without_shares(tiny, source, target):
    training = run(tiny.with_overrides({"loss.lambda_id": 0.0, "loss.lambda_attr": 10.0}), source, target)
    assert training.history[-1].grad_share == {}
    assert training.history[-1].losses["attribute"] < training.history[0].losses["attribute"]


def test_kernel_sets_and_scales_reach_the_losses(tiny, source, target):
    base = {"optim.num_epochs": 2}
    seen = []
    scales = ({"kernel.scale": scale} for scale in ("absolute", "l2norm", "median"))
    relative = {"kernel.scale": "median", "kernel.centre": 0.25, "kernel.octaves": 1}
    for kernel in ({}, {"kernel.bandwidths": [0.1]}, *scales, relative):
        config = tiny.with_overrides(base | kernel)
        seen.append(run(config, source, target).history[0])
    assert len({report.losses["mdal"] for report in seen}) == 6
    assert seen[1].mmd["kernel_liveness"] < seen[0].mmd["kernel_liveness"]


def test_no_held_out_identities_is_no_validation(tiny, source, target, tmp_path):
    config = tiny.with_overrides({"data.num_val_ids": 0, "optim.num_epochs": 2})
    training = Training(config, source=source, target=target, device="cpu")
    saved = [training.save(tmp_path / str(report.epoch)) for report in training.epochs()]
    assert [report.retrieval for report in training.history] == [{}, {}]
    assert len(training.pids) == 16
    resumed = Training(config, source=source, target=target, device="cpu")
    resumed.resume(checkpoint.load(saved[0]))
    list(resumed.epochs())
    assert numbers(resumed.history) == numbers(training.history)
    assert resumed.test() == training.test()


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ({"loss.lambda_aal": 2.0}, r"loss\.lambda_aal \(1\.0, here 2\.0\)"),
        ({"run.seed": 5}, r"run\.seed \(0, here 5\)"),
    ],
)
def test_a_checkpoint_of_another_config_is_refused(finished, tiny, source, target, tmp_path, overrides, words):
    saved = checkpoint.load(finished.save(tmp_path))
    training = Training(tiny.with_overrides(overrides), source=source, target=target, device="cpu")
    with pytest.raises(CheckpointError, match=words):
        training.resume(saved)


def test_a_checkpoint_of_other_data_is_refused(finished, tiny, source, target, tmp_path):
    saved = checkpoint.load(finished.save(tmp_path))
    other = dataclasses.replace(target, fingerprint="another")
    with pytest.raises(CheckpointError, match="its own data"):
        Training(tiny, source=source, target=other, device="cpu").resume(saved)
    training = Training(tiny, source=source, target=target, device="cpu")
    for key, what in (("pids", "identities"), ("attribute_names", "attributes")):
        wrong = dataclasses.replace(saved, state={**saved.state, key: saved.state[key][::-1]})
        with pytest.raises(CheckpointError, match=f"its own {what}"):
            training.resume(wrong)


def test_a_resume_on_other_hardware_is_told(tiny, source, target, tmp_path, monkeypatch, caplog):
    def on(hardware, torch_version):
        monkeypatch.setattr(Hardware, "choose", lambda device, run: hardware)
        monkeypatch.setattr(torch, "__version__", torch_version)
        return Training(tiny, source=source, target=target)

    plain = Hardware(device=torch.device("cpu"), bf16=False, channels_last=False)
    fast = Hardware(device=torch.device("cpu"), bf16=True, channels_last=True)
    before = on(plain, "1.0")
    next(before.epochs())
    saved = checkpoint.load(before.save(tmp_path))
    on(plain, "1.0").resume(saved)
    assert not caplog.records
    resumed = on(fast, "2.0")
    resumed.resume(saved)
    [record] = caplog.records
    for words in ("bf16 (False, here True)", "channels_last (False, here True)", "torch ('1.0', here '2.0')"):
        assert words in record.getMessage()
    assert "device" not in record.getMessage() and str(saved.path) in record.getMessage()
    assert [report.epoch for report in resumed.epochs()] == [2, 3]


def another(saved, **state):
    """Return the checkpoint as another version would have written it."""
    return dataclasses.replace(saved, state={**saved.state, "versions": {"mmfa": "9.9"}, **state})


def test_a_checkpoint_of_another_version_is_refused_by_name(finished, tiny, source, target, tmp_path):
    saved = checkpoint.load(finished.save(tmp_path))
    training = Training(tiny, source=source, target=target, device="cpu")
    before = {name: value.clone() for name, value in training.model.state_dict().items()}
    config = json.loads(saved.state["config"])
    del config["loss.lambda_aal"]
    newer = another(saved, config=json.dumps({**config, "loss.new": 3}))
    words = rf"{saved.path}, of mmfa 9\.9, .*loss\.lambda_aal \(absent, here 1\.0\), loss\.new \(3, here absent\)"
    with pytest.raises(CheckpointError, match=words):
        training.resume(newer)
    kept = {name: value for name, value in saved.tensors.items() if name != "model/backbone.conv1.weight"}
    odd_momentum = {**saved.tensors, "momentum/backbone.conv1.weight": torch.ones(2)}
    wrong = [
        (dataclasses.replace(another(saved), tensors=kept), r"differing tensors: backbone\.conv1\.weight"),
        (dataclasses.replace(another(saved), tensors=odd_momentum), r"differing tensors: backbone\.conv1\.weight"),
        (dataclasses.replace(another(saved), tensors={}), r"differing tensors: .*, \.\.\. \(\d+ in all\)"),
        (another(saved, history=[{"epoch": 1}]), "history"),
        (another(saved, config="no json"), "config"),
    ]
    for given, reason in wrong:
        with pytest.raises(CheckpointError, match=rf"{saved.path}/state\.json .* of mmfa 9\.9 .*{reason}"):
            training.resume(given)
    assert all(torch.equal(value, before[name]) for name, value in training.model.state_dict().items())
    assert training.history == []


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda state, _: state.update(config='{"loss.new": 3}'), "loss.new"),
        (lambda state, _: state.pop("pids"), "pids"),
        (lambda _, tensors: tensors.pop("backbone.conv1.weight"), "differing tensors: backbone.conv1.weight"),
    ],
)
def test_an_exported_model_of_another_version_is_refused_by_name(finished, tmp_path, change, reason):
    exported = checkpoint.load(finished.export(tmp_path / "model"))
    state = {**exported.state, "versions": {"mmfa": "9.9"}}
    change(state, exported.tensors)
    path = checkpoint.save(tmp_path, "newer", tensors=exported.tensors, state=state)
    with pytest.raises(CheckpointError, match=rf"{path}/state\.json .* of mmfa 9\.9 \(.*{reason}"):
        checkpoint.load_model(path)


def test_an_export_can_be_fenced(finished, tmp_path):
    def refuse():
        raise PermissionError("the lease is gone")

    with pytest.raises(PermissionError):
        finished.export(tmp_path / "model", before_commit=refuse)
    assert list(tmp_path.iterdir()) == []


def test_checkpoints_rotate_and_a_damaged_one_falls_back(tiny, source, target, tmp_path, finished):
    training = Training(tiny, source=source, target=target, device="cpu")
    for _ in training.epochs():
        training.save(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["epoch-0002", "epoch-0003"]
    (tmp_path / "epoch-0003" / "tensors.safetensors").write_bytes(b"torn")
    resumed = Training(tiny, source=source, target=target, device="cpu")
    resumed.resume(checkpoint.newest_intact([tmp_path], on_corrupt=lambda path, reason: None))
    assert [report.epoch for report in resumed.epochs()] == [3]
    assert numbers(resumed.history) == numbers(finished.history)


def test_the_exported_model_is_the_evaluated_one(finished, source, target, tmp_path, tiny):
    model, _ = checkpoint.load_model(finished.export(tmp_path / "model"))
    assert not model.training
    rows = target.domain.rows("query", "gallery")
    given = {"height": 32, "width": 16, "hardware": Hardware.choose("cpu", tiny.run)}
    assert torch.equal(
        embed(model, target.images, rows, **given), embed(finished.evaluated_model, target.images, rows, **given)
    )
    assert not torch.equal(
        embed(model, target.images, rows, **given), embed(finished.model, target.images, rows, **given)
    )
    with pytest.raises(CheckpointError, match="exported model"):
        Training(tiny, source=source, target=target, device="cpu").resume(checkpoint.load(tmp_path / "model"))


def test_embedding_does_not_depend_on_its_batches_and_keeps_the_mode(finished, target, tiny, monkeypatch):
    given = {"height": 32, "width": 16, "hardware": Hardware.choose("cpu", tiny.run)}
    rows = target.domain.rows("query")
    finished.model.train()
    whole = embed(finished.model, target.images, rows, **given)
    assert finished.model.training
    monkeypatch.setattr("mmfa.evaluate.BATCH", 5)
    torch.testing.assert_close(embed(finished.model, target.images, rows, **given), whole, rtol=1e-4, atol=1e-4)


def test_evaluation_refuses_features_that_are_not_finite(tiny, source, target):
    training = Training(tiny, source=source, target=target, device="cpu")
    training.model.backbone.conv1.weight.data.fill_(torch.nan)
    rows = target.domain.rows
    with pytest.raises(DataError, match="finite"):
        evaluate(
            training.model, target, query_rows=rows("query"), gallery_rows=rows("gallery"),
            height=32, width=16, hardware=training.hardware,
        )  # fmt: skip


def test_hardware_is_chosen_or_refused(tiny):
    assert Hardware.choose("cpu", tiny.run) == Hardware(device=torch.device("cpu"), bf16=False, channels_last=True)
    assert not Hardware.choose("cpu", tiny.with_overrides({"run.channels_last": "off"}).run).channels_last
    fast = Hardware.choose("cpu", tiny.with_overrides(FAST).run)
    assert fast.bf16 and fast.channels_last
    with pytest.raises(ConfigError, match="device must be"):
        Hardware.choose("gpu please")
    with pytest.raises(ConfigError, match="is not there"):
        Hardware.choose("cuda:99")


def test_the_learnt_exponent_of_gem_is_reported(tiny, source, target):
    history = run(tiny.with_overrides({"model.pooling": "gem"}), source, target).history
    exponents = [report.metrics()["model/gem_p"] for report in history]
    assert len(set(exponents)) == len(exponents) and all(abs(p - 3) < 1 for p in exponents)


def test_a_source_without_attributes_needs_the_identity_loss(tiny, unannotated, target):
    with pytest.raises(ConfigError, match=r"has no attributes and loss.lambda_id is 0, so nothing would be learned"):
        Training(tiny.with_overrides({"loss.lambda_id": 0.0}), source=unannotated, target=target, device="cpu")
