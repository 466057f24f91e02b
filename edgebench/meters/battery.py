"""The battery gauge of a phone or laptop, by the kernel's power_supply class.

Files (Documentation/ABI/testing/sysfs-class-power):

    /sys/class/power_supply/battery/type           Battery
    /sys/class/power_supply/battery/scope          "Device" is a mouse's; optional
    /sys/class/power_supply/battery/status         Discharging, Charging, Not charging, Full, ...
    /sys/class/power_supply/battery/current_now    µA; negative is discharging, by the ABI
    /sys/class/power_supply/battery/voltage_now    µV
    /sys/class/power_supply/battery/power_now      µW, of ACPI batteries that show no current

The sign differs by driver: some have it the other way round, some show the absolute value (kernel
commit 05f94eb98907, "document current direction"). It is taken from the first reading while the
status is Discharging, or from the profile's ``discharge_sign``. While the battery takes current, or
a charger carries the load ("Not charging"), it says nothing about the load: that is an error, not
a figure.

Some vendors show mA for µA. No device that runs a model draws under 20 mW or over 100 W: a
value there is refused, with the factor, and never corrected by a guess; ``current_unit`` tells.

How often a gauge has a new value and how exact it is differ by gauge and are not shown. Android's
guide calls them not guaranteed to be accurate and good for comparisons on one device
(source.android.com, "Measuring device power"). A second is taken for the period, or what the
profile says.
"""

from __future__ import annotations

import os
from typing import Any, ClassVar, Dict, List, Mapping, Optional

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
from edgebench.meters.sysfs import SYSFS, Attribute, Attributes, entries, optional_text

#: Nominal seconds between two values of a gauge.
PERIOD_S = 1.0

#: A device that runs a model draws more than the one and less than the other; so 20 W read as
#: µA for mA, and 0.1 W as nA for µA, are still found.
LEAST_W, MOST_W = 0.02, 100.0

#: A cell has more than the one; a pack that somebody holds less than the other.
LEAST_V, MOST_V = 1.0, 100.0

UNITS = {"nA": 1e-9, "uA": 1e-6, "mA": 1e-3}

PULL = "Pull the charger, or the USB cable: reach the device over the network (adb tcpip 5555)."


