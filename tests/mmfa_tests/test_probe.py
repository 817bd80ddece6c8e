"""The probe: what is in it, what it leaves as it was, its file, and that no label can be reached from it."""

import copy
import dataclasses
import gc
import types

import numpy as np
import pytest
import torch

from mmfa import probe as probes
from mmfa.errors import CheckpointError, DataError
from mmfa.evaluate import embed
from mmfa.probe import Probe, take
from mmfa.training import Training


def trained(config, source, target):
    training = Training(config, source=source, target=target, device="cpu")
    list(training.epochs())
    return training


@pytest.fixture(scope="module")
def finished(tiny, source, target):
    return trained(tiny, source, target)


@pytest.fixture
def probe(finished):
    return take(finished)


def arrays(probe):
    return [getattr(probe, field.name) for field in dataclasses.fields(probe)]


def same(one, other):
    pairs = zip(arrays(one), arrays(other), strict=True)
    return all(ours.dtype == theirs.dtype and np.array_equal(ours, theirs) for ours, theirs in pairs)


def as_one(probe):
    """Return the rows of a probe in an order of their own, to compare sets of images."""
    return sorted(zip(probe.embeddings_ND.tolist(), probe.camids_N.tolist(), strict=True))


def test_it_holds_the_training_images_but_nobody_held_out(finished, target, probe):
    config = finished.config.data
    rows = finished.target_rows
    held_out = 6 * 3 * 2  # identities, cameras, shots
    assert len(rows) == 16 * 3 * 2 - held_out == len(probe.camids_N)
    trained_on = set(target.domain.pids[rows].tolist())
    assert len(trained_on) == 10 and trained_on < set(range(1, 17))
    expected = embed(
        finished.evaluated_model,
        target.images,
        rows,
        height=config.image_height,
        width=config.image_width,
        hardware=finished.hardware,
    )
    given = zip(expected.numpy().astype(np.float16).tolist(), target.domain.camids[rows].tolist(), strict=True)
    np.testing.assert_allclose(*[[row for row, _ in found] for found in (sorted(given), as_one(probe))], rtol=2e-3)
    assert sorted(probe.camids_N.tolist()) == sorted(target.domain.camids[rows].tolist())
    assert [array.dtype for array in arrays(probe)] == [np.float16, np.float16, np.int64]


def test_attributes_are_the_probabilities_of_the_heads(finished, probe):
    model = copy.deepcopy(finished.evaluated_model).eval()
    with torch.no_grad():
        expected = 1 / (1 + np.exp(-model.attributes(torch.from_numpy(probe.embeddings_ND).float()).double().numpy()))
    assert probe.attributes_NM.shape == (len(probe.camids_N), 2)
    np.testing.assert_allclose(probe.attributes_NM, expected, atol=5e-3)
    assert probe.attributes_NM.std() > 0.01


def test_without_heads_there_are_no_attributes(tiny, unannotated, target):
    training = trained(tiny.with_overrides({"optim.num_epochs": 1, "optim.warmup_epochs": 0}), unannotated, target)
    assert take(training).attributes_NM.shape == (60, 0)


def test_a_training_without_target_images_shows_the_same_images(tiny, source, target, probe):
    control = {"loss.lambda_aal": 0.0, "loss.lambda_mdal": 0.0, "data.use_target": False, "optim.num_epochs": 1}
    other = take(trained(tiny.with_overrides(control | {"optim.warmup_epochs": 0}), source, target))
    assert np.array_equal(other.camids_N, probe.camids_N)


def test_every_trial_shows_the_same_images_and_their_order_says_nothing(tiny, source, target, finished, monkeypatch):
    seen = []

    def spy(model, images, rows, **given):
        seen.append(rows.tolist())
        return embed(model, images, rows, **given)

    monkeypatch.setattr(probes, "embed", spy)
    other = Training(tiny.with_overrides({"run.seed": 7}), source=source, target=target, device="cpu")
    torch.manual_seed(5)
    np.random.seed(5)
    for training in (finished, other):
        take(training)
        take(training, limit=20)
    assert seen[0] == seen[2] and seen[1] == seen[3] == seen[0][:20]
    assert sorted(seen[0]) == finished.target_rows.tolist() != seen[0]
    pids = target.domain.pids[seen[0]]
    assert (pids[1:] == pids[:-1]).mean() < 0.3  # 5 of 59 by chance; in the order of paths it would be 0.85


def test_the_evaluated_model_is_the_one_that_is_seen(tiny, source, target):
    training = Training(tiny, source=source, target=target, device="cpu")
    next(iter(training.epochs()))
    before = take(training)
    with torch.no_grad():
        training.model.backbone[0].weight.zero_()
    assert same(take(training), before)
    with torch.no_grad():
        training.evaluated_model.backbone[0].weight.zero_()
    assert not same(take(training), before)


