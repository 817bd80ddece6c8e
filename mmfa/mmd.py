"""Squared maximum mean discrepancy under a mixture of RBF kernels (eq. 3-6), for M sets of features at once.

Shapes: N source and P target samples, J = N + P joint samples, M independent sets of features, D dimensions of each.
L_AAL takes M attributes of D = 1 (or of their hidden layers' D), L_MDAL one set (M = 1) of D pooled dimensions.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from mmfa.config import Scale

PLATEAU = 1e-3
"""Relative distance from 1/N + 1/P below which an estimate says nothing but that all samples differ."""

SHORTEST = 1e-6
"""``l2norm``: a feature shorter than this has no direction and stays as it is."""

MOST_MULTIPLE = 32
"""Powers up to which a kernel is one of the widest kernel: float32 keeps six digits then."""

SMALLEST_MEDIAN = 1e-6
"""``median``: d² is divided by no less than this, or equal samples would be divided by 0."""


class KernelReport(NamedTuple):
    """Whether a kernel can see its features; means over the M sets, as floats."""

    liveness: float
    """Mean of the kernel over pairs of different samples: near 0 no pair is in reach and the gradient is dead."""
    median_d2: float
    """Median squared distance over the same pairs, before any scale."""
    plateau: bool
    """Whether MMD² sits at 1/N + 1/P, its value where all kernels between different samples are 0."""
    unbiased: float
    """Mean of the unbiased estimate (U-statistic) of MMD²: about 0 where the distributions agree, then often below."""


def squared_mmd(source_NMD: Tensor, target_PMD: Tensor, *, bandwidths: Sequence[float], scale: Scale) -> Tensor:
    """Return the biased (V-statistic) estimate of MMD² for each of the M sets of features (eq. 4).

    The kernel is exp(-d² / (2α)), averaged over the bandwidths α (eq. 5, sec. 4.1). The first derivative is exact and
    formed with the value; there is no second.

    Args:
        source_NMD: source features.
        target_PMD: target features; P may differ from N.
        bandwidths: α, each above 0.
        scale: ``dim`` divides d² by D, ``absolute`` by nothing, ``median`` by its median over the pairs of different
            joint samples of each set, a constant to the gradient (of an even number of pairs the lower of the middle
            two); ``l2norm`` scales each feature to length 1 instead, but for D = 1, which it leaves as it is: only the
            sign would remain.

    Returns:
        mmd2_M, float64 where both inputs are, else float32; 0 up to rounding where the samples are the same.

    >>> one, two = torch.tensor([[[0.0]], [[1.0]]]), torch.tensor([[[1.0]], [[0.0]]])
    >>> round(squared_mmd(one, two, bandwidths=[1.0], scale="dim").item(), 6)
    0.0
    """
    joint_MJD = _scaled(_joint(source_NMD, target_PMD), scale)
    divisor = _divisor(source_NMD.shape[2], scale)
    rates = tuple(-0.5 / (bandwidth * divisor) for bandwidth in bandwidths)
    mmd2_M: Tensor = _SquaredMMD.apply(joint_MJD, source_NMD.shape[0], rates, scale == "median")
    return mmd2_M


@torch.no_grad()
def kernel_report(source_NMD: Tensor, target_PMD: Tensor, *, bandwidths: Sequence[float], scale: Scale) -> KernelReport:
    """Return whether the kernel is alive on these features, arguments as in :func:`squared_mmd`."""
    num_source, num_target = len(source_NMD), len(target_PMD)
    joint_MJD = _joint(source_NMD, target_PMD)
    d2_MJJ = _squared_distances(_scaled(joint_MJD, scale))
    if scale == "median":
        d2_MJJ /= _floored_median(d2_MJJ)
    divisor = _divisor(source_NMD.shape[2], scale)
    kernel_MJJ = torch.stack([(d2_MJJ * (-0.5 / (alpha * divisor))).exp() for alpha in bandwidths]).mean(dim=0)
    mmd2_M = squared_mmd(source_NMD, target_PMD, bandwidths=bandwidths, scale=scale)
    floor = 1 / num_source + 1 / num_target
    return KernelReport(
        liveness=_pairs(kernel_MJJ).mean().item(),
        median_d2=_pairs(_squared_distances(joint_MJD)).median(dim=1).values.mean().item(),
        plateau=bool(((mmd2_M - floor).abs() < PLATEAU * floor).all()),
        unbiased=_unbiased(kernel_MJJ, num_source).mean().item(),
    )


def _unbiased(kernel_MJJ: Tensor, num_source: int) -> Tensor:
    """Return the U-statistic of MMD² of each set: eq. 4 without the kernels of a sample with itself."""
    within = [_pairs(kernel_MJJ[:, part, part]) for part in (slice(num_source), slice(num_source, None))]
    across_MNP = kernel_MJJ[:, :num_source, num_source:]
    return within[0].mean(dim=1) + within[1].mean(dim=1) - 2 * across_MNP.mean(dim=(1, 2))


class _SquaredMMD(torch.autograd.Function):
    """MMD² = sᵀKs with signs s = (1/N, ..., -1/P, ...); its gradient comes from the same exponentials."""

    @staticmethod
    def forward(ctx: Any, joint_MJD: Tensor, num_source: int, rates: tuple[float, ...], over_median: bool) -> Tensor:
        with torch.autocast(joint_MJD.device.type, enabled=False):
            centred_MJD, difference_MJJ = _parts(joint_MJD)
            d2_MJJ = _squares(centred_MJD, difference_MJJ)
            if over_median:
                median_M11 = _floored_median(d2_MJJ)
                d2_MJJ /= median_M11
            kernel_MJJ, slope_MJJ = _kernels(d2_MJJ, rates)
            if over_median:
                slope_MJJ /= median_M11
            num_target = joint_MJD.shape[1] - num_source
            signs_J = joint_MJD.new_full((num_source + num_target,), -1 / num_target)
            signs_J[:num_source] = 1 / num_source
            if ctx.needs_input_grad[0]:
                weights_JJ = (signs_J * (4 / len(rates)))[:, None] * signs_J
                ctx.save_for_backward(_gradient(slope_MJJ.mul_(weights_JJ), centred_MJD, difference_MJJ))
            return (kernel_MJJ @ signs_J) @ signs_J / len(rates)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_M: Tensor) -> tuple[Tensor, None, None, None]:
        (gradient_MJD,) = ctx.saved_tensors
        return gradient_MJD * grad_M[:, None, None], None, None, None


def _kernels(d2_MJJ: Tensor, rates: tuple[float, ...]) -> tuple[Tensor, Tensor]:
    """Return the sum over the bandwidths of exp(rate d²), and its derivative by d².

    Exponentials are half of what a term costs, so where one rate is a whole multiple of the widest kernel's, as the
    paper's are, its kernel is a power of that one.
    """
    widest, *others = sorted(rates, reverse=True)  # rates are below 0
    base_MJJ = (d2_MJJ * widest).exp_()
    kernel_MJJ, slope_MJJ = base_MJJ.clone() if others else base_MJJ, base_MJJ * widest
    for rate in others:
        multiple = round(rate / widest)
        whole = multiple <= MOST_MULTIPLE and math.isclose(rate, multiple * widest, rel_tol=1e-12)
        term_MJJ = _power(base_MJJ, multiple) if whole else (d2_MJJ * rate).exp_()
        kernel_MJJ += term_MJJ
        slope_MJJ.add_(term_MJJ, alpha=rate)
    return kernel_MJJ, slope_MJJ


def _power(base: Tensor, exponent: int) -> Tensor:
    """Return a power by squaring; its relative error grows with the exponent."""
    if exponent == 1:
        return base
    half = _power(base, exponent // 2)
    square = half * half
    return square.mul_(base) if exponent % 2 else square


def _parts(joint_MJD: Tensor) -> tuple[Tensor, Tensor | None]:
    """Return the features about their mean, and for D = 1 their differences, of which d² and gradient are both made."""
    if joint_MJD.shape[2] == 1:
        values_MJ = joint_MJD[:, :, 0].contiguous()
        return joint_MJD, values_MJ[:, :, None] - values_MJ[:, None, :]
    return joint_MJD - joint_MJD.mean(dim=1, keepdim=True), None


def _gradient(G_MJJ: Tensor, centred_MJD: Tensor, difference_MJJ: Tensor | None) -> Tensor:
    """Return d MMD² / d joint = 4 Σ_j G_ij (z_i - z_j), G_ij = s_i s_j dk/dd²; overwrites G."""
    if difference_MJJ is not None:
        return G_MJJ.mul_(difference_MJJ).sum(2, keepdim=True)
    G_MJJ.diagonal(dim1=1, dim2=2).zero_()
    return G_MJJ.sum(2, keepdim=True) * centred_MJD - G_MJJ @ centred_MJD


def _squares(centred_MJD: Tensor, difference_MJJ: Tensor | None) -> Tensor:
    """Return d2_MJJ, the diagonal exactly 0: round-off there would fake a gradient."""
    if difference_MJJ is not None:
        return difference_MJJ.square()
    # Not the diagonal of the Gram matrix: compiled, its gradient comes out wrong.
    norms_MJ = (centred_MJD * centred_MJD).sum(-1)
    d2_MJJ = torch.baddbmm(norms_MJ[:, None, :], centred_MJD, centred_MJD.transpose(1, 2), alpha=-2)
    d2_MJJ = d2_MJJ.add_(norms_MJ[:, :, None]).clamp_(min=0)
    d2_MJJ.diagonal(dim1=1, dim2=2).zero_()
    return d2_MJJ


def _squared_distances(joint_MJD: Tensor) -> Tensor:
    return _squares(*_parts(joint_MJD))


def _joint(source_NMD: Tensor, target_PMD: Tensor) -> Tensor:
    dtype = torch.promote_types(torch.promote_types(source_NMD.dtype, target_PMD.dtype), torch.float32)
    return torch.cat([source_NMD.to(dtype), target_PMD.to(dtype)]).transpose(0, 1)


def _divisor(num_dimensions: int, scale: Scale) -> float:
    """Return what d² is divided by whatever the batch."""
    return float(num_dimensions) if scale == "dim" else 1.0


def _scaled(joint_MJD: Tensor, scale: Scale) -> Tensor:
    """Return features of length 1 where the scale is ``l2norm`` and D > 1, else what came."""
    if scale != "l2norm" or joint_MJD.shape[2] == 1:
        return joint_MJD
    length_MJ1 = torch.linalg.vector_norm(joint_MJD, dim=2, keepdim=True)
    return joint_MJD / torch.where(length_MJ1 > SHORTEST, length_MJ1, 1.0)


def _floored_median(d2_MJJ: Tensor) -> Tensor:
    return _pairs(d2_MJJ).median(dim=1).values.clamp(min=SMALLEST_MEDIAN)[:, None, None]


def _pairs(values_MJJ: Tensor) -> Tensor:
    """Return the entries above the diagonal, one row of them for each set."""
    num = values_MJJ.shape[1]
    row, column = torch.triu_indices(num, num, offset=1, device=values_MJJ.device)
    return values_MJJ[:, row, column]
