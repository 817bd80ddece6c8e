"""The backbone compiled, as long as it computes the right gradient."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from mmfa.hardware import is_out_of_memory
from mmfa.model import MMFA

logger = logging.getLogger(__name__)

Forward = Callable[[Tensor], Tensor]
"""Images to feature maps."""
Gradients = dict[str, Tensor]
"""By parameter name."""

EAGER = "eager"
WAYS: Mapping[str, Mapping[str, Any]] = {
    "compiled, with CUDA graphs": {"mode": "reduce-overhead"},
    "compiled": {"mode": "default"},
}
"""What is tried, in order: how the backbone then runs, in words, and the options of ``torch.compile``."""
PASSES = 3
"""CUDA graphs are warmed up, recorded, and only then what later steps replay."""
HIDES = 0.4
"""Relative error of the bf16 gradient at one parameter from which on float32 is compared too.

Up to it no more than 2 x 0.4 + 0.05 of a gradient can be rounding, so that one that is missing shows.
"""
ROUNDING = 4
"""Times the change that the last bit of the weights makes, in float32: another memory layout makes twice that change
in a ResNet-50 at random weights, where it is 2 % of a gradient, and in a small net, where it is a millionth."""
SLACK = 0.05
"""Relative error that is allowed each parameter's gradient over what rounding explains."""
FLOOR = 1e-5
"""The same, of the norm of the whole gradient: some parameters' gradients are 0 but for rounding."""
LEAST = 1 / 3
"""Of the eager gradient's norm, at each parameter; of bf16 against bf16 it is 0.8 to 1.25 in that ResNet-50."""


@contextlib.contextmanager
def in_place(model: MMFA, forward: Forward | None) -> Iterator[None]:
    """Have the backbone run as ``forward`` within; as it is written for None, and always outside."""
    if forward is None:
        yield
        return
    model.backbone.forward = forward  # type: ignore[method-assign]
    try:
        yield
    finally:
        del model.backbone.forward


def compile_backbone(model: MMFA, pooled: Callable[[bool], Sequence[Tensor]]) -> tuple[Forward | None, str]:
    """Compile the backbone of a model in training mode, and compare its gradient with that of the backbone as written.

    The model's weights, buffers and gradients and torch's generators are left as they were.

    Args:
        model: in training mode.
        pooled: forwards a real batch as a step does, in float32 throughout where it is given True, and returns the
            pooled features of both domains.

    Returns:
        the compiled forward, or None where every way of :data:`WAYS` failed; and how the backbone runs, with the reason
        where that is not the first way, and whether float32 was compared too.

    Raises:
        RuntimeError: the device's memory is full.
    """
    reasons: list[str] = []
    plain, eager = (gradients(model, pooled, plain=plain) for plain in (True, False))
    with _other_last_bit(model):
        near = gradients(model, pooled, plain=True)
    hidden = hides(eager, plain=plain)
    for words, options in WAYS.items():
        try:
            for in_float32 in (True, False) if hidden else (False,):  # what is to train last
                release()  # what was compiled before, here or by earlier trainings
                forward: Forward = torch.compile(model.backbone.forward, dynamic=False, **options)
                with in_place(model, forward):
                    for _ in range(PASSES):
                        torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]
                        found = gradients(model, pooled, plain=in_float32)
                if wrong := mismatch(found, plain=plain, near=near, eager=plain if in_float32 else eager):
                    break
        except Exception as error:  # a compiler raises anything
            cause = getattr(error, "inner_exception", error)
            if is_out_of_memory(cause):
                raise cause from None  # eager is no way out: fewer trainings on the device, or smaller batches, are
            wrong = _first_line(cause)
        if wrong is None:
            return forward, "; ".join([words, *(["compared in float32 too"] if hidden else []), *reasons])
        reasons.append(f"not {words}: {wrong}")
        logger.warning("the backbone does not run %s: %s", words, wrong)
    release()
    return None, "; ".join([EAGER, *reasons])


def release() -> None:
    """Let go of all that was compiled, in the thread that ran it: CUDA graphs and their memory are kept by thread."""
    try:
        torch.compiler.reset()
    except Exception as error:  # of torch's internals, at the end of a training that is not to fail for them
        logger.warning("what was compiled could not be let go of: %s", _first_line(error))


