"""One lineage without Ray: resumed, fenced, never trained twice, damaged records set aside."""

import dataclasses
import errno
import json
from pathlib import Path

import pytest
import services

from mmfa.config import profile
from mmfa.data import catalog
from mmfa.data.store import build, open_store
from tune import trainable
from tune.job import EXPORT, JOURNAL, OWNER, PRUNED, RESULT, Job, last_words, mark_pruned
from tune.lease import Fence
from tune.trainable import train

SHORT = {"optim.num_epochs": 3, "optim.warmup_epochs": 1, "data.source_batch": 256, "data.target_batch": 64}


@pytest.fixture(scope="module")
def stores(embedded_cache):
    found = []
    for name in ("embedded-source", "embedded-target"):
        dataset = catalog.load(name, data_root=None, cache_dir=embedded_cache)
        found.append(str(build(dataset, cache_dir=embedded_cache, height=64, width=32)))
    return found


@pytest.fixture
def job(tmp_path, stores):
    def make(*, attempt=1, counter=1, prunable=False, **overrides):
        Fence(str(tmp_path / "fence"), counter).put_up()
        return Job(
            name="search/0000",
            config=profile("embedded").with_overrides({**SHORT, **overrides}).to_json(),
            source_store=stores[0],
            target_store=stores[1],
            folder=str(tmp_path / "lineage"),
            attempt=attempt,
            fence_folder=str(tmp_path / "fence"),
            fence_counter=counter,
            threads=1,
            reading="recorded",
            criteria={"k": 40, "eps": 0.6, "min_samples": 2},
            prunable=prunable,
        )

    return make


def kinds(rows):
    return [f"epoch {row['epoch']['epoch']}" if "epoch" in row else next(iter(row)) for row in rows]


def journal(folder):
    return [json.loads(line)["epoch"] for line in (folder / JOURNAL).read_text().splitlines()]


def values(rows):
    timing = ("train/seconds", "train/images_per_second")
    return [
        {k: v for k, v in row["epoch"]["metrics"].items() if k not in timing and not k.startswith("system/")}
        for row in rows
        if "epoch" in row
    ]


def test_a_lineage_taken_up_twice_is_the_one_never_stopped(job, tmp_path):
    folder = tmp_path / "lineage"
    whole = list(train(job()))
    assert kinds(whole) == ["epoch 1", "epoch 2", "epoch 3", "result"]
    assert not list(folder.glob("attempt-*")) and (folder / EXPORT).is_dir()
    folder.rename(tmp_path / "whole")
    for attempt in (1, 2):  # each attempt dies after one more epoch
        rows = train(job(attempt=attempt, counter=attempt))
        assert kinds([next(rows) for _ in range(attempt)]) == [f"epoch {n}" for n in range(1, attempt + 1)]
        rows.close()
    again = list(train(job(attempt=3, counter=3)))
    assert kinds(again) == kinds(whole) and values(again) == values(whole)
    assert again[-1]["result"]["metrics"]["target/mAP"] == whole[-1]["result"]["metrics"]["target/mAP"]
    assert journal(folder) == [1, 2, 3]


def test_a_finished_lineage_is_told_again_and_not_trained(job, tmp_path):
    first = list(train(job()))
    assert list(train(job(attempt=2, counter=2))) == json.loads(json.dumps(first))
    assert journal(tmp_path / "lineage") == [1, 2, 3]


def test_a_worker_of_a_dead_driver_commits_nothing(job, tmp_path):
    rows = train(job())
    next(rows)
    before = sorted(path.name for path in (tmp_path / "lineage").rglob("*"))
    Fence(str(tmp_path / "fence"), 2).put_up()
    (last,) = list(rows)
    assert "another driver has taken over" in last["failed"]
    assert sorted(path.name for path in (tmp_path / "lineage").rglob("*")) == before


def test_a_worker_of_a_dead_driver_does_not_evict_the_present_one(job, tmp_path):
    rows = train(job())
    next(rows)
    good = train(job(attempt=2, counter=2))
    assert kinds([next(good), next(good)]) == ["epoch 1", "epoch 2"]
    stale = dataclasses.replace(job(attempt=1, counter=2), fence_counter=1)
    (last,) = list(train(stale))
    assert "another driver has taken over" in last["failed"]
    assert kinds(list(good)) == ["epoch 3", "result"]


