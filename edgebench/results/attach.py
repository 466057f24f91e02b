"""Placing a meter's trace onto a run: from the trace's own time to the device's clock.

The clock of a meter is neither the device's nor the host's. Where the trace has wall-clock time,
the recording's ``clock`` brings it near: host_unix = device_monotonic + offset. The run itself then
says where it lies: its energy windows and idle stretches are a pattern of starts and stops that the
trace must show (``edgebench.energy.align``). A trace whose time counts from its own beginning is
placed by the pattern alone.

Every stretch of the run is then looked for in the trace. One that lies outside it, or that has a
gap in it, is named and left to nobody's guess.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal

import numpy as np
import numpy.typing as npt

import edgebench
from edgebench.energy import (
    CLOCK_DRIFT,
    HOLE,
    ClockReading,
    EnergyError,
    Offset,
    Window,
    align,
    clock_offset,
)
from edgebench.errors import InputError, UsageError
from edgebench.recording import (
    PHASES,
    READING_COLUMNS,
    Alignment,
    Launch,
    MeterChannel,
    MeterRecord,
    Recording,
)
from edgebench.results.attachments import (
    SCHEMA,
    Attachment,
    Attachments,
    Stored,
    TraceFile,
    Uncovered,
)
from edgebench.results.encoding import Loaded
from edgebench.results.trace_csv import Trace, TraceOptions
from edgebench.results.ulid import new_ulid

#: How far a meter's wall clock may be from the host's for the pattern to be looked for (seconds).
#: Clocks that are set by hand are minutes off at most; a wrong time zone is a quarter of an hour.
MAX_OFFSET_S = 300.0
#: Power beyond which a unit is wrong rather than the device large (W), by what the meter saw: the
#: largest server GPUs and CPUs draw 1 kW, a household's circuit 4 kW, a module 0.2 kW.
LEAST_W = 1e-3
MOST_W = {"wall": 1e4, "board": 2e3, "package": 2e3, "gpu": 2e3}
MOST_OTHER_W = 500.0
#: Phases of samples that lie within a launch's measured part.
_COUNTED = [PHASES.index("settle"), PHASES.index("measure")]
#: Readings are kept so long before the run and after it (seconds).
_MARGIN_S = 30.0


@dataclass(frozen=True)
class Terms:
    """What the user says of a meter, and of its clock.

    Attributes:
        scope: what it saw (``edgebench.device_spec.Scope``).
        name: the instrument, for the tables.
        gain_error: bound of its relative error; None where unknown.
        offset_error_w: bound of its absolute error in W; None where unknown.
        offset_s: how far its clock is ahead of the host's; None: found by the load pattern.
        offset_bound_s: within so much, where ``offset_s`` is given.
        force: take power that no device of this kind draws.
    """

    scope: str
    name: str
    gain_error: float | None = None
    offset_error_w: float | None = None
    offset_s: float | None = None
    offset_bound_s: float | None = None
    force: bool = False


@dataclass(frozen=True)
class Stretch:
    """A part of the run that a figure needs: a window of an artifact, or an idle stretch."""

    kind: Literal["window", "idle"]
    launch: int
    artifact: int | None
    begin_ns: int
    end_ns: int


def attach(
    loaded: Loaded, attachments: Attachments, trace: Trace, options: TraceOptions, terms: Terms
) -> Stored:
    """Align a trace to a recording and store it beside it.

    Raises:
        UsageError: the terms contradict each other.
        InputError: the trace does not fit the run; says why, and by how much.
        StorageError: it can't be stored.
    """
    recording = loaded.recording
    _check_terms(trace, terms)
    wanted = stretches(recording)
    t_ns, alignment = _place(trace, recording, wanted, terms)
    uncovered = _uncovered(t_ns, trace.period_s, wanted)
    if all(any(u.begin_ns == w.begin_ns for u in uncovered) for w in wanted if w.kind == "window"):
        raise InputError(
            f"the trace sees none of the run's windows whole: {describe(uncovered)}",
            where=str(trace.path),
            fix="Attach a trace that covers the whole run without gaps, or measure again.",
        )
    _check_power(trace, t_ns, wanted, uncovered, terms)
    near = _near(t_ns, recording)
    readings = {
        "meter": np.zeros(int(near.sum())),
        "channel": np.zeros(int(near.sum())),
        "t_ns": t_ns[near],
        "value": trace.value[near],
    }
    document = Attachment(
        schema=SCHEMA,
        id=new_ulid(),
        recording_id=recording.id,
        recording_digest=recording.digest,
        created_at=datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        edgebench_version=edgebench.__version__,
        meter=_meter(trace, terms, alignment),
        trace=TraceFile(
            name=trace.path.name,
            sha256=trace.sha256,
            bytes=trace.size_bytes,
            columns=trace.columns,
            units=trace.units,
            timezone=options.timezone,
            decimal=options.decimal,
            delimiter=trace.delimiter,
            header_line=trace.header_line,
            readings=int(trace.t_s.size),
            missing=trace.missing,
            repeated=trace.repeated,
        ),
        stretches=len(wanted),
        uncovered=uncovered,
    )
    typed = {name: readings[name].astype(kind) for name, kind in READING_COLUMNS.items()}
    return attachments.write(document, typed)


def stretches(recording: Recording) -> list[Stretch]:
    """The windows and idle stretches of a run, in order of time.

    Without energy windows a run of one artifact has its measured parts: nothing else ran then.

    Raises:
        InputError: several artifacts took turns and none has a window of its own.
    """
    found = []
    for launch in recording.launches:
        if launch.outcome != "ok":
            continue
        found += [
            Stretch("window", launch.index, each.artifact, each.begin_ns, each.end_ns)
            for each in launch.energy_windows
        ]
        found += [Stretch("idle", launch.index, None, *each) for each in launch.idle_ns]
    if not any(each.kind == "window" for each in found):
        found += _measured_parts(recording)
    return sorted(found, key=lambda each: each.begin_ns)


def measured_windows(loaded: Loaded) -> list[Window]:
    """The measured parts of a run of one artifact, with the calls in them, as energy windows.

    For runs that have no energy windows of their own. Settling calls count: they were run, too.
    """
    samples = loaded.samples
    found = []
    for each in _measured_parts(loaded.recording):
        inside = (samples["launch"] == each.launch) & (samples["start_ns"] >= each.begin_ns)
        inside &= samples["start_ns"] < each.end_ns
        calls = int(np.sum(inside & np.isin(samples["phase"], _COUNTED)))
        if calls:
            found.append(Window(each.begin_ns, each.end_ns, calls, each.launch))
    return found


def _measured_parts(recording: Recording) -> list[Stretch]:
    again = "Measure again with `edgebench run --energy on`, with the meter logging."
    if len(recording.artifacts) > 1:
        raise InputError(
            f"the run has no energy windows: its {len(recording.artifacts)} artifacts took turns, "
            "and a meter can't tell one's energy from another's",
            where=recording.id,
            fix=again,
        )
    parts = [
        Stretch("window", launch.index, 0, *launch.window_ns)
        for launch in recording.launches
        if launch.outcome == "ok" and launch.window_ns is not None
    ]
    if not parts:
        raise InputError("no launch of the run was measured", where=recording.id, fix=again)
    return parts


def _check_terms(trace: Trace, terms: Terms) -> None:
    if (terms.offset_s is None) != (terms.offset_bound_s is None):
        raise UsageError(
            "an offset and its bound belong together",
            where="--offset, --offset-bound",
            fix="Say both, as in --offset 0 --offset-bound 0.05, or leave it to --offset auto.",
        )
    if terms.offset_bound_s is not None and not terms.offset_bound_s >= 0:
        raise UsageError("a bound is at least 0", where="--offset-bound")
    if terms.offset_s is not None and not trace.absolute:
        raise UsageError(
            "the trace's time counts from its own beginning, so no offset can place it",
            where="--offset",
            fix="Use --offset auto, which finds the run's load pattern in the trace.",
        )
    if terms.scope == "wall" and "current" in trace.columns:
        raise UsageError(
            "volts times amperes is no power at the wall, where they are out of step",
            where="--columns",
            fix="Use the meter's column of power (W).",
        )


# ------------------------------------------------------------------------------------ placing


def _place(
    trace: Trace, recording: Recording, wanted: Sequence[Stretch], terms: Terms
) -> tuple[npt.NDArray[np.int64], Alignment]:
    """The readings' moments on the device's clock, and how they were found.

    Raises:
        InputError: the trace and the run don't meet, or the pattern is not in the trace.
    """
    own_ns = np.round(trace.t_s * 1e9).astype(np.int64)
    begin_ns, end_ns = wanted[0].begin_ns, max(each.end_ns for each in wanted)
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
    if terms.offset_s is None or terms.offset_bound_s is None:
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
        offset_ns=offset_ns + round(terms.offset_s * 1e9),
        # A time that is cut to whole ticks is up to one of them early.
        bound_ns=bound_ns + round((terms.offset_bound_s + trace.tick_s) * 1e9),
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


# ------------------------------------------------------------------------------------ coverage


def _uncovered(
    t_ns: npt.NDArray[np.int64], period_s: float, wanted: Sequence[Stretch]
) -> list[Uncovered]:
    """Stretches that the readings don't see whole, each with what is missing of it."""
    steps = np.diff(t_ns)
    wide = np.flatnonzero(steps > HOLE * period_s * 1e9)
    holes = [(int(t_ns[i]), int(t_ns[i + 1])) for i in wide]
    holes = [(-(2**63), int(t_ns[0])), *holes, (int(t_ns[-1]), 2**63 - 1)]
    found = []
    for each in wanted:
        missing = sum(
            max(0, min(end, each.end_ns) - max(begin, each.begin_ns)) for begin, end in holes
        )
        if missing:
            found.append(
                Uncovered(
                    kind=each.kind,
                    launch=each.launch,
                    artifact=each.artifact,
                    begin_ns=each.begin_ns,
                    end_ns=each.end_ns,
                    missing_ns=missing,
                )
            )
    return found


