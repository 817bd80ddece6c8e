"""SGD, its schedule, and the running average of the weights."""

from __future__ import annotations

import copy
import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import SGD

from mmfa.config import OptimConfig


def build_sgd(model: nn.Module, config: OptimConfig) -> SGD:
    """Return SGD over the model's parameters; ``decay_on="matrices"`` spares those of fewer than two dimensions."""
    parameters = list(model.parameters())
    decayed = [p for p in parameters if config.decay_on == "all" or p.ndim >= 2]
    spared = [p for p in parameters if config.decay_on != "all" and p.ndim < 2]
    groups: list[dict[str, Any]] = [{"params": decayed}, {"params": spared, "weight_decay": 0.0}]
    return SGD(
        [group for group in groups if group["params"]],
        lr=config.learning_rate,
        momentum=config.momentum,
        nesterov=config.nesterov and config.momentum > 0,
        weight_decay=config.weight_decay,
        fused=parameters[0].device.type in ("cpu", "cuda"),
    )


def learning_rate(config: OptimConfig, *, step: int, steps_per_epoch: int) -> float:
    """Return the rate of one step.

    Args:
        config: schedule.
        step: optimiser steps taken before, over all epochs.
        steps_per_epoch: steps of an epoch.
    """
    warmup = config.warmup_epochs * steps_per_epoch
    if step < warmup:
        return config.learning_rate * (step + 1) / warmup
    if config.schedule == "step":
        return config.learning_rate * (1.0 if step < config.decay_epoch * steps_per_epoch else config.decay_factor)
    done = (step - warmup) / (config.num_epochs * steps_per_epoch - warmup)
    return config.learning_rate * 0.5 * (1 + math.cos(math.pi * done))


def momenta(optimiser: SGD, model: nn.Module) -> dict[str, Tensor]:
    """Return the momentum of every parameter that has one, by parameter name."""
    buffers = {name: optimiser.state.get(p, {}).get("momentum_buffer") for name, p in model.named_parameters()}
    return {name: buffer for name, buffer in buffers.items() if buffer is not None}


def restore_momenta(optimiser: SGD, model: nn.Module, saved: dict[str, Tensor]) -> None:
    """Put back what :func:`momenta` returned.

    Each goes into its parameter's memory format: the fused step walks raw memory, and a contiguous momentum beside
    channels-last weights would silently update the wrong entries.
    """
    optimiser.state.clear()
    for name, parameter in model.named_parameters():
        if name in saved:
            buffer = torch.empty_like(parameter, memory_format=torch.preserve_format).copy_(saved[name])
            optimiser.state[parameter]["momentum_buffer"] = buffer.detach()


class Average:
    """Exponential running average of a model's weights and BatchNorm buffers, held as a model in eval mode.

    Args:
        model: what is averaged; its present state is where the average starts.
        decay: share of the average that a step keeps.
    """

    def __init__(self, model: nn.Module, *, decay: float) -> None:
        self.decay = decay
        self.model = copy.deepcopy(model).eval().requires_grad_(False)
        pairs = list(zip(self.model.state_dict().values(), model.state_dict().values(), strict=True))
        self._floats = [pair for pair in pairs if pair[0].is_floating_point()]
        self._counts = [pair for pair in pairs if not pair[0].is_floating_point()]

    @torch.no_grad()
    def update(self) -> None:
        """Move the average towards the model; integer buffers are copied."""
        torch._foreach_lerp_([a for a, _ in self._floats], [b for _, b in self._floats], 1 - self.decay)
        if self._counts:
            torch._foreach_copy_([a for a, _ in self._counts], [b for _, b in self._counts])
