"""macOS: what ``powermetrics`` says of CPU, GPU and Neural Engine.

It runs as root, prints a block every ``interval_ms``, and each power in it is the mean since the
block before::

    *** Sampled system activity (Fri Sep 11 13:41:46 2026 -0700) (202.90ms elapsed) ***
    ...
    CPU Power: 823 mW
    GPU Power: 26 mW
    ANE Power: 323 mW
    Combined Power (CPU + GPU + ANE): 1172 mW

Its text is read, not its plist: the text says the unit of every value. On an Intel Mac there is
"Intel energy model derived package power (CPUs+GT+SA): 2.48W" instead. Memory, display and storage
are not in it.

Source: powermetrics(1), which also says that the values are estimated, may be inaccurate, and
should not be used to compare devices. Apple publishes no accuracy.
"""

from __future__ import annotations

import contextlib
import math
import os
import re
import select
import shutil
import subprocess
import tempfile
import time
from typing import IO, Any, ClassVar, Dict, List, Mapping, Optional, Tuple

from edgebench.meters.base import POWER, Channel, Meter, MeterError, Option, Reading, clock

INTERVAL_MS = 200

HEADER = re.compile(r"^\*+ Sampled system activity .*\(([\d.]+)ms elapsed\)")
#: The whole chip ends a block's powers; its parts come before it.
WHOLE = re.compile(
    r"^(Combined Power \(CPU \+ GPU \+ ANE\)"
    r"|Intel energy model derived package power \(CPUs\+GT\+SA\)): *(\S+?) ?(m?W)$"
)
PART = re.compile(r"^((?:CPU|GPU|ANE) Power): *(\S+?) ?(m?W)$")

#: The first block comes after one interval; root's password is not waited for.
START_S = 5.0
#: ``read`` returns at least so often.
WAIT_S = 0.4
#: Silence for so many intervals, and never less than START_S, is a failure.
SILENT_INTERVALS = 10