def same_way(one: str, other: str) -> bool:
    """Return whether the backbone ran in the same way, by what :func:`compile_backbone` said twice."""
    return one.partition(";")[0] == other.partition(";")[0]


def gradients(model: MMFA, pooled: Callable[[bool], Sequence[Tensor]], *, plain: bool) -> Gradients:
    """Return the gradient, at every parameter that has one, of the pooled features against fixed random directions."""
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
    device = next(model.parameters()).device
    try:
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            features = [part for part in pooled(plain) if part.requires_grad]
        torch.autograd.backward(features, [_directions(part) for part in features])
        return {name: value.grad.clone() for name, value in model.named_parameters() if value.grad is not None}
    finally:
        model.zero_grad(set_to_none=True)
        for buffer, before in buffers:
            buffer.copy_(before)


def hides(eager: Gradients, *, plain: Gradients) -> bool:
    """Return whether rounding hides what a compiler might do to the gradient at some parameter.

    Args:
        eager: the gradient in the precision of the training.
        plain: the one in float32.
    """
    norms = _norms(plain)
    return bool((_norms(_minus(eager, plain)) > HIDES * norms + _floor(norms)).any())


def mismatch(found: Gradients, *, plain: Gradients, near: Gradients, eager: Gradients) -> str | None:
    """Return what is wrong with a gradient, or None; each parameter is judged by itself.

    It may be twice as far from float32's as the eager one of its precision is, or :data:`ROUNDING` times as far as the
    last bit of the weights moves it, and :data:`SLACK`; and it may not be lost: rounding may hide where it points, but
    not that it is there.

    Args:
        found: the gradient in question.
        plain: the eager one in float32.
        near: the same of weights that differ in their last bits.
        eager: the eager one in the precision of ``found``.
    """
    if found.keys() != plain.keys():
        return f"gradients at other parameters: {', '.join(sorted(found.keys() ^ plain.keys())[:3])}"
    names, norms = list(plain), _norms(plain)
    ours, theirs, nearest = (_norms(_minus(one, plain)) for one in (found, eager, near))
    floor = _floor(norms)
    allowed = torch.maximum(2 * theirs, ROUNDING * nearest) + SLACK * norms + floor
    excess = (ours / allowed).nan_to_num(nan=torch.inf)
    worst = int(excess.argmax())
    if excess[worst] > 1:
        return (
            f"the gradient at {names[worst]} is off by {float(ours[worst] / norms[worst]):.0%}, "
            f"where {float(allowed[worst] / norms[worst]):.0%} can be rounding"
        )
    sizes, expected = _norms(found), _norms(eager)
    lost = LEAST * expected - sizes - floor
    worst = int(lost.argmax())
    if lost[worst] <= 0:
        return None
    return f"the gradient at {names[worst]} has {float(sizes[worst] / expected[worst]):.0%} of its norm"


@contextlib.contextmanager
def _other_last_bit(model: MMFA) -> Iterator[None]:
    """Have every weight be the next larger number within."""
    weights = [(weight, weight.detach().clone()) for weight in model.parameters()]
    try:
        with torch.no_grad():
            for weight, before in weights:
                weight.copy_(torch.nextafter(before, torch.full_like(before, torch.inf)))
        yield
    finally:
        with torch.no_grad():
            for weight, before in weights:
                weight.copy_(before)


def _directions(features_BD: Tensor) -> Tensor:
    generator = torch.Generator(features_BD.device).manual_seed(0)
    return torch.randn(features_BD.shape, generator=generator, device=features_BD.device)


def _minus(one: Gradients, other: Gradients) -> Gradients:
    return {name: one[name] - other[name] for name in other}


def _norms(values: Gradients) -> Tensor:
    return torch.stack(torch._foreach_norm(list(values.values())))


def _floor(norms: Tensor) -> Tensor:
    whole: Tensor = torch.linalg.vector_norm(norms)
    return FLOOR * whole


def _first_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {(str(error).strip() or 'no reason given').splitlines()[0]}"
