"""What is wrong with readings: refusals, and what a reader of the figure has to know."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from edgebench.energy.source import (
    PLANNED_RELATIVE,
    REFUSED_RELATIVE,
    EnergyError,
    Problem,
    Stretch,
    shortest_window_s,
)
from edgebench.energy.trace import Floats, Spans, Trace

#: A hole is a pause of so many usual distances between readings.
HOLE = 5
#: Readings that stand still for so many periods may be frozen.
STILL_PERIODS = 20
#: Power that changes by more than this share from a window's first to its second half.
UNSTEADY = 0.05


def refuse_absent(trace: Trace, used: Spans) -> None:
    """no-readings: none within any window. frozen: all readings are the same."""
    first, last = np.searchsorted(trace.read, [used.begin.min(), used.end.max()])
    if first == last:
        raise EnergyError(
            "no-readings", "the source has no reading at the time of the windows: look at its clock"
        )
    if (
        trace.power is not None
        and np.ptp(trace.power) == 0
        and (trace.read[-1] - trace.read[0] >= STILL_PERIODS * trace.period)
    ):
        raise EnergyError(
            "frozen", f"all readings are {trace.power[0]:.6g} W: the sensor stands still"
        )


def refuse_unit(trace: Trace, used: Spans) -> None:
    """unit-suspect, implausible-power: what this device can't draw."""
    source = trace.source
    if source.plausible_w is None:
        return
    low, high = source.plausible_w
    mean = float((trace.energy_at(used.end) - trace.energy_at(used.begin)).sum())
    mean /= float(used.seconds.sum())
    if low <= mean <= high:
        return
    for factor in (1e3, 1e-3, 1e6, 1e-6):
        if low <= mean / factor <= high:
            raise EnergyError(
                "unit-suspect",
                f"{mean:.4g} W is not between {low:.4g} and {high:.4g} W, but divided by "
                f"{factor:g} it is: the source's unit is off by {factor:g}",
            )
    raise EnergyError(
        "implausible-power", f"{mean:.4g} W is not between {low:.4g} and {high:.4g} W"
    )


def refuse_short(trace: Trace, used: Spans) -> None:
    """window-too-short, by the source's timing, its readings', or a counter's steps."""
    source = trace.source
    shortest = float(used.seconds.min())
    period = max(source.period_s, used.spacing)
    if shortest < shortest_window_s(source, REFUSED_RELATIVE, used.spacing) * (1 - 1e-6):
        needed = shortest_window_s(source, PLANNED_RELATIVE, used.spacing)
        raise EnergyError(
            "window-too-short",
            f"a window of {shortest:.3g} s is too short for a source that tells something new "
            f"every {period:.3g} s: it needs {needed:.3g} s",
            needed,
        )


def spans_covered(trace: Trace, spans: Spans) -> npt.NDArray[np.bool_]:
    """Which spans the source reaches over without a hole.

    A counter goes on counting in a hole: only holes at the guards matter, and those in which it may
    have wrapped.
    """
    limit = HOLE * trace.period
    fine: npt.NDArray[np.bool_] = (trace.read[0] <= spans.inner_begin) & (
        trace.read[-1] >= spans.inner_end
    )
    gaps = np.diff(trace.read)
    holes = np.flatnonzero(gaps > limit)
    wrap = trace.source.wrap_j
    watts = trace.joules[-1] / max(trace.t[-1] - trace.t[0], 1e-12) if wrap else 0.0
    for hole in holes:
        begin, end = trace.read[hole], trace.read[hole + 1]
        touched = (spans.inner_begin < end) & (spans.inner_end > begin)
        inside = (spans.inner_begin <= begin) & (spans.inner_end >= end)
        counted = trace.power is None and (not wrap or watts * (end - begin) < wrap / 2)
        fine &= ~touched | (inside & counted)
    return fine


def refuse_holes(covered: npt.NDArray[np.bool_]) -> None:
    missing = int((~covered).sum())
    if 2 * missing > covered.size:
        raise EnergyError(
            "gap",
            f"the source has holes over {missing} of {covered.size} windows, or vanished",
        )