def describe(uncovered: Sequence[Uncovered], most: int = 3) -> str:
    """Which stretches are missing and by how much, in one clause."""

    def clause(each: Uncovered) -> str:
        what = (
            "an idle stretch" if each.artifact is None else f"a window of artifact {each.artifact}"
        )
        whole_s = (each.end_ns - each.begin_ns) / 1e9
        return (
            f"{what} in launch {each.launch} lacks {each.missing_ns / 1e9:.3g} of {whole_s:.3g} s"
        )

    more = len(uncovered) - most
    return ", ".join(map(clause, uncovered[:most])) + (f", and {more} more" if more > 0 else "")


def _check_power(
    trace: Trace,
    t_ns: npt.NDArray[np.int64],
    wanted: Sequence[Stretch],
    uncovered: Sequence[Uncovered],
    terms: Terms,
) -> None:
    """Refuse power that no device of this kind draws: a unit is off by a thousand."""
    lost = {each.begin_ns for each in uncovered}
    seen = np.zeros(t_ns.size, dtype=bool)
    for each in wanted:
        if each.kind == "window" and each.begin_ns not in lost:
            seen |= (t_ns >= each.begin_ns) & (t_ns <= each.end_ns)
    if trace.quantity == "energy":
        watts = float(np.ptp(trace.value) / np.ptp(trace.t_s))
    else:
        watts = float(np.mean(trace.value[seen])) if np.any(seen) else float(np.mean(trace.value))
    if LEAST_W <= watts <= MOST_W.get(terms.scope, MOST_OTHER_W) or terms.force:
        return
    column = next(role for role in ("energy", "power", "current") if role in trace.columns)
    raise InputError(
        f"the device would have drawn {watts:.3g} W ({terms.scope}) while it ran",
        where=f"{trace.path}, column {trace.columns[column]}, read in {trace.units[column]}",
        fix=f"Say the column's unit with --{column}-unit; or --force, if it is really so.",
    )


