"""Readings put into order: energy as a function of time, and the spans that it is asked for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt

import numpy as np
import numpy.typing as npt

from edgebench.energy.source import EnergyError, Problem, Source, Stretch, Window, guard_s

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
BATCHES = 10


def unwrap(value: npt.ArrayLike, wrap_j: float | None) -> Floats:
    """A counter with its wraps undone.

    A decrease is a wrap where the counter has one (``wrap_j``; RAPL: max_energy_range_uj, Linux
    kernel, power/powercap) and the step is less than half of it when ``wrap_j`` is added. So it has
    to be read at least twice a wrap.

    Raises:
        EnergyError: counter-backwards: another decrease (the device or its driver was reset).
    """
    counter = np.asarray(value, dtype=np.float64)
    steps = np.diff(counter)
    back = steps < 0
    if not back.any():
        return counter
    if wrap_j is None or np.any(steps[back] + wrap_j >= wrap_j / 2) or counter.max() > wrap_j:
        first = int(np.flatnonzero(back)[0])
        raise EnergyError(
            "counter-backwards",
            f"the energy counter went from {counter[first]:.6g} J back to "
            f"{counter[first + 1]:.6g} J, which is no wrap: it was reset, or read too seldom",
        )
    turns = np.concatenate(([0], np.cumsum(back)))
    unwrapped: Floats = counter + turns * wrap_j
    return unwrapped


@dataclass(frozen=True)
class Trace:
    """Readings in order: when they were read, and energy as a function of time.

    ``t``: [n] when the device was as the reading says (s). ``joules``: [n] energy since the first.
    ``power``: [n], or None for a counter (then ``t`` are the moments when it moved).
    ``read``: when anything was read at all. ``spacing``: usual distance of readings (s).
    ``moment``: standard uncertainty of t (s).
    """

    source: Source
    t: Floats
    joules: Floats
    power: Floats | None
    read: Floats
    spacing: float
    moment: float
    problems: tuple[Problem, ...]

    def energy_at(self, x: npt.ArrayLike) -> Floats:
        """Energy since the first reading (J): counter interpolated, power by the trapezoid."""
        at = np.asarray(x, dtype=np.float64)
        if self.power is None:
            counted: Floats = np.interp(at, self.t, self.joules)
            return counted
        k = np.clip(np.searchsorted(self.t, at, side="right") - 1, 0, max(0, self.t.size - 2))
        here = np.interp(at, self.t, self.power)
        integral: Floats = self.joules[k] + (np.clip(at, self.t[0], self.t[-1]) - self.t[k]) * (
            (self.power[k] + here) / 2
        )
        return integral

    def spacing_at(self, begin: Floats, end: Floats) -> float:
        """Usual time between two values that differ, in these spans (s).

        That of the readings, or of a counter's steps where those take longer.
        """
        if self.power is not None or not begin.size or self.source.resolution <= 0:
            return self.spacing
        joules = float((self.energy_at(end) - self.energy_at(begin)).sum())
        watts = joules / float((end - begin).sum())
        if watts <= 0:  # it stands still here; by the rest of the trace
            watts = float(self.joules[-1] / max(self.t[-1] - self.t[0], 1e-12))
        return max(self.spacing, self.source.resolution / watts)

    @property
    def period(self) -> float:
        """Distance of two values that tell something new (s)."""
        return max(self.source.period_s, self.spacing)

    @property
    def seen(self) -> float:
        """Share of the time that the readings speak of."""
        source = self.source
        if self.power is None:
            return source.duty
        averaging = source.period_s if source.averaging_s is None else source.averaging_s
        return min(source.duty, 1.0, averaging / self.period)


def read_trace(source: Source, t_ns: npt.ArrayLike, value: npt.ArrayLike, zero_ns: int) -> Trace:
    """Readings checked and put into order of use; times relative to ``zero_ns``.

    Raises:
        EnergyError: no-readings, times-backwards, counter-backwards.
    """
    stamps = np.asarray(t_ns, dtype=np.int64)
    values = np.asarray(value, dtype=np.float64)
    if stamps.ndim != 1 or stamps.shape != values.shape:
        raise ValueError(f"{stamps.shape} times do not fit {values.shape} values")
    problems: list[Problem] = []
    fine = np.isfinite(values)
    if not fine.all():
        text = f"{int((~fine).sum())} of {values.size} readings are no numbers and are left out."
        problems.append(Problem("not-numbers", text))
        stamps, values = stamps[fine], values[fine]
    if stamps.size < 2:
        raise EnergyError("no-readings", f"the source gave {stamps.size} readings")
    steps = np.diff(stamps)
    if np.any(steps < 0):
        back = int(-steps.min()) / 1e9
        raise EnergyError(
            "times-backwards",
            f"the times of the readings go back by {back:.6g} s: they are out of order, or their "
            "clock was set",
        )
    if np.any(steps == 0):
        count = int((steps == 0).sum())
        text = f"{count} readings have the time of the one before; they are taken together."
        problems.append(Problem("duplicate-times", text))
        stamps, values = _without_duplicates(source, stamps, values)
        if stamps.size < 2:
            raise EnergyError("no-readings", "all readings have the same time")
    read = (stamps - zero_ns) / 1e9
    gaps = np.diff(read)
    spacing = float(np.quantile(gaps, 0.9))
    if source.quantity == "power":
        averaging = source.period_s if source.averaging_s is None else source.averaging_s
        t = read - (source.lag_s + averaging) / 2
        joules = np.concatenate(([0.0], np.cumsum(gaps * (values[1:] + values[:-1]) / 2)))
        moment = sqrt((min(spacing, source.period_s) ** 2 + source.lag_s**2) / 12)
        return Trace(source, t, joules, values, read, spacing, moment, tuple(problems))
    counter = unwrap(values, source.wrap_j)
    # It moved between this reading and the one before, and at most one period ago.
    moved = np.flatnonzero(np.diff(counter) > 0) + 1
    if moved.size < 2:
        raise EnergyError(
            "frozen",
            f"the energy counter moved {moved.size} times in {read[-1] - read[0]:.3g} s",
        )
    stale = np.minimum(gaps[moved - 1], source.period_s)
    t = read[moved] - stale / 2 - source.lag_s / 2
    moment = sqrt((float(np.median(stale)) ** 2 + source.lag_s**2) / 12)
    # Where a long pause comes before a short one, the order of the estimated moments may turn.
    t = np.maximum.accumulate(t)
    joules = counter[moved] - counter[moved[0]]
    return Trace(source, t, joules, None, read, spacing, moment, tuple(problems))


def _without_duplicates(source: Source, stamps: Ints, values: Floats) -> tuple[Ints, Floats]:
    """One reading a time: the mean of powers, the last of a counter."""
    once, first, counts = np.unique(stamps, return_index=True, return_counts=True)
    if source.quantity == "energy":
        return once, values[first + counts - 1]
    return once, np.add.reduceat(values, first) / counts


@dataclass(frozen=True)
class Spans:
    """Windows or idle stretches: [n] each. ``inner_*`` lie between the guards; times in s.

    ``spacing``: usual time between two values that tell something new there.
    """

    begin: Floats
    end: Floats
    inner_begin: Floats
    inner_end: Floats
    calls: Floats
    launch: Ints
    spacing: float

    @classmethod
    def of(cls, spans: Sequence[Window | Stretch], zero_ns: int, trace: Trace) -> Spans:
        begin = np.array([(span.begin_ns - zero_ns) / 1e9 for span in spans])
        end = np.array([(span.end_ns - zero_ns) / 1e9 for span in spans])
        calls = np.array([getattr(span, "calls", 1) for span in spans], dtype=np.float64)
        launch = np.array([span.launch for span in spans], dtype=np.int64)
        spacing = trace.spacing_at(begin, end)
        guard = guard_s(trace.source, spacing)
        return cls(begin, end, begin + guard, end - guard, calls, launch, spacing)

    def only(self, chosen: npt.NDArray[np.bool_]) -> Spans:
        return Spans(
            self.begin[chosen],
            self.end[chosen],
            self.inner_begin[chosen],
            self.inner_end[chosen],
            self.calls[chosen],
            self.launch[chosen],
            self.spacing,
        )

    def __len__(self) -> int:
        return self.begin.size

    @property
    def seconds(self) -> Floats:
        length: Floats = self.end - self.begin
        return length

    @property
    def middle(self) -> Floats:
        moment: Floats = (self.begin + self.end) / 2
        return moment

    def samples(self, trace: Trace) -> Floats:
        """Power readings between the guards; none for a counter."""
        if trace.power is None:
            return np.empty(0)
        inside = np.zeros(trace.t.size, dtype=bool)
        for begin, end in zip(self.inner_begin, self.inner_end, strict=True):
            first, last = np.searchsorted(trace.t, [begin, end])
            inside[first:last] = True
        chosen: Floats = trace.power[inside]
        return chosen

    def power(self, trace: Trace) -> Floats:
        """Mean power between the guards (W)."""
        joules = trace.energy_at(self.inner_end) - trace.energy_at(self.inner_begin)
        mean: Floats = joules / (self.inner_end - self.inner_begin)
        return mean


@dataclass(frozen=True, slots=True)
class WindowEnergy:
    """Energy between two moments, with standard uncertainties (J) that are its own alone.

    ``u_edge_j``: when the readings at the edges were true. ``u_sampling_j``: what the sensor did
    not look at. ``u_resolution_j``: steps of the readings. Gain and offset are not in there.
    """

    energy_j: float
    u_edge_j: float
    u_sampling_j: float
    u_resolution_j: float
    readings: int

    @property
    def u_j(self) -> float:
        """All three: root of the sum of squares (JCGM 100:2008, 5.1.2)."""
        return sqrt(self.u_edge_j**2 + self.u_sampling_j**2 + self.u_resolution_j**2)


def window_energy(
    source: Source, t_ns: npt.ArrayLike, value: npt.ArrayLike, begin_ns: int, end_ns: int
) -> WindowEnergy:
    """Energy between two moments with interpolated edges: counter difference, or trapezoid.

    Energies of windows that touch add up exactly. Interpolation takes the power between the two
    readings around an edge as constant: where a load begins or ends just there, ``measure``'s
    guards are the better way.

    Raises:
        EnergyError: bad-window, no-readings, gap (readings don't reach over the window), and those
            of the readings themselves.
    """
    if end_ns <= begin_ns:
        raise EnergyError("bad-window", "a window must end after it begins")
    trace = read_trace(source, t_ns, value, begin_ns)
    length = (end_ns - begin_ns) / 1e9
    if trace.t[0] > 0 or trace.t[-1] < length:
        raise EnergyError("gap", "the readings do not reach over the whole window")
    return energy_between(trace, 0.0, length)


def energy_between(trace: Trace, begin: float, end: float) -> WindowEnergy:
    """The same on a checked trace.

    Sampling: standard error of the means of 10 equal parts, times sqrt(1 - seen): of the time that
    the sensor did look at, nothing has to be inferred (finite population correction, W. G. Cochran,
    Sampling Techniques, 1977, section 2.6).
    """
    marks = trace.energy_at(np.linspace(begin, end, BATCHES + 1))
    energy = float(marks[-1] - marks[0])
    length = end - begin
    readings = int(np.count_nonzero((trace.t >= begin) & (trace.t <= end)))
    spread = float(np.diff(marks).std(ddof=1)) * sqrt(BATCHES)
    step = trace.source.resolution / sqrt(12)
    # That of power is not averaged away: a constant load always rounds the same.
    resolution = step * (sqrt(2) if trace.power is None else length)
    return WindowEnergy(
        energy_j=energy,
        u_edge_j=sqrt(2) * trace.moment * abs(energy) / length,
        u_sampling_j=spread * sqrt(1 - trace.seen),
        u_resolution_j=resolution,
        readings=readings,
    )
