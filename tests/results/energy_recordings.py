"""Recordings with meters and a known energy, made up for tests.

A world of constant levels: idle, and one power for each artifact while it runs. Readings are taken
from the exact integral of that world, so the truth of every figure is known in closed form:

    world = World(power_w=(6.0, 4.0), call_s=(0.04, 0.02))
    recording, samples, state, readings = world.recording()
    world.energy_j(0)              J a call, idle included: power times duration
    csv = world.csv(unix=True)     the same as an instrument on the host would have logged it
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from edgebench.recording import (
    PHASES,
    READING_COLUMNS,
    SAMPLE_COLUMNS,
    Clock,
    EnergyRule,
    EnergyWindow,
    MeterChannel,
    MeterFailure,
    MeterRecord,
    Recording,
    Warmup,
)
from tests.results.make import (
    SECOND,
    make_launch,
    make_protocol,
    make_recording,
    make_state,
)

#: 2026-01-02T03:04:05Z, the run's created_at in tests.results.make.
BEGIN_UNIX_NS = 1_767_323_045 * SECOND

BOARD = MeterChannel(
    name="VDD_IN",
    quantity="power",
    scope="board",
    source="simulated sensor",
    period_s=0.05,
    resolution=0.001,
    gain_error=0.01,
    offset_error_w=0.005,
    averaging_s=0.05,
    accuracy_source="tests/results/energy_recordings.py",
)
COUNTER = BOARD.model_copy(
    update={"name": "total energy", "quantity": "energy", "averaging_s": None, "period_s": 0.1}
)


@dataclass(frozen=True)
class World:
    """What really happened.

    Attributes:
        idle_w: power with everything loaded and nothing running; also between the launches.
        power_w: power of the whole scope while each artifact runs, one an artifact.
        call_s: duration of one call of each.
        launches, rounds: energy rounds are at the end of each launch.
        window_s, idle_s, settle_s: as in EnergyRule.
        clock: the device's monotonic clock against Unix time.
        energy_windows: False as in a run where nobody asked for energy.
    """

    idle_w: float = 2.0
    power_w: tuple[float, ...] = (6.0, 4.0)
    call_s: tuple[float, ...] = (0.04, 0.02)
    launches: int = 5
    rounds: int = 3
    window_s: float = 2.0
    idle_s: float = 2.0
    settle_s: float = 0.5
    warm_s: float = 1.0
    measure_s: float = 3.0
    seed: int = 0
    clock: Clock = field(
        default_factory=lambda: Clock(
            offset_ns=BEGIN_UNIX_NS, bound_ns=100_000, method="made up", wall_offset_ns=0
        )
    )
    clock_after: Clock | None = None
    energy_windows: bool = True

    # The truth ------------------------------------------------------------------------------

    def energy_j(self, artifact: int) -> float:
        """J a call, idle included."""
        return self.power_w[artifact] * self.call_s[artifact]

    def energy_above_idle_j(self, artifact: int) -> float:
        """J a call above idle power."""
        return (self.power_w[artifact] - self.idle_w) * self.call_s[artifact]

    def plan(self) -> Iterator[tuple[str, int, int | None, float, float]]:
        """What happened in order: kind, launch, artifact, begin and end (s, the device's clock)."""
        random = np.random.default_rng(self.seed)
        number = len(self.power_w)
        for launch in range(self.launches):
            # Launches are unevenly apart, as loading and warming up take their time.
            now = launch * 100.0 + 5.0 + float(random.uniform(0, 3))
            for artifact in range(number):
                yield "warm", launch, artifact, now, now + self.warm_s
                now += self.warm_s
            yield "measure", launch, None, now, now + self.measure_s
            now += self.measure_s
            if not self.energy_windows:
                continue
            for _ in range(self.rounds):
                now += self.settle_s
                yield "idle", launch, None, now, now + self.idle_s
                now += self.idle_s
                for artifact in map(int, random.permutation(number)):
                    now += self.settle_s
                    calls = int(np.ceil(self.window_s / self.call_s[artifact]))
                    end = now + calls * self.call_s[artifact]
                    yield "window", launch, artifact, now, end
                    now = end
            now += self.settle_s
            yield "idle", launch, None, now, now + self.idle_s

    def turns(self, begin: float, end: float) -> Iterator[tuple[int, float]]:
        """Calls of the interleaved part: artifact and begin (s)."""
        now, artifact = begin, 0
        while now + 5 * self.call_s[artifact] <= end + 1e-9:
            for _ in range(5):
                yield artifact, now
                now += self.call_s[artifact]
            artifact = (artifact + 1) % len(self.power_w)

    def levels(self) -> tuple[np.ndarray, np.ndarray]:
        """Knots of the power: from ``t[i]`` to ``t[i + 1]`` it is ``w[i]``; t in seconds."""
        knots: list[tuple[float, float]] = [(-1000.0, self.idle_w)]
        for kind, _, artifact, begin, end in self.plan():
            if kind in ("window", "warm"):
                assert artifact is not None
                knots += [(begin, self.power_w[artifact]), (end, self.idle_w)]
            elif kind == "measure":
                for which, at in self.turns(begin, end):
                    knots += [
                        (at, self.power_w[which]),
                        (at + self.call_s[which], self.idle_w),
                    ]
        knots.sort(key=lambda knot: knot[0])
        times, watts = zip(*knots, strict=True)
        return np.array(times), np.array(watts)

    def energy_until(self, t_s: np.ndarray) -> np.ndarray:
        """J from the beginning until each moment: the exact integral of the levels."""
        times, watts = self.levels()
        total = np.concatenate([[0.0], np.cumsum(np.diff(times) * watts[:-1])])
        at = np.clip(np.searchsorted(times, t_s, side="right") - 1, 0, len(times) - 1)
        return total[at] + (t_s - times[at]) * watts[at]

    def mean_power(self, t_s: np.ndarray, over_s: float) -> np.ndarray:
        """W: the mean over ``over_s`` up to each moment, as an averaging sensor tells it."""
        return (self.energy_until(t_s) - self.energy_until(t_s - over_s)) / over_s

    @property
    def end_s(self) -> float:
        """When the last stretch ends."""
        return max(end for *_, end in self.plan())

    # What is recorded -----------------------------------------------------------------------

    def readings(
        self, channel: MeterChannel = BOARD, *, meter: int = 0, index: int = 0
    ) -> dict[str, np.ndarray]:
        """What a sensor of this kind said, from before the run until after it."""
        t = np.arange(-2.0, self.end_s + 5.0, channel.period_s)
        t = t + np.random.default_rng(self.seed + 1).uniform(0, 0.1 * channel.period_s, t.size)
        if channel.quantity == "energy":
            value = self.energy_until(t) - self.energy_until(np.array([-2.0]))
        else:
            value = self.mean_power(t, channel.averaging_s or 1e-6)
        if channel.resolution:
            value = np.round(value / channel.resolution) * channel.resolution
        columns = {
            "meter": np.full(t.size, meter),
            "channel": np.full(t.size, index),
            "t_ns": np.round(t * 1e9),
            "value": value,
        }
        return {name: columns[name].astype(kind) for name, kind in READING_COLUMNS.items()}

    def samples(self) -> dict[str, np.ndarray]:
        """Counted calls of the interleaved part, and those of the energy windows."""
        rows: list[tuple[float, ...]] = []
        for kind, launch, artifact, begin, end in self.plan():
            if kind == "measure":
                calls = [(a, at, "measure") for a, at in self.turns(begin, end)]
            elif kind == "window":
                assert artifact is not None
                n = round((end - begin) / self.call_s[artifact])
                calls = [(artifact, begin + i * self.call_s[artifact], "energy") for i in range(n)]
            else:
                continue
            rows += [
                (launch, a, i // 5, PHASES.index(phase), at * 1e9, self.call_s[a] * 1e9)
                for i, (a, at, phase) in enumerate(calls)
            ]
        table = np.array(rows).reshape(-1, len(SAMPLE_COLUMNS))
        return {
            name: np.round(table[:, i]).astype(kind)
            for i, (name, kind) in enumerate(SAMPLE_COLUMNS.items())
        }

    def recording(
        self,
        *channels: MeterChannel,
        failure: MeterFailure | None = None,
        **changes: Any,
    ) -> tuple[
        Recording, dict[str, np.ndarray], list[dict[str, Any]], dict[str, np.ndarray] | None
    ]:
        """A recording with one meter of these channels (none: no meter), and its three files.

        ``failure`` makes it a meter that says why it stopped.
        """
        plan = list(self.plan())
        launches = []
        for index in range(self.launches):
            mine = [each for each in plan if each[1] == index]
            (span,) = [(b, e) for kind, _, _, b, e in mine if kind == "measure"]
            launches.append(
                make_launch(
                    index,
                    len(self.power_w),
                    started_ns=index * 100 * SECOND,
                    ended_ns=round((mine[-1][4] + 1.0) * 1e9),
                    warmup=[
                        Warmup(calls=20, duration_ns=round(self.warm_s * 1e9), steady=True)
                        for _ in self.power_w
                    ],
                    window_ns=(round(span[0] * 1e9), round(span[1] * 1e9)),
                    energy_windows=[
                        EnergyWindow(
                            artifact=a,
                            begin_ns=round(b * 1e9),
                            end_ns=round(e * 1e9),
                            calls=round((e - b) / self.call_s[a]),
                        )
                        for kind, _, a, b, e in mine
                        if kind == "window" and a is not None
                    ],
                    idle_ns=[
                        (round(b * 1e9), round(e * 1e9))
                        for kind, _, _, b, e in mine
                        if kind == "idle"
                    ],
                    energy_stopped_by="enough" if self.energy_windows else None,
                )
            )
        meters = (
            [
                MeterRecord(
                    kind="hwmon",
                    spec={"kind": "hwmon", "scope": channels[0].scope},
                    runs_on="device",
                    channels=list(channels),
                    poll_s=0.05,
                    failure=failure,
                )
            ]
            if channels
            else []
        )
        rule = EnergyRule(
            window_s=self.window_s,
            idle_s=self.idle_s,
            settle_s=self.settle_s,
            min_rounds=self.rounds,
            relative_half_width=0.05,
            max_duration_s=120,
        )
        schemes = ("fp32", "int8", "int3")[: len(self.power_w)]
        fields: Mapping[str, Any] = {
            "launches": launches,
            "clock": self.clock,
            "clock_after": self.clock_after,
            "meters": meters,
            "protocol": make_protocol(self.launches, energy=rule if self.energy_windows else None),
            "power_absent": None if channels else "no power source on this device",
        }
        recording = make_recording(schemes, launches=self.launches).model_copy(
            update={**fields, **changes}
        )
        parts = [self.readings(channel, index=i) for i, channel in enumerate(channels)]
        readings = (
            {name: np.concatenate([part[name] for part in parts]) for name in READING_COLUMNS}
            if parts
            else None
        )
        return recording, self.samples(), make_state(self.launches), readings

    # What an instrument on the host would have logged ---------------------------------------

    def trace(
        self,
        *,
        period_s: float = 0.1,
        begin_s: float = -20.0,
        end_s: float | None = None,
        averaging_s: float | None = None,
        jitter: float = 0.0,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Moments (s, the device's clock) and mean power (W)."""
        end = self.end_s + 20.0 if end_s is None else end_s
        t = np.arange(begin_s, end, period_s)
        if jitter:
            t = t + np.random.default_rng(self.seed + 2).uniform(0, jitter * period_s, t.size)
        return t, self.mean_power(t, averaging_s or period_s)

    def unix(self, t_s: np.ndarray, *, ahead_s: float = 0.0) -> np.ndarray:
        """Unix time of these moments by a meter's clock that is ``ahead_s`` ahead of the host's."""
        return t_s + self.clock.offset_ns / 1e9 + ahead_s
