"""Attaching a meter's trace to a recorded run: placed in time, checked, stored beside it.

Every stretch of the run that a figure needs is looked for in the trace. One that lies outside it,
or that has a gap in it, is named and left to nobody's guess.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal

import numpy as np
import numpy.typing as npt

import edgebench
from edgebench.energy import HOLE, Window
from edgebench.errors import InputError, UsageError
from edgebench.recording import (
    PHASES,
    READING_COLUMNS,
    Alignment,
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
from edgebench.results.placing import place
from edgebench.results.trace_csv import Trace, TraceOptions
from edgebench.results.ulid import new_ulid

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
    begin_ns, end_ns = wanted[0].begin_ns, max(each.end_ns for each in wanted)
    t_ns, alignment = place(
        trace, recording, begin_ns, end_ns, terms.offset_s, terms.offset_bound_s
    )
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
