"""Global pooling of the last feature maps (sec. 3.1).

Shapes: B images, D channels, H x W positions.
"""

from __future__ import annotations

from torch import Tensor

from mmfa.config import Pooling


def global_pool(maps_BDHW: Tensor, *, pooling: Pooling) -> Tensor:
    """Return one float32 vector per image.

    Args:
        maps_BDHW: feature maps, of any floating type.
        pooling: ``max``, the paper's GMP, or ``average``.

    Returns:
        pooled_BD, float32.
    """
    if pooling == "average":
        return maps_BDHW.float().mean(dim=(2, 3))
    # amax and not adaptive_max_pool2d, whose CUDA backward adds atomically: two runs would differ.
    return maps_BDHW.amax(dim=(2, 3)).float()
