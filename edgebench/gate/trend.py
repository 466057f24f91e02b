"""A history of figures: where it changed, how it drifts, and what the next one should be.

Each entry is one recording's log-latency; recordings are the unit, since effects that last for a
session (a boot, a temperature, a neighbour) differ between them. A history is cut where its level
changed: ruptures' KernelCPD with the linear kernel, which is PELT with least squares (R. Killick,
P. Fearnhead and I. Eckley, JASA 107 (2012); C. Truong, L. Oudre and N. Vayatis, Signal Processing
167 (2020)), on values divided by the spread of their differences, with the penalty 8 log n. What
comes after the last change predicts the next entry: a straight line through it where its slope is
significant, else its mean, with Student's prediction interval.

Assumed: after the last change, recordings scatter about the line independently and roughly
normally. With fewer than LEAST entries there nothing is decided.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from math import ceil, exp, log, log1p, sqrt

import numpy as np
import numpy.typing as npt

from edgebench.gate.sequential import Decision
from edgebench.stats import student_t

Floats = npt.NDArray[np.float64]

#: Recordings after the last change below which a history decides nothing: Student's t at the gate's
#: alpha has come down to twice its normal value there.
LEAST = 6
#: Shortest stretch between two changes.
_SHORTEST = 3
#: Times log n. Where nothing changed, 2 % of histories of 10 entries are cut, and fewer of longer
#: ones (300 simulations each).
_PENALTY = 8.0
#: Changes are looked for in units of no less than this: the grain of figures, not their noise.
_NOISE_FLOOR = 1e-3
#: A slope is used from this confidence on.
_SLOPE_CONFIDENCE = 0.99


@dataclass(frozen=True)
class Trend:
    """A history's present state. Indices count from its first entry.

    ``changes``: index of the first entry of each new level, with the factor by which the level
    moved there. ``slope``: log-units an entry, 0 where there is no significant drift.
    """

    changes: tuple[tuple[int, float], ...]
    start: int
    n: int
    slope: float
    expected: float
    standard_error: float
    degrees: int


@dataclass(frozen=True)
class Step:
    """A new figure against a history: its ratio to the prediction and a 95 % interval."""

    decision: Decision
    ratio: float
    lo: float
    hi: float
    p_value: float
    more_recordings: int | None
    trend: Trend


def change_points(values: npt.ArrayLike) -> list[int]:
    """Indices of the first entry of each new level; empty for a history too short to say.

    Raises:
        ValueError: a value is not finite.
    """
    x = np.asarray(values, dtype=np.float64)
    if not np.all(np.isfinite(x)):
        raise ValueError("a history has an entry that is not a number")
    if x.size < 2 * _SHORTEST:
        return []
    # Differences of neighbours know nothing of levels: their spread is the noise's, times sqrt 2.
    noise = 1.4826 * float(np.median(np.abs(np.diff(x)))) / sqrt(2)
    import ruptures

    found = ruptures.KernelCPD(kernel="linear", min_size=_SHORTEST).fit(
        x[:, None] / max(noise, _NOISE_FLOOR)
    )
    return [int(index) for index in found.predict(pen=_PENALTY * log(x.size))[:-1]]


def trend(values: npt.ArrayLike) -> Trend:
    """What a history predicts for its next entry.

    Raises:
        ValueError: fewer than LEAST entries after the last change, or one is not finite.
    """
    x = np.asarray(values, dtype=np.float64)
    cuts = change_points(x)
    start = cuts[-1] if cuts else 0
    edges = [0, *cuts, x.size]
    levels = [float(np.median(x[a:b])) for a, b in pairwise(edges)]
    changes = tuple(
        (cut, exp(after - before))
        for cut, before, after in zip(cuts, levels[:-1], levels[1:], strict=True)
    )
    present = x[start:]
    n = present.size
    if n < LEAST:
        raise ValueError(f"{n} entries after the last change, {LEAST} are needed")
    t = np.arange(n) - (n - 1) / 2
    spread_t = float(t @ t)
    slope = float(t @ present) / spread_t
    residual = present - present.mean() - slope * t
    error = sqrt(float(residual @ residual) / (n - 2) / spread_t)
    if abs(slope) > student_t(n - 2, _SLOPE_CONFIDENCE) * error:
        ahead = (n + 1) / 2
        sd = sqrt(float(residual @ residual) / (n - 2))
        standard_error = sd * sqrt(1 + 1 / n + ahead**2 / spread_t)
        expected = float(present.mean()) + slope * ahead
        return Trend(changes, start, n, slope, expected, standard_error, n - 2)
    standard_error = float(present.std(ddof=1)) * sqrt(1 + 1 / n)
    return Trend(changes, start, n, 0.0, float(present.mean()), standard_error, n - 1)


def step(values: npt.ArrayLike, new: float, *, limit: float, alpha: float, miss: float) -> Step:
    """Whether a new entry is slower than its history predicts, by the rule of ``sequential.Rule``.

    Raises:
        ValueError: see ``trend``; the new entry is not finite.
    """
    from scipy.special import stdtr

    if not np.isfinite(new):
        raise ValueError("the new figure is not a number")
    found = trend(values)
    upper = log1p(limit)
    t = new - found.expected
    error = max(found.standard_error, 1e-12)
    p_not_slower = float(stdtr(found.degrees, -(t - upper / 2) / error))
    p_too_slow = float(stdtr(found.degrees, (t - upper) / error))
    decision, more = Decision.UNDECIDED, None
    if p_not_slower <= alpha:
        decision = Decision.REGRESSION
    elif p_too_slow <= miss:
        decision = Decision.PASS
    else:
        more = _more(found, upper, alpha, miss)
    half = student_t(found.degrees, 0.95) * error
    return Step(decision, exp(t), exp(t - half), exp(t + half), p_not_slower, more, found)


def _more(found: Trend, upper: float, alpha: float, miss: float) -> int | None:
    """Recordings after which an unchanged one would pass, and one slower by the limit would fail;
    None where the scatter between recordings is too wide for any number."""
    sd = found.standard_error / sqrt(1 + 1 / found.n)
    for n in range(found.n + 1, 1000):
        error = sd * sqrt(1 + 1 / n)
        if (
            student_t(n - 1, 1 - 2 * miss) * error < upper
            and student_t(n - 1, 1 - 2 * alpha) * error < upper / 2
        ):
            return ceil(n - found.n)
    return None
