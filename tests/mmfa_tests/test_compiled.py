"""The compiled backbone: checked, refused when wrong, only in training. Backends that run on a CPU stand in."""

import dataclasses
import itertools
import logging
import threading

import pytest
import torch
from mmfa_tests.test_training import numbers, same_weights

from mmfa import checkpoint, compiled
from mmfa.errors import ConfigError
from mmfa.hardware import Hardware
from mmfa.training import Training

DROPOUT = {"model.dropout": 0.5, "optim.num_epochs": 2, "optim.average_decay": None}


@pytest.fixture
def on_this_cpu(monkeypatch):
    """Return a training that compiles in given ways, as it would on a GPU."""

    def train(config, source, target, ways, *, epochs=None, resumed=None):
        plain = Hardware.choose("cpu", config.run)
        chosen = dataclasses.replace(plain, compiled=ways is not None)
        monkeypatch.setattr(Hardware, "choose", lambda device, run: chosen)
        monkeypatch.setattr(compiled, "WAYS", ways or {})
        training = Training(config, source=source, target=target)
        if resumed is not None:
            training.resume(resumed)
        list(itertools.islice(training.epochs(), epochs))
        return training

    yield train
    torch.compiler.reset()


class Counted:
    """A backend that runs the graph as it is, with a gradient that may be wrong, or lost at weights of one shape."""

    def __init__(self, *, wrong=0.0, lost=()):
        self.graphs, self.wrong, self.lost = 0, wrong, lost

    def __call__(self, graph, inputs):
        self.graphs += 1

        def run(*given):
            given = [one.detach() + 0 * one if one.shape == self.lost else one for one in given]
            return tuple(out + self.wrong * (out - out.detach()) for out in graph(*given))

        return run if self.wrong or self.lost else graph


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


@pytest.mark.parametrize(
    ("precision", "shape"),
    [("fp32", (64,)), ("bf16", (16, 3, 3, 3)), ("bf16", (64, 32, 1, 1)), ("bf16", (128,))],
    ids=["fp32", "first convolution", "shortcut", "BatchNorm"],
)
def test_a_gradient_that_is_zero_at_one_parameter_is_refused(tiny, source, target, on_this_cpu, precision, shape):
    config = tiny.with_overrides(DROPOUT | {"run.precision": precision})
    training = on_this_cpu(config, source, target, {"first": {"backend": Counted(lost=shape)}}, epochs=1)
    assert training.backbone_runs.startswith("eager; not first: the gradient at backbone.")
    assert "is off by 100%" in training.backbone_runs


def test_float32_is_compared_where_bf16_hides_too_much(tiny, source, target, on_this_cpu, monkeypatch):
    monkeypatch.setattr(compiled, "HIDES", 0.0)
    config = tiny.with_overrides(DROPOUT | {"run.precision": "bf16"})
    backend = Counted()
    fast = on_this_cpu(config, source, target, {"compiled": {"backend": backend}})
    assert fast.backbone_runs == "compiled; compared in float32 too" and backend.graphs >= 2
    assert numbers(fast.history) == numbers(on_this_cpu(config, source, target, None).history)


def test_a_full_memory_is_an_error_and_not_a_reason_to_be_slow(tiny, source, target, on_this_cpu):
    def full(graph, inputs):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    with pytest.raises(torch.OutOfMemoryError, match="2.00 GiB"):
        on_this_cpu(tiny, source, target, {"first": {"backend": full}, "second": {"backend": Counted()}})


def test_what_was_compiled_is_let_go_of_in_the_thread_that_ran_it(tiny, source, target, on_this_cpu, monkeypatch):
    reset, seen, made = torch.compiler.reset, [], []

    def noted():
        seen.append((threading.get_ident(), bool(made and made[0].compiled)))
        reset()

    monkeypatch.setattr(torch.compiler, "reset", noted)
    ways, found = {"compiled": {"backend": Counted()}}, []

    def train():
        found.append((threading.get_ident(), on_this_cpu(tiny, source, target, ways)))

    thread = threading.Thread(target=train)
    thread.start()
    thread.join()
    ((own, training),) = found
    assert [ident for ident, _ in seen] == [own, own], "before it compiles, and when it ends"
    assert training._step.compiled is None and training.backbone_runs == "compiled"


def test_a_training_that_is_left_and_taken_up_again_compiles_again(tiny, source, target, on_this_cpu):
    config = tiny.with_overrides(DROPOUT)
    plain = on_this_cpu(config, source, target, None)
    backend = Counted()
    first = on_this_cpu(config, source, target, {"compiled": {"backend": backend}}, epochs=1)
    graphs = backend.graphs
    list(first.epochs())
    assert backend.graphs == 2 * graphs and numbers(first.history) == numbers(plain.history)


def test_a_resumed_training_that_runs_otherwise_says_so(tiny, source, target, on_this_cpu, caplog, tmp_path):
    config = tiny.with_overrides(DROPOUT)
    path = on_this_cpu(config, source, target, {"compiled": {"backend": Counted()}}, epochs=1).save(tmp_path)
    for wrong, warned in ((0.0, False), (-1.0, True)):
        caplog.clear()
        ways = {"compiled": {"backend": Counted(wrong=wrong)}}
        with caplog.at_level(logging.WARNING, "mmfa.training"):
            on_this_cpu(config, source, target, ways, resumed=checkpoint.load(path))
        said = "the backbone ran compiled, and now eager; not compiled: the gradient at backbone."
        assert (said in caplog.text) == warned


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
    off = {name: value * 1.3 for name, value in plain.items()}

    def judged(found, *, near=plain, eager=plain):
        return compiled.mismatch(found, plain=plain, near=near, eager=eager)

    assert judged(plain) is None
    assert judged(off, eager=off) is None, "bf16 itself is as far off"
    assert "at a is off by 30%, where 5% can be rounding" in judged(off)
    moved = {name: value * 1.07 for name, value in plain.items()}
    assert judged(off, near=moved) is None, "the last bit of the weights moves it by a quarter of that"
    assert judged({**plain, "b": torch.full((4,), 1e-6)}) is None, "0 but for rounding"
    assert "at b" in judged({**plain, "b": torch.full((4,), torch.nan)})
    assert "other parameters: b" in judged({"a": torch.ones(4)})


def test_a_lost_gradient_is_seen_among_any_noise():
    generator = torch.Generator().manual_seed(0)
    plain = {name: torch.randn(200, generator=generator) for name in "ab"}
    one, other = ({name: value + 1.2 * torch.randn(200, generator=generator) for name, value in plain.items()}
                  for _ in range(2))  # fmt: skip
    given = {"plain": plain, "near": plain, "eager": one}
    assert compiled.hides(one, plain=plain) and not compiled.hides(plain, plain=plain)
    assert compiled.hides({**plain, "b": one["b"]}, plain=plain), "one parameter is enough"
    assert compiled.mismatch(other, **given) is None
    assert compiled.mismatch({**other, "b": 0 * other["b"]}, **given) == "the gradient at b has 0% of its norm"


def test_compiling_on_a_cpu_is_refused_where_it_is_insisted_on(tiny, source, target):
    assert not Hardware.choose("cpu", tiny.run).compiled
    with pytest.raises(ConfigError, match=r"run\.compile='on' needs a GPU.*runs on cpu; set it to 'auto'"):
        Training(tiny.with_overrides({"run.compile": "on"}), source=source, target=target, device="cpu")
