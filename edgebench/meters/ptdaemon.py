"""A power analyser behind SPEC's PTDaemon, over its network interface (TCP, port 8888).

PTDaemon is licensed by SPEC and run by the user; this file only talks to it. The protocol is known
here from MLCommons' public client (github.com/mlcommons/power-dev, ptd_client_server/lib/server.py
and compliance/check.py at c4b3ad8); SPEC's programmer's guide is not public. Lines end in CR LF:

    Hello                    Hello, PTDaemon here!
    Identify                 <model>,...,version=<version>-...
    SR,V,300 or SR,A,Auto    Range V changed, or Error...
    Go,1000,0,edgebench      Starting untimed measurement, ... samples at 1000ms with 0 rampup ...
    RL                       Last <n> samples, then n lines of samples not read before
    Stop                     Stopping untimed measurement
    a sample                 Time,<date> <HH:MM:SS.mmm>,Watts,<W>,Volts,<V>,Amps,<A>,PF,<x>...

Analysers with several channels take ``RL,*,*``, direct-current ones ``DC-RL``; the first power in a
line is the sum. A sample is stamped by the clock of PTDaemon's machine. Only the time of day is
taken from it, for the distance between samples; dates are written in two orders by different
versions. When they happened comes from their arrival here.
"""

from __future__ import annotations

import math
import re
import socket
from typing import Any, ClassVar, Dict, List, Mapping, Optional

from edgebench.meters.base import (
    POWER,
    Channel,
    Meter,
    MeterError,
    Option,
    Reading,
    clock,
)
from edgebench.meters.instruments import (
    ACCURACY,
    ArrivalClock,
    accuracy,
    host_and_port,
    unreachable,
)

PORT = 8888
TIMEOUT_S = 3.0
GREETING = "Hello, PTDaemon here!"
#: What reads samples that were not read before: several channels, one channel, direct current.
READERS = ("RL,*,*", "RL", "DC-RL")
DEFAULT_INTERVAL_MS, SHORTEST_INTERVAL_MS, LONGEST_INTERVAL_MS = 1000, 50, 10_000
#: Intervals without a sample before the analyser counts as gone.
SILENT_INTERVALS = 10
#: Samples are asked for several times an interval: none is so late (seconds).
LATE_S = 1.0
DAY_NS = 86_400 * 10**9

SAMPLE = re.compile(
    r"^Time,[^,]*?(?P<h>\d{1,2}):(?P<m>\d{2}):(?P<s>\d{2})[.:](?P<ms>\d{3}),Watts,(?P<watts>[^,]+)"
)
HEADER = re.compile(r"^Last (\d+) samples", re.IGNORECASE)

UNKNOWN_ACCURACY = (
    "depends on the analyser and its ranges (SPEC accepts at most 1 % uncertainty). Put yours into "
    "accuracy_percent"
)


