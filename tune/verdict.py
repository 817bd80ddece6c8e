"""Whether a setting beats another: Welch's test over fresh seeds, Holm over challengers, a bootstrap interval.

Pure statistics on the mAP of confirmation runs, fractions in [0, 1] throughout; reads and writes nothing.
Shapes: R runs (one per seed), I identities, N replicates of a bootstrap.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy import special

from tune.power import expected_max_noise as expected_max_noise
from tune.power import power as power
from tune.power import seeds_needed as seeds_needed

Word = Literal["BEATS", "WORSE", "UNDETERMINED"]

NO_NOISE = 1e-9
"""Standard error of a difference in mAP at or below which the seeds did nothing: no training is that repeatable."""
ROUNDING = 1e-4
"""By how much a run's mAP may differ from that of its identities, such as in single precision."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Runs:
    """Runs of one setting over fresh seeds, judged on the official target split.

    Raises:
        ValueError: no run, columns that differ in length, a repeated seed, an mAP that is not a fraction, or values of
            identities that are impossible or give another mAP.
    """

    name: str
    """The setting, as a person knows it."""
    seeds: tuple[int, ...]
    """[R], each once."""
    mAP: tuple[float, ...]
    """[R] fractions, of the last epoch."""
    identity_ap_RI: NDArray[np.float64]
    """Sum of the average precision of an identity's queries; [R, 0] where it is not known."""
    identity_queries_I: NDArray[np.int64]
    """Queries that count of each identity, in the order of all other arms; [0] where they are not known."""

    def __post_init__(self) -> None:
        num_runs, where = len(self.seeds), f"runs of {self.name!r}"
        if not num_runs or len(self.mAP) != num_runs:
            raise ValueError(f"{where}: one mAP per seed, and at least one, but got {len(self.mAP)} for {num_runs}.")
        if len(set(self.seeds)) < num_runs:
            raise ValueError(f"{where}: a seed counts once, but got {sorted(self.seeds)}; give each run its own.")
        if not all(0 <= value <= 1 for value in self.mAP):
            raise ValueError(f"{where}: `0 <= mAP <= 1` must hold, but got {list(self.mAP)}; mAP is a fraction.")
        shape = (num_runs, *self.identity_queries_I.shape)
        if self.identity_queries_I.ndim != 1 or self.identity_ap_RI.shape != shape:
            raise ValueError(
                f"{where}: identity_queries_I is [I] and identity_ap_RI [{num_runs}, I], but got "
                f"{list(self.identity_queries_I.shape)} and {list(self.identity_ap_RI.shape)}."
            )
        if self.identity_queries_I.size:
            self._check_identities(where)

    def _check_identities(self, where: str) -> None:
        ap_RI, queries_I = self.identity_ap_RI, self.identity_queries_I
        if queries_I.min() < 1:
            raise ValueError(f"{where}: an identity has a query or more, but got {queries_I.min()}; leave it out.")
        if not ((ap_RI >= 0) & (ap_RI <= queries_I + ROUNDING)).all():  # false for nan
            raise ValueError(
                f"{where}: an identity's AP is from 0 to its number of queries, but the sums lie within "
                f"[{ap_RI.min()}, {ap_RI.max()}] for at most {queries_I.max()} queries; pass sums, not means."
            )
        found_R = ap_RI.sum(axis=1) / queries_I.sum()
        if not np.allclose(found_R, self.mAP, rtol=0, atol=ROUNDING):
            raise ValueError(
                f"{where}: the identities must give the same mAP as the runs, but got {found_R.tolist()} for "
                f"{list(self.mAP)}; pass both of the same queries, or leave the identities empty."
            )


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Challenge:
    """A shortlisted setting against the baseline, both over fresh seeds.

    Raises:
        ValueError: arms whose identities differ.
    """

    candidate: Runs
    baseline: Runs
    matched: Runs | None = None
    """The candidate's matched control: the same setting without alignment, on the same seeds."""

    def __post_init__(self) -> None:
        for other in (self.baseline, self.matched):
            if other is not None:
                _share_identities(self.candidate, other)


