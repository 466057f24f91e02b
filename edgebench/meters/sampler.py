"""The sampling process: opens meters, reads them at their pace, writes what they say to disk.

    python -m edgebench.meters.sampler record CONFIG.json     until stdin closes
    python -m edgebench.meters.sampler probe  [KIND...]       what is here, as JSON on stdout
    python -m edgebench.meters.sampler open   < SPECS.json    open these once, as JSON on stdout

CONFIG: {"meters": [table, ...], "directory": path, "cpus": [number, ...] or null}. Written there:

    meters.bin     readings, RECORD each: meter, channel, time (ns), value (W or J)
    meters.jsonl   one JSON object a line: {"event": "open" | "failed" | "closed", "meter": ...}

It runs beside the worker, on another CPU where there is one. Stdlib only, Python >= 3.8.
"""

from __future__ import annotations

import json
import os
import select
import struct
import sys
import threading
import time
from typing import Any, Dict, List, Mapping, Optional, TextIO

from edgebench.meters.base import (
    HOST_KINDS,
    KINDS,
    Meter,
    MeterError,
    clock,
    make_meter,
    meter_class,
)

#: meter, channel, t_ns, value; little-endian, packed: 20 bytes.
RECORD = struct.Struct("<hhqd")
READINGS, EVENTS = "meters.bin", "meters.jsonl"

#: Readings reach the disk at least so often, so that a worker can look at them (seconds).
FLUSH_S = 0.2


class Writer:
    """The two files of a sampling process; several threads write."""

    def __init__(self, directory: str) -> None:
        self._lock = threading.Lock()
        self._readings = open(os.path.join(directory, READINGS), "ab", buffering=0)  # noqa: SIM115
        self._events = open(os.path.join(directory, EVENTS), "ab", buffering=0)  # noqa: SIM115
        self._waiting: List[bytes] = []
        self.failure: Optional[OSError] = None

    def reading(self, meter: int, channel: int, t_ns: int, value: float) -> None:
        """Keep a reading until the next flush."""
        with self._lock:
            self._waiting.append(RECORD.pack(meter, channel, t_ns, value))

    def flush(self) -> None:
        """Write down what was read. A disk that is full ends the sampling."""
        with self._lock:
            data = b"".join(self._waiting)
            self._waiting.clear()
            try:
                while data:
                    data = data[self._readings.write(data) :]
            except OSError as error:
                self.failure = error

    def event(self, event: str, meter: int, **more: Any) -> None:
        """Write an event down at once."""
        line = json.dumps(dict(more, event=event, meter=meter, t_ns=clock())) + "\n"
        with self._lock:
            try:
                self._events.write(line.encode())
            except OSError as error:
                self.failure = error


class Sampling:
    """One meter of a recording, in a thread."""

    def __init__(self, index: int, spec: Mapping[str, Any], writer: Writer, stop: Any) -> None:
        self.index = index
        self.spec = spec
        self.writer = writer
        self.stop = stop
        self.thread = threading.Thread(target=self.run, daemon=True)

    def run(self) -> None:
        """Open, read until told to stop, close; a failure is an event, never a crash."""
        meter: Optional[Meter] = None
        try:
            meter = make_meter(self.spec)
            channels = meter.open()
            documents = [channel.document() for channel in channels]
            self.writer.event("open", self.index, channels=documents, poll_s=meter.poll_s)
            self.loop(meter)
        except MeterError as error:
            self.writer.event("failed", self.index, **error.document())
        except Exception as error:  # noqa: BLE001 - a driver's own failures are told, not raised
            text = f"{type(error).__name__}: {error}"
            self.writer.event("failed", self.index, code="io", message=text, fix="")
        finally:
            if meter is not None:
                try:
                    meter.close()
                except Exception as error:  # noqa: BLE001 - likewise
                    text = f"{type(error).__name__}: {error}"
                    self.writer.event("failed", self.index, code="io", message=text, fix="")
            self.writer.event("closed", self.index)

    def loop(self, meter: Meter) -> None:
        """Read at the source's pace: no drift, no catching up after a delay."""
        due = time.monotonic()
        while not self.stop.is_set():
            for channel, t_ns, value in meter.read():
                self.writer.reading(self.index, channel, t_ns, value)
            if meter.streaming:
                continue
            due = max(due + meter.poll_s, time.monotonic())
            self.stop.wait(max(0.0, due - time.monotonic()))


def record(config: Mapping[str, Any], stdin: TextIO) -> int:
    """Sample until stdin closes."""
    if config.get("cpus") and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, config["cpus"])
    writer = Writer(config["directory"])
    stop = threading.Event()
    meters = [Sampling(i, spec, writer, stop) for i, spec in enumerate(config["meters"])]
    for meter in meters:
        meter.thread.start()
    while writer.failure is None:
        ready, _, _ = select.select([stdin], [], [], FLUSH_S)
        writer.flush()
        if ready and not stdin.readline():
            break
    stop.set()
    for meter in meters:
        meter.thread.join(2.0)
    writer.flush()
    return 0 if writer.failure is None else 28


def opened(spec: Mapping[str, Any]) -> Dict[str, Any]:
    """What a meter says of itself when it is opened and read once: its channels, or why not."""
    meter: Optional[Meter] = None
    try:
        meter = make_meter(spec)
        channels = meter.open()
        first = meter.read()
        return {
            "spec": dict(spec),
            "channels": [channel.document() for channel in channels],
            "readings": [list(reading) for reading in first[: 4 * len(channels)]],
            "poll_s": meter.poll_s,
        }
    except MeterError as error:
        return {"spec": dict(spec), "error": error.document()}
    except Exception as error:  # noqa: BLE001 - a driver's own failures are told, not raised
        text = f"{type(error).__name__}: {error}"
        return {"spec": dict(spec), "error": {"code": "io", "message": text, "fix": ""}}
    finally:
        if meter is not None:
            meter.close()


def probe(kinds: List[str]) -> List[Dict[str, Any]]:
    """One entry a source that is here; for a kind that is not, one that says why."""
    found: List[Dict[str, Any]] = []
    for kind in kinds or [kind for kind in KINDS if kind not in HOST_KINDS]:
        try:
            specs = meter_class(kind).find()
        except MeterError as error:
            found.append({"spec": {"kind": kind}, "error": error.document()})
        else:
            found.extend(opened(spec) for spec in specs)
    return found


def main(argv: List[str]) -> int:
    """The command line."""
    if argv[:1] == ["record"]:
        with open(argv[1], encoding="utf-8") as stream:
            config = json.load(stream)
        return record(config, sys.stdin)
    if argv[:1] == ["probe"]:
        print(json.dumps(probe(argv[1:])))  # noqa: T201
        return 0
    if argv == ["open"]:
        print(json.dumps([opened(spec) for spec in json.load(sys.stdin)]))  # noqa: T201
        return 0
    print(__doc__, file=sys.stderr)  # noqa: T201
    return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
