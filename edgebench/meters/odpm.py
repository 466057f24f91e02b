"""ODPM, the on-device power monitors of Google's Pixel 6 and later: joules of each rail.

Two chips, each an iio device (drivers/iio/power/odpm.c of Google's gs101 and gs201 kernels):

    /sys/bus/iio/devices/iio:device0/name             s2mpg10-odpm
    /sys/bus/iio/devices/iio:device0/energy_value     t=351207
                                                      CH0(T=351207)[S10M_VDD_TPU], 5601234
                                                      CH1(T=351207)[VSYS_PWR_MODEM], 29254011
    /sys/bus/iio/devices/iio:device0/enabled_rails    CH0[S10M_VDD_TPU]:TPU
    /sys/bus/iio/devices/iio:device0/sampling_rate    Hz, as 125.000000

``t`` is when the driver last asked the chip, in ms of CLOCK_BOOTTIME (``ktime_get_boottime_ns``);
behind the name stand µW·s since the channel was set. Rails lie behind the battery, so charging does
not disturb them. A rail may feed another one: they are not to be added up, and are not here.

Each reading is stamped by the driver's own t, brought to our clock by reading both clocks at once.
A read asks the chip anew when the last time was long enough ago: 50 ms in the first kernels, 20
samples of the chip in later ones; in between it repeats the old values, which are left out here.
Asking takes 1 to 2 ms (a note in the driver), and t is cut to whole ms.

Google publishes no accuracy.
"""

from __future__ import annotations

import os
import re
import time
from typing import Any, ClassVar, Dict, List, Mapping, Optional, Tuple

from edgebench.meters.base import ENERGY, Channel, Meter, MeterError, Option, Reading, clock
from edgebench.meters.sysfs import SYSFS, Attribute, Attributes, entries, optional_text

#: Eight channels of about 40 bytes; a page is the most that sysfs gives.
PAGE_BYTES = 4096

TIME_LINE = re.compile(r"t=(\d+)")
RAIL_LINE = re.compile(r"CH\d+\(T=\d+\)\[(.+)\], *(-?\d+)")
ENABLED_LINE = re.compile(r"CH\d+\[(.+)\]:.*")

#: ODPM_MIN_POLLING_TIME_MS of the first kernels, ODPM_MIN_INTERVAL_ACC_COUNT of later ones.
LEAST_PERIOD_S, PERIOD_SAMPLES = 0.050, 20

#: 1 to 2 ms for asking the chip, and t's cut to 1 ms.
LAG_S = 0.003

#: The driver asks for snapshots at up to 10 Hz to be enough (a note at the 50 ms).
POLL_S = 0.1

#: A read asks the chip anew after 50 ms, or 2.6 s at the chip's slowest rate; later than this the
#: driver does not move at all, or its t is of another clock.
STALE_S = 10.0


def parse(text: str, path: str) -> Tuple[int, Dict[str, int]]:
    """The time (ms since boot) and the energy (µW·s) by rail that ``energy_value`` shows.

    Raises:
        MeterError: bad-reading.
    """
    rows = text.split("\n")
    time_line = TIME_LINE.fullmatch(rows[0].strip())
    if time_line is None:
        raise MeterError("bad-reading", f"{path} does not begin with t=: {text[:40]!r}")
    energies: Dict[str, int] = {}
    for row in rows[1:]:
        line = RAIL_LINE.fullmatch(row.strip())
        if line is None:
            raise MeterError("bad-reading", f"{path} has a line of no rail: {row[:60]!r}")
        energies[line.group(1)] = int(line.group(2))
    return int(time_line.group(1)), energies


