"""The arithmetic of energy figures: pure functions over arrays, no I/O. docs/energy.md derives it.

What a figure means here, and so what its interval has to hold: *the energy of a call in a typical
launch*, calls being back to back. It is the arithmetic mean over all launches that there could be
(joules add, so that total = idle-subtracted + idle power x time holds for the means too).

A window, and what is used of it (m: ``guard_s``)::

    rest      |<------------- window: calls back to back -------------->|   rest
              |<- m ->|<----- mean power is taken from here ---->|<- m ->|
    reading:  .   .   .   .   .   .   .   .   .   .   .   .   .   .   .   .   .   .

No reading that is used can describe a moment outside the window: m covers the clocks' offset, the
sensor's lag, averaging and period, and the distance of two readings. What the sensor's timing does
to the edges is thereby gone, at the price that the window must be long beside m.

The 95 % interval combines (JCGM 101:2008, GUM Supplement 1, fixed quasi-random draws):

1. random: Student's t over the launches' means. Launch effects, sampling, duty cycle, jitter and
   counter steps all differ from launch to launch, so this holds them whatever their size;
2. shared by all windows, so never seen in their scatter: gain, offset, the resolution of power
   readings, and for idle-subtracted figures a drift of the idle power. Each is rectangular.

Units: W, J, s; times of readings and windows are integer nanoseconds on the device's clock.
scipy is imported inside the functions that need it.
"""

from __future__ import annotations

from edgebench.energy.agreement import Agreement, cross_check
from edgebench.energy.clocks import CLOCK_DRIFT, ClockReading, Offset, align, clock_offset
from edgebench.energy.faults import HOLE
from edgebench.energy.figures import EnergyFigures, measure
from edgebench.energy.interval import CONFIDENCE, welch_satterthwaite
from edgebench.energy.source import (
    EnergyError,
    Problem,
    Source,
    Stretch,
    Window,
    guard_s,
    shortest_window_s,
)
from edgebench.energy.trace import WindowEnergy, unwrap, window_energy

__all__ = [
    "CLOCK_DRIFT",
    "CONFIDENCE",
    "HOLE",
    "Agreement",
    "ClockReading",
    "EnergyError",
    "EnergyFigures",
    "Offset",
    "Problem",
    "Source",
    "Stretch",
    "Window",
    "WindowEnergy",
    "align",
    "clock_offset",
    "cross_check",
    "guard_s",
    "measure",
    "shortest_window_s",
    "unwrap",
    "welch_satterthwaite",
    "window_energy",
]
