"""A backbone for evaluation, its BatchNorm folded into the convolutions: what they do there is one linear map.

A batch then passes through memory half as often. Features differ by rounding alone.
"""

from __future__ import annotations

import copy
import itertools

import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from mmfa.norm import DomainBatchNorm, DomainRole


@torch.no_grad()
def folded(backbone: nn.Sequential, *, domain: DomainRole) -> nn.Sequential:
    """Return a copy of a backbone in eval mode, each BatchNorm folded into the convolution before it.

    Args:
        backbone: left as it is.
        domain: whose statistics are used, where each has its own.
    """
    result = copy.deepcopy(backbone).eval()
    for module in list(result.modules()):
        for (name, conv), (after, norm) in itertools.pairwise(list(module.named_children())):
            if isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d | DomainBatchNorm):
                setattr(module, name, _fused(conv, norm, domain))
                setattr(module, after, nn.Identity())
    return result


def _fused(conv: nn.Conv2d, norm: nn.BatchNorm2d | DomainBatchNorm, domain: DomainRole) -> nn.Conv2d:
    mean, variance = norm.running_mean, norm.running_var
    if isinstance(norm, DomainBatchNorm) and domain == "target":
        mean, variance = norm.target_running_mean, norm.target_running_var
    assert mean is not None and variance is not None
    weights = fuse_conv_bn_weights(conv.weight, conv.bias, mean, variance, norm.eps, norm.weight, norm.bias)
    conv.weight, conv.bias = (nn.Parameter(weight, requires_grad=False) for weight in weights)
    return conv
