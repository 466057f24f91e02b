"""The Raspberry Pi 5's power management chip, through ``vcgencmd pmic_read_adc``.

The firmware answers with a current and a voltage of each rail that the chip (Renesas DA9091) makes,
one a line, in amperes and volts::

     VDD_CORE_A current(7)=1.91102000A
     VDD_CORE_V volt(15)=0.87355220V
        EXT5V_V volt(24)=5.09066000V

The numbers in brackets are the ADC's inputs, not rails: current and voltage belong together by
name. We give the sum of volts times amperes over the rails that have both. That is what goes into
the SoC, its memory and the 3.3 V parts; it leaves out all that hangs on the 5 V input directly
(USB, fan, HATs: EXT5V has no current) and what the chip itself loses, so it is below what a meter
in the supply's cable shows.

Sources: Raspberry Pi documentation, "vcgencmd" (pmic_read_adc); github.com/raspberrypi/utils,
vcgencmd; captured outputs. Raspberry Pi publishes neither accuracy nor the ADC's timing.
"""

from __future__ import annotations

import math
import os
import re
import shutil
import subprocess
from typing import Any, ClassVar, Dict, List, Mapping, Tuple

from edgebench.meters.base import (
    POWER,
    Channel,
    Meter,
    MeterError,
    Option,
    Reading,
    clock,
    now_between,
)

COMMAND = ("vcgencmd", "pmic_read_adc")

LINE = re.compile(r"^\s*(\w+)_([AV])\s+(?:current|volt)\(\d+\)=(\S+?)([AV])\s*$")

#: A request every so often: each starts a process, which takes some milliseconds of a CPU.
INTERVAL_MS = 100

#: Steps of VDD_CORE's current in captured outputs (A): the coarsest, on the largest current.
CORE_STEP_A = 8.93e-3

TIMEOUT_S = 2.0


class Pi5Pmic(Meter):
    """One channel: the sum of the rails."""

    kind = "pi5-pmic"
    default_scope = "rail"
    options_taken: ClassVar[Mapping[str, Option]] = {
        "interval_ms": Option((int,), f"time between two readings; {INTERVAL_MS} if not said"),
    }

    #: Names of the rails that are summed; all of them are in every reading.
    rails: Tuple[str, ...] = ()

    def open(self) -> List[Channel]:
        """Ask three times: which rails there are, and how long it takes.

        Raises:
            MeterError: driver-missing (no vcgencmd), no-device, permission, not-supported (no
                Raspberry Pi 5), bad-reading.
        """
        interval_ms = self.options.get("interval_ms", INTERVAL_MS)
        if interval_ms < 20:
            raise MeterError("bad-option", "interval_ms of a pi5-pmic meter must be at least 20")
        self.poll_s = interval_ms / 1e3
        times = []
        watts: Dict[str, float] = {}
        text = ""
        for _ in range(3):
            begin = clock()
            text = ask()
            times.append((clock() - begin) / 1e9)
            watts = rail_powers(text)
        self.rails = tuple(watts)
        read_s = sorted(times)[1]
        core_v = values(text).get("VDD_CORE", {}).get("V", 0.0)
        return [
            Channel(
                "sum of rails",
                POWER,
                self.scope,
                f"Raspberry Pi 5 PMIC: sum of volts times amperes of {len(watts)} rails, without "
                f"USB, what hangs on 5 V, and the PMIC's own loss; a reading takes "
                f"{read_s * 1e3:.1f} ms",
                period_s=self.poll_s,
                resolution=CORE_STEP_A * core_v,
                lag_s=read_s,
                averaging_s=read_s,
                duty=min(1.0, read_s / self.poll_s),
                accuracy_source="Raspberry Pi publishes none",
            )
        ]

    def read(self) -> List[Reading]:
        """The sum now.

        Raises:
            MeterError: vanished (vcgencmd is gone), bad-reading (a rail is missing, or its value
                is no number), permission, io.
        """
        begin = clock()
        try:
            text = ask()
        except MeterError as error:
            if error.code in ("driver-missing", "no-device"):
                raise MeterError("vanished", error.message, error.fix) from error
            raise
        moment = now_between(begin, clock())
        watts = rail_powers(text)
        if tuple(watts) != self.rails:
            missing = sorted(set(self.rails).symmetric_difference(watts))
            raise MeterError(
                "bad-reading", f"vcgencmd told other rails than before: {', '.join(missing)}"
            )
        return [(0, moment, sum(watts.values()))]

    @classmethod
    def find(cls) -> List[Dict[str, Any]]:
        """The Pi itself, if its firmware answers."""
        rail_powers(ask())
        return [{"kind": cls.kind}]


def ask() -> str:
    """What vcgencmd says.

    Raises:
        MeterError: driver-missing, no-device, permission, not-supported, io.
    """
    program = shutil.which(COMMAND[0])
    if program is None:
        raise MeterError(
            "driver-missing",
            "there is no vcgencmd: this is no Raspberry Pi, or its tools are not installed",
            "On a Raspberry Pi: sudo apt install raspi-utils",
        )
    try:
        done = subprocess.run(
            [program, *COMMAND[1:]],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise MeterError("io", f"vcgencmd has not answered for {TIMEOUT_S:g} s", "") from error
    except OSError as error:
        raise MeterError("io", f"{program} can't be run: {error.strerror}", "") from error
    text = done.stdout.decode("utf-8", "replace")
    if "Command not registered" in text:
        raise MeterError(
            "not-supported",
            "this Raspberry Pi's firmware knows no pmic_read_adc: before the Pi 5 there is no "
            "current sensor",
            "Measure its supply: an INA219 or INA226 in the 5 V line, or a USB or wall meter.",
        )
    if "/dev/vcio" in text or "VCHI initialization failed" in text:
        if not os.path.exists("/dev/vcio"):
            raise MeterError(
                "no-device",
                "there is no /dev/vcio: the kernel is not Raspberry Pi's",
                "Use Raspberry Pi's own kernel (linux-rpi, linux-raspi).",
            )
        raise MeterError(
            "permission",
            "vcgencmd may not open /dev/vcio",
            "Join its group and log in again: sudo usermod -aG video $USER",
        )
    if done.returncode:
        raise MeterError("io", f"vcgencmd failed ({done.returncode}): {text.strip()[:100]}", "")
    return text


def values(text: str) -> Dict[str, Dict[str, float]]:
    """Rail -> {"A": amperes, "V": volts}, as far as they are told.

    Raises:
        MeterError: bad-reading where a rail's value is no number.
    """
    found: Dict[str, Dict[str, float]] = {}
    for line in text.splitlines():
        match = LINE.match(line)
        if match is None or match[2] != match[4]:
            continue
        try:
            found.setdefault(match[1], {})[match[2]] = float(match[3])
        except ValueError as error:
            raise MeterError(
                "bad-reading", f"vcgencmd tells no number: {line.strip()!r}"
            ) from error
    return found


def rail_powers(text: str) -> Dict[str, float]:
    """Rail -> W, of those that have a current and a voltage; by name, in their order.

    Raises:
        MeterError: bad-reading where there is none, or a value is no number.
    """
    watts = {
        rail: parts["A"] * parts["V"] for rail, parts in values(text).items() if len(parts) == 2
    }
    if not watts:
        raise MeterError(
            "bad-reading",
            f"vcgencmd tells no rail with current and voltage: {text.strip()[:100]!r}",
        )
    bad = [rail for rail, power in watts.items() if not math.isfinite(power)]
    if bad:
        raise MeterError("bad-reading", f"vcgencmd tells no number for {', '.join(bad)}")
    return watts