class Monitor:
    """One chip."""

    def __init__(self, path: str, name: str) -> None:
        self.path = path
        self.name = name

    def file(self, name: str) -> str:
        """A file of the chip."""
        return os.path.join(self.path, name)

    def enabled(self) -> Optional[List[str]]:
        """Rails that a channel measures; None where the driver does not say.

        Raises:
            MeterError: permission, io, bad-reading.
        """
        text = optional_text(self.file("enabled_rails"))
        if text is None:
            return None
        found = []
        for row in text.splitlines():
            line = ENABLED_LINE.fullmatch(row.strip())
            if line is None:
                raise MeterError("bad-reading", f"{self.file('enabled_rails')} says {row[:60]!r}")
            found.append(line.group(1))
        return found

    def period_s(self) -> float:
        """Seconds between two new values.

        Raises:
            MeterError: permission, io, bad-reading.
        """
        text = optional_text(self.file("sampling_rate"))
        if text is None:
            return LEAST_PERIOD_S
        try:
            rate_hz = float(text)
        except ValueError as error:
            path = self.file("sampling_rate")
            raise MeterError("bad-reading", f"{path} holds no number: {text[:40]!r}") from error
        return max(LEAST_PERIOD_S, PERIOD_SAMPLES / rate_hz) if rate_hz > 0 else LEAST_PERIOD_S


def monitors(sysfs: str) -> List[Monitor]:
    """The ODPM chips.

    Raises:
        MeterError: permission, io.
    """
    found = []
    for path in entries(os.path.join(sysfs, "bus", "iio", "devices"), r"iio:device\d+"):
        if os.path.exists(os.path.join(path, "energy_value")):
            name = optional_text(os.path.join(path, "name")) or os.path.basename(path)
            found.append(Monitor(path, name))
    return found


def none_here(sysfs: str) -> MeterError:
    """Why there is no monitor."""
    directory = os.path.join(sysfs, "bus", "iio", "devices")
    there = "has no energy_value" if os.path.isdir(directory) else "is not there"
    return MeterError(
        "no-device",
        f"{directory} {there}",
        "It takes a Pixel 6 or later, and root (adb root on a userdebug build, or su).",
    )