@dataclass(frozen=True, kw_only=True, slots=True)
class Contrast:
    """Candidate minus other, in fractions; p and interval stand for this contrast alone."""

    delta: float
    """Difference of the means over seeds."""
    interval: tuple[float, float] | None
    """95 % by :func:`hierarchical_bootstrap`: seeds and identities vary. The test knows of seeds only, since all arms
    rank the same queries, so it may be clear where the interval holds 0: clear on this test set, that is."""
    t: float
    df: float
    """0 where there is no test; see :func:`welch`."""
    p: float
    """Two-sided, of Welch's test, not adjusted for anything."""
    sd_candidate: float | None
    """Over seeds; None for one run."""
    sd_other: float | None
    n_candidate: int
    n_other: int
    mean_candidate: float
    mean_other: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Judgement:
    """What the runs say of one challenge."""

    candidate: str
    baseline: str
    word: Word
    reason: str
    """Why that word, in a sentence."""
    contrast: Contrast
    """Candidate minus baseline: the only one that the word is of."""
    p_adjusted: float
    """Holm over the challenges, then Bonferroni over the looks."""
    seeds_needed: int | None
    """Per arm, to settle a difference as large as the observed one: always more than there are. None where the word is
    not UNDETERMINED, or more seeds cannot change it: no difference, no noise, one run, or clear but too small."""
    seeds_for_delta_min: int | None
    """Per arm, to tell a true difference of ``delta_min`` from none at the noise seen. A BEATS takes more: the
    observed difference must reach ``delta_min`` too, and does so half of the time when that is the true one."""
    alignment: Contrast | None
    """Candidate minus matched control: what alignment itself adds. Not adjusted."""
    rest: Contrast | None
    """Matched control minus baseline: what the rest of the setting adds. Not adjusted."""

    def to_json(self) -> dict[str, Any]:
        """Return everything as plain data, with tuples as lists."""
        result = dataclasses.asdict(self)
        for contrast in (result["contrast"], result["alignment"], result["rest"]):
            if contrast is not None and contrast["interval"] is not None:
                contrast["interval"] = list(contrast["interval"])
        return result


def judge(challenges: Sequence[Challenge], *, delta_min: float, alpha: float = 0.05, looks: int = 1) -> list[Judgement]:
    """Return the judgement of each challenge, in their order.

    BEATS: adjusted p < ``alpha`` and delta >= ``delta_min``. WORSE: the same downwards. Else UNDETERMINED, which is no
    proof of equality.

    Args:
        challenges: all that were made: Holm corrects for their number.
        delta_min: the smallest difference of mAP that matters, a fraction; fixed before the search.
        alpha: the chance of any false BEATS or WORSE among all challenges and looks, at most.
        looks: what p is multiplied by for having looked at this comparison before: how often it is judged in all, where
            that is fixed beforehand (Bonferroni), else ``power.looks_factor``. The looks so far would not do
            (benchmarks/verdict.py).

    Raises:
        ValueError: ``delta_min`` negative or not finite, ``alpha`` outside (0, 1), or ``looks`` below 1.
    """
    if not 0 <= delta_min < math.inf:
        raise ValueError(f"`delta_min >= 0` must hold, and finite, but got {delta_min}.")
    if not 0 < alpha < 1:
        raise ValueError(f"`0 < alpha < 1` must hold, but got {alpha}.")
    if looks < 1:
        raise ValueError(f"`looks >= 1` must hold, but got {looks}; the present look counts.")
    contrasts = [_contrast(one.candidate, one.baseline) for one in challenges]
    adjusted = [min(1.0, looks * p) for p in holm([contrast.p for contrast in contrasts])]
    result = []
    for challenge, contrast, p in zip(challenges, contrasts, adjusted, strict=True):
        word, reason = _word(contrast, p, delta_min=delta_min, alpha=alpha)
        matched, sd = challenge.matched, _pooled_sd(contrast)
        result.append(
            Judgement(
                candidate=challenge.candidate.name,
                baseline=challenge.baseline.name,
                word=word,
                reason=reason,
                contrast=contrast,
                p_adjusted=p,
                seeds_needed=_more_seeds(contrast) if p >= alpha else None,
                seeds_for_delta_min=seeds_needed(sd, delta_min) if sd and delta_min else None,
                alignment=_contrast(challenge.candidate, matched) if matched else None,
                rest=_contrast(matched, challenge.baseline) if matched else None,
            )
        )
    return result


