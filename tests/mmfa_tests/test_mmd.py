"""Squared MMD against eq. 4 in plain loops, by hand, and by its properties."""

import math

import pytest
import torch
from references import mmd as reference

from mmfa.mmd import kernel_report, squared_mmd

SETS = [(1.0,), (1.0, 5.0, 10.0), (0.3, 40.0)]


def features(num, *, sets, dims, seed, dtype=torch.float64):
    return torch.randn(num, sets, dims, generator=torch.Generator().manual_seed(seed), dtype=dtype)


@pytest.mark.parametrize("scale", ["dim", "absolute"])
@pytest.mark.parametrize("bandwidths", SETS)
@pytest.mark.parametrize(
    ("num_source", "num_target", "sets", "dims"), [(2, 2, 1, 1), (5, 3, 4, 1), (3, 6, 2, 7), (8, 8, 1, 33)]
)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_equals_the_plain_loops(scale, bandwidths, num_source, num_target, sets, dims, dtype):
    source = features(num_source, sets=sets, dims=dims, seed=1, dtype=dtype)
    target = features(num_target, sets=sets, dims=dims, seed=2, dtype=dtype) + 0.5
    got = squared_mmd(source, target, bandwidths=bandwidths, scale=scale)
    assert got.shape == (sets,)
    assert got.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    for m in range(sets):
        expected = reference.squared_mmd(
            source[:, m].tolist(), target[:, m].tolist(), bandwidths=bandwidths, divisor=dims if scale == "dim" else 1
        )
        assert got[m].item() == pytest.approx(
            expected, rel=1e-9 if dtype == torch.float64 else 1e-5, abs=2e-6 if dtype != torch.float64 else 1e-12
        )


def test_two_by_two_by_hand():
    source, target = torch.tensor([[[0.0]], [[1.0]]]), torch.tensor([[[2.0]], [[2.0]]])
    # within the source: (1 + 1 + 2 exp(-1/2)) / 4; within the target: 1; across: (exp(-4/2) + exp(-1/2)) / 2, twice
    expected = (2 + 2 * math.exp(-0.5)) / 4 + 1 - (math.exp(-2) + math.exp(-0.5))
    assert squared_mmd(source, target, bandwidths=[1.0], scale="dim").item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("dims", [1, 5])
def test_gradient_is_the_finite_difference(dims):
    source = features(4, sets=3, dims=dims, seed=1).requires_grad_()
    target = features(5, sets=3, dims=dims, seed=2).requires_grad_()
    assert torch.autograd.gradcheck(
        lambda s, t: squared_mmd(s, t, bandwidths=(1.0, 5.0), scale="dim"), (source, target), raise_exception=True
    )


def test_gradient_of_one_domain_alone():
    source, target = features(4, sets=2, dims=3, seed=1), features(4, sets=2, dims=3, seed=2).requires_grad_()
    assert torch.autograd.gradcheck(lambda t: squared_mmd(source, t, bandwidths=(1.0,), scale="absolute"), (target,))


@pytest.mark.parametrize("dims", [1, 16])
def test_same_samples_have_no_discrepancy_and_no_gradient(dims):
    source = features(6, sets=2, dims=dims, seed=3, dtype=torch.float32).requires_grad_()
    mmd2 = squared_mmd(source, source.detach(), bandwidths=(1.0, 5.0), scale="dim")
    mmd2.sum().backward()
    assert mmd2.abs().max() < 1e-6
    assert source.grad.abs().max() < 1e-6


@pytest.mark.parametrize("dims", [1, 16])
def test_is_symmetric_invariant_to_order_and_shift_and_never_negative(dims):
    source, target = features(6, sets=2, dims=dims, seed=4), features(9, sets=2, dims=dims, seed=5)
    kernel = {"bandwidths": (1.0, 5.0), "scale": "dim"}
    mmd2 = squared_mmd(source, target, **kernel)
    assert torch.allclose(mmd2, squared_mmd(target, source, **kernel), rtol=1e-12)
    assert torch.allclose(mmd2, squared_mmd(source.flip(0), target.roll(2, 0), **kernel), rtol=1e-12)
    assert torch.allclose(mmd2, squared_mmd(source + 100, target + 100, **kernel), rtol=1e-9)
    assert (mmd2 > 0).all()


def test_features_far_from_the_origin_keep_their_precision_in_float32():
    source = features(8, sets=1, dims=64, seed=6, dtype=torch.float32)
    target = features(8, sets=1, dims=64, seed=7, dtype=torch.float32)
    near = squared_mmd(source, target, bandwidths=(1.0,), scale="dim")
    far = squared_mmd(source + 1024, target + 1024, bandwidths=(1.0,), scale="dim")
    assert far.item() == pytest.approx(near.item(), rel=1e-3)


def test_is_float32_under_autocast():
    source = features(8, sets=1, dims=64, seed=6, dtype=torch.float32)
    target = features(8, sets=1, dims=64, seed=7, dtype=torch.float32)
    plain = squared_mmd(source, target, bandwidths=(1.0,), scale="dim")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = squared_mmd(source, target, bandwidths=(1.0,), scale="dim")
    assert torch.equal(plain, cast)


def test_the_literal_kernel_is_dead_on_large_features_and_the_scaled_one_is_not():
    source = (40 * features(32, sets=1, dims=128, seed=8, dtype=torch.float32)).requires_grad_()
    target = 40 * features(32, sets=1, dims=128, seed=9, dtype=torch.float32)
    dead = squared_mmd(source, target, bandwidths=(1.0, 5.0, 10.0), scale="absolute")
    dead.sum().backward()
    assert dead.item() == pytest.approx(2 / 32, rel=1e-6)
    assert source.grad.abs().max() == 0
    report = kernel_report(source, target, bandwidths=(1.0, 5.0, 10.0), scale="absolute")
    assert report.liveness == 0 and report.plateau
    alive = kernel_report(source / 40, target / 40, bandwidths=(1.0, 5.0, 10.0), scale="dim")
    assert 0.3 < alive.liveness < 0.95 and not alive.plateau
    assert alive.median_d2 == pytest.approx(2 * 128, rel=0.1)
