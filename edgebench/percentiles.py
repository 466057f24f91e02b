"""Percentiles as order statistics: how many samples one needs, and which samples bound it.

The arithmetic is that of MLPerf LoadGen's early stopping (mlcommons/inference at b66003e,
loadgen/early_stopping.cc and results.cc), written anew on scipy's incomplete beta function and in
its words: an *overlatency* query is one slower than the percentile in question. Nothing is assumed
of the distribution of latencies; independence of the samples is. ``edgebench.stats`` deals with
what is not independent.

Pure functions, no I/O. Percentiles are fractions: 0.99, not 99.
"""

from __future__ import annotations

from collections.abc import Callable
from math import comb, fsum, inf
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy.typing as npt

#: Every interval and bound of edgebench. LoadGen uses the same (results.cc, EarlyStopping).
CONFIDENCE = 0.99

#: LoadGen demands that a percentile could survive one slow query: its t starts at 1.
OVERLATENCY = 1

#: Up to so many overlatency queries the binomial sum is taken term by term: that many terms are
#: exact, and a run is planned without the quarter of a second that importing scipy costs.
_FEW = 8


def overlatency_odds(n: int, overlatency: int, percentile: float) -> float:
    """P(at most t of n queries exceed the p-quantile) = I_p(n - t, t + 1).

    The binomial distribution function as a regularised incomplete beta function: DLMF 8.17.5
    (https://dlmf.nist.gov/8.17.E5). LoadGen evaluates the same identity by a hypergeometric series
    (``odds`` in early_stopping.cc, DLMF 15.2.1 and 15.8.1).

    Args:
        n: queries. overlatency: t, with 0 <= t <= n. percentile: p as a fraction in (0, 1).
    """
    if overlatency >= n:
        return 1.0
    if overlatency <= _FEW:
        q = 1 - percentile
        return fsum(comb(n, k) * q**k * percentile ** (n - k) for k in range(overlatency + 1))
    from scipy.special import betainc

    return float(betainc(n - overlatency, overlatency + 1, percentile))


def min_samples(
    percentile: float, *, confidence: float = CONFIDENCE, overlatency: int = OVERLATENCY
) -> int:
    """Fewest samples from which a percentile may be stated: min n with I_p(n - t, t + 1) < 1 - c.

    LoadGen's ``find_min_passing`` returns h = n - t for the same t, p and c. At 99 % confidence and
    t = 1: 64 samples for p90, 130 for p95, 662 for p99, 6636 for p99.9 (11 for the median).

    Args:
        percentile: a fraction in (0, 1), such as 0.99.

    Raises:
        ValueError: percentile or confidence outside (0, 1), or a negative overlatency.
    """
    _check_fraction(percentile, "percentile")
    _check_fraction(confidence, "confidence")
    if overlatency < 0:
        raise ValueError(f"overlatency must not be negative, not {overlatency}")
    low = overlatency  # odds are 1 there: never enough
    high = 2 * overlatency + 2
    while overlatency_odds(high, overlatency, percentile) >= 1 - confidence:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        if overlatency_odds(middle, overlatency, percentile) < 1 - confidence:
            high = middle
        else:
            low = middle
    return high


def upper_bound_rank(n: int, percentile: float, *, confidence: float = CONFIDENCE) -> int | None:
    """Rank (1 = smallest) of the sample that bounds a percentile from above, as LoadGen states it.

    The t-th largest, with t the most overlatency queries that n allows:
    t = max {t : I_p(n - t, t + 1) < 1 - c}; LoadGen indexes ``sample_latencies[n - t]``
    (results.cc, PerformanceSummary::EarlyStopping). One rank higher than c demands, since
    P(X_(n-t) < quantile) = I_p(n - t, t + 1) already; kept, so that figures compare with LoadGen's.

    Returns:
        None below ``min_samples(percentile)``.
    """
    if n < min_samples(percentile, confidence=confidence):
        return None
    most = _largest(n, lambda t: overlatency_odds(n, t, percentile) < 1 - confidence)
    return None if most is None else n - most + 1


def nearest_rank(durations: npt.ArrayLike, percentile: float) -> float:
    """The p-quantile as LoadGen takes it: ``sorted[floor(n * p)]``, zero-based.

    Always one of the samples, never interpolated (results.cc, ProcessLatencies).
    """
    import numpy as np

    ordered = np.sort(np.asarray(durations, dtype=np.float64))
    if ordered.size == 0:
        raise ValueError("no samples: there is no quantile")
    return float(ordered[min(int(ordered.size * percentile), ordered.size - 1)])


def order_statistic_ranks(
    n: int, percentile: float, *, confidence: float = CONFIDENCE
) -> tuple[int | None, int | None]:
    """Ranks (1 = smallest) of the samples that enclose the p-quantile, whatever the distribution.

    P(X_(l) <= quantile <= X_(u)) >= P(l <= B < u) for B ~ Binomial(n, p), with equality for
    continuous distributions; each tail is given (1 - c) / 2. Source: H. A. David and
    H. N. Nagaraja, Order Statistics, 3rd ed. (2003), section 7.1.

    Returns:
        (l, u); None on the side where n is too small for any sample to serve.
    """
    _check_fraction(percentile, "percentile")
    tail = (1 - confidence) / 2
    # B counts samples below the quantile; n - B exceed it, so P(B <= k) mirrors overlatency_odds.
    lower = _largest(n, lambda k: overlatency_odds(n, k, 1 - percentile) <= tail)
    above = _largest(n, lambda k: overlatency_odds(n, k, percentile) <= tail)
    return (
        None if lower is None else lower + 1,
        None if above is None else n - above,
    )


def order_statistic_interval(
    durations: npt.ArrayLike, percentile: float, *, confidence: float = CONFIDENCE
) -> tuple[float, float]:
    """Distribution-free interval of the p-quantile of independent samples.

    Returns:
        (lo, hi) in the unit of ``durations``; -inf or inf where the samples are too few.
    """
    import numpy as np

    ordered = np.sort(np.asarray(durations, dtype=np.float64))
    lower, upper = order_statistic_ranks(ordered.size, percentile, confidence=confidence)
    return (
        -inf if lower is None else float(ordered[lower - 1]),
        inf if upper is None else float(ordered[upper - 1]),
    )


def _largest(n: int, passes: Callable[[int], bool]) -> int | None:
    """Largest k in 0 ... n - 1 with passes(k), for a condition that only ever turns false."""
    if n == 0 or not passes(0):
        return None
    low, high = 0, n
    while high - low > 1:
        middle = (low + high) // 2
        if passes(middle):
            low = middle
        else:
            high = middle
    return low


def _check_fraction(value: float, name: str) -> None:
    if not 0 < value < 1:
        raise ValueError(f"{name} must be a fraction between 0 and 1, not {value}")
