"""Meters of the host (USB instruments, smart plugs) during a run, and the spool that any meter has.

The meters' process is a child of this one and ends when this one does; what it had written stays.
Its directory is given by the caller, so that a later `edgebench resume` finds it. Even if this
process is killed, the meters' process sees its input close and writes down what it has.
"""

from __future__ import annotations

import contextlib
import json
import math
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import edgebench
from edgebench.meters.base import MeterError
from edgebench.meters.sampler import EVENTS, READINGS, RECORD
from edgebench.recording import Alignment, Clock

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

#: Two clocks of quartz drift by less than this against each other; more is a stepped clock.
MAX_DRIFT = 500e-6
#: Where their drift was not seen: two ordinary crystals, ± 50 ppm each.
UNSEEN_DRIFT = 100e-6
#: Where it was seen at both ends: how much the rate changes in between, with temperature. The
#: straight line is off by at most a quarter of that times the span, in its middle.
WANDER = 2e-6
#: How long the meters' process may take to write down what it has (seconds), and each meter.
STOP_S, STOP_METER_S = 3.0, 2.0
#: What the meters' process is told; beside the spool.
CONFIG, LOG = "meters.json", "meters.log"
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


@dataclass
class Spooled:
    """What a meters' process wrote.

    Attributes:
        meters: by meter: ``channels`` and ``poll_s`` once it was open, ``failure`` if it failed.
        readings: columns of recording.READING_COLUMNS, in the order of writing.
        started_ns: when a host's sampling began (``perf_counter_ns``); None of a device's spool.
        this_boot: this machine has not been started anew since: its monotonic clock still counts
            from the same moment.
    """

    meters: dict[int, dict[str, Any]] = field(default_factory=dict)
    readings: dict[str, npt.NDArray[Any]] = field(default_factory=dict)
    started_ns: int | None = None
    this_boot: bool = True


def sampler_command(*role: str) -> list[str]:
    """The meters' process of this host, importing this very package whatever the directory."""
    where = str(Path(edgebench.__file__).parents[1])
    script = f"import runpy, sys; sys.path.insert(0, {where!r})"
    script += "; runpy.run_module('edgebench.meters.sampler', run_name='__main__', alter_sys=True)"
    return [sys.executable, "-c", script, *role]


class HostSampling:
    """The host's meters of one run.

    Args:
        specs: their tables of the profile.
        directory: exists; the spool is written there.
    """

    def __init__(self, specs: list[dict[str, Any]], directory: Path) -> None:
        self.specs = specs
        self.directory = directory
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start reading, in a process of its own."""
        config = self.directory / CONFIG
        config.write_text(
            json.dumps(
                {
                    "meters": self.specs,
                    "directory": str(self.directory),
                    "cpus": None,
                    "started_ns": time.perf_counter_ns(),
                    "boot": boot(),
                }
            )
        )
        with (self.directory / LOG).open("wb") as log:
            self._process = subprocess.Popen(
                sampler_command("record", str(config)),
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                start_new_session=True,  # Ctrl-C is this process's to handle
            )

    def stop(self) -> None:
        """End it: it writes down what it has, or is killed. Nothing happens the second time."""
        if self._process is None:
            return
        process, self._process = self._process, None
        assert process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it ended by itself; its files say why
            process.stdin.close()
        try:
            process.wait(STOP_S + STOP_METER_S * len(self.specs))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def boot() -> str | None:
    """Names the time since this machine was started; None where it can't be known."""
    try:
        return BOOT_ID.read_text().strip()
    except FileNotFoundError:
        return None


def read_spool(directory: Path) -> Spooled:
    """What a meters' process wrote; nothing where there is none. Half a line or record is left out.

    Raises:
        ValueError: a whole line is not JSON.
    """
    import numpy as np

    kinds = [("meter", "<i2"), ("channel", "<i2"), ("t_ns", "<i8"), ("value", "<f8")]
    row = np.dtype(kinds)
    assert row.itemsize == RECORD.size
    data = _bytes(directory / READINGS)
    table = np.frombuffer(data[: len(data) // row.itemsize * row.itemsize], dtype=row)
    spooled = Spooled(readings={name: table[name].copy() for name, _ in kinds})
    events = _bytes(directory / EVENTS)
    for line in events[: events.rfind(b"\n") + 1].splitlines():
        event = json.loads(line)
        meter = spooled.meters.setdefault(event["meter"], {})
        if event["event"] == "open":
            meter.update(channels=event["channels"], poll_s=event["poll_s"])
        elif event["event"] == "failed":
            failure = {key: event[key] for key in ("code", "message", "fix", "t_ns")}
            meter.setdefault("failure", failure)
    config = _bytes(directory / CONFIG)
    if config:
        told = json.loads(config)
        spooled.started_ns = told.get("started_ns")
        spooled.this_boot = told.get("boot") == boot()
    return spooled


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return b""


def to_device_clock(
    t_ns: npt.NDArray[np.int64],
    before: Clock,
    after: Clock | None,
    between_ns: tuple[int, int] | None = None,
) -> tuple[npt.NDArray[np.int64], Alignment]:
    """Moments of the host's monotonic clock on the device's.

    The offset is taken to change evenly between its two estimates. The bound is the larger of
    theirs and what the rate may have wandered; with one estimate, what it may have drifted.

    Args:
        t_ns: [n] host ``perf_counter_ns``.
        after: None where there is none, or where it was made after this host was started anew.
        between_ns: when (host ``perf_counter_ns``) the two estimates were made; without it, at the
            first and the last of ``t_ns``, which is wrong for a meter that stopped early.

    Raises:
        MeterError: clock-stepped: the two estimates differ by more than quartz can drift.
    """
    import numpy as np

    if before.monotonic_offset_ns is None:
        raise MeterError("clock-stepped", "the recording has no offset of the monotonic clocks")
    first = before.monotonic_offset_ns
    if not len(t_ns):
        return t_ns, Alignment(offset_ns=first, bound_ns=before.bound_ns, method=before.method)
    begin_ns, end_ns = between_ns or (int(t_ns.min()), int(t_ns.max()))
    if after is None or after.monotonic_offset_ns is None:
        lasted_ns = int(t_ns.max()) - min(begin_ns, int(t_ns.min()))
        alignment = Alignment(
            offset_ns=first,
            bound_ns=before.bound_ns + math.ceil(UNSEEN_DRIFT * lasted_ns),
            method=f"{before.method}; constant, drift not seen",
        )
        return t_ns - first, alignment
    last = after.monotonic_offset_ns
    span_ns = max(end_ns - begin_ns, 1)
    if abs(last - first) > MAX_DRIFT * span_ns + before.bound_ns + after.bound_ns:
        raise MeterError(
            "clock-stepped",
            f"the device's clock moved by {(first - last) / 1e6:.3g} ms against the host's during "
            "the run, more than clocks drift",
            "Neither machine may sleep during a run; measure again.",
        )
    alignment = Alignment(
        offset_ns=(first + last) // 2,
        bound_ns=max(before.bound_ns, after.bound_ns) + math.ceil(WANDER * span_ns / 4),
        method=f"{before.method}; linear between the run's ends",
    )
    # Small numbers before floating point: the offset itself may be days in nanoseconds.
    moved = np.rint((t_ns - begin_ns) / span_ns * (last - first)).astype(np.int64)
    return t_ns - first - moved, alignment
