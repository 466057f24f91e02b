"""What is counted rather than timed: task accuracy, and an artifact's size.

Accuracy. Both sides answer the same n labelled examples. Of the examples on which they differ, b
were right only at the baseline and c only at the candidate; the accuracy falls by (b - c) / n. The
interval is exact and conservative: b / n and c / n each have Clopper and Pearson's interval
(Biometrika 26 (1934)) at half of the error, and the difference lies between their corners
(Bonferroni). The p-value of "not worse" is McNemar's, exact: b of b + c by a fair coin
(Q. McNemar, Psychometrika 12 (1947)).

Where only the totals are known (an agent that does not tell its answers), b and c are replaced by
the wrong answers of the candidate and of the baseline: wider, and still valid.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil, log

from edgebench import stats
from edgebench.gate.sequential import Decision


@dataclass(frozen=True)
class Drop:
    """A fall in accuracy, in shares of the examples (0.01 is one point); below 0 it rose.

    ``more_examples``: labelled examples that would decide, where undecided.
    """

    decision: Decision
    value: float
    lo: float
    hi: float
    p_value: float
    n: int
    more_examples: int | None = None


def accuracy_drop(
    baseline_only: int,
    candidate_only: int,
    n: int,
    *,
    limit: float,
    alpha: float,
    miss: float,
    paired: bool = True,
) -> Drop:
    """Whether the accuracy fell by ``limit`` or more.

    A regression where the drop is surely more than half the limit, a pass where it is surely less
    than the limit, as for latency.

    Args:
        baseline_only: examples that only the baseline got right (unpaired: that the candidate
            got wrong).
        candidate_only: the other way round (unpaired: that the baseline got wrong).

    Raises:
        ValueError: the counts can't be.
    """
    if n < 1:
        raise ValueError("there are no labelled examples")
    if min(baseline_only, candidate_only) < 0 or max(baseline_only, candidate_only) > n:
        raise ValueError(f"{baseline_only} and {candidate_only} are no counts of {n} examples")
    if paired and baseline_only + candidate_only > n:
        raise ValueError("more examples differ than there are")
    value = (baseline_only - candidate_only) / n
    lo, _ = _corners(baseline_only, candidate_only, n, 2 * alpha)
    _, hi = _corners(baseline_only, candidate_only, n, 2 * miss)
    shown = _corners(baseline_only, candidate_only, n, 0.05)
    decision = Decision.UNDECIDED
    if lo > limit / 2:
        decision = Decision.REGRESSION
    elif hi < limit:
        decision = Decision.PASS
    p = _mcnemar(baseline_only, candidate_only) if paired else (alpha if lo > 0 else 1.0)
    more = None
    if decision is Decision.UNDECIDED:
        more = _more_examples(baseline_only / n, candidate_only / n, n, limit, alpha, miss)
    return Drop(decision, value, *shown, p, n, more)


def _corners(b: int, c: int, n: int, error: float) -> tuple[float, float]:
    """The interval of (b - c) / n, each end wrong with probability ``error`` / 2 at most."""
    worse = stats.proportion(b, n, confidence=1 - error / 2)
    better = stats.proportion(c, n, confidence=1 - error / 2)
    assert worse is not None and better is not None
    return worse.lo - better.hi, worse.hi - better.lo


def _mcnemar(b: int, c: int) -> float:
    from scipy.stats import binomtest

    if b + c == 0:
        return 1.0
    return float(binomtest(b, b + c, 0.5, alternative="greater").pvalue)


def _more_examples(
    b: float, c: float, n: int, limit: float, alpha: float, miss: float
) -> int | None:
    """How many more would decide, were their shares the same; None beyond a million."""
    total = n
    while total < 1_000_000:
        total = ceil(total * 1.25)
        k, m = round(b * total), round(c * total)
        if (
            _corners(k, m, total, 2 * alpha)[0] > limit / 2
            or _corners(k, m, total, 2 * miss)[1] < limit
        ):
            return total - n
    return None


def size_log_ratio(baseline_bytes: int, candidate_bytes: int) -> float:
    """The log-ratio of two sizes: exact, so it decides by itself.

    Raises:
        ValueError: a size is not positive.
    """
    if baseline_bytes < 1 or candidate_bytes < 1:
        raise ValueError("an artifact without bytes has no size to compare")
    return log(candidate_bytes / baseline_bytes)
