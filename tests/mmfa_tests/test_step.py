"""A step: the plain loop that a training is, bit for bit, and nothing in it that waits for the device."""

import contextlib
import hashlib
import itertools
import platform
from pathlib import Path

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from mmfa.data.batches import Batches
from mmfa.diagnostics import CHECK_EVERY, LossLog
from mmfa.hardware import Hardware, deterministic
from mmfa.objective import Objective
from mmfa.optim import build_sgd, learning_rate, set_rate
from mmfa.step import Step
from mmfa.training import Training

FAST = {"run.precision": "bf16", "run.channels_last": "on"}
PLAIN = {"run.precision": "fp32", "run.channels_last": "off"}
WAITS = {"aten::_local_scalar_dense", "aten::item", "aten::nonzero", "aten::is_nonzero", "aten::equal"}


def plain_epoch(config, source, target):
    """Return model and averaged weights after the first epoch, as a reader of the paper would write it."""
    training = Training(config, source=source, target=target, device="cpu")  # for its initial weights
    hardware = Hardware.choose("cpu", config.run)
    batches = Batches(
        config.data, source=source, target=target, seed=config.run.seed, device=torch.device("cpu"),
        channels_last=hardware.channels_last,
    )  # fmt: skip
    model, objective = training.model, Objective(config.loss, config.kernel)
    optimiser = build_sgd(model, config.optim)
    averages = {name: value.clone() for name, value in model.state_dict().items()}
    model.train()
    with deterministic(torch.device("cpu"), seed=(config.run.seed, 1)):
        for step, batch in enumerate(batches._make(0)):
            optimiser.zero_grad()
            with hardware.autocast():
                features = model(batch.source_BCHW), model(batch.target_BCHW, domain="target")
            labels = {"labels_B": batch.labels_B, "attributes_BM": batch.attributes_BM, "mask_BM": batch.mask_BM}
            objective(*features, **labels).total.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), config.optim.clip_norm)
            set_rate(optimiser, learning_rate(config.optim, step=step, steps_per_epoch=batches.num_steps))
            optimiser.step()
            for name, value in model.state_dict().items():
                averages[name] = torch.lerp(averages[name], value, 0.1) if value.is_floating_point() else value.clone()
    return model.state_dict(), averages


@pytest.mark.parametrize("overrides", [{}, FAST], ids=["fp32", "bf16"])
def test_a_training_is_its_plain_loop_bit_for_bit(tiny, source, target, overrides):
    config = tiny.with_overrides(overrides)
    training = Training(config, source=source, target=target, device="cpu")
    next(training.epochs())
    weights, averages = plain_epoch(config, source, target)
    assert all(torch.equal(value, weights[name]) for name, value in training.model.state_dict().items())
    assert all(torch.equal(value, averages[name]) for name, value in training.evaluated_model.state_dict().items())


DIGESTS = {
    ("2.15.0", "AVX512", "AMD EPYC 26 2", "fp32"): "670033ac4d830874",
    ("2.15.0", "AVX512", "AMD EPYC 26 2", "bf16"): "a79bcd3310879dcf",
}
"""SHA-256 of the losses and weights of three steps, by torch, what it sees of the processor, and precision."""


def digest(training):
    """Return the digest of the first three steps of a training."""
    found, step = hashlib.sha256(), training._step
    step.model.train()
    with contextlib.closing(training._batches.epoch(0)) as batches, deterministic(torch.device("cpu"), seed=(0, 1)):
        for number, batch in enumerate(itertools.islice(batches, 3)):
            terms = step.forward(batch).terms
            step.update(terms, rate=training._rate(0, number))
            found.update(torch.stack(terms).detach().numpy().tobytes())
    for model in (training.model, training.evaluated_model):
        for name, value in sorted(model.state_dict().items()):
            found.update(name.encode() + value.contiguous().numpy().tobytes())
    return found.hexdigest()[:16]


def processor():
    """Return the make of the processor: torch's libraries choose their instructions by it."""
    info = Path("/proc/cpuinfo")
    pairs = [line.split(":") for line in info.read_text().split("\n\n")[0].splitlines()] if info.exists() else []
    fields = {pair[0].strip(): pair[1].strip() for pair in pairs if len(pair) == 2}
    return (
        " ".join(fields.get(name, "") for name in ("model name", "cpu family", "model")).strip() or platform.machine()
    )


@pytest.mark.parametrize("overrides", [PLAIN, FAST], ids=["fp32", "bf16"])
def test_a_refactor_changes_no_bit(tiny, source, target, overrides, request):
    """Whatever is moved about in mmfa, the numbers of a training stay; who means to change them renews the digest."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        config = tiny.with_overrides({"model.dropout": 0.5, "optim.clip_norm": 1.0} | overrides)
        found = digest(Training(config, source=source, target=target, device="cpu"))
    finally:
        torch.set_num_threads(threads)
    precision = request.node.callspec.id
    key = (torch.__version__.partition("+")[0], torch.backends.cpu.get_cpu_capability(), processor(), precision)
    if key not in DIGESTS:
        pytest.skip(f"no digest is recorded for {key}; where the code is known to be right, add {found!r} to DIGESTS")
    assert found == DIGESTS[key], (
        f"three steps give other losses or weights than before; if that is meant, set DIGESTS[{key!r}] to {found!r} "
        "and say in the commit by how much losses and accuracy changed"
    )


class Dispatched(TorchDispatchMode):
    """Collects the names of operations."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(func._schema.name)
        return func(*args, **(kwargs or {}))


def steps_on(device, tiny, source, target, **overrides):
    """Return a step, its batch, and a call that takes a step as a training does."""
    config = tiny.with_overrides({"optim.clip_norm": 1.0, "run.compile": "off"} | overrides)
    hardware = Hardware.choose(device, config.run)
    batches = Batches(
        config.data, source=source, target=target, seed=0, device=hardware.device, channels_last=hardware.channels_last
    )
    model = Training(config, source=source, target=target, device=device).model.train()
    step, log = Step(model, config, hardware), LossLog(1)
    with contextlib.closing(batches.epoch(0)) as epoch:
        batch = next(epoch)

    def take():
        terms = step.forward(batch).terms
        step.update(terms, rate=0.01)
        log.add(terms)

    return take, log


@pytest.mark.parametrize(
    "overrides",
    [
        FAST,
        {"model.bn_mode": "joint"},
        {"model.bn_mode": "domain"},
        {"model.pooling": "gem"},
        {"kernel.scale": "median"},
    ],
    ids=["bf16", "joint", "domain", "gem", "median"],
)
def test_no_step_reads_anything_back(tiny, source, target, overrides):
    take, log = steps_on("cpu", tiny, source, target, **overrides)
    with Dispatched() as seen:
        for _ in range(3):
            take()
    assert len(seen.names) > 300
    assert not WAITS & set(seen.names)
    with Dispatched() as seen:
        log.means()
    assert len(seen.names) < CHECK_EVERY


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_no_step_on_a_gpu_waits_for_it(tiny, source, target):
    take, _ = steps_on("cuda", tiny, source, target)
    take()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(2 * CHECK_EVERY - 1):  # one look at the losses is among them
            take()
    finally:
        torch.cuda.set_sync_debug_mode("default")