class Supply:
    """A battery that feeds the whole device."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.name = os.path.basename(path)

    def file(self, name: str) -> str:
        """A file of the supply."""
        return os.path.join(self.path, name)

    def has(self, name: str) -> bool:
        """Whether its driver shows it."""
        return os.path.exists(self.file(name))


def supplies(sysfs: str) -> List[Supply]:
    """Batteries of the device itself: not those of a mouse, and not chargers.

    Raises:
        MeterError: permission, io.
    """
    found = []
    for path in entries(os.path.join(sysfs, "class", "power_supply"), r".+"):
        supply = Supply(path)
        if optional_text(supply.file("type")) != "Battery":
            continue
        if optional_text(supply.file("scope")) == "Device":
            continue
        if optional_text(supply.file("present")) == "0":
            continue
        if supply.has("current_now") or supply.has("power_now"):
            found.append(supply)
    return found


def none_here(sysfs: str) -> MeterError:
    """Why there is no battery to read."""
    directory = os.path.join(sysfs, "class", "power_supply")
    if not os.path.isdir(directory):
        message = f"{directory} is not there"
    else:
        names = ", ".join(os.path.basename(path) for path in entries(directory, r".+")) or "none"
        message = f"no battery that shows its current in {directory} (supplies: {names})"
    return MeterError(
        "no-device",
        message,
        "Android may hide it from apps: run as adb's shell user, or as root.",
    )


class Battery(Meter):
    """Power that a battery delivers."""

    kind: ClassVar[str] = "battery"
    default_scope: ClassVar[str] = "battery"
    options_taken: ClassVar[Mapping[str, Option]] = {
        "sysfs": SYSFS,
        "supply": Option((str,), "its name in /sys/class/power_supply, where there are several"),
        "discharge_sign": Option((int,), "-1 or 1: the sign of current_now while discharging"),
        "current_unit": Option((str,), "nA, uA (the kernel's; the default) or mA"),
        "period_s": Option((int, float), "seconds between two values of this gauge"),
    }

    def __init__(self, options: Mapping[str, Any], scope: Optional[str] = None) -> None:
        super().__init__(options, scope)
        if self.options.get("discharge_sign", 1) not in (-1, 1):
            raise MeterError("bad-option", "discharge_sign is -1 or 1")
        if self.options.get("current_unit", "uA") not in UNITS:
            raise MeterError("bad-option", f"current_unit is one of {', '.join(UNITS)}")
        if not 0 < float(self.options.get("period_s", 1)) < float("inf"):
            raise MeterError("bad-option", f"period_s can't be {self.options['period_s']}")
        self._unit_a = UNITS[str(self.options.get("current_unit", "uA"))]
        self._files = Attributes()
        self._status: Optional[Attribute] = None
        self._power: Optional[Attribute] = None
        self._current: Optional[Attribute] = None
        self._voltage: Optional[Attribute] = None
        self._sign = int(self.options.get("discharge_sign", 0))

    def _asked(self) -> Supply:
        sysfs = str(self.options.get("sysfs", "/sys"))
        there = supplies(sysfs)
        if not there:
            raise none_here(sysfs)
        names = ", ".join(supply.name for supply in there)
        if "supply" in self.options:
            there = [supply for supply in there if supply.name == self.options["supply"]]
            if not there:
                message = f"no battery {self.options['supply']!r} shows its current"
                raise MeterError("no-device", message, f"There are: {names}.")
        if len(there) > 1:
            raise MeterError(
                "bad-option",
                f"{len(there)} batteries: {names}",
                "Say which by supply; one table each for all of them. They are never added up.",
            )
        return there[0]

    def open(self) -> List[Channel]:
        supply = self._asked()
        if supply.has("status"):
            self._status = self._files.open(supply.file("status"))
        if supply.has("current_now"):
            if not supply.has("voltage_now"):
                raise MeterError("not-supported", f"{supply.path} has a current and no voltage_now")
            self._current = self._files.open(supply.file("current_now"))
            self._voltage = self._files.open(supply.file("voltage_now"))
        else:
            self._power = self._files.open(supply.file("power_now"))
        self._refuse_status()
        self._learn_sign()
        self.read()  # what can't be is told now, not in the run
        period_s = float(self.options.get("period_s", PERIOD_S))
        self.poll_s = period_s / 4
        volts = 1.0 if self._voltage is None else self._voltage.number() * 1e-6
        step_w = 1e-6 if self._power is not None else volts * self._unit_a
        return [
            Channel(
                supply.name,
                POWER,
                self.scope,
                f"battery gauge {supply.name}",
                period_s=period_s,
                resolution=step_w,  # the file's own step; the gauge's is not shown
                lag_s=period_s,
                accuracy_source="not published: source.android.com, Measuring device power",
            )
        ]

    def _refuse_status(self) -> None:
        if self._status is None:
            return
        status = self._status.text()
        if status in ("Charging", "Full", "Not charging"):
            raise MeterError(
                "charging",
                f"{self._status.path} says {status}: a charger carries the load, not the battery",
                PULL,
            )

    def _learn_sign(self) -> None:
        """Which sign of the current is discharging: from the profile, or while the status is so."""
        if self._current is None or self._sign:
            return
        if self._status is None or self._status.text() != "Discharging":
            says = "nothing" if self._status is None else self._status.text()
            raise MeterError(
                "bad-option",
                f"which sign of {self._current.path} is discharging can't be known: its status "
                f"says {says}",
                "Say it in its table: discharge_sign = -1 (the kernel's rule) or 1.",
            )
        self._sign = 1 if self._current.number() > 0 else -1

    def read(self) -> List[Reading]:
        self._refuse_status()
        begin_ns = clock()
        if self._power is not None:
            watts = abs(self._power.number()) * 1e-6  # without a sign, by ACPI
            t_ns = now_between(begin_ns, clock())
            self._refuse_power(watts, self._power, "power_now")
        else:
            assert self._current is not None
            assert self._voltage is not None
            amps = self._sign * self._current.number() * self._unit_a
            t_ns = now_between(begin_ns, clock())
            volts = self._voltage.number() * 1e-6
            if not LEAST_V <= volts <= MOST_V:
                raise MeterError(
                    "bad-reading",
                    f"{self._voltage.path} says {volts:g} V: its unit is off, by 1000 if it is mV",
                    "The kernel's rule is µV; a driver that does otherwise can't be used.",
                )
            watts = amps * volts
            if watts < -LEAST_W:
                raise MeterError(
                    "charging",
                    f"{self._current.path} says that {-amps:.3f} A flow into the battery",
                    PULL + " If nothing charges it, say discharge_sign in its table.",
                )
            self._refuse_power(watts, self._current, "current_now")
        return [(0, t_ns, watts)]

    def _refuse_power(self, watts: float, source: Attribute, name: str) -> None:
        if LEAST_W <= watts <= MOST_W:
            return
        raise MeterError(
            "bad-reading",
            f"{source.path} makes {watts:.3g} W, which no device that runs a model draws: its unit "
            "is off, most likely by a factor of 1000",
            f"Compare {name} with a meter of known unit; then say current_unit in its table "
            '("mA" where 500 means half an ampere).',
        )

    def close(self) -> None:
        self._files.close()

    @classmethod
    def find(cls, sysfs: str = "/sys") -> List[Dict[str, Any]]:
        there = supplies(sysfs)
        if not there:
            raise none_here(sysfs)
        found = []
        for supply in there:
            table: Dict[str, Any] = {"kind": cls.kind, "supply": supply.name}
            if sysfs != "/sys":
                table["sysfs"] = sysfs
            found.append(table)
        return found