class Ptdaemon(Meter):
    """An analyser that PTDaemon reads. Unit: W, the mean over a sample's interval."""

    kind: ClassVar[str] = "ptdaemon"
    default_scope: ClassVar[str] = "wall"
    options_taken: ClassVar[Mapping[str, Option]] = {
        "host": Option((str,), "where PTDaemon runs (default 127.0.0.1:8888)"),
        "interval_ms": Option((int,), "time between samples (default 1000)"),
        "volts": Option((int, float, str), 'range of the voltage: a number, or "Auto"'),
        "amps": Option((int, float, str), 'range of the current: a number, or "Auto"'),
        **ACCURACY,
    }

    def open(self) -> List[Channel]:
        self._link: Optional[socket.socket] = None
        self._buffer = b""
        self._started = False
        self._reader: Optional[str] = None
        self._times = ArrivalClock(LATE_S)
        self._last_ns: Optional[int] = None
        self._told_ns = clock()
        where = self.options.get("host", "127.0.0.1")
        self._what = f"PTDaemon at {where}"
        self._interval_ms = int(self.options.get("interval_ms", DEFAULT_INTERVAL_MS))
        if not SHORTEST_INTERVAL_MS <= self._interval_ms <= LONGEST_INTERVAL_MS:
            raise MeterError(
                "bad-option",
                f"interval_ms is {SHORTEST_INTERVAL_MS} to {LONGEST_INTERVAL_MS}, not "
                f"{self._interval_ms}",
            )
        try:
            self._link = socket.create_connection(host_and_port(where, PORT), timeout=TIMEOUT_S)
        except OSError as error:
            raise MeterError(
                "no-device",
                unreachable(self._what, error).message,
                "Start PTDaemon for your analyser, and name its machine and port as host.",
            ) from error
        if self._ask("Hello") != GREETING:
            raise MeterError("not-supported", f"what answers at {where} is not PTDaemon")
        identity = self._ask("Identify")
        for letter, name in (("V", "volts"), ("A", "amps")):
            if name in self.options:
                self._set_range(letter, self.options[name])
        interval_s = self._interval_ms / 1000
        self.poll_s = min(interval_s / 4, 0.25)
        model = identity.split(",")[0] or "analyser"
        return [
            Channel(
                "power",
                POWER,
                self.scope,
                f"{model} by {self._what}",
                period_s=interval_s,
                resolution=0.001,
                lag_s=self.poll_s,
                averaging_s=interval_s,
                **accuracy(self.options, UNKNOWN_ACCURACY),
            )
        ]

    def read(self) -> List[Reading]:
        if not self._started:
            reply = self._ask(f"Go,{self._interval_ms},0,edgebench")
            if not reply.startswith("Starting"):
                raise MeterError(
                    "io",
                    f"{self._what} starts no measurement: {reply}",
                    "If another program measures with it, wait for its end.",
                )
            self._started = True
            self._told_ns = clock()
        lines = self._unread()
        arrival_ns = clock()
        if not lines:
            silent_s = (arrival_ns - self._told_ns) / 1e9
            if silent_s > SILENT_INTERVALS * self._interval_ms / 1000 + TIMEOUT_S:
                raise MeterError("vanished", f"{self._what} has had no sample for {silent_s:.0f} s")
            return []
        self._told_ns = arrival_ns
        return self._readings(lines, arrival_ns)

    def close(self) -> None:
        link = getattr(self, "_link", None)
        if link is None:
            return
        try:
            if self._started:
                link.sendall(b"Stop\r\n")
                self._line()
        except (OSError, MeterError):
            pass  # it is gone: there is nothing to stop
        link.close()
        self._link = None

    def _readings(self, lines: List[str], arrival_ns: int) -> List[Reading]:
        """Samples with their moments on this machine's clock."""
        samples = []
        for line in lines:
            found = SAMPLE.match(line)
            if found is None:
                raise MeterError("bad-reading", f"{self._what} says {line[:60]!r} for a sample")
            seconds = int(found["h"]) * 3600 + int(found["m"]) * 60 + int(found["s"])
            told_ns = (seconds * 1000 + int(found["ms"])) * 10**6
            samples.append((self._unwrapped(told_ns), self._power(found["watts"])))
        offset_ns = self._times.arrived(samples[-1][0], arrival_ns)
        return [(0, told_ns + offset_ns, watts) for told_ns, watts in samples]

    def _unwrapped(self, told_ns: int) -> int:
        """Time of day, always going on: over midnight, and where its clock is set.

        A clock that is set forward, or back (a day less that much forward), makes later samples
        seem to arrive early: ``ArrivalClock`` then takes the new offset.
        """
        if self._last_ns is not None:
            told_ns += self._last_ns // DAY_NS * DAY_NS
            if told_ns < self._last_ns:
                told_ns += DAY_NS
        self._last_ns = told_ns
        return told_ns

    def _power(self, text: str) -> float:
        try:
            watts = float(text)
        except ValueError:
            watts = math.nan
        # -1 is PTDaemon's way to say that the analyser gave nothing (power-dev, merge_power_logs).
        if not math.isfinite(watts) or watts == -1:
            raise MeterError(
                "bad-reading",
                f"{self._what} has no power from its analyser: {text}",
                "Check the analyser's ranges, and its display for an overload.",
            )
        if watts < 0:
            raise MeterError(
                "bad-reading",
                f"{self._what} tells {watts:g} W: the analyser is wired the wrong way round",
            )
        return watts

    def _set_range(self, letter: str, value: Any) -> None:
        reply = self._ask(f"SR,{letter},{value}")
        if not reply.startswith("Range"):
            raise MeterError("bad-option", f"{self._what} refuses the range {value!r}: {reply}")

    def _unread(self) -> List[str]:
        """Lines of the samples that were not read before."""
        for command in (self._reader,) if self._reader is not None else READERS:
            reply = self._ask(command)
            header = HEADER.match(reply)
            if header is not None:
                self._reader = command
                return [self._line() for _ in range(int(header[1]))]
        raise MeterError("bad-reading", f"{self._what} gives no samples: {reply}")

    def _ask(self, command: str) -> str:
        assert self._link is not None
        try:
            self._link.sendall(command.encode() + b"\r\n")
        except OSError as error:
            raise self._gone(error) from error
        return self._line()

    def _line(self) -> str:
        assert self._link is not None
        while b"\n" not in self._buffer:
            try:
                data = self._link.recv(1 << 16)
            except OSError as error:
                raise self._gone(error) from error
            if not data:
                raise self._gone(ConnectionResetError(0, "it closed the connection"))
            self._buffer += data
        line, _, self._buffer = self._buffer.partition(b"\n")
        return line.decode(errors="replace").strip()

    def _gone(self, error: OSError) -> MeterError:
        return MeterError(
            "vanished",
            unreachable(self._what, error).message,
            "Is PTDaemon still running, and its analyser on?",
        )

    @classmethod
    def find(cls) -> List[Dict[str, Any]]:
        try:
            with socket.create_connection(("127.0.0.1", PORT), timeout=0.5) as link:
                link.sendall(b"Hello\r\n")
                if not link.recv(256).startswith(GREETING.encode()):
                    raise MeterError("no-device", f"what listens at port {PORT} is not PTDaemon")
        except OSError as error:
            raise MeterError(
                "no-device",
                f"no PTDaemon listens at port {PORT} of this machine",
                'Start it for your analyser, or name another machine: host = "192.0.2.7:8888".',
            ) from error
        return [{"kind": cls.kind}]
