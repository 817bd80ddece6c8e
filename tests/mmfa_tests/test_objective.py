"""The losses by hand, and what a weight of 0 means."""

import math

import pytest
import torch
from references import mmd as reference

from mmfa.config import KernelConfig, LossConfig
from mmfa.model import Features
from mmfa.objective import Objective, attribute_loss


def features(num, *, seed, attributes=3, requires_grad=True):
    generator = torch.Generator().manual_seed(seed)
    shapes = (num, 5), (num, 4), (num, attributes)
    return Features(*(torch.randn(shape, generator=generator).requires_grad_(requires_grad) for shape in shapes))


def terms(loss, *, source=None, target=None, no_target=False, mask=None):
    source = source or features(6, seed=1)
    shape = source.attributes_BM.shape
    return Objective(loss, KernelConfig())(
        source,
        None if no_target else target or features(7, seed=2)._replace(identity_BK=None),
        labels_B=torch.tensor([0, 1, 2, 3, 0, 1]),
        attributes_BM=torch.ones(shape),
        mask_BM=torch.ones(shape, dtype=torch.bool) if mask is None else mask,
    )


def test_terms_are_the_equations_and_the_total_their_weighted_sum():
    source, target = features(6, seed=1), features(7, seed=2)
    got = terms(LossConfig(lambda_id=2.0, lambda_attr=0.5, lambda_aal=3.0, lambda_mdal=4.0))
    log_p = torch.log_softmax(source.identity_BK, dim=1)
    assert got.identity.item() == pytest.approx(-log_p[range(6), [0, 1, 2, 3, 0, 1]].mean().item(), rel=1e-6)
    assert got.attribute.item() == pytest.approx(-source.attributes_BM.sigmoid().log().mean().item(), rel=1e-6)
    kernel = {"bandwidths": (1.0, 5.0, 10.0)}
    one_by_one = [
        reference.squared_mmd(s[:, None].tolist(), t[:, None].tolist(), divisor=1, **kernel)
        for s, t in zip(source.attributes_BM.T, target.attributes_BM.T, strict=True)
    ]
    assert got.aal.item() == pytest.approx(sum(one_by_one) / 3, rel=1e-5)
    deep = reference.squared_mmd(source.pooled_BD.tolist(), target.pooled_BD.tolist(), divisor=5, **kernel)
    assert got.mdal.item() == pytest.approx(deep, rel=1e-5)
    expected = 2 * got.identity + 0.5 * got.attribute + 3 * got.aal + 4 * got.mdal
    assert got.total.item() == pytest.approx(expected.item(), rel=1e-6)


def test_attribute_loss_by_hand_leaves_out_what_is_not_annotated():
    outputs = torch.tensor([[0.0, math.log(3)], [5.0, 0.0]])
    values = torch.tensor([[1.0, 1.0], [0.0, 0.0]])
    mask = torch.tensor([[True, True], [False, True]])
    expected = (math.log(2) - math.log(0.75) + math.log(2)) / 3
    assert attribute_loss(outputs, values, mask).item() == pytest.approx(expected, rel=1e-6)
    assert attribute_loss(outputs, values, torch.zeros_like(mask)).item() == 0.0
    wild = attribute_loss(torch.tensor([[torch.inf, 0.0]]), torch.zeros(1, 2), torch.tensor([[False, True]]))
    assert wild.item() == pytest.approx(math.log(2))


@pytest.mark.parametrize("name", ["attribute", "aal", "mdal", "identity"])
def test_a_term_of_weight_0_is_reported_and_pulls_nothing(name):
    field = {"attribute": "lambda_attr", "aal": "lambda_aal", "mdal": "lambda_mdal", "identity": "lambda_id"}[name]
    got = terms(LossConfig(**{field: 0.0}))
    term = getattr(got, name)
    assert term > 0 and not term.requires_grad
    assert got.total.requires_grad and torch.isfinite(got.total)


def test_an_infinite_term_of_weight_0_does_not_reach_the_total():
    source = features(6, seed=1, requires_grad=False)
    broken = source._replace(attributes_BM=torch.full_like(source.attributes_BM, -torch.inf).requires_grad_())
    got = terms(LossConfig(lambda_attr=0.0, lambda_aal=0.0, lambda_mdal=0.0), source=broken)
    assert not torch.isfinite(got.attribute)
    assert torch.isfinite(got.total)


def test_without_target_or_attributes_the_terms_are_0():
    got = terms(LossConfig(lambda_aal=0.0, lambda_mdal=0.0), no_target=True)
    assert got.aal == 0 and got.mdal == 0 and got.attribute > 0
    got = terms(LossConfig(), source=features(6, seed=1, attributes=0), target=features(7, seed=2, attributes=0))
    assert got.aal == 0 and got.attribute == 0 and got.mdal > 0
    got.total.backward()


def test_hidden_attribute_features_are_aligned_and_outputs_classified():
    source, target = features(6, seed=1), features(7, seed=2)
    hidden = [torch.randn(num, 3, 4, generator=torch.Generator().manual_seed(num)).requires_grad_() for num in (6, 7)]
    with_hidden = [one._replace(hidden_BMH=layer) for one, layer in zip((source, target), hidden, strict=True)]
    got = terms(LossConfig(), source=with_hidden[0], target=with_hidden[1])
    one_by_one = [
        reference.squared_mmd(
            hidden[0][:, m].tolist(), hidden[1][:, m].tolist(), divisor=4, bandwidths=(1.0, 5.0, 10.0)
        )
        for m in range(3)
    ]
    assert got.aal.item() == pytest.approx(sum(one_by_one) / 3, rel=1e-5)
    assert got.attribute.item() == terms(LossConfig(), source=source, target=target).attribute.item()
    got.aal.backward()
    assert all(layer.grad.abs().max() > 0 for layer in hidden) and source.attributes_BM.grad is None
