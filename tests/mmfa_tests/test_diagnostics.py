"""Losses are read in time and named; gradient shares are gradients and change nothing."""

import doctest
import math

import pytest
import torch

import mmfa.mmd
import mmfa.ranking
from mmfa.config import KernelConfig, LossConfig
from mmfa.diagnostics import CHECK_EVERY, LossLog, grad_shares, kernel_metrics
from mmfa.errors import DivergedError
from mmfa.model import Features
from mmfa.objective import LossTerms, Objective


def terms(**values):
    return LossTerms(*(torch.tensor(values.get(name, 1.0)) for name in LossTerms._fields))


def test_means_over_more_steps_than_one_look():
    log = LossLog(1)
    for step in range(2 * CHECK_EVERY + 7):
        log.add(terms(aal=float(step)))
    assert log.means() == {"total": 1, "identity": 1, "attribute": 1, "aal": (2 * CHECK_EVERY + 6) / 2, "mdal": 1}


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_term_that_is_not_finite_is_seen_within_one_look_and_named_before_the_total(bad):
    log = LossLog(3)
    for step in range(1, 17):
        log.add(terms(mdal=bad, total=bad) if step == 17 - 1 else terms())
    with pytest.raises(DivergedError, match=rf"^epoch 3, step 16: train/loss_mdal is {bad}\.$"):
        for _ in range(CHECK_EVERY):
            log.add(terms())


def step():
    generator = torch.Generator().manual_seed(0)
    weights = torch.randn(6, 5, generator=generator).requires_grad_()
    heads = torch.randn(5, 4, generator=generator), torch.randn(5, 3, generator=generator)
    source, target = (torch.randn(num, 6, generator=generator) @ weights for num in (7, 8))
    features = [Features(pooled, pooled @ heads[0], pooled @ heads[1]) for pooled in (source, target)]
    objective = Objective(LossConfig(lambda_id=2.0, lambda_attr=3.0, lambda_aal=0.0), KernelConfig())
    given = {"labels_B": torch.arange(7) % 4, "attributes_BM": torch.ones(7, 3), "mask_BM": torch.ones(7, 3) > 0}
    return weights, features, objective(*features, **given), objective.weights


def test_shares_are_norms_of_weighted_gradients_and_the_backward_pass_stays_as_it_was():
    weights, features, losses, lambdas = step()
    pooled = [feature.pooled_BD for feature in features]
    shares = grad_shares(losses, pooled, weights=lambdas)
    losses.total.backward()
    untouched, (source, target), again, _ = step()
    again.total.backward(retain_graph=True)
    assert torch.equal(weights.grad, untouched.grad)
    (identity,) = torch.autograd.grad(2 * again.identity, source.pooled_BD, retain_graph=True)
    (attribute,) = torch.autograd.grad(3 * again.attribute, source.pooled_BD, retain_graph=True)
    mdal = torch.cat(torch.autograd.grad(again.mdal, [source.pooled_BD, target.pooled_BD]))
    assert shares["attr"] == pytest.approx((attribute.norm() / identity.norm()).item(), rel=1e-5)
    assert shares["mdal"] == pytest.approx((mdal.norm() / identity.norm()).item(), rel=1e-5)
    assert shares["aal"] == 0


def test_kernel_metrics_without_attributes():
    _, (source, target), _, _ = step()
    assert set(kernel_metrics(source, target, kernel=KernelConfig())) == {
        "kernel_liveness", "median_d2", "plateau", "unbiased", "attribute_liveness", "attribute_unbiased",
    }  # fmt: skip
    bare = [feature._replace(attributes_BM=feature.attributes_BM[:, :0]) for feature in (source, target)]
    assert not [name for name in kernel_metrics(*bare, kernel=KernelConfig()) if name.startswith("attribute")]


def test_kernel_metrics_are_of_what_is_aligned():
    _, features, _, _ = step()
    hidden = [feature._replace(hidden_BMH=feature.pooled_BD[:, None].repeat(1, 3, 1)) for feature in features]
    metrics = kernel_metrics(*hidden, kernel=KernelConfig())
    assert metrics["attribute_liveness"] == pytest.approx(metrics["kernel_liveness"])
    assert metrics["attribute_unbiased"] == pytest.approx(metrics["unbiased"], rel=1e-4)


@pytest.mark.parametrize("module", [mmfa.mmd, mmfa.ranking])
def test_the_examples_in_the_docstrings(module):
    failed, attempted = doctest.testmod(module)
    assert (failed, attempted > 0) == (0, True)
