"""The profile of a training: files that say where the time went, and numbers that stay as they are."""

import csv
import gzip
import json
import time

import pytest
import torch
from mmfa_tests.test_training import numbers

from mmfa import trace
from mmfa.trace import DIAGNOSTICS, EVALUATION, OPERATIONS, PARTS, TABLE, TRACE, Stopwatch, Trace, part, watched
from mmfa.training import Training

CPU = torch.device("cpu")
ONE_EPOCH = {"optim.num_epochs": 2}


def profiled(config, source, target, folder, **given):
    training = Training(config, source=source, target=target, device="cpu", trace=Trace(folder, **given))
    list(training.epochs())
    return training


def labels(folder):
    events = json.loads(gzip.decompress((folder / TRACE).read_bytes()))["traceEvents"]
    return [event["name"] for event in events if event.get("cat") == "user_annotation"]


def test_one_epoch_is_profiled_and_no_number_changes(tiny, source, target, tmp_path):
    config = tiny.with_overrides(ONE_EPOCH)
    found = profiled(config, source, target, tmp_path / "trace", warmup=2, steps=2)
    plain = Training(config, source=source, target=target, device="cpu")
    assert numbers(found.history) == numbers(list(plain.epochs()))
    assert sorted(path.name for path in (tmp_path / "trace").iterdir()) == sorted((TRACE, OPERATIONS, TABLE))
    seen = labels(tmp_path / "trace")
    assert [seen.count(name) for name in ("data", "forward", "alignment", "backward", "optimiser")] == [2, 2, 4, 2, 2]
    assert "aten::mkldnn_convolution" in (tmp_path / "trace" / OPERATIONS).read_text()


def test_the_table_has_seconds_of_each_part(tiny, source, target, tmp_path):
    training = profiled(tiny.with_overrides(ONE_EPOCH), source, target, tmp_path)
    with (tmp_path / TABLE).open() as file:
        rows = list(csv.DictReader(file))
    assert [row["part"] for row in rows] == [*PARTS, DIAGNOSTICS, EVALUATION]
    by_part = {row["part"]: float(row["seconds"]) for row in rows}
    assert all(by_part[name] > 0 for name in ("data", "forward", "losses", "alignment", "backward", "optimiser"))
    assert by_part[DIAGNOSTICS] > 0 and by_part[EVALUATION] > 0
    assert [row["of"] for row in rows] == ["step"] * len(PARTS) + ["epoch"] * 2
    assert sum(float(row["share of the step"]) for row in rows[:-2]) == pytest.approx(1, abs=1e-3)
    told = training.trace.told()
    assert "forward" in told and str(tmp_path / TRACE) in told
    assert training.trace.told() == ""


def test_the_diagnostics_of_a_last_step_that_is_not_timed_are(tmp_path):
    tracing = Trace(tmp_path, warmup=1, steps=2)
    with tracing.epoch(CPU):
        for step in range(20):
            tracing.before_step(step, 20)
            for name in ("forward", DIAGNOSTICS) if step == 19 else ("forward",):
                with part(name):
                    time.sleep(0.02)
        with tracing.evaluation():
            pass
    found = {name: seconds for name, seconds, _ in tracing.rows()}
    assert 0.02 <= found[DIAGNOSTICS] < 0.2 and 0.02 <= found["forward"] < 0.1, "the last step's forward is not"


def test_a_profile_that_cannot_be_written_costs_no_training(tiny, source, target, tmp_path, caplog):
    (tmp_path / "file").write_text("")
    training = profiled(tiny.with_overrides(ONE_EPOCH), source, target, tmp_path / "file", warmup=1, steps=1)
    assert len(training.history) == 2 and caplog.text.count("the profile of the training is not all there") == 2
    assert "forward" in training.trace.told() and TRACE not in training.trace.told()


@pytest.mark.parametrize("num_steps", [1, 2, 3, 4, 60])
def test_an_epoch_of_any_length_is_profiled(tmp_path, num_steps):
    tracing = Trace(tmp_path)
    with tracing.epoch(CPU):
        for step in range(num_steps):
            tracing.before_step(step, num_steps)
            with part("forward"):
                torch.ones(2) + 1
        with tracing.evaluation():
            pass
    expected = min(10, max(1, (num_steps - min(10, (num_steps - 1) // 3)) // 2))
    assert labels(tmp_path).count("forward") == expected
    assert tracing.rows()[-1][0] == EVALUATION
    assert (tracing.rows()[1][1] > 0) == (num_steps > 1)


def test_a_training_that_fails_leaves_nothing_watching(tmp_path):
    tracing = Trace(tmp_path, warmup=0)
    with pytest.raises(ValueError, match="diverged"), tracing.epoch(CPU):
        tracing.before_step(0, 10)
        assert trace._watch is not None
        raise ValueError("diverged")
    assert trace._watch is None and tracing.done
    assert not torch.autograd._profiler_enabled()


def test_a_part_is_nothing_at_all_unless_watched():
    assert part("forward") is part("backward")
    stopwatch = Stopwatch(CPU)
    with watched(stopwatch):
        for _ in range(2):
            with part("forward"):
                time.sleep(0.01)
    assert stopwatch.seconds["forward"] >= 0.02
    assert part("forward") is part("backward")
