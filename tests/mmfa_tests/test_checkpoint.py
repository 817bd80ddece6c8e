"""Checkpoints appear whole or not at all, and damage is seen."""

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys

import pytest
import torch

from mmfa import checkpoint
from mmfa.config import canonical_json
from mmfa.errors import CheckpointError

TENSORS = {"a": torch.arange(6.0).reshape(2, 3).T, "b/c": torch.tensor(3), "d": torch.ones(2, dtype=torch.bfloat16)}


def write(folder, epoch):
    return checkpoint.save(folder, f"epoch-{epoch:04d}", tensors=TENSORS, state={"epoch": epoch})


def damage(path, name, *, at=-5):
    content = bytearray((path / name).read_bytes())
    content[at] ^= 1
    (path / name).write_bytes(content)


def rewrite(path, **changes):
    """Change the record of a checkpoint as another version would have written it."""
    record = {**json.loads((path / "state.json").read_text()), **changes}
    del record["record_sha256"]
    record["record_sha256"] = hashlib.sha256(canonical_json(record).encode()).hexdigest()
    (path / "state.json").write_text(json.dumps(record))


def test_what_is_saved_is_loaded(tmp_path):
    loaded = checkpoint.load(write(tmp_path / "new" / "folder", 3))
    assert loaded.state == {"epoch": 3}
    assert loaded.tensors.keys() == TENSORS.keys()
    assert all(torch.equal(loaded.tensors[name], value) for name, value in TENSORS.items())
    assert loaded.tensors["d"].dtype == torch.bfloat16


def test_a_name_that_is_there_is_replaced(tmp_path):
    write(tmp_path, 1)
    checkpoint.save(tmp_path, "epoch-0001", tensors={}, state={"epoch": "new"})
    assert checkpoint.load(tmp_path / "epoch-0001").state == {"epoch": "new"}
    assert [path.name for path in tmp_path.iterdir()] == ["epoch-0001"]


def test_a_fence_that_refuses_leaves_nothing(tmp_path):
    def refuse():
        assert [path.suffix for path in tmp_path.iterdir()] == [".tmp"]
        raise PermissionError("the lease is gone")

    with pytest.raises(PermissionError, match="lease"):
        checkpoint.save(tmp_path, "epoch-0001", tensors=TENSORS, state={}, before_commit=refuse)
    assert list(tmp_path.iterdir()) == []


def test_a_kill_before_the_rename_leaves_no_checkpoint_and_the_next_save_cleans_up(tmp_path):
    code = (
        "import os, signal, sys\nfrom pathlib import Path\nimport torch\nfrom mmfa import checkpoint\n"
        "checkpoint.save(Path(sys.argv[1]), 'epoch-0001', tensors={'a': torch.ones(3)}, state={},\n"
        "    before_commit=lambda: os.kill(os.getpid(), signal.SIGKILL))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, tmp_path], env={**os.environ, "OMP_NUM_THREADS": "1"}, check=False
    )
    assert done.returncode == -signal.SIGKILL
    assert len(list(tmp_path.iterdir())) == 1
    assert checkpoint.newest_intact([tmp_path], on_corrupt=pytest.fail) is None
    write(tmp_path, 1)
    assert [path.name for path in tmp_path.iterdir()] == ["epoch-0001"]


@pytest.mark.parametrize(
    ("name", "at"), [("tensors.safetensors", -1), ("tensors.safetensors", 20), ("state.json", -6), ("state.json", 0)]
)
def test_one_flipped_bit_is_seen_and_the_file_named(tmp_path, name, at):
    path = write(tmp_path, 1)
    damage(path, name, at=at)
    with pytest.raises(CheckpointError, match=name):
        checkpoint.load(path)


@pytest.mark.parametrize("bit", range(8))
def test_one_flipped_bit_anywhere_in_the_state_sets_it_aside(tmp_path, bit):
    path = write(tmp_path, 1)
    whole = (path / "state.json").read_bytes()
    for at in range(len(whole)):
        damaged = bytearray(whole)
        damaged[at] ^= 1 << bit
        (path / "state.json").write_bytes(damaged)
        seen = []
        assert checkpoint.newest_intact([tmp_path], on_corrupt=lambda aside, _, seen=seen: seen.append(aside)) is None
        seen[0].rename(path)
    (path / "state.json").write_bytes(whole)
    assert checkpoint.load(path).state == {"epoch": 1}


