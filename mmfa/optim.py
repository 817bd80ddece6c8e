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
    """Return SGD over the model's parameters, for :func:`set_rate` to set the rate of.

    ``decay_on="matrices"`` spares parameters of fewer than two dimensions; the exponent of GeM pooling is always
    spared, for 0 is no resting place of it. What is under ``backbone`` is in groups of its own where its rate differs.
    """
    parameters = list(model.parameters())
    groups: dict[tuple[float, float], dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        decays = name != "gem_p" and (config.decay_on == "all" or parameter.ndim >= 2)
        decay = config.weight_decay if decays else 0.0
        multiple = config.backbone_lr_mult if name.startswith("backbone.") else 1.0
        group = groups.setdefault((multiple, decay), {"params": [], "lr_mult": multiple, "weight_decay": decay})
        group["params"].append(parameter)
    return SGD(
        list(groups.values()),
        lr=config.learning_rate,
        momentum=config.momentum,
        nesterov=config.nesterov and config.momentum > 0,
        fused=parameters[0].device.type in ("cpu", "cuda"),
    )


def set_rate(optimiser: SGD, rate: float) -> None:
    """Have the next step taken at ``rate``, and in the backbone at its multiple."""
    for group in optimiser.param_groups:
        group["lr"] = rate * group["lr_mult"]


def learning_rate(config: OptimConfig, *, step: int, steps_per_epoch: int) -> float:
    """Return the rate of one step, before ``backbone_lr_mult``.

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
