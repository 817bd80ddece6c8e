"""Squared maximum mean discrepancy under a mixture of RBF kernels (eq. 3-6), for M sets of features at once.

Shapes: N source and P target samples, J = N + P joint samples, M independent sets of features, D dimensions of each.
L_AAL takes M attributes of D = 1, L_MDAL one set (M = 1) of D pooled dimensions.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from mmfa.config import Scale

PLATEAU = 1e-3
"""Relative distance from 1/N + 1/P below which an estimate says nothing but that all samples differ."""


class KernelReport(NamedTuple):
    """Whether a kernel can see its features; means over the M sets, as floats."""

    liveness: float
    """Mean of the kernel over pairs of different samples: near 0 no pair is in reach and the gradient is dead."""
    median_d2: float
    """Median squared distance over the same pairs, before any scale."""
    plateau: bool
    """Whether MMD² sits at 1/N + 1/P, its value where all kernels between different samples are 0."""


def squared_mmd(source_NMD: Tensor, target_PMD: Tensor, *, bandwidths: Sequence[float], scale: Scale) -> Tensor:
    """Return the biased (V-statistic) estimate of MMD² for each of the M sets of features (eq. 4).

    The kernel is exp(-d² / (2α)), averaged over the bandwidths α (eq. 5, sec. 4.1). The first derivative is exact and
    formed with the value; there is no second.

    Args:
        source_NMD: source features.
        target_PMD: target features; P may differ from N.
        bandwidths: α, each above 0.
        scale: ``dim`` divides d² by D, ``absolute`` by nothing.

    Returns:
        mmd2_M, float64 where both inputs are, else float32; 0 up to rounding where the samples are the same.

    >>> one, two = torch.tensor([[[0.0]], [[1.0]]]), torch.tensor([[[1.0]], [[0.0]]])
    >>> round(squared_mmd(one, two, bandwidths=[1.0], scale="dim").item(), 6)
    0.0
    """
    joint_MJD = _joint(source_NMD, target_PMD)
    divisor = _divisor(source_NMD.shape[2], scale)
    rates = tuple(-0.5 / (bandwidth * divisor) for bandwidth in bandwidths)
    mmd2_M: Tensor = _SquaredMMD.apply(joint_MJD, source_NMD.shape[0], rates)
    return mmd2_M


@torch.no_grad()
def kernel_report(source_NMD: Tensor, target_PMD: Tensor, *, bandwidths: Sequence[float], scale: Scale) -> KernelReport:
    """Return whether the kernel is alive on these features, arguments as in :func:`squared_mmd`."""
    num_source, num_target = len(source_NMD), len(target_PMD)
    d2_MJJ = _squared_distances(_joint(source_NMD, target_PMD))
    divisor = _divisor(source_NMD.shape[2], scale)
    kernel_MJJ = torch.stack([(d2_MJJ * (-0.5 / (alpha * divisor))).exp() for alpha in bandwidths]).mean(dim=0)
    row_J, column_J = torch.triu_indices(num_source + num_target, num_source + num_target, offset=1)
    mmd2_M = squared_mmd(source_NMD, target_PMD, bandwidths=bandwidths, scale=scale)
    floor = 1 / num_source + 1 / num_target
    return KernelReport(
        liveness=kernel_MJJ[:, row_J, column_J].mean().item(),
        median_d2=d2_MJJ[:, row_J, column_J].median(dim=1).values.mean().item(),
        plateau=bool(((mmd2_M - floor).abs() < PLATEAU * floor).all()),
    )


class _SquaredMMD(torch.autograd.Function):
    """MMD² = sᵀKs with signs s = (1/N, ..., -1/P, ...); its gradient comes from the same exponentials."""

    @staticmethod
    def forward(ctx: Any, joint_MJD: Tensor, num_source: int, rates: tuple[float, ...]) -> Tensor:
        with torch.autocast(joint_MJD.device.type, enabled=False):
            d2_MJJ = _squared_distances(joint_MJD)
            kernel_MJJ = torch.zeros_like(d2_MJJ)
            slope_MJJ = torch.zeros_like(d2_MJJ)
            for rate in rates:
                term_MJJ = (d2_MJJ * rate).exp_()
                kernel_MJJ += term_MJJ
                slope_MJJ.add_(term_MJJ, alpha=rate)
            num_target = joint_MJD.shape[1] - num_source
            signs_J = joint_MJD.new_full((num_source + num_target,), -1 / num_target)
            signs_J[:num_source] = 1 / num_source
            if ctx.needs_input_grad[0]:
                ctx.save_for_backward(_gradient(joint_MJD, slope_MJJ, signs_J, weight=4 / len(rates)))
            return (kernel_MJJ @ signs_J) @ signs_J / len(rates)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_M: Tensor) -> tuple[Tensor, None, None]:
        (gradient_MJD,) = ctx.saved_tensors
        return gradient_MJD * grad_M[:, None, None], None, None


def _gradient(joint_MJD: Tensor, slope_MJJ: Tensor, signs_J: Tensor, *, weight: float) -> Tensor:
    """Return d MMD² / d joint = 4 Σ_j G_ij (z_i - z_j), G_ij = s_i s_j dk/dd²; overwrites ``slope_MJJ``."""
    G_MJJ = slope_MJJ.mul_((signs_J * weight)[:, None] * signs_J)
    G_MJJ.diagonal(dim1=1, dim2=2).zero_()
    if joint_MJD.shape[2] == 1:
        values_MJ = joint_MJD[:, :, 0]
        return (G_MJJ * (values_MJ[:, :, None] - values_MJ[:, None, :])).sum(2, keepdim=True)
    centred_MJD = joint_MJD - joint_MJD.mean(dim=1, keepdim=True)
    return G_MJJ.sum(2, keepdim=True) * centred_MJD - G_MJJ @ centred_MJD


def _squared_distances(joint_MJD: Tensor) -> Tensor:
    """Return d2_MJJ, the diagonal exactly 0: round-off there would fake a gradient."""
    if joint_MJD.shape[2] == 1:
        values_MJ = joint_MJD[:, :, 0]
        return (values_MJ[:, :, None] - values_MJ[:, None, :]).square_()
    centred_MJD = joint_MJD - joint_MJD.mean(dim=1, keepdim=True)
    # Not the diagonal of the Gram matrix: compiled, its gradient comes out wrong.
    norms_MJ = (centred_MJD * centred_MJD).sum(-1)
    d2_MJJ = torch.baddbmm(norms_MJ[:, None, :], centred_MJD, centred_MJD.transpose(1, 2), alpha=-2)
    d2_MJJ = d2_MJJ.add_(norms_MJ[:, :, None]).clamp_(min=0)
    d2_MJJ.diagonal(dim1=1, dim2=2).zero_()
    return d2_MJJ


def _joint(source_NMD: Tensor, target_PMD: Tensor) -> Tensor:
    dtype = torch.promote_types(torch.promote_types(source_NMD.dtype, target_PMD.dtype), torch.float32)
    return torch.cat([source_NMD.to(dtype), target_PMD.to(dtype)]).transpose(0, 1)


def _divisor(num_dimensions: int, scale: Scale) -> float:
    assert scale in ("dim", "absolute"), scale  # the config refuses the others
    return float(num_dimensions) if scale == "dim" else 1.0
