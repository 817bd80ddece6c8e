"""The compiled backbone: checked, refused when wrong, only in training. Backends that run on a CPU stand in."""

import dataclasses
import logging

import pytest
import torch
from mmfa_tests.test_training import numbers, same_weights

from mmfa import compiled
from mmfa.errors import ConfigError
from mmfa.hardware import Hardware
from mmfa.training import Training

DROPOUT = {"model.dropout": 0.5, "optim.num_epochs": 2, "optim.average_decay": None}


@pytest.fixture
def on_this_cpu(monkeypatch):
    """Return a training that compiles in given ways, as it would on a GPU."""

    def train(config, source, target, ways):
        plain = Hardware.choose("cpu", config.run)
        chosen = dataclasses.replace(plain, compiled=ways is not None)
        monkeypatch.setattr(Hardware, "choose", lambda device, run: chosen)
        monkeypatch.setattr(compiled, "WAYS", ways or {})
        training = Training(config, source=source, target=target)
        list(training.epochs())
        return training

    yield train
    torch.compiler.reset()


class Counted:
    """A backend that runs the graph as it is, with a gradient that may be wrong."""

    def __init__(self, *, wrong=0.0):
        self.graphs, self.wrong = 0, wrong

    def __call__(self, graph, inputs):
        self.graphs += 1

        def run(*given):
            return tuple(out + self.wrong * (out - out.detach()) for out in graph(*given))

        return run if self.wrong else graph


@pytest.mark.parametrize(
    "overrides",
    [
        {},
        {"run.precision": "bf16", "run.channels_last": "on"},
        {"model.bn_mode": "joint"},
        {"model.bn_mode": "domain"},
        {"loss.lambda_aal": 0.0, "loss.lambda_mdal": 0.0},
    ],
    ids=["fp32", "bf16", "joint", "domain", "target_bn"],
)
def test_a_training_with_a_compiled_backbone_is_the_same_training(tiny, source, target, on_this_cpu, overrides):
    """Bit-identical: the check has put back BatchNorm's buffers and the generator of dropout."""
    config = tiny.with_overrides(DROPOUT | overrides)
    backend = Counted()
    fast = on_this_cpu(config, source, target, {"compiled": {"backend": backend}})
    plain = on_this_cpu(config, source, target, None)
    assert fast.backbone_runs == fast.history[-1].backbone_runs == "compiled"
    assert plain.backbone_runs == "eager"
    assert numbers(fast.history) == numbers(plain.history)
    assert same_weights(fast, plain)
    kinds = {"domain": 2}.get(config.model.bn_mode, 1) + (config.loss.lambda_aal == 0)
    assert 1 <= backend.graphs <= 2 * kinds  # twice where the check compares float32; never for evaluation


def test_what_autograd_traces_passes_the_check(tiny, source, target, on_this_cpu):
    fast = on_this_cpu(tiny.with_overrides(DROPOUT), source, target, {"traced": {"backend": "aot_eager"}})
    assert fast.backbone_runs == "traced"


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_wrong_gradient_is_refused_and_the_next_way_taken(tiny, source, target, on_this_cpu, caplog, precision):
    config = tiny.with_overrides(DROPOUT | {"run.precision": precision})
    ways = {"first": {"backend": Counted(wrong=1.3)}, "second": {"backend": Counted()}}
    with caplog.at_level(logging.WARNING):
        fast = on_this_cpu(config, source, target, ways)
    assert fast.backbone_runs.startswith("second; not first: the gradient at backbone.")
    assert "is off by 130%" in fast.backbone_runs or precision == "bf16"
    assert "does not run first: the gradient at" in caplog.text
    plain = on_this_cpu(config, source, target, None)
    assert numbers(fast.history) == numbers(plain.history)


def test_a_compiler_that_fails_leaves_an_eager_training_that_says_why(tiny, source, target, on_this_cpu):
    def broken(graph, inputs):
        raise ValueError("no such device\nand more")

    config = tiny.with_overrides(DROPOUT)
    ways = {"first": {"backend": broken}, "second": {"backend": Counted(wrong=-1.0)}}
    training = on_this_cpu(config, source, target, ways)
    first, second = training.backbone_runs.removeprefix("eager; ").split("; ")
    assert first == "not first: ValueError: no such device"
    assert second.startswith("not second: the gradient at backbone.") and "is off by 100%" in second
    plain = on_this_cpu(config, source, target, None)
    assert numbers(training.history) == numbers(plain.history)
    assert same_weights(training, plain)


def test_gradients_are_judged_by_what_rounding_explains():
    plain = {"a": torch.ones(4), "b": torch.full((4,), 1e-9)}
    near = {name: value * 1.3 for name, value in plain.items()}
    assert compiled.mismatch(plain, plain=plain, eager=plain) is None
    assert compiled.mismatch(near, plain=plain, eager=near) is None
    assert "at a is off by 30%, where 5% can be rounding" in compiled.mismatch(near, plain=plain, eager=plain)
    noise_alone = {**plain, "b": torch.full((4,), 1e-6)}
    assert compiled.mismatch(noise_alone, plain=plain, eager=plain) is None
    assert "at b" in compiled.mismatch({**plain, "b": torch.full((4,), torch.nan)}, plain=plain, eager=plain)
    assert "other parameters: b" in compiled.mismatch({"a": torch.ones(4)}, plain=plain, eager=plain)


def test_compiling_on_a_cpu_is_refused_where_it_is_insisted_on(tiny, source, target):
    assert not Hardware.choose("cpu", tiny.run).compiled
    with pytest.raises(ConfigError, match=r"run\.compile='on' needs a GPU.*runs on cpu; set it to 'auto'"):
        Training(tiny.with_overrides({"run.compile": "on"}), source=source, target=target, device="cpu")
