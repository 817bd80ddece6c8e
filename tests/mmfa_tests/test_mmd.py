"""Squared MMD against eq. 4 in plain loops, by hand, and by its properties."""

import math

import pytest
import torch
from references import mmd as reference

from mmfa.mmd import kernel_report, squared_mmd

SCALES = ["dim", "absolute", "l2norm", "median"]
SETS = [(1.0,), (1.0, 5.0, 10.0), (0.3, 40.0)]


def features(num, *, sets, dims, seed, dtype=torch.float64):
    return torch.randn(num, sets, dims, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def scaled(source, target, scale):
    """Return two lists of vectors and what their d² is divided by."""
    if scale == "l2norm":
        return reference.unit_length(source), reference.unit_length(target), 1
    divisor = {"dim": len(source[0]), "absolute": 1, "median": reference.median_distance2(source, target)}
    return source, target, divisor[scale]


@pytest.mark.parametrize("scale", SCALES)
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
        xs, ys, divisor = scaled(source[:, m].tolist(), target[:, m].tolist(), scale)
        expected = reference.squared_mmd(xs, ys, bandwidths=bandwidths, divisor=divisor)
        assert got[m].item() == pytest.approx(
            expected, rel=1e-9 if dtype == torch.float64 else 1e-5, abs=2e-6 if dtype != torch.float64 else 1e-12
        )


def test_two_by_two_by_hand():
    source, target = torch.tensor([[[0.0]], [[1.0]]]), torch.tensor([[[2.0]], [[2.0]]])
    # within the source: (1 + 1 + 2 exp(-1/2)) / 4; within the target: 1; across: (exp(-4/2) + exp(-1/2)) / 2, twice
    expected = (2 + 2 * math.exp(-0.5)) / 4 + 1 - (math.exp(-2) + math.exp(-0.5))
    assert squared_mmd(source, target, bandwidths=[1.0], scale="dim").item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("scale", ["dim", "absolute", "l2norm"])
@pytest.mark.parametrize("dims", [1, 5])
def test_gradient_is_the_finite_difference(dims, scale):
    source = features(4, sets=3, dims=dims, seed=1).requires_grad_()
    target = features(5, sets=3, dims=dims, seed=2).requires_grad_()
    assert torch.autograd.gradcheck(
        lambda s, t: squared_mmd(s, t, bandwidths=(1.0, 5.0), scale=scale), (source, target), raise_exception=True
    )


@pytest.mark.parametrize("dims", [1, 5])
def test_the_median_is_a_constant_to_the_gradient(dims):
    source = features(4, sets=3, dims=dims, seed=1).requires_grad_()
    target = features(5, sets=3, dims=dims, seed=2).requires_grad_()
    squared_mmd(source, target, bandwidths=(1.0, 5.0), scale="median").sum().backward()
    medians = [reference.median_distance2(source[:, m].tolist(), target[:, m].tolist()) for m in range(3)]

    def with_constants(s, t):
        one_by_one = [
            squared_mmd(s[:, m : m + 1], t[:, m : m + 1], bandwidths=(median, 5 * median), scale="absolute")
            for m, median in enumerate(medians)
        ]
        return torch.cat(one_by_one).sum()

    copies = [given.detach().clone().requires_grad_() for given in (source, target)]
    assert torch.autograd.gradcheck(with_constants, copies)
    for given, expected in zip((source, target), torch.autograd.grad(with_constants(*copies), copies), strict=True):
        torch.testing.assert_close(given.grad, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("scale", ["l2norm", "median"])
def test_scale_of_the_features_changes_nothing(scale):
    source, target = features(6, sets=2, dims=9, seed=1), features(7, sets=2, dims=9, seed=2)
    one, other = (squared_mmd(k * source, k * target, bandwidths=(1.0, 5.0), scale=scale) for k in (1, 1000))
    torch.testing.assert_close(one, other, rtol=1e-9, atol=0)


@pytest.mark.parametrize("dims", [1, 4])
@pytest.mark.parametrize("scale", SCALES)
def test_samples_without_length_or_distance_have_a_finite_gradient(scale, dims):
    for value in (0.0, 2.0):
        source = torch.full((3, 2, dims), value, requires_grad=True)
        mmd2 = squared_mmd(source, torch.full((4, 2, dims), value), bandwidths=(1.0,), scale=scale)
        mmd2.sum().backward()
        assert mmd2.abs().max() < 1e-6
        assert source.grad.abs().max() < 1e-6
    far = torch.zeros(3, 2, dims, requires_grad=True)
    squared_mmd(far, torch.ones(4, 2, dims), bandwidths=(1.0,), scale=scale).sum().backward()
    assert torch.isfinite(far.grad).all()


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


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize(("num_source", "num_target", "sets", "dims"), [(2, 2, 1, 1), (5, 3, 4, 1), (3, 6, 2, 7)])
def test_the_unbiased_estimate_equals_the_plain_loops(scale, num_source, num_target, sets, dims):
    source = features(num_source, sets=sets, dims=dims, seed=1)
    target = features(num_target, sets=sets, dims=dims, seed=2) + 0.5
    expected, medians = [], []
    for m in range(sets):
        given = source[:, m].tolist(), target[:, m].tolist()
        xs, ys, divisor = scaled(*given, scale)
        expected.append(reference.unbiased_mmd(xs, ys, bandwidths=(1.0, 5.0), divisor=divisor))
        medians.append(reference.median_distance2(*given))
    report = kernel_report(source, target, bandwidths=(1.0, 5.0), scale=scale)
    assert report.unbiased == pytest.approx(sum(expected) / sets, rel=1e-9)
    assert report.median_d2 == pytest.approx(sum(medians) / sets, rel=1e-9)


def test_the_unbiased_estimate_is_0_on_average_where_nothing_differs_and_so_can_be_negative():
    draws = features(400, sets=1, dims=3, seed=10)
    given = {"bandwidths": (1.0,), "scale": "dim"}
    pairs = [draws[start : start + 20].split(10) for start in range(0, 400, 20)]
    unbiased = [kernel_report(*pair, **given).unbiased for pair in pairs]
    assert min(unbiased) < 0 < max(unbiased)
    error = torch.tensor(unbiased).std().item() / len(unbiased) ** 0.5
    assert abs(sum(unbiased) / len(unbiased)) < 3 * error
    biased = [squared_mmd(*pair, **given).item() for pair in pairs]
    assert sum(biased) / len(biased) > 5 * error


@pytest.mark.parametrize("scale", ["l2norm", "median"])
def test_kernels_of_scaled_features_are_alive_where_the_literal_one_is_dead(scale):
    source, target = (40 * features(32, sets=1, dims=128, seed=seed, dtype=torch.float32).abs() for seed in (8, 9))
    report = kernel_report(source, target, bandwidths=(1.0, 5.0, 10.0), scale=scale)
    assert 0.3 < report.liveness < 1 and not report.plateau
