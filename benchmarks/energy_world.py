"""A device and a sensor whose truth is known: what ``energy_coverage.py`` and the tests measure.

The device draws a power that is an exact function of time, so its energy between any two moments is
exact too. A run has launches; a launch has rounds of rest, idle, rest, (another artifact, rest,)
window, and a last idle stretch, as the agent makes them::

    idle  __        ___________       ___________        __ idle
            \\__rest/   other   \\_rest/  window   \\_rest__/

* A launch has a power factor, a duration factor and an idle power of its own, each around its mean;
  a window has another small factor. The truth is the mean over launches that there could be.
* Inside a window power has a ripple with the period of a call: high for a part of it, then low.
* After a load, power decays to idle exponentially; all of a launch's power drifts linearly.

The sensor sees that with its own period (jittered), delayed by a lag (one for the run, or another
at each update), for a share of the time (duty), as the mean over the time that it looks; with a
gain and an offset error drawn evenly from inside its stated bounds; rounded to its resolution; its
counter may wrap; its clock is off by something inside its stated bound. It is read as it updates
(a stream), or polled, faster or slower than it updates.

Times here are s, the run's output is in the units of ``edgebench.energy``.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import common  # noqa: F401 - finds this checkout's edgebench
import numpy as np
import numpy.typing as npt

from edgebench import energy
from edgebench.energy import Source, Stretch, Window

Floats = npt.NDArray[np.float64]

#: The device's clock does not begin at 0.
EPOCH_NS = 5_000_000_000_000


@dataclass(frozen=True)
class Device:
    """Mean power (W), a call's mean duration (s), and how much all that varies (relative)."""

    load_w: float
    idle_w: float
    call_s: float
    launch_power: float = 0.02
    launch_time: float = 0.01
    launch_idle: float = 0.01
    window_power: float = 0.003
    #: Share of a call with high power, and by how much (relative) it is higher there.
    high: float = 0.4
    ripple: float = 0.3
    #: Standard deviation of a launch's drift from its begin to its end (W).
    drift_w: float = 0.0
    other_w: float = 0.0
    #: Time constant of the decay after a load (s).
    decay_s: float = 0.0

    @property
    def per_inference_j(self) -> float:
        """Truth: power and duration vary independently."""
        return self.load_w * self.call_s

    @property
    def subtracted_j(self) -> float:
        return (self.load_w - self.idle_w) * self.call_s


@dataclass(frozen=True)
class Shape:
    """How a run is made (s)."""

    launches: int = 5
    rounds: int = 3
    window_s: float = 5.0
    idle_s: float = 3.0
    rest_s: float = 1.0


@dataclass(frozen=True)
class Sensor:
    """The errors that a sensor has this time; ``source`` says what it states of itself."""

    source: Source
    gain: float = 0.0
    offset_w: float = 0.0
    lag_s: float = 0.0
    lag_varies: bool = False
    jitter: float = 0.0
    clock_s: float = 0.0
    #: What a value is the mean over; None: the period's share that the duty says.
    averaging_s: float | None = None
    #: None: a stream of its updates. Else the time between two polls.
    poll_s: float | None = None


@dataclass(frozen=True)
class Run:
    """What a recording would hold."""

    source: Source
    t_ns: npt.NDArray[np.int64]
    value: Floats
    windows: tuple[Window, ...]
    idle: tuple[Stretch, ...]

    def measure(self, confidence: float = energy.CONFIDENCE) -> energy.EnergyFigures:
        return energy.measure(
            self.source, self.t_ns, self.value, self.windows, self.idle, confidence
        )


class Course:
    """The device's power over one run, as segments: [n] each."""

    def __init__(self) -> None:
        self.rows: list[tuple[float, ...]] = []
        self.now = 0.0

    def add(
        self,
        seconds: float,
        watts: float,
        *,
        slope: float = 0.0,
        tail_w: float = 0.0,
        tail_s: float = 1.0,
        call_s: float = 1.0,
        ripple: float = 0.0,
        high: float = 0.5,
    ) -> tuple[float, float]:
        """A segment: ``watts`` + slope t + tail_w exp(-t / tail_s), rippled every ``call_s``."""
        self.rows.append((self.now, seconds, watts, slope, tail_w, tail_s, call_s, ripple, high))
        begin, self.now = self.now, self.now + seconds
        return begin, self.now

    def close(self) -> None:
        columns = np.array(self.rows).T
        self.begin, self.seconds, self.watts, self.slope = columns[:4]
        self.tail_w, self.tail_s, self.call_s, self.ripple, self.high = columns[4:]
        self.before = np.zeros(len(self.rows))
        whole = self._within(np.arange(len(self.rows)), self.seconds)
        self.before[1:] = np.cumsum(whole)[:-1]

    def _within(self, k: npt.NDArray[np.intp], t: Floats) -> Floats:
        joules = self.watts[k] * t + self.slope[k] * t**2 / 2
        joules += self.tail_w[k] * self.tail_s[k] * -np.expm1(-t / self.tail_s[k])
        high, up = self.high[k], self.ripple[k]
        down = up * high / (1 - high)
        phase = (t / self.call_s[k]) % 1.0
        wave = np.where(phase < high, up * phase, up * high - down * (phase - high))
        return joules + self.watts[k] * self.call_s[k] * wave

    def energy(self, t: Floats) -> Floats:
        """J from the begin of the run to each moment (s); exact."""
        k = np.clip(np.searchsorted(self.begin, t, side="right") - 1, 0, len(self.rows) - 1)
        joules: Floats = self.before[k] + self._within(k, t - self.begin[k])
        return joules


