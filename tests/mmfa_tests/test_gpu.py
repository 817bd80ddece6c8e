"""What only a GPU shows: compiled against eager, batches wherever pixels wait, ranking there, the profile, memory."""

import contextlib
import gc
import itertools
import threading

import numpy as np
import pytest
import torch

from mmfa.data.batches import Batches
from mmfa.evaluate import embed
from mmfa.hardware import Hardware, deterministic
from mmfa.ranking import rank_features
from mmfa.trace import OPERATIONS, TABLE, TRACE, Trace
from mmfa.training import Training

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")

STEPS = 50


def losses(config, source, target):
    """Return the terms of the first steps of a training on the GPU, [steps, terms], and how its backbone ran."""
    training = Training(config, source=source, target=target, device="cuda")
    step, seen = training._step, []
    step.model.train()
    epochs = itertools.chain.from_iterable(training._batches.epoch(number) for number in itertools.count())
    with deterministic(training.hardware.device, seed=(0, 1)):
        for number, batch in enumerate(itertools.islice(epochs, STEPS)):
            step.prepare(batch)
            terms = step.forward(batch).terms
            step.update(terms, rate=training._rate(0, number))
            seen.append(torch.stack(terms).detach())
        step.close()
    return torch.stack(seen).cpu().numpy(), training.backbone_runs


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_compiled_training_with_cuda_graphs_is_the_eager_one_but_for_rounding(tiny, source, target, precision):
    """Tolerances are those of test_numerics, where another rounding is all that differs; no GPU has confirmed them."""
    config = tiny.with_overrides({"run.precision": precision, "optim.num_epochs": 20})
    (eager, ran), (fast, runs) = (
        losses(config.with_overrides({"run.compile": compile}), source, target) for compile in ("off", "on")
    )
    assert ran == "eager" and runs.partition(";")[0] == "compiled, with CUDA graphs", runs
    scale = np.abs(eager).mean(axis=0)
    first = np.abs(fast[:3] - eager[:3]).max(axis=0) / scale
    assert first[0] < (1e-3 if precision == "fp32" else 0.02), first
    means = np.abs(fast.mean(axis=0) - eager.mean(axis=0)) / scale
    assert means[0] < 0.02 and means.max() < 0.15, means


def test_batches_are_the_same_bits_wherever_their_pixels_wait(tiny, source, target):
    device = Hardware.choose("cuda").device
    made = []
    for placement in ("host", "device"):
        config = tiny.with_overrides({"data.placement": placement}).data
        batches = Batches(config, source=source, target=target, seed=3, device=device, channels_last=True)
        assert batches.pixels["source"].resident == (placement == "device")
        with contextlib.closing(batches.epoch(0)) as epoch:
            made.append([[part.cpu() for part in batch if part is not None] for batch in epoch])
    assert len(made[0]) == len(made[1]) > 1
    for one, other in zip(itertools.chain(*made[0]), itertools.chain(*made[1]), strict=True):
        assert torch.equal(one, other)


def test_ranking_on_a_gpu_is_that_on_the_cpu():
    """Small whole numbers: their distances are exact on both, ties included."""
    rng = np.random.default_rng(0)
    labels = {
        "query_pids": rng.integers(0, 9, 900), "query_camids": rng.integers(0, 3, 900),
        "gallery_pids": rng.integers(-1, 9, 1500), "gallery_camids": rng.integers(0, 3, 1500),
    }  # fmt: skip
    query_QD, half_GD = (torch.from_numpy(rng.integers(0, 3, (num, 8)).astype(np.float32)) for num in (900, 750))
    gallery_GD = torch.cat([half_GD, -half_GD])  # centred at 0
    expected = rank_features(query_QD, gallery_GD, **labels)
    assert rank_features(query_QD.cuda(), gallery_GD.cuda(), **labels) == expected


def test_features_are_those_of_the_cpu(tiny, source, target):
    training = Training(tiny, source=source, target=target, device="cpu")
    given = {"height": 32, "width": 16}
    rows = np.arange(20)
    ours = embed(training.model, target.images, rows, hardware=training.hardware, **given)
    hardware = Hardware.choose("cuda", tiny.run)
    theirs = embed(training.model.to(hardware.device), target.images, rows, hardware=hardware, **given)
    torch.testing.assert_close(theirs.cpu(), ours, rtol=1e-3, atol=1e-3)


def test_a_training_on_a_gpu_is_profiled(tiny, source, target, tmp_path):
    trace = Trace(tmp_path, warmup=1, steps=2)
    training = Training(tiny, source=source, target=target, device="cuda", trace=trace)
    next(training.epochs())
    assert {path.name for path in tmp_path.iterdir()} == {TRACE, OPERATIONS, TABLE}
    assert all(seconds > 0 for name, seconds, _ in trace.rows()), trace.rows()


def test_a_worker_s_trainings_leave_no_memory_behind(tiny, source, target):
    """Each in a thread of its own, as Ray Tune runs them."""
    kept = []

    def train():
        training = Training(tiny.with_overrides({"optim.num_epochs": 2, "optim.warmup_epochs": 1}), source=source,
                            target=target, device="cuda")  # fmt: skip
        list(training.epochs())
        ways.append(training.backbone_runs)

    ways = []
    for _ in range(4):
        thread = threading.Thread(target=train)
        thread.start()
        thread.join()
        gc.collect()
        torch.cuda.empty_cache()
        kept.append(torch.cuda.memory_reserved())
    assert len(ways) == 4 and len(set(ways)) == 1
    assert kept[3] <= kept[1], kept
