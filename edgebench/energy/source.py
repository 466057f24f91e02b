"""What is known of a sensor, what was measured with it, and how long a window it needs."""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt
from typing import Literal

#: The relative error (95 %) for which ``shortest_window_s`` plans.
PLANNED_RELATIVE = 0.02
#: A window is refused when the edges of one window alone may be wrong by more than this (95 %).
REFUSED_RELATIVE = 0.05
#: Fewest source periods between the guards: below it, a scatter can't be judged either.
FEWEST_PERIODS = 10
_Z95 = 1.959963984540054


class EnergyError(ValueError):
    """There is no figure: a stable code, a sentence, and the length that would do, where it helps.

    Codes: ``bad-window``, ``window-too-short`` (``needed_s``), ``no-readings``, ``gap`` (the source
    vanished, or has holes over the windows), ``frozen``, ``counter-backwards``,
    ``times-backwards``, ``negative-power``, ``unit-suspect``, ``implausible-power``,
    ``pattern-missing``, ``pattern-ambiguous``, ``clock-stepped``.
    """

    def __init__(self, code: str, message: str, needed_s: float | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.needed_s = needed_s


@dataclass(frozen=True, slots=True)
class Problem:
    """What a reader of the figure has to know; the figure stands.

    Codes: ``accuracy-unpublished``, ``one-launch``, ``idle-missing``, ``idle-too-short``,
    ``idle-one-sided``, ``idle-drift``, ``unsteady``, ``gaps``, ``seen-in-part``, ``not-numbers``,
    ``duplicate-times``.
    """

    code: str
    text: str


@dataclass(frozen=True, slots=True)
class Source:
    """What is known of a sensor: the members of ``edgebench.recording.MeterChannel``, and

    Attributes:
        clock_bound_s: bound of what is left of the offset between the meter's clock and the
            device's; 0 where the device's own clock stamped the readings.
        plausible_w: power (W) that this device can draw at all; None: anything.
    """

    quantity: Literal["power", "energy"]
    period_s: float
    resolution: float = 0.0
    gain_error: float | None = None
    offset_error_w: float | None = None
    lag_s: float = 0.0
    averaging_s: float | None = None
    duty: float = 1.0
    wrap_j: float | None = None
    clock_bound_s: float = 0.0
    plausible_w: tuple[float, float] | None = None


@dataclass(frozen=True, slots=True)
class Window:
    """Calls back to back: from before the first to after the last, in one launch."""

    begin_ns: int
    end_ns: int
    calls: int
    launch: int


@dataclass(frozen=True, slots=True)
class Stretch:
    """Everything loaded, nothing running."""

    begin_ns: int
    end_ns: int
    launch: int


def guard_s(source: Source, spacing_s: float | None = None) -> float:
    """What is left out at either end of a window (s).

    clock bound + lag/2 + averaging/2 + period + distance of two readings. The readings are shifted
    by half the lag and half the averaging first, so half of each remains on either side. An unknown
    averaging time is taken for one period.

    Args:
        spacing_s: usual distance of two readings; None: the source's period.
    """
    averaging = 0.0
    if source.quantity == "power":
        averaging = source.period_s if source.averaging_s is None else source.averaging_s
    spacing = max(source.period_s, spacing_s or 0.0)
    return source.clock_bound_s + (source.lag_s + averaging) / 2 + source.period_s + spacing


def shortest_window_s(
    source: Source, relative: float = PLANNED_RELATIVE, spacing_s: float | None = None
) -> float:
    """The shortest window that the source supports (s): W = 2 m + max(N D, z u sqrt(2) / r).

    m is ``guard_s``, D the distance of two new values, N = max(10, 0.4 / r), so that a length that
    was planned (2 %) is well above what is refused (5 %). r is the relative error of one window's
    mean power (95 %, z = 1.96) by the moments of the readings at both its ends. The age of a value
    and the lag are uniform: u^2 = (T^2 + lag^2) / 12, T the source's period. Power that is read
    more seldom than it changes has D for T: the time between is not seen. At 2 % that is about
    40 T + 2 m: 4.4 s for NVML's counter, which moves about every 100 ms.

    Args:
        relative: r. spacing_s: usual distance of two readings, or of a counter's steps where that
            is longer; None: the source's period.

    Raises:
        ValueError: relative is not positive.
    """
    if relative <= 0:
        raise ValueError(f"a relative error must be positive, not {relative}")
    distance = max(source.period_s, spacing_s or 0.0)
    age = distance if source.quantity == "power" else source.period_s
    moment = sqrt((age**2 + source.lag_s**2) / 12)
    inner = max(max(FEWEST_PERIODS, 0.4 / relative) * distance, _Z95 * sqrt(2) * moment / relative)
    return 2 * guard_s(source, spacing_s) + inner