class Odpm(Meter):
    """Energy counters of a Pixel's rails, a channel each; they are never added up."""

    kind: ClassVar[str] = "odpm"
    default_scope: ClassVar[str] = "rail"
    options_taken: ClassVar[Mapping[str, Option]] = {
        "sysfs": SYSFS,
        "rails": Option(
            (list,), "names of rails, as S4M_VDD_CPUCL0; every enabled one unless said"
        ),
        "device": Option((str,), "the chip, as s2mpg10-odpm, where two have a rail of that name"),
    }

    def __init__(self, options: Mapping[str, Any], scope: Optional[str] = None) -> None:
        super().__init__(options, scope)
        rails = self.options.get("rails")
        if rails is not None and (not rails or not all(isinstance(rail, str) for rail in rails)):
            raise MeterError("bad-option", "rails must be a list of names")
        self._files = Attributes()
        #: Chip's open file, last t (ms), and rail -> channel.
        self._chips: List[Tuple[Attribute, Dict[str, int]]] = []
        self._last_ms: List[int] = []
        self._moved_ns: List[int] = []

    def _monitors(self) -> List[Monitor]:
        sysfs = str(self.options.get("sysfs", "/sys"))
        there = monitors(sysfs)
        if not there:
            raise none_here(sysfs)
        if "device" in self.options:
            names = ", ".join(monitor.name for monitor in there)
            there = [monitor for monitor in there if monitor.name == self.options["device"]]
            if not there:
                message = f"no power monitor {self.options['device']!r}"
                raise MeterError("no-device", message, f"There are: {names}.")
        return there

    def open(self) -> List[Channel]:
        there = self._monitors()
        asked: Optional[List[str]] = self.options.get("rails")
        shown: List[Tuple[Monitor, Attribute, List[str]]] = []
        for monitor in there:
            file = self._files.open(
                monitor.file("energy_value"), "Run as root: adb root, or su on the device."
            )
            t_ms, energies = parse(file.text(PAGE_BYTES), file.path)
            self._moment(t_ms, file.path)
            enabled = monitor.enabled()
            rails = [rail for rail in energies if enabled is None or rail in enabled]
            shown.append((monitor, file, rails))
        measured = [rail for _, _, rails in shown for rail in rails]
        for rail in dict.fromkeys(measured if asked is None else asked):
            if rail not in measured:
                raise MeterError(
                    "no-device",
                    f"no channel measures the rail {rail!r}",
                    f"Measured are: {', '.join(measured)}. Another is put on a channel by root: "
                    f"echo CH0=BUCK1M > {there[0].file('enabled_rails')} (names: available_rails).",
                )
            if measured.count(rail) > 1:
                raise MeterError(
                    "bad-option", f"two power monitors have a rail {rail!r}", "Say which by device."
                )
        channels: List[Channel] = []
        for monitor, file, rails in shown:
            wanted = [rail for rail in rails if asked is None or rail in asked]
            if not wanted:
                continue
            self._chips.append((file, {rail: len(channels) + i for i, rail in enumerate(wanted)}))
            self._last_ms.append(-1)
            self._moved_ns.append(clock())
            period_s = monitor.period_s()
            self.poll_s = max(POLL_S, self.poll_s, period_s)
            for rail in wanted:
                channels.append(self._channel(rail, monitor, period_s))
        if not channels:
            raise MeterError("not-supported", "no rail is enabled on any power monitor")
        return channels

    def _channel(self, rail: str, monitor: Monitor, period_s: float) -> Channel:
        return Channel(
            rail,
            ENERGY,
            self.scope,
            f"ODPM {monitor.name}",
            period_s=period_s,
            resolution=1e-6,
            lag_s=LAG_S,
            accuracy_source="not published: Google gives no error bound for ODPM",
        )

    def _moment(self, t_ms: int, path: str) -> int:
        """The driver's t on our clock (ns), in the middle of its millisecond.

        Raises:
            MeterError: bad-reading; it is no time of this boot.
        """
        before_ns = clock()
        boot_ns = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
        offset_ns = boot_ns - (before_ns + clock()) // 2
        t_boot_ns = t_ms * 1_000_000 + 500_000
        if not -1.0 <= (boot_ns - t_boot_ns) / 1e9 <= STALE_S:
            raise MeterError(
                "bad-reading",
                f"{path} says t={t_ms}, and this device has been up for {boot_ns // 1_000_000} ms",
                "It is of another clock (a time namespace?), or the driver doesn't ask the chip.",
            )
        return t_boot_ns - offset_ns

    def read(self) -> List[Reading]:
        found: List[Reading] = []
        for chip, (file, channels) in enumerate(self._chips):
            t_ms, energies = parse(file.text(PAGE_BYTES), file.path)
            if t_ms == self._last_ms[chip]:
                if clock() - self._moved_ns[chip] > STALE_S * 1e9:
                    raise MeterError("frozen", f"{file.path} has said t={t_ms} for {STALE_S:g} s")
                continue
            t_ns = self._moment(t_ms, file.path)
            self._last_ms[chip], self._moved_ns[chip] = t_ms, clock()
            for rail, channel in channels.items():
                if rail not in energies:
                    message = f"no channel of {file.path} measures {rail} any more"
                    raise MeterError("vanished", message, "Something wrote to enabled_rails.")
                found.append((channel, t_ns, energies[rail] * 1e-6))
        return found

    def close(self) -> None:
        self._files.close()

    @classmethod
    def find(cls, sysfs: str = "/sys") -> List[Dict[str, Any]]:
        there = monitors(sysfs)
        if not there:
            raise none_here(sysfs)
        found = []
        for monitor in there:
            table: Dict[str, Any] = {"kind": cls.kind, "device": monitor.name}
            if sysfs != "/sys":
                table["sysfs"] = sysfs
            found.append(table)
        return found
