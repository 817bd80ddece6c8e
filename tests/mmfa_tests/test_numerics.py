"""The guard of the numbers: fast paths against plain float32, on the embedded pair."""

import contextlib
import itertools
import statistics

import numpy as np
import pytest
import torch

import mmfa
from mmfa.config import profile
from mmfa.hardware import deterministic
from mmfa.objective import LossTerms

PLAIN = {"run.precision": "fp32", "run.channels_last": "off"}
LAYOUT = {"run.precision": "fp32", "run.channels_last": "on"}
FAST = {"run.precision": "bf16", "run.channels_last": "on"}
STEPS, SEEDS = 50, (0, 1, 2)

pytestmark = pytest.mark.slow


def losses(cache, overrides, *, fused=True):
    """Return the terms of the first steps of a training, [steps, terms]."""
    training = mmfa.begin(profile("embedded").with_overrides(overrides), cache_dir=cache, device="cpu")
    step = training._step
    step.model.train()
    assert step.optimiser.defaults["fused"]
    if not fused:
        for group in step.optimiser.param_groups:
            group["fused"], group["foreach"] = False, False
    seen = []
    with contextlib.closing(training._batches.epoch(0)) as batches, deterministic(torch.device("cpu"), seed=(0, 1)):
        for number, batch in enumerate(itertools.islice(batches, STEPS)):
            terms = step.forward(batch).terms
            step.update(terms, rate=training._rate(0, number))
            seen.append(torch.stack(terms).detach())
    assert len(seen) == STEPS
    return torch.stack(seen).numpy()


@pytest.fixture(scope="module")
def plain(embedded_cache):
    return losses(embedded_cache, PLAIN, fused=False)


def relative(found, plain):
    """Return the largest difference at a step, and the difference of the means, by term, relative to the plain mean."""
    scale = np.abs(plain).mean(axis=0)
    largest, means = np.abs(found - plain).max(axis=0) / scale, np.abs(found.mean(axis=0) - plain.mean(axis=0)) / scale
    return dict(zip(LossTerms._fields, zip(largest.tolist(), means.tolist(), strict=True), strict=True))


def test_layout_and_optimiser_alone_change_nothing_but_rounding(embedded_cache, plain):
    """After that a difference in the last bit grows as it does in any training: by step 20 it is 0.08 of L_AAL."""
    found = losses(embedded_cache, LAYOUT)
    assert max(largest for largest, _ in relative(found[:6], plain[:6]).values()) < 1e-3  # measured: 3e-4
    assert relative(found[:6], plain[:6])["total"][0] < 1e-5  # measured: 9e-7


def test_bf16_losses_stay_as_near_as_another_rounding_does(embedded_cache, plain):
    """Largest difference at one of 50 steps, and of the means, relative to the mean.

    Measured: total 0.003 and 0.00001, attribute 0.017 and 0.0006, L_AAL (of 0.007 then) 0.32 and 0.026, L_MDAL 0.12 and
    0.004; in float32 with channels_last 0.003, 0.03, 0.39 and 0.2 at a step.
    """
    limits = {
        "total": (0.01, 0.001), "identity": (0.01, 0.001), "attribute": (0.1, 0.01), "aal": (0.7, 0.1),
        "mdal": (0.6, 0.05),
    }  # fmt: skip
    for name, (largest, mean) in relative(losses(embedded_cache, FAST), plain).items():
        assert largest < limits[name][0] and mean < limits[name][1], (name, largest, mean)


@pytest.mark.nightly
def test_bf16_ends_at_the_same_accuracy_within_seed_noise(embedded_cache):
    """By the mean of the differences at the same seed; their error is 0.016 where a seed's noise is README's 0.02."""
    differences = []
    for seed in SEEDS:
        ends = []
        for overrides in (FAST, PLAIN):
            config = profile("embedded").with_overrides(overrides | {"run.seed": seed})
            ends.append(mmfa.train(config, cache_dir=embedded_cache, device="cpu").test().retrieval["target"].mAP)
        differences.append(ends[0] - ends[1])
    print(differences)
    assert abs(statistics.fmean(differences)) < 0.04, differences
