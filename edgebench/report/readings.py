"""What a run's meters said, ready to be drawn: power over time, and the figures that hold.

A counter's power is its differences from one update to the next, since that is all that it says.
Where readings are denser than a figure, the lowest and the highest of each column are kept, so that
no peak is lost.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from edgebench.energy import HOLE, EnergyError, EnergyFigures, measure
from edgebench.recording import MeterChannel, MeterRecord, Recording
from edgebench.results.encoding import Loaded
from edgebench.results.energy_rows import source_of, windows_of

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Trace:
    """A channel's readings, ready to be drawn: [n] seconds since the run began, and W."""

    meter: MeterRecord
    channel: MeterChannel
    t_s: Floats
    watts: Floats
    #: For each artifact its figures, or the reason why there are none.
    figures: tuple[EnergyFigures | str, ...]


def traces(loaded: Loaded) -> Iterator[Trace]:
    """Every channel with readings: attached traces first, as the tables have it."""
    for attached in loaded.attached:
        yield from _of_meter(loaded, 0, attached.meter, attached.readings)
    for number, meter in enumerate(loaded.recording.meters):
        yield from _of_meter(loaded, number, meter, loaded.readings)


def _of_meter(
    loaded: Loaded, number: int, meter: MeterRecord, readings: Mapping[str, npt.NDArray[Any]]
) -> Iterator[Trace]:
    zero = zero_ns(loaded.recording)
    for index, channel in enumerate(meter.channels):
        here = (readings["meter"] == number) & (readings["channel"] == index)
        t_ns, value = readings["t_ns"][here], readings["value"][here]
        t_s, watts = power_over_time(channel, (t_ns - zero) / 1e9, value)
        if t_s.size:
            figures = tuple(_figures(loaded, meter, channel, t_ns, value))
            yield Trace(meter, channel, t_s, watts, figures)


def zero_ns(recording: Recording) -> int:
    return min(launch.started_ns for launch in recording.launches)


def power_over_time(channel: MeterChannel, t_s: Floats, value: Floats) -> tuple[Floats, Floats]:
    """Seconds and watts of a channel; of a counter its mean power from one update to the next.

    A mean stands at the end of its stretch. Readings that are no numbers are left out; where a
    counter goes back without being known to wrap, the power there is unknown (NaN).
    """
    there = np.isfinite(value)
    t_s, value = t_s[there], value[there].astype(np.float64)
    if channel.quantity == "power" or t_s.size < 2:
        return (t_s, value) if channel.quantity == "power" else (t_s[:0], value[:0])
    moved = np.append(True, np.diff(value) != 0)
    t_s, value = t_s[moved], value[moved]
    steps = np.diff(value)
    if channel.wrap_j is not None:
        steps = np.where(steps < 0, steps + channel.wrap_j, steps)
    steps = np.where(steps < 0, np.nan, steps)
    return t_s[1:], steps / np.diff(t_s)


def _figures(
    loaded: Loaded,
    meter: MeterRecord,
    channel: MeterChannel,
    t_ns: npt.NDArray[np.int64],
    value: Floats,
) -> Iterator[EnergyFigures | str]:
    bound_s = meter.alignment.bound_ns / 1e9 if meter.alignment else 0.0
    for index in range(len(loaded.recording.artifacts)):
        windows, idle = windows_of(loaded, index)
        try:
            yield measure(source_of(channel, bound_s), t_ns, value, windows, idle)
        except EnergyError as error:
            yield error.message


def broken_at_holes(t_s: Floats, watts: Floats) -> tuple[Floats, Floats]:
    """A line is not drawn where nothing was read."""
    if t_s.size < 3:
        return t_s, watts
    gaps = np.diff(t_s)
    holes = np.flatnonzero(gaps > HOLE * np.median(gaps))
    return np.insert(t_s, holes + 1, t_s[holes]), np.insert(watts, holes + 1, np.nan)


def envelope(t_s: Floats, watts: Floats, columns: int) -> tuple[Floats, Floats]:
    """The lowest and the highest reading of each column, where a column holds several."""
    if t_s.size <= 2 * columns:
        return t_s, watts
    parts = np.array_split(np.arange(t_s.size), columns)
    kept: list[int] = []
    for part in parts:
        inside = part[np.isfinite(watts[part])]
        if inside.size:
            kept += [int(inside[np.argmin(watts[inside])]), int(inside[np.argmax(watts[inside])])]
        kept += [int(i) for i in part[~np.isfinite(watts[part])][:1]]
    order = np.unique(kept)
    return t_s[order], watts[order]