def hole_problem(covered: npt.NDArray[np.bool_]) -> list[Problem]:
    missing = int((~covered).sum())
    if not missing:
        return []
    text = f"The source has holes over {missing} of {covered.size} windows; they are left out."
    return [Problem("gaps", text)]


def refuse_frozen(trace: Trace, used: Spans, idle: Sequence[Stretch], zero_ns: int) -> None:
    """frozen: the value stands still inside a window for longer than it can.

    A counter moves every period, or every step of its resolution where that takes longer. Power may
    repeat, by rounding or because readings and calls keep in step; it is frozen when it stays the
    same from within a window into an idle stretch.
    """
    if trace.power is None:
        watts = float(trace.joules[-1] / max(trace.t[-1] - trace.t[0], 1e-12))
        usual = max(trace.period, trace.source.resolution / watts)
        moved = trace.t
    else:
        usual = trace.period
        moved = trace.t[1:][np.diff(trace.power) != 0]
    rests = [((each.begin_ns - zero_ns) / 1e9, (each.end_ns - zero_ns) / 1e9) for each in idle]
    for number, (begin, end) in enumerate(zip(used.inner_begin, used.inner_end, strict=True)):
        first, last = np.searchsorted(moved, [begin, end])
        marks = np.concatenate(([begin], moved[first:last], [end]))
        longest = float(np.diff(marks).max())
        if longest < STILL_PERIODS * usual:
            continue
        if trace.power is not None:
            at = int(np.diff(marks).argmax())
            edges = np.concatenate((trace.t[:1], moved, trace.t[-1:]))
            around = np.searchsorted(edges, (marks[at] + marks[at + 1]) / 2)
            since, until = edges[max(around - 1, 0)], edges[min(around, edges.size - 1)]
            if not any(min(until, b) - max(since, a) > 3 * usual for a, b in rests):
                continue
        raise EnergyError(
            "frozen",
            f"the source stands still for {longest:.3g} s within a window of "
            f"{used.seconds[number]:.3g} s, where it changes every {usual:.3g} s",
        )


def refuse_negative(trace: Trace, used: Spans, power: Floats) -> None:
    """negative-power."""
    source = trace.source
    readings = used.samples(trace)
    floor = (
        -(source.offset_error_w or 0.0) - 5 * source.resolution - 0.01 * abs(float(power.mean()))
    )
    below = float((readings < floor).mean()) if readings.size else 0.0
    if below > 0.01 or np.any(power <= 0):
        raise EnergyError(
            "negative-power",
            f"power is negative in {100 * max(below, float((power <= 0).mean())):.0f} % of the "
            "windows' readings: a battery that charges, or a sensor with its leads exchanged, does "
            "not tell what the device takes",
        )


def problems_of(trace: Trace, used: Spans, power: Floats, launches: int) -> list[Problem]:
    source, found = trace.source, []
    unknown = [
        name
        for name, bound in (("gain", source.gain_error), ("offset", source.offset_error_w))
        if bound is None
    ]
    if unknown:
        text = (
            f"No bound of the sensor's {' and '.join(unknown)} error is published; the intervals "
            "leave it out."
        )
        found.append(Problem("accuracy-unpublished", text))
    if launches < 2:
        text = "One launch: the intervals speak of that launch alone."
        found.append(Problem("one-launch", text))
    if trace.seen < 0.9:
        text = (
            f"The readings speak of {100 * trace.seen:.0f} % of the time; the rest is inferred, "
            "and the interval holds it as scatter."
        )
        found.append(Problem("seen-in-part", text))
    middle = (used.inner_begin + used.inner_end) / 2
    first = trace.energy_at(middle) - trace.energy_at(used.inner_begin)
    second = trace.energy_at(used.inner_end) - trace.energy_at(middle)
    half = (used.inner_end - used.inner_begin) / 2
    change = float(((second - first) / half / power).mean())
    if abs(change) > UNSTEADY:
        text = (
            f"Power changes by {100 * change:+.0f} % from the first to the second half of a "
            "window: it is not steady. Warm up for longer, or lengthen the windows."
        )
        found.append(Problem("unsteady", text))
    return found
