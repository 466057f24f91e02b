"""Two clocks: an offset between its measurements, and a load pattern found in a foreign trace."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt

import numpy as np
import numpy.typing as npt

from edgebench.energy.interval import CONFIDENCE
from edgebench.energy.source import EnergyError
from edgebench.energy.trace import Floats

#: Largest drift of two clocks that is no step: the frequency tolerance that NTP corrects
#: (RFC 5905, MAXFREQ of its code skeleton: 500 parts in a million).
CLOCK_DRIFT = 500e-6


@dataclass(frozen=True, slots=True)
class Offset:
    """t_meter = t_device + ``offset_s``, within ``bound_s``."""

    offset_s: float
    bound_s: float
    correlation: float
    edges: int


@dataclass(frozen=True, slots=True)
class ClockReading:
    """An offset between two clocks (ns), its bound, and when it was true (the device's clock)."""

    offset_ns: int
    bound_ns: int
    at_ns: int


def align(
    t_s: npt.ArrayLike,
    power_w: npt.ArrayLike,
    loaded: Sequence[tuple[float, float]],
    max_offset_s: float,
    *,
    least_correlation: float = 0.5,
    confidence: float = CONFIDENCE,
) -> Offset:
    """Find a load pattern in a foreign trace: t_meter = t_device + offset.

    The offset with the highest correlation between the trace and the pattern (1 loaded, 0 idle) is
    found on a grid; then every edge of the pattern is looked up in the trace as the moment at which
    the power passes half-way, and their median is the offset. Its bound: Student's interval of the
    edges' scatter, half the difference between rising and falling edges, and half a reading.

    Args:
        t_s: [n] times of the readings (s) on the meter's clock; power_w: [n] W. (For a counter:
            ``numpy.diff`` of it over time, at the middles.)
        loaded: (begin, end) in s on the device's clock, idle in between.
        max_offset_s: the offset is not larger than this, either way.

    Raises:
        EnergyError: pattern-missing, pattern-ambiguous, no-readings, times-backwards.
    """
    t = np.asarray(t_s, dtype=np.float64)
    watts = np.asarray(power_w, dtype=np.float64)
    fine = np.isfinite(watts) & np.isfinite(t)
    t, watts = t[fine], watts[fine]
    spans = np.array(sorted(loaded), dtype=np.float64).reshape(-1, 2)
    if t.size < 4 or not len(spans):
        raise EnergyError("no-readings", "there is no trace, or no pattern to look for in it")
    if np.any(np.diff(t) <= 0):
        raise EnergyError("times-backwards", "the times of the trace do not increase")
    if np.any(spans[:, 1] <= spans[:, 0]) or np.any(spans[1:, 0] < spans[:-1, 1]):
        raise EnergyError("bad-window", "loaded intervals must not overlap")
    spacing = float(np.median(np.diff(t)))
    shortest = float((spans[:, 1] - spans[:, 0]).min())
    if shortest < 3 * spacing:
        raise EnergyError(
            "pattern-missing",
            f"a load of {shortest:.3g} s can't be found in readings {spacing:.3g} s apart",
        )
    grid, score = _correlations(t, watts, spans, max_offset_s, min(shortest / 10, spacing))
    best = int(np.argmax(score))
    if not score[best] >= least_correlation:
        raise EnergyError(
            "pattern-missing",
            f"the load pattern is not in the trace: the best correlation is {score[best]:.2f}",
        )
    if best in (0, score.size - 1):
        raise EnergyError(
            "pattern-missing",
            f"the load pattern fits best at the end of the search, {grid[best]:.3g} s: allow more",
        )
    elsewhere = np.abs(grid - grid[best]) > shortest / 2
    if elsewhere.any() and score[elsewhere].max() > 0.9 * score[best]:
        other = grid[elsewhere][int(np.argmax(score[elsewhere]))]
        raise EnergyError(
            "pattern-ambiguous",
            f"the load pattern fits at {grid[best]:.3g} s and as well at {other:.3g} s: windows of "
            "different lengths, or a smaller largest offset, would decide",
        )
    rising, falling = _crossings(t, watts, spans, float(grid[best]))
    edges = np.concatenate([rising, falling])
    if edges.size < 2 or not rising.size or not falling.size:
        raise EnergyError("pattern-missing", "no clear beginning and end of a load in the trace")
    from edgebench.stats import student_t

    scatter = float(edges.std(ddof=1)) / sqrt(edges.size) * student_t(edges.size - 1, confidence)
    lopsided = abs(float(np.median(rising) - np.median(falling))) / 2
    return Offset(
        offset_s=float(np.median(edges)),
        bound_s=scatter + lopsided + spacing / 2,
        correlation=float(score[best]),
        edges=int(edges.size),
    )


def _correlations(
    t: Floats, watts: Floats, spans: Floats, limit: float, step: float
) -> tuple[Floats, Floats]:
    """Correlation of trace and pattern over the pattern's stretch, at offsets -limit ... limit.

    From integrals of the power and of its square, so that irregular readings weigh by their time.
    Offsets at which the trace does not reach over the whole pattern get -1.
    """
    half = max(1, int(np.ceil(limit / step)))
    grid = np.linspace(-limit, limit, 2 * half + 1)
    gaps = np.diff(t)
    first = np.concatenate(([0.0], np.cumsum(gaps * (watts[1:] + watts[:-1]) / 2)))
    second = np.concatenate(([0.0], np.cumsum(gaps * (watts[1:] ** 2 + watts[:-1] ** 2) / 2)))
    pad = float((spans[:, 1] - spans[:, 0]).min()) / 2
    begin, end = spans[0, 0] - pad, spans[-1, 1] + pad
    whole = end - begin
    share = float((spans[:, 1] - spans[:, 0]).sum()) / whole

    def between(integral: Floats, a: Floats, b: Floats) -> Floats:
        found: Floats = np.interp(b, t, integral) - np.interp(a, t, integral)
        return found

    mean = between(first, begin + grid, end + grid) / whole
    square = between(second, begin + grid, end + grid) / whole
    inside = np.zeros_like(grid)
    for a, b in spans:
        inside += between(first, a + grid, b + grid)
    covariance = inside / whole - share * mean
    variance = np.maximum(square - mean**2, 0) * share * (1 - share)
    score = np.full(grid.size, -1.0)
    reached = (begin + grid >= t[0]) & (end + grid <= t[-1]) & (variance > 0)
    score[reached] = covariance[reached] / np.sqrt(variance[reached])
    return grid, score


def _crossings(t: Floats, watts: Floats, spans: Floats, offset: float) -> tuple[Floats, Floats]:
    """Moments at which the power passes half-way, less where the pattern has them: up and down."""
    begins, ends = spans[:, 0], spans[:, 1]
    rests = np.concatenate(([np.inf], begins[1:] - ends[:-1], [np.inf]))
    found: tuple[list[float], list[float]] = ([], [])
    for i, (begin, end) in enumerate(spans):
        for edge, rest, sign, which in ((begin, rests[i], 1, 0), (end, rests[i + 1], -1, 1)):
            reach = min(end - begin, rest) / 2
            at = edge + offset
            before = watts[(t >= at - reach) & (t < at)]
            after = watts[(t >= at) & (t <= at + reach)]
            if before.size < 2 or after.size < 2:
                continue
            level = (float(np.median(before)) + float(np.median(after))) / 2
            near = np.flatnonzero((t >= at - reach) & (t <= at + reach))
            side = sign * (watts[near] - level) > 0
            turns = np.flatnonzero(~side[:-1] & side[1:])
            if not turns.size:
                continue
            moments = t[near[turns]] + (level - watts[near[turns]]) / (
                watts[near[turns] + 1] - watts[near[turns]]
            ) * (t[near[turns] + 1] - t[near[turns]])
            found[which].append(float(moments[np.argmin(np.abs(moments - at))]) - edge)
    return np.array(found[0]), np.array(found[1])


def clock_offset(before: ClockReading, after: ClockReading | None, at_ns: int) -> tuple[int, int]:
    """Offset and its bound at a moment (ns), from readings before and after the run.

    Linear in between. The bound is that of the readings, interpolated, and w (1 - w) of their
    difference: a drift that is not linear. Without a second reading, or outside of the two, clocks
    may part by ``CLOCK_DRIFT``.

    Raises:
        EnergyError: clock-stepped: the difference is more than drift and bounds can explain.
    """
    if after is None or after.at_ns <= before.at_ns:
        away = abs(at_ns - before.at_ns)
        return before.offset_ns, before.bound_ns + round(CLOCK_DRIFT * away)
    took = after.at_ns - before.at_ns
    change = after.offset_ns - before.offset_ns
    if abs(change) > CLOCK_DRIFT * took + before.bound_ns + after.bound_ns:
        raise EnergyError(
            "clock-stepped",
            f"the clocks went apart by {change / 1e9:.6g} s in {took / 1e9:.3g} s: one was set",
        )
    share = min(max((at_ns - before.at_ns) / took, 0.0), 1.0)
    away = max(before.at_ns - at_ns, at_ns - after.at_ns, 0)
    offset = before.offset_ns + round(share * change)
    bound = (1 - share) * before.bound_ns + share * after.bound_ns
    bound += share * (1 - share) * abs(change) + CLOCK_DRIFT * away
    return offset, round(bound)
