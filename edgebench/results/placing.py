"""Placing a meter's trace onto a run: from the trace's own time to the device's clock.

The clock of a meter is neither the device's nor the host's. Where the trace has wall-clock time,
the recording's ``clock`` brings it near: host_unix = device_monotonic + offset. The run itself then
says where it lies: its energy windows and idle stretches are a pattern of starts and stops that the
trace must show (``edgebench.energy.align``). A trace whose time counts from its own beginning is
placed by the pattern alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime

import numpy as np
import numpy.typing as npt

from edgebench.energy import (
    CLOCK_DRIFT,
    ClockReading,
    EnergyError,
    Offset,
    align,
    clock_offset,
)
from edgebench.errors import InputError
from edgebench.recording import Alignment, Launch, Recording
from edgebench.results.trace_csv import Trace

#: How far a meter's wall clock may be from the host's for the pattern to be looked for (seconds).
#: Clocks that are set by hand are minutes off at most; a wrong time zone is a quarter of an hour.
MAX_OFFSET_S = 300.0


def place(
    trace: Trace,
    recording: Recording,
    begin_ns: int,
    end_ns: int,
    offset_s: float | None = None,
    offset_bound_s: float | None = None,
) -> tuple[npt.NDArray[np.int64], Alignment]:
    """The readings' moments on the device's clock, and how they were found.

    Args:
        begin_ns, end_ns: what of the run must be seen.
        offset_s, offset_bound_s: how far the meter's clock is ahead of the host's, and within what;
            None where the pattern is to be found.

    Raises:
        InputError: the trace and the run don't meet, or the pattern is not in the trace.
    """
    own_ns = np.round(trace.t_s * 1e9).astype(np.int64)
    if not trace.absolute:
        # Middle on middle: then half of both lengths reaches every place where they touch.
        offset_ns = int(own_ns[0] + own_ns[-1] - begin_ns - end_ns) // 2
        reach_s = (float(own_ns[-1] - own_ns[0]) + float(end_ns - begin_ns)) / 2e9
        method = "load pattern alone: the trace has no wall-clock time"
        if own_ns[-1] - own_ns[0] < end_ns - begin_ns:
            raise InputError(
                f"the trace lasts {_span(trace.t_s[-1] - trace.t_s[0])} and the run "
                f"{_span((end_ns - begin_ns) / 1e9)}, and its time counts from its own beginning, "
                "so nothing says which part it saw",
                where=str(trace.path),
                fix="Attach the whole trace, or one with the time of day.",
            )
        return _by_pattern(trace, recording, own_ns, offset_ns, reach_s, method)
    offset_ns, bound_ns, doubt = _wall_clock(recording)
    if offset_s is None or offset_bound_s is None:
        # A host clock that was set puts the trace as far off; the pattern finds it all the same.
        _check_overlap(trace, own_ns - offset_ns, begin_ns, end_ns, round(MAX_OFFSET_S * 1e9))
        method = f"wall clock ({recording.clock.method}), refined by the load pattern"
        return _by_pattern(trace, recording, own_ns, offset_ns, MAX_OFFSET_S, method)
    if doubt:
        raise InputError(
            f"wall-clock time can't place the trace: {doubt}",
            where=str(trace.path),
            fix="Use --offset auto, which finds the run's load pattern in the trace.",
        )
    alignment = Alignment(
        offset_ns=offset_ns + round(offset_s * 1e9),
        # A time that is cut to whole ticks is up to one of them early.
        bound_ns=bound_ns + round((offset_bound_s + trace.tick_s) * 1e9),
        method="wall clock, offset as given",
    )
    t_ns = own_ns - alignment.offset_ns
    _check_overlap(trace, t_ns, begin_ns, end_ns, 0)
    return t_ns, alignment


def _wall_clock(recording: Recording) -> tuple[int, int, str]:
    """Unix time less device time in the middle of the run, its bound, and a doubt about it, or "".

    The bound holds over the whole run: half of what the clocks drifted apart is in it.
    """
    clock, after = recording.clock, recording.clock_after
    begin = min(launch.started_ns for launch in recording.launches)
    end = max(launch.ended_ns for launch in recording.launches)
    first = ClockReading(clock.offset_ns, clock.bound_ns, begin)
    last = None if after is None else ClockReading(after.offset_ns, after.bound_ns, end)
    try:
        offset, bound = clock_offset(first, last, (begin + end) // 2)
    except EnergyError as error:
        return clock.offset_ns, clock.bound_ns, error.message
    drifted = 0 if after is None else abs(after.offset_ns - clock.offset_ns)
    return offset, bound + drifted // 2, ""


def _check_overlap(
    trace: Trace, t_ns: npt.NDArray[np.int64], begin_ns: int, end_ns: int, reach_ns: int
) -> None:
    """Refuse a trace that can't meet the run, in words that a wrong time zone shows in."""
    early_s = (begin_ns - reach_ns - int(t_ns[-1])) / 1e9
    late_s = (int(t_ns[0]) - end_ns - reach_ns) / 1e9
    if early_s <= 0 and late_s <= 0:
        return
    apart_s = max(early_s, late_s) + reach_ns / 1e9
    # Where the trace began as long before the run as a time zone is off, that is the reason.
    shift_s = (int(t_ns[0]) + int(t_ns[-1]) - begin_ns - end_ns) / 2e9
    quarters = round(shift_s / 900)
    zone = abs(shift_s - 900 * quarters) < 120 and 0 < abs(quarters) <= 56
    raise InputError(
        f"the trace {'ends' if early_s > 0 else 'begins'} {_span(apart_s)} "
        f"{'before the run begins' if early_s > 0 else 'after the run ended'}",
        where=f"{trace.path}, {_utc(trace.t_s[0])} to {_utc(trace.t_s[-1])}",
        fix=f"It is off by about {quarters / 4:+g} h: is --timezone right?"
        if zone
        else "Is it the trace of this run? Is --timezone right, and was the meter's clock set?",
    )