def _near(t_ns: npt.NDArray[np.int64], recording: Recording) -> npt.NDArray[np.bool_]:
    """Readings of the run itself and shortly before and after it."""
    margin = round(_MARGIN_S * 1e9)
    begin = min(launch.started_ns for launch in recording.launches) - margin
    end = max(launch.ended_ns for launch in recording.launches) + margin
    return np.asarray((t_ns >= begin) & (t_ns <= end))


def _meter(trace: Trace, terms: Terms, alignment: Alignment) -> MeterRecord:
    known = terms.gain_error is not None or terms.offset_error_w is not None
    columns = [name for role, name in trace.columns.items() if role != "time"]
    return MeterRecord(
        kind="imported",
        spec={"kind": "imported", "scope": terms.scope, "trace": trace.path.name},
        runs_on="imported",
        channels=[
            MeterChannel(
                name=" x ".join(columns),
                quantity=trace.quantity,
                scope=terms.scope,
                source=terms.name,
                period_s=trace.period_s,
                resolution=trace.resolution,
                gain_error=terms.gain_error,
                offset_error_w=terms.offset_error_w,
                accuracy_source="as given when the trace was attached" if known else "not given",
            )
        ],
        alignment=alignment,
    )


def _utc(unix_s: float) -> str:
    return datetime.fromtimestamp(float(unix_s), UTC).strftime("%Y-%m-%d %H:%M:%SZ")


def _span(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.3g} s"
    if seconds < 7200:
        return f"{seconds / 60:.3g} min"
    return f"{seconds / 3600:.3g} h" if seconds < 172_800 else f"{seconds / 86_400:.3g} days"