@pytest.mark.parametrize("content", [b"[]", b"null", b"{}", b'{"state": NaN}', b"[" * 100_000])
def test_other_json_is_damage(tmp_path, content):
    (write(tmp_path, 1) / "state.json").write_bytes(content)
    seen = []
    assert checkpoint.newest_intact([tmp_path], on_corrupt=lambda *told: seen.append(told)) is None
    assert len(seen) == 1


@pytest.mark.parametrize("name", ["tensors.safetensors", "state.json"])
def test_a_missing_or_truncated_file_is_named(tmp_path, name):
    path = write(tmp_path, 1)
    os.truncate(path / name, 10)
    with pytest.raises(CheckpointError, match=name):
        checkpoint.load(path)
    (path / name).unlink()
    with pytest.raises(CheckpointError, match=f"{name} is missing"):
        checkpoint.load(path)


def test_another_format_is_refused_and_not_set_aside(tmp_path):
    path = write(tmp_path, 1)
    rewrite(path, format=99)
    with pytest.raises(CheckpointError, match=r"format 99, this version reads 2"):
        checkpoint.load(path)
    with pytest.raises(CheckpointError, match="format 99"):
        checkpoint.newest_intact([tmp_path], on_corrupt=pytest.fail)
    assert path.exists()


def test_the_newest_intact_one_over_all_attempts(tmp_path):
    for attempt, epochs in (("one", (1, 2)), ("two", (2, 10)), ("three", (3,))):
        for epoch in epochs:
            write(tmp_path / attempt, epoch)
    damage(tmp_path / "two" / "epoch-0010", "tensors.safetensors")
    damage(tmp_path / "three" / "epoch-0003", "state.json")
    seen = []
    folders = [tmp_path / name for name in ("one", "two", "three", "not-there")]
    found = checkpoint.newest_intact(folders, on_corrupt=lambda path, reason: seen.append((path, reason)))
    assert found.path == tmp_path / "two" / "epoch-0002"
    assert [path.name.split(".")[0] for path, _ in seen] == ["epoch-0010", "epoch-0003"]
    assert all(path.exists() and path.suffix == ".corrupt" for path, _ in seen)
    assert "tensors.safetensors" in seen[0][1]
    again = checkpoint.newest_intact(folders, on_corrupt=pytest.fail)
    assert again.path == found.path


def test_the_newest_two_are_kept(tmp_path):
    for epoch in (1, 2, 9, 10):
        write(tmp_path, epoch)
    (tmp_path / ".epoch-0004.dead.tmp").mkdir()
    (tmp_path / "mine").mkdir()
    checkpoint.keep_newest(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["epoch-0009", "epoch-0010", "mine"]


def test_a_kill_within_the_removal_leaves_nothing_that_looks_like_an_epoch(tmp_path):
    for epoch in (1, 2, 3):
        write(tmp_path, epoch)
    code = (
        "import os, shutil, signal, sys\nfrom pathlib import Path\nfrom mmfa import checkpoint\n"
        "shutil.rmtree = lambda path, **_: [(path / 'state.json').unlink(), os.kill(os.getpid(), signal.SIGKILL)]\n"
        "checkpoint.keep_newest(Path(sys.argv[1]))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, tmp_path], env={**os.environ, "OMP_NUM_THREADS": "1"}, check=False
    )
    assert done.returncode == -signal.SIGKILL
    assert sorted(path.name for path in tmp_path.iterdir() if not path.name.startswith(".")) == [
        "epoch-0002",
        "epoch-0003",
    ]
    assert len(list(tmp_path.iterdir())) == 3
    checkpoint.keep_newest(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["epoch-0002", "epoch-0003"]


def test_a_checkpoint_that_vanishes_meanwhile_is_passed_over(tmp_path, monkeypatch):
    for epoch in (1, 2):
        write(tmp_path, epoch)
    listed = checkpoint._epochs

    def then_removed(folders):
        found = listed(folders)
        shutil.rmtree(found[0])
        return found

    monkeypatch.setattr(checkpoint, "_epochs", then_removed)
    assert checkpoint.newest_intact([tmp_path], on_corrupt=pytest.fail).path == tmp_path / "epoch-0001"


def test_a_training_checkpoint_is_no_model(tmp_path):
    with pytest.raises(CheckpointError, match="not an exported model"):
        checkpoint.load_model(write(tmp_path, 1))
