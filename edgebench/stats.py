"""The arithmetic of latency figures: pure functions over arrays, no I/O.

What a figure means here, and so what its interval has to hold: *the figure of a typical launch*.
A worker process that is started again runs at another speed (memory placement, page colouring,
alignment); that spread is three to ten times the spread inside one launch, and no number of calls
inside one launch reveals it. Intervals are therefore taken over launches, which are independent,
and never over calls, which are not (they drift and are autocorrelated).

Percentiles themselves are in ``edgebench.percentiles``. All intervals are two-sided at 99 % unless
said otherwise. Assumed: launches are exchangeable, and the logarithms of their figures roughly
normal. ``tests/test_stats.py`` simulates where this fails and counts how often the truth is held.

scipy is imported inside the functions that need it, so that importing this module costs nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import exp, inf, sqrt

import numpy as np
import numpy.typing as npt

from edgebench.percentiles import (
    CONFIDENCE,
    min_samples,
    nearest_rank,
    order_statistic_interval,
    upper_bound_rank,
)

__all__ = [
    "CONFIDENCE",
    "Estimate",
    "mean_over_launches",
    "min_samples",
    "nearest_rank",
    "order_statistic_interval",
    "over_launches",
    "percentile_over_launches",
    "proportion",
    "speedup",
    "student_t",
    "throughput",
    "upper_bound_rank",
]

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Estimate:
    """A figure with its two-sided interval, in the unit of the data it was taken from.

    ``n`` counts the samples behind it and ``launches`` the launches. With one launch the interval
    speaks of that launch alone (``within_launch_only``): another launch may well lie outside.
    """

    value: float
    lo: float
    hi: float
    n: int
    launches: int

    @property
    def within_launch_only(self) -> bool:
        return self.launches < 2

    @property
    def half_width(self) -> float:
        """The larger of the two sides: what may stand behind a ± sign."""
        return max(self.hi - self.value, self.value - self.lo)


def over_launches(values: npt.ArrayLike, *, confidence: float = CONFIDENCE) -> Estimate | None:
    """Geometric mean of one positive figure a launch, with Student's t interval of its logarithm.

    exp(m ± t_{(1+c)/2, L-1} · s / √L), m and s mean and standard deviation of the L logarithms
    (Student, Biometrika 6 (1908); logarithms because launch effects act as factors).

    Returns:
        None without values. With one value lo = -inf and hi = inf: one launch bounds nothing.

    Raises:
        ValueError: a value is not positive or not finite.
    """
    figures = _positive(values)
    if figures.size == 0:
        return None
    logs = np.log(figures)
    centre = float(logs.mean())
    half = _launch_effect(logs, confidence)
    n = figures.size
    if half == inf:
        return Estimate(exp(centre), -inf, inf, n, n)
    return Estimate(exp(centre), exp(centre - half), exp(centre + half), n, n)


def percentile_over_launches(
    durations: npt.ArrayLike,
    launch: npt.ArrayLike,
    percentile: float,
    *,
    confidence: float = CONFIDENCE,
) -> Estimate | None:
    """A latency percentile of a typical launch: pooled nearest rank, interval over launches.

    The interval is the hull of

    1. Student's t interval over the launches' own p-quantiles (``over_launches``), which holds
       under any correlation inside launches and when launches differ in their tails alone;
    2. the distribution-free interval of the pooled samples, never below LoadGen's early-stopping
       bound; for tails (p > 0.5) both its ends are moved out by the launch effect, the half-width
       of 1. for the medians, since the pooled tail belongs to the slowest of few launches.

    One launch leaves the unwidened second part only (``Estimate.within_launch_only``).

    Args:
        durations: [n] positive, any unit. launch: [n] integer labels.

    Returns:
        None below ``min_samples(percentile)`` pooled samples: the figure is to be withheld.
    """
    values = _positive(durations)
    labels = _same_shape(launch, values)
    if values.size < min_samples(percentile, confidence=confidence):
        return None
    lo, hi = order_statistic_interval(values, percentile, confidence=confidence)
    rank = upper_bound_rank(values.size, percentile, confidence=confidence)
    if percentile > 0.5 and rank is not None:
        hi = max(hi, float(np.sort(values)[rank - 1]))
    groups = _split(values, labels)
    if len(groups) > 1:
        between = over_launches(
            [nearest_rank(g, percentile) for g in groups], confidence=confidence
        )
        assert between is not None
        if percentile > 0.5:
            medians = np.log([nearest_rank(g, 0.5) for g in groups])
            factor = exp(_launch_effect(medians, confidence))
            lo, hi = lo / factor, hi * factor
        lo, hi = min(lo, between.lo), max(hi, between.hi)
    return Estimate(nearest_rank(values, percentile), lo, hi, values.size, len(groups))


def mean_over_launches(
    durations: npt.ArrayLike, launch: npt.ArrayLike, *, confidence: float = CONFIDENCE
) -> Estimate | None:
    """Mean latency with Student's t interval over the logarithms of the launch means.

    The value is the mean of the launch means: a launch with more samples weighs no more. With one
    launch: Student's t over its samples, taken for independent. None without samples.
    """
    values = _positive(durations)
    groups = _split(values, _same_shape(launch, values))
    if not groups:
        return None
    means = [float(g.mean()) for g in groups]
    value = float(np.mean(means))
    if len(groups) > 1:
        between = over_launches(means, confidence=confidence)
        assert between is not None
        return Estimate(
            value, min(between.lo, value), max(between.hi, value), values.size, len(groups)
        )
    half = inf
    if values.size > 1:
        half = (
            student_t(values.size - 1, confidence) * float(values.std(ddof=1)) / sqrt(values.size)
        )
    return Estimate(value, value - half, value + half, values.size, 1)


def throughput(mean: Estimate, batch: int, *, units_per_second: float = 1e9) -> Estimate:
    """Samples a second: batch · units_per_second / mean latency of one call.

    ``mean`` is in a unit of which a second has ``units_per_second`` (1e9: nanoseconds).
    """
    scale = batch * units_per_second
    lo = scale / mean.hi  # zero where the latency is unbounded
    hi = scale / mean.lo if mean.lo > 0 else inf
    return Estimate(scale / mean.value, lo, hi, mean.n, mean.launches)


def speedup(
    durations: npt.ArrayLike,
    launch: npt.ArrayLike,
    artifact: npt.ArrayLike,
    turn: npt.ArrayLike,
    *,
    of: int,
    against: int,
    confidence: float = CONFIDENCE,
) -> Estimate | None:
    """How many times faster ``of`` is than ``against``, from interleaved turns of the same workers.

    A launch runs in rounds; each round gives every artifact one turn, in random order. A round's
    ratio is (median of ``against``'s turn) / (median of ``of``'s turn), the k-th turns of both. A
    launch's ratio is the median over rounds; the interval is ``over_launches`` of those. Design:
    randomised blocks (R. A. Fisher, The Design of Experiments, 1935), launches as the upper level
    of repetition (T. Kalibera and R. Jones, ISMM 2013).

    With one launch: the distribution-free interval of the median over its rounds.

    Args:
        durations, launch, artifact, turn: [n], counted samples of any number of artifacts.
        of, against: artifact numbers.

    Returns:
        None where no launch has a round of both, or where both are the same artifact: an array
        compared with itself says nothing.
    """
    if of == against:
        return None
    values = _positive(durations)
    launches, artifacts, turns = (_same_shape(a, values) for a in (launch, artifact, turn))
    rounds: list[Floats] = []
    for number in np.unique(launches):
        here = launches == number
        mine, theirs = (
            _turn_medians(values[here & (artifacts == a)], turns[here & (artifacts == a)])
            for a in (of, against)
        )
        count = min(mine.size, theirs.size)
        if count:
            rounds.append(theirs[:count] / mine[:count])
    if not rounds:
        return None
    samples = sum(r.size for r in rounds)
    if len(rounds) == 1:
        lo, hi = order_statistic_interval(rounds[0], 0.5, confidence=confidence)
        return Estimate(float(np.median(rounds[0])), lo, hi, samples, 1)
    between = over_launches([float(np.median(r)) for r in rounds], confidence=confidence)
    assert between is not None
    return Estimate(between.value, between.lo, between.hi, samples, len(rounds))


def proportion(correct: int, n: int, *, confidence: float = CONFIDENCE) -> Estimate | None:
    """A share correct / n with the exact interval of Clopper and Pearson (Biometrika 26, 1934).

    lo and hi solve I_lo(k, n - k + 1) = (1 - c) / 2 and I_hi(k + 1, n - k) = (1 + c) / 2, the same
    identity (DLMF 8.17.5) as the percentile bounds. Chosen over Wilson's interval, which is
    narrower but holds the truth less often than it says near 0 and 1, exactly where accuracies of
    good models lie (Brown, Cai and DasGupta, Statistical Science 16 (2001), section 3).

    Returns:
        None for n = 0.

    Raises:
        ValueError: correct outside 0 … n.
    """
    if not 0 <= correct <= n:
        raise ValueError(f"{correct} of {n} is not a share")
    if n == 0:
        return None
    from scipy.special import betaincinv

    tail = (1 - confidence) / 2
    lo = 0.0 if correct == 0 else float(betaincinv(correct, n - correct + 1, tail))
    hi = 1.0 if correct == n else float(betaincinv(correct + 1, n - correct, 1 - tail))
    return Estimate(correct / n, lo, hi, n, 1)


def clustered_proportion(
    correct: npt.ArrayLike, n: npt.ArrayLike, *, confidence: float = CONFIDENCE
) -> Estimate | None:
    """A share of units that come in groups and are not independent within one: tokens of texts.

    p = sum c_i / sum n_i over m groups. Its variance is that of a ratio, m / (m - 1) *
    sum (c_i - p n_i)^2 / N^2, which gives the number of independent units that would vary as much,
    N* = p (1 - p) / var * (t_{N-1} / t_{m-1})^2, at most N; the interval is Clopper and Pearson's
    for N* (E. L. Korn and B. I. Graubard, Survey Methodology 24, 1998). Where all groups agree the
    variance says nothing, and each group counts as one unit.

    Args:
        correct, n: [m] by group.

    Returns:
        None where there are no units; of one group the interval is 0 to 1.

    Raises:
        ValueError: a group with more correct units than it has.
    """
    hits, sizes = np.asarray(correct, np.float64), np.asarray(n, np.float64)
    hits, sizes = hits[sizes > 0], sizes[sizes > 0]
    if np.any(hits > sizes) or np.any(hits < 0):
        raise ValueError("a group has more correct units than units")
    groups, total = len(sizes), float(sizes.sum())
    if groups == 0:
        return None
    share = float(hits.sum()) / total
    if groups == 1:
        return Estimate(share, 0.0, 1.0, int(total), 1)
    variance = groups / (groups - 1) * float(((hits - share * sizes) ** 2).sum()) / total**2
    units = float(groups)
    if variance > 0:
        shrink = student_t(int(total) - 1, confidence) / student_t(groups - 1, confidence)
        units = min(total, share * (1 - share) / variance * shrink**2)
    from scipy.special import betaincinv

    tail, right = (1 - confidence) / 2, share * units
    lo = 0.0 if share == 0 else float(betaincinv(right, units - right + 1, tail))
    hi = 1.0 if share == 1 else float(betaincinv(right + 1, units - right, 1 - tail))
    return Estimate(share, lo, hi, int(total), 1)


def student_t(degrees: int, confidence: float = CONFIDENCE) -> float:
    """Two-sided quantile of Student's t: P(|T| <= t) = c with ``degrees`` degrees of freedom."""
    from scipy.special import stdtrit

    return float(stdtrit(degrees, (1 + confidence) / 2))


def _launch_effect(logs: Floats, confidence: float) -> float:
    """t · s / √L of log figures, one a launch; inf for a single launch."""
    if logs.size < 2:
        return inf
    return student_t(logs.size - 1, confidence) * float(logs.std(ddof=1)) / sqrt(logs.size)


def _positive(values: npt.ArrayLike) -> Floats:
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or not np.all(np.isfinite(array)) or np.any(array <= 0):
        raise ValueError("durations must be a one-dimensional array of positive, finite numbers")
    return array


def _same_shape(labels: npt.ArrayLike, values: Floats) -> npt.NDArray[np.int64]:
    array = np.asarray(labels, dtype=np.int64)
    if array.shape != values.shape:
        raise ValueError(f"{array.shape} labels do not fit {values.shape} durations")
    return array


def _split(values: Floats, labels: npt.NDArray[np.int64]) -> list[Floats]:
    """The values of each label, in the order of the labels."""
    return [values[labels == label] for label in np.unique(labels)]


def _turn_medians(values: Floats, turns: npt.NDArray[np.int64]) -> Floats:
    """Median duration of each turn, in the order of the turns."""
    return np.array([np.median(group) for group in _split(values, turns)])