def test_it_uses_the_statistics_of_the_target(tiny, source, target):
    training = trained(tiny.with_overrides({"model.bn_mode": "domain"}), source, target)
    before = take(training)
    for name, value in training.evaluated_model.state_dict().items():
        if "source" in name and value.is_floating_point():
            value.fill_(torch.nan)
    assert same(take(training), before) and before.finite


@pytest.mark.parametrize("bn_mode", ["separate", "domain"])
@pytest.mark.parametrize("training_mode", [True, False])
def test_the_training_is_left_as_it_was(tiny, source, target, bn_mode, training_mode):
    config = tiny.with_overrides({"model.bn_mode": bn_mode})
    plain, watched = (Training(config, source=source, target=target, device="cpu") for _ in range(2))
    list(plain.epochs())
    for _ in watched.epochs():
        watched.model.train(training_mode)
        watched.evaluated_model.train(training_mode)
        state, modes = torch.get_rng_state(), [module.training for module in watched.evaluated_model.modules()]
        take(watched)
        assert torch.equal(torch.get_rng_state(), state)
        assert [module.training for module in watched.evaluated_model.modules()] == modes
        assert watched.evaluated_model.training is training_mode
    ours, theirs = plain.model.state_dict(), watched.model.state_dict()
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items())
    assert [report.losses for report in plain.history] == [report.losses for report in watched.history]


def test_a_target_without_training_images_is_refused(tiny, source, target):
    splits = np.where(target.domain.splits == "train", "unused", target.domain.splits)
    empty = dataclasses.replace(target, domain=dataclasses.replace(target.domain, splits=splits))
    overrides = {
        "loss.lambda_aal": 0.0, "loss.lambda_mdal": 0.0, "data.use_target": False, "data.num_val_ids": 0,
    }  # fmt: skip
    training = Training(tiny.with_overrides(overrides), source=source, target=empty, device="cpu")
    with pytest.raises(DataError, match="a probe needs training images of the target, but tiny-target has none; use"):
        take(training)


def test_what_float16_cannot_hold_stays_visible(tiny, source, target):
    training = Training(tiny, source=source, target=target, device="cpu")
    next(iter(training.epochs()))
    assert take(training).finite
    with torch.no_grad():
        norms = [module for module in training.evaluated_model.backbone.modules() if hasattr(module, "running_var")]
        norms[-1].weight.fill_(1e6)
    large = take(training)
    assert np.isinf(large.embeddings_ND).any() and not large.finite
    with torch.no_grad():
        norms[-1].weight.fill_(torch.nan)
    assert not take(training).finite


# Labels


def reachable(root):
    """Return every object that can be reached from one without going through a class, module or function."""
    stop = (type, types.ModuleType, types.FunctionType, types.BuiltinFunctionType)
    found, waiting = {}, [root]
    while waiting:
        item = waiting.pop()
        if id(item) not in found and not isinstance(item, stop):
            found[id(item)] = item
            waiting += gc.get_referents(item)
            if isinstance(item, np.ndarray) and item.base is not None:  # which numpy does not tell the collector
                waiting.append(item.base)
    return list(found.values())


def test_no_label_can_be_reached_from_a_probe(tmp_path, finished, target, probe):
    probe.save(tmp_path / "probe.npz")
    for given in (probe, Probe.load(tmp_path / "probe.npz")):
        things = reachable(given)
        held = [thing for thing in things if isinstance(thing, np.ndarray)]
        assert {id(array) for array in held} == {id(array) for array in arrays(given)}
        assert not any(np.shares_memory(array, target.domain.pids) for array in held)
        assert not any(np.shares_memory(array, target.images) for array in held)
        kinds = {type(thing).__module__.partition(".")[0] for thing in things}
        assert kinds <= {"mmfa", "numpy", "builtins"} and not any(isinstance(thing, torch.Tensor) for thing in things)
        assert [type(thing) for thing in things if type(thing).__module__.startswith("mmfa")] == [Probe]
    with np.load(tmp_path / "probe.npz") as stored:
        assert set(stored.files) == {"embeddings_ND", "attributes_NM", "camids_N"}
    with pytest.raises((AttributeError, TypeError)):
        object.__setattr__(probe, "pids_N", target.domain.pids)


def test_the_walk_would_find_a_label(target):
    """What the test above relies on."""
    camids = np.stack([target.domain.camids, target.domain.pids])
    hidden = Probe(
        embeddings_ND=np.zeros((camids.shape[1], 2), np.float16),
        attributes_NM=np.zeros((camids.shape[1], 0), np.float16),
        camids_N=camids[0],  # a view of an array that has the pids too
    )
    assert any(thing is camids for thing in reachable(hidden))
    assert any(thing is target.domain.pids for thing in reachable(types.SimpleNamespace(domain=target.domain)))