def _word(contrast: Contrast, p: float, *, delta_min: float, alpha: float) -> tuple[Word, str]:
    """Return the word and why; differences are written in points."""
    delta = f"{100 * contrast.delta:+.2f} points"
    test = f"adjusted p = {p:.3g}"
    if min(contrast.n_candidate, contrast.n_other) < 2:
        runs = f"{contrast.n_candidate} and {contrast.n_other} runs"
        return "UNDETERMINED", f"Seed noise shows in two runs per arm or more, and there are {runs}."
    if contrast.df == 0:
        return "UNDETERMINED", "The runs of either arm are all alike, so the seeds did nothing and no noise is known."
    if p >= alpha:
        return "UNDETERMINED", f"{delta} cannot be told from seed noise: {test}, not below {alpha:g}."
    least = f"{100 * delta_min:.2f} points that matter"
    if abs(contrast.delta) < delta_min:
        return "UNDETERMINED", f"{delta} is more than seed noise ({test}), but less than the {least}."
    reason = f"{delta} is more than seed noise ({test}, below {alpha:g}), and no less than the {least}."
    return ("BEATS" if contrast.delta > 0 else "WORSE"), reason


def _more_seeds(contrast: Contrast) -> int | None:
    """Return the seeds per arm that a difference as observed takes: more than there are, for these did not do."""
    sd = _pooled_sd(contrast)
    if sd is None or not contrast.delta:
        return None
    return max(seeds_needed(sd, contrast.delta), contrast.n_candidate + 1, contrast.n_other + 1)


def _contrast(candidate: Runs, other: Runs) -> Contrast:
    t, df, p = welch(candidate.mAP, other.mAP)
    mean_candidate, mean_other = _mean(candidate.mAP), _mean(other.mAP)
    return Contrast(
        delta=mean_candidate - mean_other,
        interval=hierarchical_bootstrap(candidate, other),
        t=t,
        df=df,
        p=p,
        sd_candidate=_sd(candidate.mAP),
        sd_other=_sd(other.mAP),
        n_candidate=len(candidate.mAP),
        n_other=len(other.mAP),
        mean_candidate=mean_candidate,
        mean_other=mean_other,
    )


def welch(a: Sequence[float], b: Sequence[float]) -> tuple[float, float, float]:
    """Return t, the degrees of freedom and the two-sided p of mean a - mean b (Welch 1947).

    Where no noise can be seen there is no test, and the answer is (0, 0, 1): fewer than two runs in an arm, or a
    standard error of at most :data:`NO_NOISE`. Runs over seeds that never differ are a fault, such as a seed that
    reaches nothing, and no certainty.

    Args:
        a: mAP of one arm's runs, fractions.
        b: of the other's.

    Raises:
        ValueError: values that are not finite.

    >>> [round(value, 4) for value in welch([0.30, 0.32, 0.34], [0.25, 0.26, 0.27])]
    [4.6476, 2.9412, 0.0196]
    """
    if not all(map(math.isfinite, (*a, *b))):
        raise ValueError(f"runs must be finite to be compared, but got {list(a)} and {list(b)}.")
    sd_a, sd_b = _sd(a), _sd(b)
    if sd_a is None or sd_b is None:
        return 0.0, 0.0, 1.0
    square_a, square_b = sd_a**2 / len(a), sd_b**2 / len(b)
    error = math.sqrt(square_a + square_b)
    if error <= NO_NOISE:
        return 0.0, 0.0, 1.0
    t = (_mean(a) - _mean(b)) / error
    df = error**4 / (square_a**2 / (len(a) - 1) + square_b**2 / (len(b) - 1))
    return t, df, float(2 * special.stdtr(df, -abs(t)))


def holm(ps: Sequence[float]) -> list[float]:
    """Return the p values adjusted for their number, in the given order, each at most 1 (Holm 1979).

    Raises:
        ValueError: a p outside [0, 1].

    >>> holm([0.04, 0.01, 0.03])
    [0.06, 0.03, 0.06]
    """
    if not all(0 <= p <= 1 for p in ps):
        raise ValueError(f"`0 <= p <= 1` must hold, but got {list(ps)}.")
    adjusted, largest = [1.0] * len(ps), 0.0
    for step, index in enumerate(sorted(range(len(ps)), key=ps.__getitem__)):
        largest = max(largest, min(1.0, (len(ps) - step) * ps[index]))
        adjusted[index] = largest
    return adjusted


