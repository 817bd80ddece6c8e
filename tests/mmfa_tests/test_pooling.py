"""Global pooling by hand; the generalised mean against plain loops, at its ends, and learnt."""

import dataclasses

import pytest
import torch
from references import pooling as reference

from mmfa.config import OptimConfig, profile
from mmfa.model import MMFA
from mmfa.optim import build_sgd
from mmfa.pooling import generalised_mean, global_pool

SMALL = profile("embedded").model
GEM = dataclasses.replace(SMALL, pooling="gem")


def maps(*, scale=1.0, dtype=torch.float32):
    """Return feature maps as they come out of a ReLU: half of them 0."""
    return scale * torch.randn(3, 5, 4, 2, generator=torch.Generator().manual_seed(0), dtype=dtype).relu()


def gem(given, exponent):
    return global_pool(given, pooling="gem", exponent=torch.tensor(float(exponent)))


def test_by_hand_and_in_float32():
    given = torch.tensor([[[[1.0, 2.0], [3.0, 6.0]]]], dtype=torch.bfloat16)
    assert global_pool(given, pooling="max").item() == 6.0
    assert global_pool(given, pooling="average").item() == 3.0
    assert gem(given, 2).item() == pytest.approx((50 / 4) ** 0.5)
    for pooling in ("max", "average", "gem"):
        assert global_pool(given, pooling=pooling, exponent=torch.tensor(3.0)).dtype == torch.float32


@pytest.mark.parametrize("exponent", [1.0, 1.5, 3.0, 10.0, 64.0])
@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e4])
def test_generalised_mean_equals_the_plain_loops(exponent, scale):
    given = maps(scale=scale)
    got = gem(given, exponent)
    expected = [[reference.generalised_mean(c.flatten().tolist(), exponent=exponent) for c in image] for image in given]
    torch.testing.assert_close(got, torch.tensor(expected), rtol=2e-5, atol=0)


def test_generalised_mean_goes_from_the_average_to_the_maximum():
    given = maps()
    torch.testing.assert_close(gem(given, 1), global_pool(given, pooling="average"), rtol=1e-5, atol=2e-6)
    largest = global_pool(given, pooling="max")
    pooled = [gem(given, exponent) for exponent in (1, 2, 8, 64)]
    assert all((one <= other + 1e-6).all() for one, other in zip(pooled, [*pooled[1:], largest], strict=True))
    assert (pooled[-1] >= largest * 8 ** (-1 / 64) - 1e-6).all()  # one of the eight positions holds the maximum


@pytest.mark.parametrize("exponent", [1.0, 3.0, 64.0])
def test_generalised_mean_has_its_gradient(exponent):
    given = (maps(dtype=torch.float64) + 0.1).requires_grad_()
    p = torch.tensor(exponent, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(generalised_mean, (given, p))


@pytest.mark.parametrize("scale", [0.0, 1.0, 1e30])
def test_generalised_mean_and_its_gradient_are_finite_at_the_largest_exponent(scale):
    given = maps(scale=scale).requires_grad_()
    p = torch.tensor(64.0, requires_grad=True)
    pooled = global_pool(given, pooling="gem", exponent=p)
    (pooled / max(scale, 1.0)).sum().backward()
    for value in (pooled, given.grad, p.grad):
        assert torch.isfinite(value).all()


def test_only_gem_has_something_to_learn():
    plain = MMFA(SMALL, num_ids=2, num_attributes=1).state_dict().keys()
    average = MMFA(dataclasses.replace(SMALL, pooling="average"), num_ids=2, num_attributes=1)
    assert plain == average.state_dict().keys()
    learnt = MMFA(dataclasses.replace(GEM, gem_p=5.0), num_ids=2, num_attributes=1).state_dict()
    assert learnt.keys() - plain == {"gem_p"} and learnt["gem_p"] == 5.0


def test_the_exponent_is_learnt_without_decay_and_kept_in_range():
    model = MMFA(GEM, num_ids=2, num_attributes=1)
    optimiser = build_sgd(model, OptimConfig(learning_rate=1.0, momentum=0.0, weight_decay=0.5))
    model.gem_p.grad = torch.tensor(0.0)
    optimiser.step()
    assert model.gem_p == 3.0
    for gradient, expected in ((1.0, 2.0), (9.0, 1.0), (-5.0, 6.0), (-1e9, 64.0)):
        model.gem_p.grad = torch.tensor(gradient)
        optimiser.step()
        model.keep_in_range()
        assert model.gem_p == expected
    pooled = model(torch.randn(4, 3, 32, 16, generator=torch.Generator().manual_seed(0))).pooled_BD
    model.gem_p.grad = None
    pooled.sum().backward()
    assert model.gem_p.grad > 0  # a larger exponent gives a larger mean