# The file


def test_the_file_survives(tmp_path, probe):
    path = tmp_path / "new" / "folder" / "0007.npz"
    probe.save(path)
    assert same(Probe.load(path), probe)
    assert [found.name for found in path.parent.iterdir()] == ["0007.npz"]


def test_nan_and_infinity_survive(tmp_path):
    given = Probe(
        embeddings_ND=np.array([[np.nan, np.inf]], np.float16),
        attributes_NM=np.zeros((1, 0), np.float16),
        camids_N=np.zeros(1, np.int64),
    )
    given.save(tmp_path / "probe.npz")
    assert Probe.load(tmp_path / "probe.npz").embeddings_ND.tobytes() == given.embeddings_ND.tobytes()


def test_what_before_commit_raises_leaves_no_trace(tmp_path, finished, probe):
    path = tmp_path / "probe.npz"

    def refuse():
        assert list(tmp_path.glob(".probe.npz.*.tmp"))
        raise RuntimeError("another driver")

    with pytest.raises(RuntimeError, match="another driver"):
        probe.save(path, before_commit=refuse)
    assert list(tmp_path.iterdir()) == []
    probe.save(path)
    with pytest.raises(RuntimeError, match="another driver"):
        take(finished, limit=5).save(path, before_commit=refuse)
    assert same(Probe.load(path), probe)


def test_a_later_save_replaces_the_file_and_clears_what_a_kill_left(tmp_path, finished, probe):
    path = tmp_path / "probe.npz"
    probe.save(path)
    (tmp_path / ".probe.npz.0123.tmp").write_bytes(b"half")
    (tmp_path / ".other.npz.0123.tmp").write_bytes(b"someone else's")
    take(finished, limit=5).save(path)
    assert len(Probe.load(path).camids_N) == 5
    assert sorted(found.name for found in tmp_path.iterdir()) == [".other.npz.0123.tmp", "probe.npz"]


def test_a_missing_file_has_its_own_sentence(tmp_path):
    for path in (tmp_path / "probe.npz", tmp_path / "file" / "probe.npz"):
        (tmp_path / "file").touch()
        with pytest.raises(CheckpointError, match=r"read from its file, but .*probe\.npz is missing; train again\."):
            Probe.load(path)


def test_a_file_that_cannot_be_read_is_not_called_damaged(tmp_path):
    with pytest.raises(IsADirectoryError):
        Probe.load(tmp_path)


def test_a_damaged_file_is_refused_wherever_the_damage_is(tmp_path, finished):
    path = tmp_path / "probe.npz"
    small = take(finished, limit=3)
    small.save(path)
    content = path.read_bytes()
    rng = np.random.default_rng(0)
    refused = 0
    for at in rng.choice(len(content), 300, replace=False).tolist():
        damaged = bytearray(content)
        damaged[at] ^= 1 << int(rng.integers(8))
        path.write_bytes(damaged)
        try:
            assert same(Probe.load(path), small)  # a date within the file, say
        except CheckpointError as error:
            assert "a probe must be the file that was written, but" in str(error) and "train again." in str(error)
            refused += 1
    assert refused > 200
    at = content.index(b"'shape': (3, 128)") + len("'shape': (3, 12")  # of the array, within its own checksum's reach
    path.write_bytes(content[:at] + b"0" + content[at + 1 :])
    with pytest.raises(CheckpointError, match="the checksum of embeddings_ND.npy differs"):
        Probe.load(path)
    for length in (0, 10, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:length])
        with pytest.raises(CheckpointError, match="remove it and train again"):
            Probe.load(path)


@pytest.mark.parametrize(
    "wrong",
    [
        {"embeddings_ND": np.zeros((4, 2), np.float32)},
        {"embeddings_ND": np.zeros((5, 2), np.float16)},
        {"attributes_NM": np.zeros(4, np.float16)},
        {"camids_N": np.zeros(4, np.int32)},
        {"camids_N": np.array([None] * 4)},
    ],
    ids=lambda wrong: f"{next(iter(wrong))} {next(iter(wrong.values())).dtype}",
)
def test_other_arrays_are_no_probe(tmp_path, wrong):
    right = {
        "embeddings_ND": np.zeros((4, 2), np.float16),
        "attributes_NM": np.zeros((4, 0), np.float16),
        "camids_N": np.zeros(4, np.int64),
    }
    path = tmp_path / "probe.npz"
    np.savez(path, **right | wrong)
    with pytest.raises(CheckpointError, match="is damaged or something else"):  # and nothing is unpickled
        Probe.load(path)
    np.savez(path, **dict(list(right.items())[:2]))
    with pytest.raises(CheckpointError, match="camids_N"):
        Probe.load(path)
    with pytest.raises(AssertionError):
        Probe(**right | wrong)
