"""Whether two runs differ by more than chance: the test that fits the data, or a reason for none.

Two runs whose values share seeds or tasks are compared in pairs: a sign-flip permutation test of
the mean difference, exact up to 12 pairs. Otherwise the values are two samples: Mann-Whitney U,
by permutation where there are ties. With fewer values than could ever give p < 0.05 (six pairs; or
so few that every split in two is likelier than that) there is no p, and the reason is said. Every
difference of means has a 95 % bootstrap interval (percentile). The p-values of one metric are
adjusted together by Holm's method.

Sources: Good, *Permutation, Parametric and Bootstrap Tests of Hypotheses* (3rd ed., 2005); Holm,
Scand. J. Statist. 6 (1979) 65-70; Efron & Tibshirani, *An Introduction to the Bootstrap* (1993).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import comb
from typing import Any

import numpy as np
from scipy import stats

from edgebench.errors import UsageError
from edgebench.evaluate.observations import Observation

ALPHA = 0.05
MIN_PAIRS = 6
_MIN_BOOTSTRAP = 3
_PERMUTATIONS = 9999
_EXACT_PAIRS = 12


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two runs in one metric. ``p`` is None where no test would mean anything: see ``reason``.

    ``difference``: mean of the first run minus mean of the second (of pairs, where paired).
    """

    metric: str
    run_id: str
    other_id: str
    test: str
    n: int
    n_other: int
    difference: float | None
    lo: float | None
    hi: float | None
    p: float | None
    p_holm: float | None = None
    reason: str = ""


def compare(
    metric: str,
    run_id: str,
    values: Sequence[Observation],
    other_id: str,
    others: Sequence[Observation],
    *,
    resamples: int = 9999,
) -> Comparison:
    """Compare two runs in a metric.

    Args:
        values, others: the last step's observations of each; NaN among them are left out.

    Raises:
        UsageError: a run is compared with itself.
    """
    if run_id == other_id or (values and values is others):
        raise UsageError(f"the run {run_id!r} would be compared with itself")
    values, others = _finite(values), _finite(others)
    pairs = _pairs(values, others)
    if pairs is not None and len(pairs):
        return _paired(metric, run_id, other_id, pairs, resamples)
    return _two_samples(
        metric,
        run_id,
        other_id,
        np.array([seen.value for seen in values]),
        np.array([seen.value for seen in others]),
        resamples,
    )


def holm(comparisons: Sequence[Comparison]) -> list[Comparison]:
    """The same comparisons with p-values adjusted for their number."""
    tested = sorted((c.p, index) for index, c in enumerate(comparisons) if c.p is not None)
    adjusted, largest = list(comparisons), 0.0
    for rank, (p, index) in enumerate(tested):
        largest = max(largest, min(1.0, p * (len(tested) - rank)))
        adjusted[index] = replace(comparisons[index], p_holm=largest)
    return adjusted


def _finite(values: Sequence[Observation]) -> list[Observation]:
    return [seen for seen in values if np.isfinite(seen.value)]


def _pairs(
    values: Sequence[Observation], others: Sequence[Observation]
) -> np.ndarray[tuple[int, int], np.dtype[np.float64]] | None:
    """[n, 2] values with the same seed, task and condition; None where nothing can pair them."""

    def by_key(seen: Sequence[Observation]) -> dict[tuple[str | None, ...], float] | None:
        keys = [(one.seed, one.task, one.condition) for one in seen]
        if any(seed is None and task is None for seed, task, _ in keys):
            return None
        if len(set(keys)) < len(keys):
            return None
        return {key: one.value for key, one in zip(keys, seen, strict=True)}

    first, second = by_key(values), by_key(others)
    if first is None or second is None:
        return None
    shared = sorted(first.keys() & second.keys(), key=str)
    return np.array([[first[key], second[key]] for key in shared], dtype=float).reshape(-1, 2)


def _paired(
    metric: str, run_id: str, other_id: str, pairs: np.ndarray[Any, Any], resamples: int
) -> Comparison:
    differences = pairs[:, 0] - pairs[:, 1]
    n = len(differences)
    difference = float(differences.mean())
    lo, hi = _bootstrap((differences,), lambda x, axis=-1: x.mean(axis=axis), resamples)
    p, reason, test = None, "", "paired permutation"
    if n < MIN_PAIRS:
        reason = f"{n} pairs: fewer than {MIN_PAIRS} can't give p < {ALPHA:g}"
    elif not differences.any():
        reason = "all pairs are equal"
    else:
        done = stats.permutation_test(
            (pairs[:, 0], pairs[:, 1]),
            lambda a, b, axis=-1: (a - b).mean(axis=axis),
            permutation_type="samples",
            vectorized=True,
            n_resamples=np.inf if n <= _EXACT_PAIRS else _PERMUTATIONS,
            rng=np.random.default_rng(0),
        )
        p = float(done.pvalue)
    return Comparison(metric, run_id, other_id, test, n, n, difference, lo, hi, p, None, reason)


def _two_samples(
    metric: str,
    run_id: str,
    other_id: str,
    values: np.ndarray[Any, Any],
    others: np.ndarray[Any, Any],
    resamples: int,
) -> Comparison:
    n, m = len(values), len(others)
    test = "Mann-Whitney U"
    if not n or not m:
        reason = f"{run_id if not n else other_id} has no value"
        return Comparison(
            metric, run_id, other_id, test, n, m, None, None, None, None, None, reason
        )
    difference = float(values.mean() - others.mean())
    lo, hi = _bootstrap(
        (values, others),
        lambda a, b, axis=-1: a.mean(axis=axis) - b.mean(axis=axis),
        resamples,
    )
    p, reason = None, ""
    both = np.concatenate([values, others])
    if 2 / comb(n + m, n) >= ALPHA:
        reason = f"{n} and {m} values: so few can't give p < {ALPHA:g}"
    elif np.ptp(both) == 0:
        reason = "all values are equal"
    else:
        tied = len(np.unique(both)) < len(both)
        method = (
            stats.PermutationMethod(n_resamples=_PERMUTATIONS, rng=np.random.default_rng(0))
            if tied
            else "auto"
        )
        p = float(stats.mannwhitneyu(values, others, method=method).pvalue)
    return Comparison(metric, run_id, other_id, test, n, m, difference, lo, hi, p, None, reason)


def _bootstrap(
    data: tuple[np.ndarray[Any, Any], ...], statistic: Any, resamples: int
) -> tuple[float | None, float | None]:
    """Percentile interval at 95 %; none below three values, whose resamples say nothing."""
    if min(map(len, data)) < _MIN_BOOTSTRAP:
        return None, None
    found = stats.bootstrap(
        data,
        statistic,
        n_resamples=resamples,
        method="percentile",
        vectorized=True,
        rng=np.random.default_rng(0),
    ).confidence_interval
    return float(found.low), float(found.high)