def hierarchical_bootstrap(
    candidate: Runs, other: Runs, *, num: int = 4000, seed: int = 0
) -> tuple[float, float] | None:
    """Return the 95 % interval of the mean mAP of candidate - other over seeds and identities.

    A replicate draws the seeds of each arm on their own, and identities (not queries: those of one person are
    correlated) once for both arms. A few seeds make a plain percentile interval too narrow: R - 1 of R seeds are
    drawn, which gives the variance of their mean without bias (McCarthy and Snowden 1985), and the percentiles are
    moved outwards as t lies beyond z (Hesterberg 2015). Noise of a seed on single identities is counted in both
    draws, so the interval errs on the wide side where that dominates (Owen 2007).

    Args:
        candidate: its runs.
        other: runs of the other arm, on the same queries.
        num: replicates.
        seed: of the draws; the same gives the same interval.

    Returns:
        Its ends, or None where seeds or identities cannot vary: an arm of one run, fewer than two identities, none
        known in an arm, or seeds that do nothing (:func:`welch`).

    Raises:
        ValueError: arms whose identities differ.
    """
    _share_identities(candidate, other)
    num_ids = min(candidate.identity_queries_I.size, other.identity_queries_I.size)
    df = _bootstrap_df(candidate, other) if min(num_ids, len(candidate.mAP), len(other.mAP)) >= 2 else None
    if df is None:
        return None
    rng = np.random.default_rng(seed)
    slots = rng.integers(num_ids, size=(num, num_ids)) + num_ids * np.arange(num)[:, None]
    drawn_NI = np.bincount(slots.ravel(), minlength=num * num_ids).reshape(num, num_ids).astype(np.float64)
    queries_N = drawn_NI @ candidate.identity_queries_I
    mAP_N = []
    for runs in (candidate, other):
        num_runs = len(runs.mAP)
        seeds_NR = rng.multinomial(num_runs - 1, np.full(num_runs, 1 / num_runs), size=num) / (num_runs - 1)
        mAP_N.append((drawn_NI @ runs.identity_ap_RI.T * seeds_NR).sum(axis=1) / queries_N)
    upper = special.ndtr(special.stdtrit(df, 0.975))
    low, high = np.quantile(mAP_N[0] - mAP_N[1], [1 - upper, upper])
    return float(low), float(high)


def _bootstrap_df(candidate: Runs, other: Runs) -> float | None:
    """Return Satterthwaite's degrees of freedom of seeds in either arm and identities, or None without seed noise."""
    queries_I = candidate.identity_queries_I
    total = queries_I.sum()
    delta_I = candidate.identity_ap_RI.mean(axis=0) - other.identity_ap_RI.mean(axis=0)
    residual_I = delta_I - delta_I.sum() / total * queries_I
    parts = []
    for runs in (candidate, other):
        mAP_R = runs.identity_ap_RI.sum(axis=1) / total
        parts.append((float(mAP_R.var(ddof=1) / len(mAP_R)), len(mAP_R)))
    if sum(part for part, _ in parts) <= NO_NOISE**2:
        return None
    parts.append((float((residual_I**2).sum() / total**2), len(queries_I)))
    return sum(part for part, _ in parts) ** 2 / sum(part**2 / (count - 1) for part, count in parts)


def _share_identities(one: Runs, other: Runs) -> None:
    """Hold two arms to the same identities, where both know them."""
    a_I, b_I = one.identity_queries_I, other.identity_queries_I
    if a_I.size and b_I.size and not np.array_equal(a_I, b_I):
        raise ValueError(
            f"arms are compared on the same queries, but {one.name!r} has {a_I.sum()} of {a_I.size} identities and "
            f"{other.name!r} {b_I.sum()} of {b_I.size}, or other numbers for each; judge both on one split."
        )


def _pooled_sd(contrast: Contrast) -> float | None:
    """Return the standard deviation over seeds of both arms together, or None where no noise is known."""
    if contrast.sd_candidate is None or contrast.sd_other is None or contrast.df == 0:
        return None
    df_candidate, df_other = contrast.n_candidate - 1, contrast.n_other - 1
    squares = df_candidate * contrast.sd_candidate**2 + df_other * contrast.sd_other**2
    return math.sqrt(squares / (df_candidate + df_other))


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


def _sd(values: Sequence[float]) -> float | None:
    if len(values) < 2:
        return None
    mean = _mean(values)
    return math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1))