class Powermetrics(Meter):
    """Channels: the whole SoC first, then its parts as rails, as far as they are told."""

    kind = "powermetrics"
    default_scope = "soc"
    streaming = True
    options_taken: ClassVar[Mapping[str, Option]] = {
        "interval_ms": Option((int,), f"averaging time of a value; {INTERVAL_MS} if not said"),
    }

    process: Optional[subprocess.Popen[bytes]] = None
    complaints: Optional[IO[bytes]] = None
    #: Names in the order of the channels.
    names: Tuple[str, ...] = ()

    def open(self) -> List[Channel]:
        """Start it and wait for its first block.

        Raises:
            MeterError: driver-missing, permission (not root), not-supported (no power in it), io.
        """
        self.interval_ms = self.options.get("interval_ms", INTERVAL_MS)
        if self.interval_ms < 50:
            raise MeterError(
                "bad-option", "interval_ms of a powermetrics meter must be at least 50"
            )
        self.poll_s = self.interval_ms / 1e3
        self.rest = b""
        self.header_ns = 0
        self.powers: Dict[str, float] = {}
        # A file, not a pipe: its warnings must not fill up and stop it.
        self.complaints = tempfile.TemporaryFile()  # noqa: SIM115
        self.process = start(self.interval_ms, self.complaints)
        self.heard_s = time.monotonic()
        elapsed_ms, blocks = self.first_block()
        self.names = tuple(blocks)
        late_s = max(0.0, elapsed_ms - self.interval_ms) / 1e3
        return [
            Channel(
                name,
                POWER,
                self.scope if index == 0 else "rail",
                f"macOS powermetrics, mean of {self.interval_ms} ms",
                period_s=self.poll_s,
                resolution=0.001,
                lag_s=late_s,
                averaging_s=self.poll_s,
                accuracy_source="Apple publishes none; powermetrics(1) calls it estimated",
            )
            for index, name in enumerate(self.names)
        ]

    def read(self) -> List[Reading]:
        """The blocks that came, waiting for one at most 0.4 s.

        Raises:
            MeterError: vanished (it ended), frozen (it went silent), bad-reading.
        """
        readings: List[Reading] = []
        for line, t_ns in self.lines(WAIT_S):
            done = self.take(line, t_ns)
            if done is None:
                continue
            if tuple(done) != self.names:
                missing = sorted(set(self.names).symmetric_difference(done))
                raise MeterError(
                    "bad-reading", f"powermetrics told other powers: {', '.join(missing)}"
                )
            readings += [
                (index, self.header_ns, done[name]) for index, name in enumerate(self.names)
            ]
        silence = time.monotonic() - self.heard_s
        if silence > max(START_S, SILENT_INTERVALS * self.poll_s):
            raise MeterError("frozen", f"powermetrics has said nothing for {silence:.0f} s", "")
        return readings

    def close(self) -> None:
        """End it. As root's process it can't be signalled: it ends when nobody reads it."""
        process, self.process = self.process, None
        if process is None:
            return
        assert process.stdout is not None
        process.stdout.close()
        if self.complaints is not None:
            self.complaints.close()
        with contextlib.suppress(PermissionError):
            process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(2 * self.poll_s + 1.0)

    @classmethod
    def find(cls) -> List[Dict[str, Any]]:
        """This Mac, if it has the program; whether it may run shows when it is opened."""
        program()
        return [{"kind": cls.kind}]

    def first_block(self) -> Tuple[float, Dict[str, float]]:
        """How long it took (ms), and the powers in it."""
        until = time.monotonic() + START_S + self.poll_s
        elapsed_ms = 0.0
        while time.monotonic() < until:
            for line, t_ns in self.lines(WAIT_S, opening=True):
                header = HEADER.match(line)
                if header:
                    if elapsed_ms:
                        raise MeterError(
                            "not-supported",
                            "powermetrics tells no power of this Mac",
                            "A virtual Mac has none. On another, see what "
                            "sudo powermetrics --samplers cpu_power -n 1 prints.",
                        )
                    elapsed_ms = float(header[1])
                done = self.take(line, t_ns)
                if done is not None:
                    return elapsed_ms, done
        raise MeterError("io", f"powermetrics has told no power in {START_S:g} s", "")

    def lines(self, wait_s: float, opening: bool = False) -> List[Tuple[str, int]]:
        """Whole lines that have come, with the moment (ns) when they did."""
        process = self.process
        assert process is not None
        assert process.stdout is not None
        ready, _, _ = select.select([process.stdout], [], [], wait_s)
        if not ready:
            return []
        data = os.read(process.stdout.fileno(), 1 << 16)
        t_ns = clock()
        if not data:
            raise self.ended(process, opening)
        self.heard_s = time.monotonic()
        *whole, self.rest = (self.rest + data).split(b"\n")
        return [(line.decode("utf-8", "replace").strip(), t_ns) for line in whole]

    def ended(self, process: subprocess.Popen[bytes], opening: bool) -> MeterError:
        """Why it ended."""
        status = process.wait()
        assert self.complaints is not None
        self.complaints.seek(0)
        said = self.complaints.read().decode("utf-8", "replace").strip()
        last = said.splitlines()[-1] if said else "it said nothing"
        if any(word in said for word in ("password", "superuser", "not allowed")):
            return MeterError(
                "permission",
                f"powermetrics needs root: {last}",
                "Allow this one program without a password: run sudo visudo -f "
                "/etc/sudoers.d/powermetrics and write: "
                f"{os.environ.get('USER') or 'YOU'} ALL=(root) NOPASSWD: /usr/bin/powermetrics",
            )
        code = "io" if opening else "vanished"
        return MeterError(code, f"powermetrics ended with status {status}: {last}", "")

    def take(self, line: str, t_ns: int) -> Optional[Dict[str, float]]:
        """Keep what a line says; the powers of a block, the whole first, once they are complete."""
        if HEADER.match(line):
            self.header_ns, self.powers = t_ns, {}
            return None
        part = PART.match(line)
        if part and self.header_ns and part[1] not in self.powers:
            self.powers[part[1]] = watts(part[2], part[3], line)
        whole = WHOLE.match(line)
        if whole is None or not self.header_ns:
            return None
        powers, self.powers = self.powers, {}
        return {whole[1]: watts(whole[2], whole[3], line), **powers}


def watts(number: str, unit: str, line: str) -> float:
    """A power as it is printed, in W.

    Raises:
        MeterError: bad-reading.
    """
    try:
        power = float(number) * (1e-3 if unit == "mW" else 1.0)
    except ValueError:
        power = math.nan
    if not math.isfinite(power):
        raise MeterError("bad-reading", f"powermetrics tells no number: {line!r}")
    return power


def program() -> str:
    """Where powermetrics is.

    Raises:
        MeterError: driver-missing.
    """
    found = shutil.which("powermetrics")
    if found is None:
        raise MeterError("driver-missing", "there is no powermetrics: it comes with macOS", "")
    return found


def start(interval_ms: int, complaints: IO[bytes]) -> subprocess.Popen[bytes]:
    """Start it as root, by sudo where we are not, without ever asking for a password."""
    root = [] if os.geteuid() == 0 else ["sudo", "-n"]
    command = [*root, program(), "--samplers", "cpu_power,gpu_power"]
    command += ["-i", str(interval_ms), "-b", "1"]
    try:
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=complaints,
            bufsize=0,
        )
    except OSError as error:
        raise MeterError("io", f"{command[0]} can't be run: {error.strerror}", "") from error