def _by_pattern(
    trace: Trace,
    recording: Recording,
    own_ns: npt.NDArray[np.int64],
    offset_ns: int,
    reach_s: float,
    method: str,
) -> tuple[npt.NDArray[np.int64], Alignment]:
    """Refine an offset by the run's own starts and stops.

    The launches are then looked up one by one. Their differences are the drift between the meter's
    clock and the device's, so the bound reaches over all of them; a clock that was set shows.

    Raises:
        InputError: the pattern is not in the trace, is there twice, or moves between launches.
    """
    zero = recording.launches[0].started_ns
    t_s, watts = _power(trace, own_ns - offset_ns - zero)
    patterns = {
        launch.index: [((b - zero) / 1e9, (e - zero) / 1e9) for b, e in _loaded(launch)]
        for launch in recording.launches
        if launch.outcome == "ok"
    }
    patterns = {index: spans for index, spans in patterns.items() if spans}
    shortest = min(end - begin for spans in patterns.values() for begin, end in spans)
    t_s, watts = _thinned(t_s, watts, shortest / 100)
    seen = _seen(patterns, t_s)
    where = str(trace.path)
    if not seen:
        raise InputError(
            "the trace sees no launch of the run whole: it lasts "
            f"{_span(trace.t_s[-1] - trace.t_s[0])}",
            where=where,
            fix="Attach the whole trace; or say how far its clock is off, as in --offset 0 "
            "--offset-bound 0.05, and the windows that it sees are used.",
        )
    whole = [span for index in seen for span in patterns[index]]
    try:
        found = align(t_s, watts, whole, reach_s)
    except EnergyError as error:
        raise InputError(
            error.message,
            where=where,
            fix="Is it the trace of this run, and of this device alone? If the meter's clock is "
            "known to be right, say within what: --offset 0 --offset-bound 0.05."
            if trace.absolute
            else "Is it the trace of this run, and of this device alone?",
        ) from error
    bound_s = found.bound_s
    for index in seen:
        bound_s = max(bound_s, _launch_bound(t_s, watts, patterns[index], found, index, where))
    alignment = Alignment(
        offset_ns=offset_ns + round(found.offset_s * 1e9),
        bound_ns=round(bound_s * 1e9),
        method=f"{method} ({found.edges} edges, correlation {found.correlation:.2f})",
    )
    return own_ns - alignment.offset_ns, alignment


