"""The backbone compiled, as long as it computes the right gradient."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

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
CHAOS = 0.5
"""Relative error of the bf16 gradient from which on bf16 hides what a compiler might do: float32 is compared too."""
SLACK = 0.05
"""Relative error that is allowed each parameter's gradient over what rounding explains."""
FLOOR = 1e-3
"""The same, of the norm of the whole gradient: some parameters' gradients are 0 but for rounding."""


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

    The model's buffers, its gradients and torch's generators are left as they were.

    Args:
        model: in training mode.
        pooled: forwards a real batch as a step does, in float32 throughout where it is given True, and returns the
            pooled features of both domains.

    Returns:
        the compiled forward, or None where every way of :data:`WAYS` failed; and how the backbone runs, with the reason
        where that is not the first way.
    """
    torch.compiler.reset()  # what earlier trainings of this process compiled
    reasons: list[str] = []
    eager, plain = (gradients(model, pooled, plain=plain) for plain in (False, True))
    chaotic = bool(_norm(_minus(eager, plain)) > CHAOS * _norm(plain))
    for words, options in WAYS.items():
        try:
            forward: Forward = torch.compile(model.backbone.forward, dynamic=False, **options)
            wrong = None
            for in_float32 in (True, False) if chaotic else (False,):  # what trains last, and compiled within the try
                with in_place(model, forward):
                    for _ in range(PASSES):
                        torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]
                        found = gradients(model, pooled, plain=in_float32)
                wrong = wrong or mismatch(found, plain=plain, eager=plain if in_float32 else eager)
        except Exception as error:  # a compiler raises anything
            cause = getattr(error, "inner_exception", error)
            wrong = f"{type(cause).__name__}: {(str(cause).strip() or 'no reason given').splitlines()[0]}"
        if wrong is None:
            return forward, "; ".join([words, *reasons])
        reasons.append(f"not {words}: {wrong}")
        logger.warning("the backbone does not run %s: %s", words, wrong)
    return None, "; ".join([EAGER, *reasons])


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


def mismatch(found: Gradients, *, plain: Gradients, eager: Gradients) -> str | None:
    """Return what is wrong with a gradient, or None.

    It may be twice as far from float32's as the eager one of its precision is, and a little.

    Args:
        found: the gradient in question.
        plain: the eager one in float32.
        eager: the eager one in the precision of ``found``.
    """
    if found.keys() != plain.keys():
        return f"gradients at other parameters: {', '.join(sorted(found.keys() ^ plain.keys())[:3])}"
    names = list(plain)
    ours, theirs, norms = (
        torch.stack(torch._foreach_norm(list(values.values())))
        for values in (_minus(found, plain), _minus(eager, plain), plain)
    )
    allowed = 2 * theirs + SLACK * norms + FLOOR * torch.linalg.vector_norm(norms)
    excess = (ours / allowed).nan_to_num(nan=torch.inf)
    worst = int(excess.argmax())
    if excess[worst] <= 1:
        return None
    return (
        f"the gradient at {names[worst]} is off by {float(ours[worst] / norms[worst]):.0%}, "
        f"where {float(allowed[worst] / norms[worst]):.0%} can be rounding"
    )


def _directions(features_BD: Tensor) -> Tensor:
    generator = torch.Generator(features_BD.device).manual_seed(0)
    return torch.randn(features_BD.shape, generator=generator, device=features_BD.device)


def _minus(one: Gradients, other: Gradients) -> Gradients:
    return {name: one[name] - other[name] for name in other}


def _norm(values: Gradients) -> Tensor:
    return nn.utils.get_total_norm(values.values())
