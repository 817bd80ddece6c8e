"""Global pooling of the last feature maps (sec. 3.1).

Shapes: B images, D channels, H x W positions.
"""

from __future__ import annotations

from torch import Tensor

from mmfa.config import Pooling

GEM_FLOOR = 1e-6
"""Smallest activation that the generalised mean sees: 0 has no logarithm, which the exponent's gradient needs."""


def global_pool(maps_BDHW: Tensor, *, pooling: Pooling, exponent: Tensor | None = None) -> Tensor:
    """Return one float32 vector per image.

    Args:
        maps_BDHW: feature maps, of any floating type.
        pooling: ``max``, the paper's GMP, ``average``, or ``gem``.
        exponent: ``gem`` only: p, a scalar.

    Returns:
        pooled_BD, float32.
    """
    if pooling == "average":
        return maps_BDHW.float().mean(dim=(2, 3))
    if pooling == "gem":
        assert exponent is not None
        return generalised_mean(maps_BDHW.float(), exponent)
    # amax and not adaptive_max_pool2d, whose CUDA backward adds atomically: two runs would differ.
    return maps_BDHW.amax(dim=(2, 3)).float()


def generalised_mean(maps_BDHW: Tensor, exponent: Tensor) -> Tensor:
    """Return (mean xᵖ)^(1/p) over the positions (Radenović et al., TPAMI 2018), activations below 1e-6 raised to it.

    Args:
        maps_BDHW: float32 or float64.
        exponent: p > 0, a scalar that may be learnt.
    """
    maps_BDHW = maps_BDHW.clamp(min=GEM_FLOOR)
    # Divided by the largest: its 64th power would overflow. The mean scales with its input, so value and gradient stay.
    largest_BD11 = maps_BDHW.detach().amax(dim=(2, 3), keepdim=True)
    means_BD = (maps_BDHW / largest_BD11).pow(exponent).mean(dim=(2, 3))
    return largest_BD11[:, :, 0, 0] * means_BD.pow(1 / exponent)
