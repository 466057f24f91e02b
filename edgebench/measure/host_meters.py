"""Meters of the host (USB instruments, smart plugs) during a run, and the spool that any meter has.

The meters' process is a child of this one and ends when this one does; what it had written stays.
Its directory is given by the caller, so that a later `edgebench resume` finds it.
"""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgebench.meters.base import MeterError
from edgebench.meters.sampler import EVENTS, READINGS, RECORD
from edgebench.recording import Alignment, Clock

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

#: Two clocks of quartz drift by less than this against each other; more is a stepped clock.
MAX_DRIFT = 500e-6
#: How long the meters' process may take to write down what it has (seconds).
STOP_S = 5.0


@dataclass
class Spooled:
    """What a meters' process wrote.

    Attributes:
        meters: by meter: ``channels`` and ``poll_s`` once it was open, ``failure`` if it failed.
        readings: columns of recording.READING_COLUMNS, in the order of writing.
    """

    meters: dict[int, dict[str, Any]] = field(default_factory=dict)
    readings: dict[str, npt.NDArray[Any]] = field(default_factory=dict)


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
        config = self.directory / "meters.json"
        config.write_text(
            json.dumps({"meters": self.specs, "directory": str(self.directory), "cpus": None})
        )
        with (self.directory / "meters.log").open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "edgebench.meters.sampler", "record", str(config)],
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
        try:
            process.stdin.close()
        except BrokenPipeError:
            pass  # it ended by itself; its files say why
        try:
            process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


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
    return spooled


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return b""


def to_device_clock(
    t_ns: npt.NDArray[np.int64], before: Clock, after: Clock | None
) -> tuple[npt.NDArray[np.int64], Alignment]:
    """Moments of the host's monotonic clock on the device's.

    The offset is taken to change evenly between its two estimates; the bound is the larger of
    theirs, and half the change where there is only one side to go by.

    Args:
        t_ns: [n] host ``perf_counter_ns``.

    Raises:
        MeterError: clock-stepped: the two estimates differ by more than quartz can drift.
    """
    import numpy as np

    if before.monotonic_offset_ns is None:
        raise MeterError("clock-stepped", "the recording has no offset of the monotonic clocks")
    first = before.monotonic_offset_ns
    if after is None or after.monotonic_offset_ns is None or not len(t_ns):
        method = f"{before.method}; constant"
        alignment = Alignment(offset_ns=first, bound_ns=before.bound_ns, method=method)
        return np.asarray(t_ns - first), alignment
    last = after.monotonic_offset_ns
    # The estimates were made around the run; the readings lie between them.
    span_ns = max(int(t_ns[-1] - t_ns[0]), 1)
    allowed_ns = MAX_DRIFT * span_ns + before.bound_ns + after.bound_ns
    if abs(last - first) > allowed_ns:
        raise MeterError(
            "clock-stepped",
            f"the device's clock moved by {(last - first) / 1e6:.3g} ms against the host's during "
            "the run, more than clocks drift",
            "Neither machine may sleep during a run; measure again.",
        )
    share = (t_ns - t_ns[0]) / span_ns
    offset = np.asarray(first + share * (last - first))
    alignment = Alignment(
        offset_ns=(first + last) // 2,
        bound_ns=max(before.bound_ns, after.bound_ns),
        method=f"{before.method}; linear between the run's ends",
    )
    return np.asarray(t_ns - np.rint(offset).astype(np.int64)), alignment