def _launch_bound(
    t_s: npt.NDArray[np.float64],
    watts: npt.NDArray[np.float64],
    spans: Sequence[tuple[float, float]],
    whole: Offset,
    launch: int,
    where: str,
) -> float:
    """How far the offset of one launch is from that of the run, its own bound included (s)."""
    moved = [(begin + whole.offset_s, end + whole.offset_s) for begin, end in spans]
    reach_s = max(2.0, 4 * whole.bound_s)
    length = t_s[-1] - t_s[0]
    fix = "Its clock was set while it logged, or something else ran then: measure again."
    try:
        found = align(t_s, watts, moved, reach_s)
    except EnergyError as error:
        raise InputError(
            f"launch {launch} is not in the trace where the others say that it must be: "
            f"{error.message}",
            where=where,
            fix=fix,
        ) from error
    if abs(found.offset_s) > CLOCK_DRIFT * length + whole.bound_s + found.bound_s:
        raise InputError(
            f"launch {launch} is {abs(found.offset_s):.3g} s from where the others say that it "
            "must be in the trace",
            where=where,
            fix=fix,
        )
    return abs(found.offset_s) + found.bound_s


def _seen(
    patterns: Mapping[int, Sequence[tuple[float, float]]], t_s: npt.NDArray[np.float64]
) -> list[int]:
    """The launches that the trace sees: all, or those that lie in it by its own time."""
    begin = min(spans[0][0] for spans in patterns.values())
    end = max(spans[-1][1] for spans in patterns.values())
    if t_s[-1] - t_s[0] >= end - begin and t_s[0] <= begin and t_s[-1] >= end:
        return list(patterns)
    return [
        index
        for index, spans in patterns.items()
        if t_s[0] <= spans[0][0] - 1 and t_s[-1] >= spans[-1][1] + 1
    ]


def _loaded(launch: Launch) -> list[tuple[int, int]]:
    """When a launch was busy: from its warm-up to the end of its measured part, and its windows."""
    spans = [(each.begin_ns, each.end_ns) for each in launch.energy_windows]
    if launch.window_ns is not None:
        begin, end = launch.window_ns
        warming = sum(each.duration_ns for each in launch.warmup if each is not None)
        spans.append((max(launch.started_ns, begin - warming), end))
    return sorted(spans)


def _power(
    trace: Trace, t_ns: npt.NDArray[np.int64]
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Power over time; of a counter its differences, at their middles, where it moved."""
    t_s, value = t_ns / 1e9, trace.value
    if trace.quantity == "power":
        return t_s, value
    moved = np.append(True, np.diff(value) > 0)
    t_s, value = t_s[moved], value[moved]
    return (t_s[1:] + t_s[:-1]) / 2, np.diff(value) / np.diff(t_s)


def _thinned(
    t_s: npt.NDArray[np.float64], watts: npt.NDArray[np.float64], step_s: float
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Means over steps, where readings are denser: ripple within a call is no edge of the load."""
    if t_s.size < 2 or float(np.median(np.diff(t_s))) >= step_s:
        return t_s, watts
    bins = np.floor((t_s - t_s[0]) / step_s).astype(np.int64)
    _, first, counts = np.unique(bins, return_index=True, return_counts=True)
    return np.add.reduceat(t_s, first) / counts, np.add.reduceat(watts, first) / counts


def _utc(unix_s: float) -> str:
    return datetime.fromtimestamp(float(unix_s), UTC).strftime("%Y-%m-%d %H:%M:%SZ")


def _span(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.3g} s"
    if seconds < 7200:
        return f"{seconds / 60:.3g} min"
    return f"{seconds / 3600:.3g} h" if seconds < 172_800 else f"{seconds / 86_400:.3g} days"