def course(
    device: Device, shape: Shape, rng: np.random.Generator
) -> tuple[Course, list[Window], list[Stretch]]:
    """One run of a device; window and stretch times still relative to the run's begin."""
    whole = Course()
    windows: list[Window] = []
    idle: list[Stretch] = []
    rest_s = shape.rest_s
    tail_s = device.decay_s or 1.0

    def ns(seconds: float) -> int:
        return EPOCH_NS + round(seconds * 1e9)

    for launch in range(shape.launches):
        factor = 1 + device.launch_power * rng.standard_normal()
        call_s = device.call_s * (1 + device.launch_time * rng.standard_normal())
        idle_w = device.idle_w * (1 + device.launch_idle * rng.standard_normal())
        calls = max(1, int(np.ceil(shape.window_s / call_s)))
        loads = 1 + (device.other_w > 0)
        length = shape.rounds * (shape.idle_s + rest_s + loads * (rest_s + calls * call_s))
        length += rest_s + shape.idle_s
        slope = device.drift_w * rng.standard_normal() / length
        begun = whole.now
        middle = begun + length / 2
        above = 0.0  # what is left over idle from the load before

        def part(seconds: float, watts: float, **more: float) -> tuple[float, float]:
            drifted = watts + slope * (whole.now - middle)  # noqa: B023 - called at once
            return whole.add(seconds, drifted, slope=slope, **more)  # noqa: B023

        def quiet(seconds: float) -> tuple[float, float]:
            nonlocal above
            span = part(seconds, idle_w, tail_w=above, tail_s=tail_s)  # noqa: B023
            above *= float(np.exp(-seconds / tail_s)) if device.decay_s else 0.0
            return span

        def stretch() -> None:
            quiet(rest_s)
            begin, end = quiet(shape.idle_s)
            idle.append(Stretch(ns(begin), ns(end), launch))  # noqa: B023

        for _ in range(shape.rounds):
            stretch()
            if device.other_w:
                quiet(rest_s)
                part(calls * call_s, device.other_w)
                above = device.other_w - idle_w if device.decay_s else 0.0
            quiet(rest_s)
            watts = device.load_w * factor * (1 + device.window_power * rng.standard_normal())
            begin, end = part(
                calls * call_s, watts, call_s=call_s, ripple=device.ripple, high=device.high
            )
            above = watts - idle_w if device.decay_s else 0.0
            windows.append(Window(ns(begin), ns(end), calls, launch))
        stretch()
        quiet(rest_s)
        # Between launches the worker is loaded again: some power, never looked at.
        whole.add(rest_s * (1 + rng.random()), idle_w + 0.3 * (device.load_w - idle_w))
    whole.close()
    return whole, windows, idle


def readings(
    sensor: Sensor, device: Course, rng: np.random.Generator
) -> tuple[npt.NDArray[np.int64], Floats]:
    """What a sensor says of a run: times (ns) and values (W or J)."""
    source = sensor.source
    period = source.period_s
    margin = 2 * period + source.lag_s
    count = int((device.now - margin) / period)
    updates = margin + (np.arange(count) + rng.random()) * period
    updates = updates + sensor.jitter * period * (rng.random(count) - 0.5)
    lags = source.lag_s * rng.random(count)
    true = updates - (lags if sensor.lag_varies else sensor.lag_s)
    looked = sensor.averaging_s or source.duty * period
    if source.quantity == "energy" and source.duty == 1:
        joules = device.energy(true)
    else:
        watts = (device.energy(true) - device.energy(true - looked)) / looked
        joules = np.cumsum(watts * np.diff(updates, prepend=updates[0] - period))
    if source.quantity == "power":
        value = watts * (1 + sensor.gain) + sensor.offset_w
        if source.resolution:
            value = np.round(value / source.resolution) * source.resolution
    else:
        value = joules * (1 + sensor.gain) + sensor.offset_w * updates + rng.random() * 1e3
        if source.resolution:
            value = np.floor(value / source.resolution) * source.resolution
        if source.wrap_j:
            value = value % source.wrap_j
    if sensor.poll_s is None:
        at = updates
    else:
        polls = int((updates[-1] - updates[0]) / sensor.poll_s) - 1
        at = updates[0] + (np.arange(polls) + rng.random(polls) * 0.2 + 0.1) * sensor.poll_s
        value = value[np.searchsorted(updates, at, side="right") - 1]
    return EPOCH_NS + np.round((at + sensor.clock_s) * 1e9).astype(np.int64), value


