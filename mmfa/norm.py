"""BatchNorm with statistics of its own for each domain (``model.bn_mode=domain``).

Shapes: B images or vectors, D channels.
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn
from torch.nn import functional

DomainRole = Literal["source", "target"]
"""Which of the two domains a batch of images is from."""

_STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


class DomainBatchNorm(nn.modules.batchnorm._BatchNorm):
    """BatchNorm whose running statistics are kept by domain; the affine weights are shared.

    The source's statistics have BatchNorm's own names, the target's the same after ``target_``.

    Args:
        norm: whose weights it takes over, and whose statistics both domains start from.
    """

    target_running_mean: Tensor
    target_running_var: Tensor
    target_num_batches_tracked: Tensor

    def __init__(self, norm: nn.modules.batchnorm._BatchNorm) -> None:
        super().__init__(norm.num_features, eps=norm.eps, momentum=norm.momentum)
        self.weight, self.bias = norm.weight, norm.bias
        for name in _STATISTICS:
            self.register_buffer(name, getattr(norm, name))
            self.register_buffer(f"target_{name}", getattr(norm, name).clone())
        self.domain: DomainRole = "target"

    def forward(self, input: Tensor) -> Tensor:
        """Normalise a batch of the domain that :func:`select` named last."""
        if self.domain == "source":
            return super().forward(input)
        assert self.momentum is not None
        if self.training:
            self.target_num_batches_tracked.add_(1)
        return functional.batch_norm(
            input,
            self.target_running_mean,
            self.target_running_var,
            self.weight,
            self.bias,
            training=self.training,
            momentum=self.momentum,
            eps=self.eps,
        )

    def _check_input_dim(self, input: Tensor) -> None:
        assert input.dim() in (2, 4), input.shape


def split_by_domain(module: nn.Module) -> None:
    """Replace every BatchNorm within a module by a :class:`DomainBatchNorm`."""
    for name, child in module.named_children():
        if isinstance(child, nn.BatchNorm1d | nn.BatchNorm2d):
            setattr(module, name, DomainBatchNorm(child))
        else:
            split_by_domain(child)


def select(module: nn.Module, domain: DomainRole) -> None:
    """Have every :class:`DomainBatchNorm` within a module take the next batches for this domain's."""
    for child in module.modules():
        if isinstance(child, DomainBatchNorm):
            child.domain = domain
