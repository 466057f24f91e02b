"""All figures of one artifact by one source."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf, sqrt

import numpy as np
import numpy.typing as npt

from edgebench.energy.faults import (
    hole_problem,
    problems_of,
    refuse_absent,
    refuse_frozen,
    refuse_holes,
    refuse_negative,
    refuse_short,
    refuse_unit,
    spans_covered,
)
from edgebench.energy.idle import idle_figures, idle_spans
from edgebench.energy.interval import (
    CONFIDENCE,
    RandomPart,
    combined,
    own_uncertainty,
    per_launch,
    random_part,
    step_bound,
)
from edgebench.energy.source import EnergyError, Problem, Source, Stretch, Window
from edgebench.energy.trace import Floats, Ints, Spans, Trace, read_trace
from edgebench.stats import Estimate

#: Counter steps that a peak of power is taken over, so that their jitter is small beside them.
PEAK_STEPS = 10


@dataclass(frozen=True, slots=True)
class EnergyFigures:
    """One artifact's figures by one source. ``Estimate.n`` counts calls, windows or stretches.

    ``peak_power_w`` is the highest reading inside the windows, each a mean over ``peak_period_s``
    (that of the source): what is shorter is not seen, and its interval speaks of the sensor's
    accuracy alone. ``per_launch_j``: launch and its energy a call.
    """

    per_inference_j: Estimate
    per_inference_idle_subtracted_j: Estimate | None
    idle_power_w: Estimate | None
    average_power_w: Estimate
    peak_power_w: Estimate | None
    peak_period_s: float | None
    windows: int
    launches: int
    problems: tuple[Problem, ...]
    per_launch_j: tuple[tuple[int, float], ...] = ()


def measure(
    source: Source,
    t_ns: npt.ArrayLike,
    value: npt.ArrayLike,
    windows: Sequence[Window],
    idle: Sequence[Stretch],
    confidence: float = CONFIDENCE,
) -> EnergyFigures:
    """All figures of one artifact by one source.

    Args:
        t_ns: [n] times of the readings, on the clock of the windows. value: [n] W, or J of a
            counter as it was read (wraps and all).
        windows: of this artifact alone. idle: of the same launches.

    Raises:
        EnergyError: there is no figure; its code says why.
    """
    if not windows:
        raise EnergyError("bad-window", "no window was measured")
    if any(w.end_ns <= w.begin_ns or w.calls < 1 for w in windows):
        raise EnergyError("bad-window", "a window must end after it begins and hold a call")
    zero = min(window.begin_ns for window in windows)
    trace = read_trace(source, t_ns, value, zero)
    used = Spans.of(windows, zero, trace)
    refuse_absent(trace, used)
    refuse_unit(trace, used)
    refuse_short(trace, used)
    covered = spans_covered(trace, used)
    refuse_holes(covered)
    problems = [*trace.problems, *hole_problem(covered)]
    used = used.only(covered)
    refuse_frozen(trace, used, idle, zero)
    power = used.power(trace)
    refuse_negative(trace, used, power)

    launches = np.unique(used.launch).size
    call_s = float(per_launch(used.seconds, used.calls, used.launch).mean())
    step = step_bound(source, used.samples(trace))
    offset = source.offset_error_w or 0.0
    own = own_uncertainty(trace, used)
    energy = random_part(power * used.seconds, used.calls, used.launch, own, call_s)
    mean_w = random_part(power * used.seconds, used.seconds, used.launch, own, 1.0)
    calls = int(used.calls.sum())
    problems += problems_of(trace, used, power, launches)
    resting, found = idle_spans(trace, idle, zero, set(used.launch.tolist()))
    problems += found
    idle_power = subtracted = None
    if len(resting):
        idle_power, subtracted, found = idle_figures(trace, used, power, resting, step, confidence)
        problems += found
    peak, peak_period = peak_power(trace, used, confidence, launches)
    return EnergyFigures(
        per_inference_j=combined(
            energy, source, confidence, calls, launches, offset=offset * call_s, step=step * call_s
        ),
        per_inference_idle_subtracted_j=subtracted,
        idle_power_w=idle_power,
        average_power_w=combined(
            mean_w, source, confidence, len(used), launches, offset=offset, step=step
        ),
        peak_power_w=peak,
        peak_period_s=peak_period,
        windows=len(used),
        launches=launches,
        problems=tuple(problems),
        per_launch_j=by_launch(power * used.seconds, used.calls, used.launch),
    )


def by_launch(amount: Floats, over: Floats, launch: Ints) -> tuple[tuple[int, float], ...]:
    labels = np.unique(launch).tolist()
    return tuple(zip(labels, per_launch(amount, over, launch).tolist(), strict=True))


def peak_power(
    trace: Trace, used: Spans, confidence: float, launches: int
) -> tuple[Estimate | None, float | None]:
    """The highest power inside the windows, and the time that it is a mean over (s)."""
    source = trace.source
    jitter = 0.0
    if trace.power is not None:
        readings = used.samples(trace)
        averaging = source.averaging_s
        period = trace.period if averaging is None or averaging == 0 else averaging
        step = source.resolution / 2
    else:
        readings, period = _counter_power(trace, used)
        step = 0.0
    if not readings.size:
        return None, None
    highest = float(readings.max())
    if trace.power is None:
        # Two moments, each uniform: their difference by its standard uncertainty.
        jitter = highest * sqrt(2) * trace.moment / period
    peak = combined(
        RandomPart(highest, jitter, inf),
        source,
        confidence,
        readings.size,
        launches,
        offset=source.offset_error_w or 0.0,
        step=step,
    )
    return peak, period


def _counter_power(trace: Trace, used: Spans) -> tuple[Floats, float]:
    """Mean powers over ``PEAK_STEPS`` steps of a counter, and the usual time of those (s)."""
    found, times = [], []
    for begin, end in zip(used.inner_begin, used.inner_end, strict=True):
        first, last = np.searchsorted(trace.t, [begin, end])
        t, joules = trace.t[first:last], trace.joules[first:last]
        if t.size > PEAK_STEPS:
            took = t[PEAK_STEPS:] - t[:-PEAK_STEPS]
            fine = took > 0
            found.append((joules[PEAK_STEPS:] - joules[:-PEAK_STEPS])[fine] / took[fine])
            times.append(took[fine])
    if not found:
        return np.empty(0), 0.0
    return np.concatenate(found), float(np.median(np.concatenate(times)))