def test_what_a_killed_worker_left_beside_its_result_is_dropped(job, tmp_path):
    folder = tmp_path / "lineage"
    list(train(job()))
    before = sorted(path.relative_to(folder) for path in folder.rglob("*"))
    (folder / "attempt-0001" / "epoch-0003").mkdir(parents=True)
    (folder / "attempt-0001" / "epoch-0003" / "model.safetensors").write_bytes(b"needless")
    for name in (OWNER, PRUNED):
        (folder / name).touch()
    assert kinds(list(train(job(attempt=2, counter=2))))[-1] == "result"
    assert sorted(path.relative_to(folder) for path in folder.rglob("*")) == before


def test_a_disk_that_is_full_when_a_trial_starts_is_waited_for(job, monkeypatch):
    tries, real = [], Path.write_text

    def full_at_first(path, text, **more):
        if path.name.startswith(OWNER):
            tries.append(path)
            if len(tries) < 2:
                raise OSError(errno.ENOSPC, "No space left on device")
        return real(path, text, **more)

    monkeypatch.setattr(Path, "write_text", full_at_first)
    assert kinds([next(train(job()))]) == ["epoch 1"] and len(tries) == 2


def test_a_damaged_result_is_set_aside_and_told(job, tmp_path):
    whole = list(train(job()))
    (tmp_path / "lineage" / RESULT).write_text('{"name": "sea')
    again = list(train(job(attempt=2, counter=2)))
    assert values(again) == values(whole)
    (note,) = again[-1]["result"]["notes"]
    assert "cannot be read" in note and "result.json.corrupt" in note


def test_the_result_of_another_trial_is_refused(job):
    list(train(job()))
    (row,) = list(train(job(**{"loss.lambda_attr": 3.0})))
    assert "is of another trial of that name; give another --storage" in row["failed"]


def test_a_store_that_holds_something_else_is_refused(job, stores):
    """As on a node that joined later, with a store of its own at the same path."""
    other = dataclasses.replace(job(), fingerprints={stores[1]: "another"})
    (row,) = list(train(other))
    assert f"{stores[1]} on " in row["failed"] and "than the driver's (another); delete it there" in row["failed"]
    same = {path: open_store(Path(path)).fingerprint for path in stores}
    assert kinds([next(train(dataclasses.replace(job(), fingerprints=same)))]) == ["epoch 1"]


def test_what_a_failed_attempt_said_is_forgotten_by_the_next(job, s3):
    uri = f"s3://{services.BUCKET}/words"
    for where in ("", uri):
        one = dataclasses.replace(job(), uri=where)
        Path(one.folder).mkdir(exist_ok=True)
        trainable._leave_word(one, "Traceback: it failed")
        assert last_words(one) == "Traceback: it failed"
        trainable._forget_word(one)
        assert last_words(one) == ""


def test_a_marked_trial_ends_after_the_epoch_it_reported(job, tmp_path):
    rows = train(job(prunable=True))
    next(rows)
    mark_pruned(job())
    (last,) = list(rows)
    assert last["result"]["outcome"] == "pruned" and last["result"]["reason"].endswith("after epoch 1 of 3")
    assert not (tmp_path / "lineage" / EXPORT).exists()


def test_a_trial_marked_after_its_last_epoch_completes(job, tmp_path):
    """A driver that died takes the epochs up one by one, and may mark a trial that has none left to save."""
    rows = train(job(prunable=True))
    for _ in range(3):
        next(rows)
    rows.close()
    again = train(job(attempt=2, counter=2, prunable=True))
    next(again)
    mark_pruned(job())
    *_, last = list(again)
    assert last["result"]["outcome"] == "complete" and "target/mAP" in last["result"]["metrics"]


def test_divergence_is_a_result(job, tmp_path):
    given = {"optim.learning_rate": 1e30, "optim.clip_norm": None, "optim.average_decay": None}
    *_, last = train(job(**given))
    record = last["result"]
    assert record["outcome"] == "diverged" and record["reason"].startswith("epoch 1, ")
    assert list(train(job(attempt=2, counter=2, **given)))[-1]["result"] == json.loads(json.dumps(record))
    assert not (tmp_path / "lineage" / EXPORT).exists()


def test_a_worker_that_ray_gave_up_commits_nothing_beside_its_successor(job, tmp_path):
    """A node that was cut off and heals: Ray has tried the trial again, under the same driver and the same attempt."""
    folder = tmp_path / "lineage"
    zombie = train(job())
    assert kinds([next(zombie)]) == ["epoch 1"]
    assert kinds(list(train(job())))[-1] == "result"
    before = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    (last,) = list(zombie)
    assert "was taken up by another worker" in last["failed"]
    assert {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()} == before
    assert sorted(path.name for path in folder.iterdir() if path.is_dir()) == ["export"]
    assert len((folder / "readings.jsonl").read_text().splitlines()) == 1
