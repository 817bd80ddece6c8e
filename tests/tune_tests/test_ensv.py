"""What trials hold for matches together: against plain loops, and without the one that is judged."""

import math

import numpy as np
import pytest
from references import jaccard as reference
from references import ranking
from tune_tests.probes import people, probe_of, shuffled

from tune.criteria import ensv


def plain_ensv(probes):
    """Return the scores of probes, one pair of images at a time."""
    camids = next(iter(probes.values())).camids_N.tolist()
    num = len(camids)
    every = range(num)
    votes = {}
    for name, probe in probes.items():
        distances = reference.squared_distances(probe.embeddings_ND.tolist())
        votes[name] = []
        for image, row in enumerate(distances):
            others = [-value for other, value in enumerate(row) if other != image]
            mean = sum(others) / len(others)
            sd = math.sqrt(sum((value - mean) ** 2 for value in others) / len(others)) or 1.0
            votes[name].append([(-value - mean) / sd for value in row])

    def score(scored):
        mean = [[sum(votes[name][i][j] for name in probes if name != scored) for j in every] for i in every]
        across = [[j for j in every if camids[j] != camids[i]] for i in every]
        nearest = [set(sorted(across[i], key=lambda j: -mean[i][j])[:3]) for i in every]
        found = []
        for i in every:
            positives = {j for j in nearest[i] if i in nearest[j]}
            ranked = [j in positives for j in sorted(across[i], key=lambda j: -votes[scored][i][j])]
            if positives:
                found.append(ranking.average_precision(ranked))
        return sum(found) / len(found)

    return {name: score(name) for name in probes}


def views(num, *, spread, seed=0):
    """Return trials that show the same 24 images with noise of their own."""
    rng = np.random.default_rng(seed)
    images = rng.normal(size=(24, 8))
    noisy = [images + (i + 1) * spread * rng.normal(size=images.shape) for i in range(num)]
    return {f"{i:04d}": probe_of(embeddings, np.arange(24) % 4) for i, embeddings in enumerate(noisy)}


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("num", [3, 5])
def test_ensv_equals_the_plain_loops(num, seed):
    probes = views(num, spread=0.3, seed=seed)
    assert ensv(probes) == pytest.approx(plain_ensv(probes), rel=1e-9)


def test_trials_that_agree_score_high_and_the_one_that_does_not_scores_less():
    (agreed,) = views(1, spread=0.0).values()
    scores = ensv(
        {"a": agreed, "b": agreed, "c": agreed, "other": probe_of(agreed.embeddings_ND[::-1], agreed.camids_N)}
    )
    assert scores["other"] < 0.6 < min(scores["a"], scores["b"], scores["c"])
    assert len({scores[name] for name in "abc"}) == 1 and min(ensv(dict.fromkeys("abc", agreed)).values()) > 0.9


def test_a_trial_does_not_vote_on_itself():
    """One huge vote of its own would not help: two others that agree decide alone."""
    probes = views(3, spread=0.0)
    other = {**probes, "0002": probe_of(1000 * probes["0002"].embeddings_ND[::-1], probes["0002"].camids_N)}
    assert ensv(other)["0002"] < 0.6
    assert ensv(other) == pytest.approx(plain_ensv(other), rel=1e-9)


def test_a_collapsed_trial_scores_as_if_every_tie_went_against_it_and_its_vote_is_none():
    probes = views(3, spread=0.2)
    with_collapsed = {**probes, "flat": probe_of(np.ones((24, 8)), np.arange(24) % 4)}
    scores = ensv(with_collapsed)
    assert {name: scores[name] for name in probes} == pytest.approx(ensv(probes), rel=1e-9)
    assert scores["flat"] < 0.2 < min(scores[name] for name in probes)
    flat = with_collapsed["flat"]
    assert all(score < 1.1 for score in ensv({"a": flat, "b": flat, "c": flat}).values())


def test_an_ensemble_needs_three_trials_that_are_finite():
    probes = views(3, spread=0.2)
    broken = probe_of(np.full((24, 8), np.nan), np.arange(24) % 4)
    assert ensv({}) == ensv({name: probes[name] for name in ("0000", "0001")}) == {}
    assert ensv({"0000": probes["0000"], "0001": probes["0001"], "0002": broken}) == {}
    assert ensv({**probes, "broken": broken}) == ensv(probes)


def test_images_of_one_camera_have_no_match():
    probes = {name: probe_of(probe.embeddings_ND, np.zeros(24)) for name, probe in views(3, spread=0.2).items()}
    assert ensv(probes) == {"0000": 0.0, "0001": 0.0, "0002": 0.0}
    two = {str(i): probe_of(np.random.default_rng(i).normal(size=(2, 3)), [0, 1]) for i in range(3)}
    assert ensv(two) == {"0": 1.0, "1": 1.0, "2": 1.0}


def test_trials_vote_on_the_same_images():
    probes = views(3, spread=0.2)
    probes["0002"] = probe_of(probes["0002"].embeddings_ND, np.zeros(24))
    with pytest.raises(ValueError, match="those of '0002' are not those of '0000'; compare trials on the same data"):
        ensv(probes)


def test_the_order_of_the_images_changes_no_score():
    probes = {str(i): people(spread=0.6, num_cameras=3, shots=2, seed=i)[0] for i in range(3)}
    assert ensv({name: shuffled(probe, 1) for name, probe in probes.items()}) == pytest.approx(ensv(probes), rel=1e-6)