def simulate(device: Device, shape: Shape, sensor: Sensor, rng: np.random.Generator) -> Run:
    """One run of a device as a sensor saw it."""
    whole, windows, idle = course(device, shape, rng)
    t_ns, value = readings(sensor, whole, rng)
    return Run(sensor.source, t_ns, value, tuple(windows), tuple(idle))


# ---------------------------------------------------------------- the grid


@dataclass(frozen=True)
class Cell:
    """What is held fixed: the rest of a run is drawn.

    ``accuracy``: "fine" is a laboratory meter (gain within 0.1 to 0.5 %, fine steps), "coarse" a
    built-in one (gain within 1 to 5 %, offset up to 2 % of the load, steps up to 2 % of it).
    ``launches``: "apart" differ as processes do; of "alike" ones nothing is left to see but the
    sensor's own errors and a drift.
    """

    period_s: float
    duty: float
    quantity: str
    accuracy: str
    launches: str = "apart"


PERIODS_S = (0.001, 0.01, 0.1, 1.0)
DUTIES = (0.25, 0.5, 1.0)
QUANTITIES = ("power", "energy")
ACCURACIES = ("fine", "coarse")
LAUNCHES = ("apart", "alike")
GRID = tuple(
    Cell(period, duty, quantity, accuracy, launches)
    for quantity in QUANTITIES
    for accuracy in ACCURACIES
    for launches in LAUNCHES
    for duty in DUTIES
    for period in PERIODS_S
)


def draw(cell: Cell, rng: np.random.Generator) -> tuple[Device, Shape, Sensor]:
    """A device, a run's shape and a sensor of a cell."""
    period = cell.period_s
    load = 10 ** rng.uniform(0.5, 2.5)
    low = load * rng.uniform(0.15, 0.7)
    fine = cell.accuracy == "fine"
    gain_bound = rng.uniform(0.001, 0.005) if fine else rng.uniform(0.01, 0.05)
    offset_bound = load * (rng.uniform(0, 0.001) if fine else rng.uniform(0, 0.02))
    lag = period * rng.uniform(0, 0.7) * (rng.random() < 0.6)
    power = cell.quantity == "power"
    # Steps: of power, of a counter in terms of what it counts in one period.
    if power:
        step = load * (10 ** rng.uniform(-5, -3) if fine else 10 ** rng.uniform(-3, -1.7))
    else:
        step = load * period * (10 ** rng.uniform(-3, -1) if fine else 10 ** rng.uniform(-1, 0.3))
    source = Source(
        quantity="power" if power else "energy",
        period_s=period,
        resolution=step,
        gain_error=gain_bound,
        offset_error_w=offset_bound,
        lag_s=lag,
        averaging_s=cell.duty * period if power and rng.random() < 0.75 else None,
        duty=cell.duty,
        clock_bound_s=period * rng.uniform(0, 1) * (rng.random() < 0.5),
    )
    polled = rng.integers(3)
    poll = (None, period / rng.uniform(2, 5), period * rng.uniform(1, 1.6))[polled]
    # As long as the source asks for, by its readings or by a counter's steps at that power.
    apart = max(period, 1.1 * (poll or 0))
    busy, quiet = (apart if power else max(apart, step / watts) for watts in (load, 0.9 * low))
    window = energy.shortest_window_s(source, spacing_s=busy) * rng.uniform(1, 2.5)
    idle = energy.shortest_window_s(source, 0.05, quiet) * rng.uniform(1, 1.5)
    rest = rng.uniform(0.05, 0.3) * window
    number = int(rng.choice([3, 4, 5, 5, 5, 6, 8]))
    shape = Shape(number, int(rng.integers(2, 5)), window, idle, rest)
    device = Device(
        load_w=load,
        idle_w=low,
        call_s=period * 10 ** rng.uniform(-1.5, 0.7),
        launch_power=rng.uniform(0.002, 0.04),
        launch_time=rng.uniform(0, 0.03),
        launch_idle=rng.uniform(0, 0.02),
        window_power=rng.uniform(0, 0.01),
        high=rng.uniform(0.2, 0.8),
        ripple=rng.uniform(0, 0.25),
        drift_w=low * rng.uniform(0, 0.03),
        other_w=load * rng.uniform(0.5, 1.5) * (rng.random() < 0.5),
        decay_s=rest / rng.uniform(6, 12) * (rng.random() < 0.5),
    )
    if cell.launches == "alike":
        device = replace(
            device, launch_power=0.0, launch_time=0.0, launch_idle=0.0, window_power=0.0
        )
    if not power and rng.random() < 0.3:
        # It wraps within the run, but not oftener than it is read.
        wrap = max(load * window * rng.uniform(0.7, 3), 1100.0)
        source = replace(source, wrap_j=np.ceil(wrap / step) * step)
    sensor = Sensor(
        source=source,
        gain=gain_bound * rng.uniform(-1, 1),
        offset_w=offset_bound * rng.uniform(-1, 1),
        lag_s=lag * rng.random(),
        lag_varies=bool(rng.random() < 0.5),
        jitter=rng.uniform(0, 0.25),
        clock_s=source.clock_bound_s * rng.uniform(-1, 1),
        poll_s=poll,
    )
    return device, shape, sensor
