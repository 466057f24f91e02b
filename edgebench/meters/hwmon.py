"""Power sensors of the kernel's hwmon class: Texas Instruments INA2xx, and other chips.

Files (Documentation/ABI/testing/sysfs-class-hwmon; Documentation/hwmon/ina2xx.rst):

    /sys/class/hwmon/hwmon2/name              ina226
    /sys/class/hwmon/hwmon2/label             what the board calls this chip; optional
    /sys/class/hwmon/hwmon2/power1_input      µW
    /sys/class/hwmon/hwmon2/power1_average    µW, of chips that average; power1_average_interval ms
    /sys/class/hwmon/hwmon2/in1_input         mV, an INA2xx's bus voltage
    /sys/class/hwmon/hwmon2/curr1_input       mA
    /sys/class/hwmon/hwmon2/shunt_resistor    µΩ, what the driver was told that the shunt is
    /sys/class/hwmon/hwmon2/update_interval   ms

An INA2xx multiplies current by voltage itself; only where its driver shows no power this is done
here. Its converter looks at the shunt and at the bus in turns, so at the current half of the time
(INA226 data sheet, 6.4.1).

What is known of an INA2xx's error is put together as a bound, worst cases added. With V the bus
voltage when the meter is opened, R the shunt:

    gain    shunt gain + bus gain + their drift over ± 25 °C + bus offset / V + shunt tolerance
    offset  V · shunt offset / R

The chip knows the shunt only by its voltage: how far R is from the value that the driver was told
stands in the profile (``shunt_tolerance_percent``), or the gain error is unknown.
"""

from __future__ import annotations

import os
import time
from typing import Any, ClassVar, Dict, List, Mapping, Optional, Tuple

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
from edgebench.meters.sysfs import (
    SYSFS,
    Attribute,
    Attributes,
    entries,
    optional_number,
    optional_text,
)

#: The data sheets state gain at 25 °C and drift per degree; a board is taken to be within so much.
AROUND_25_C = 25

#: The period of a source whose driver does not say it, unless the profile does: long, to be safe.
UNKNOWN_PERIOD_S = 1.0

#: The I2C transaction of a read takes about half a millisecond at 100 kHz.
FASTEST_POLL_S = 0.005

#: A current below this, against the arrow, is not the chip's offset.
BACKWARDS_A = 0.010

#: Power read and power multiplied are of two moments; further apart than this, a unit is off.
UNIT_FACTOR = 30.0


class Chip:
    """What the data sheet says of an INA2xx at most, and what its driver makes of it.

    Args:
        sheet: the data sheet, and where in it.
        shunt_gain, bus_gain: relative errors at 25 °C.
        shunt_offset_v, bus_offset_v: offsets at the inputs.
        drift: of both gains together, per °C.
        shunt_div, power_factor: how the driver scales (drivers/hwmon/ina2xx.c, ina2xx_config).
        period_s: two conversions, where the driver shows no update_interval.
        own_shunt_ohm: of a chip with its shunt inside, whose tolerance is in ``shunt_gain``.
    """

    def __init__(
        self,
        sheet: str,
        *,
        shunt_gain: float,
        bus_gain: float,
        shunt_offset_v: float,
        bus_offset_v: float,
        drift: float,
        shunt_div: int,
        power_factor: int,
        period_s: Optional[float] = None,
        own_shunt_ohm: Optional[float] = None,
    ) -> None:
        self.sheet = sheet
        self.shunt_gain = shunt_gain
        self.bus_gain = bus_gain
        self.shunt_offset_v = shunt_offset_v
        self.bus_offset_v = bus_offset_v
        self.drift = drift
        self.shunt_div = shunt_div
        self.power_factor = power_factor
        self.period_s = period_s
        self.own_shunt_ohm = own_shunt_ohm

    def current_step_a(self, shunt_ohm: float) -> float:
        """One step of the current register (``ina2xx_set_shunt``)."""
        return round(1e9 / self.shunt_div / (shunt_ohm * 1e6)) * 1e-6


#: A and B grade of the INA219 and INA220 can't be told apart from outside: the A grade's bounds,
#: which hold over temperature. The driver sets the widest range (PGA = /8), 12 bits, no averaging:
#: 532 µs for each of the two conversions.
CHIPS: Dict[str, Chip] = {
    "ina219": Chip(
        "SBOS448G 7.5, A grade, over temperature",
        shunt_gain=0.01,
        bus_gain=0.01,
        shunt_offset_v=200e-6,
        bus_offset_v=0.0,
        drift=0.0,
        shunt_div=100,
        power_factor=20,
        period_s=2 * 532e-6,
    ),
    "ina220": Chip(
        "SBOS459D, Electrical Characteristics, A grade, over temperature",
        shunt_gain=0.01,
        bus_gain=0.01,
        shunt_offset_v=200e-6,
        bus_offset_v=0.0,
        drift=0.0,
        shunt_div=100,
        power_factor=20,
        period_s=2 * 532e-6,
    ),
    "ina226": Chip(
        "SBOS547B 5.5",
        shunt_gain=0.001,
        bus_gain=0.001,
        shunt_offset_v=10e-6,
        bus_offset_v=7.5e-3,
        drift=2 * 50e-6,
        shunt_div=400,
        power_factor=25,
    ),
    "ina230": Chip(
        "SBOS601, Electrical Characteristics",
        shunt_gain=0.005,
        bus_gain=0.005,
        shunt_offset_v=50e-6,
        bus_offset_v=30e-3,
        drift=2 * 50e-6,
        shunt_div=400,
        power_factor=25,
    ),
    "ina260": Chip(
        "SBOS656C 7.5; of the drift only the shunt's 10 ppm/°C",
        shunt_gain=0.0015,
        bus_gain=0.001,
        shunt_offset_v=5e-3 * 2e-3,  # ± 5 mA at 2 mΩ
        bus_offset_v=7.5e-3,
        drift=10e-6,
        shunt_div=400,
        power_factor=8,
        own_shunt_ohm=2e-3,
    ),
}

#: Chips whose in1 and curr1 are of the same line, so that they may be multiplied.
PAIRED = (*CHIPS, "ina231", "ina234", "sy24655")


#: Options that say which sensor is meant.
CHOOSING = ("chip", "label", "hwmon", "channel")


class Sensor:
    """One power channel of one chip.

    Attributes:
        path: the hwmon directory.
        chip: its name.
        number: the channel's number, as in power1.
        power: the file of its power; "" where current and voltage are multiplied.
        labels: what the board calls the chip or the channel.
    """

    def __init__(self, path: str, chip: str, number: int, power: str, labels: List[str]) -> None:
        self.path = path
        self.chip = chip
        self.number = number
        self.power = power
        self.labels = labels

    @property
    def device(self) -> str:
        """The chip's name on its bus ("1-0040"), the same at each boot; or else hwmonN."""
        link = os.path.join(self.path, "device")
        found = os.path.basename(os.path.realpath(link)) if os.path.islink(link) else ""
        return found or os.path.basename(self.path)

    def file(self, name: str) -> str:
        """A file of the chip."""
        return os.path.join(self.path, name)

    def fits(self, name: str, value: Any) -> bool:
        """Whether an option of the profile means this one."""
        if name == "chip":
            return bool(self.chip == value)
        if name == "label":
            return value in self.labels
        if name == "hwmon":
            return value in (self.device, os.path.basename(self.path))
        return bool(self.number == value)

    def __str__(self) -> str:
        label = f" {self.labels[0]!r}" if self.labels else ""
        return f"{self.chip}{label} (hwmon = {self.device!r}, channel = {self.number})"


def sensors(sysfs: str) -> List[Sensor]:
    """Every channel of every chip that shows power, or the current and voltage of one line.

    Raises:
        MeterError: permission, io.
    """
    found = []
    for path in entries(os.path.join(sysfs, "class", "hwmon"), r"hwmon\d+"):
        chip = optional_text(os.path.join(path, "name")) or ""
        files = [os.path.basename(name) for name in entries(path, r"(power|in|curr)\d+_\w+")]
        own = optional_text(os.path.join(path, "label"))
        powers: Dict[int, str] = {}
        for kind in ("average", "input"):  # the second wins: it is not smoothed by the driver
            for name in files:
                if name.startswith("power") and name.endswith(f"_{kind}"):
                    powers[int(name[len("power") : -len(f"_{kind}")])] = name
        if not powers and chip in PAIRED and {"in1_input", "curr1_input"} <= set(files):
            powers[1] = ""
        for number, name in sorted(powers.items()):
            texts = [own]
            for kind in ("power", "curr", "in"):
                if f"{kind}{number}_label" in files:
                    texts.append(optional_text(os.path.join(path, f"{kind}{number}_label")))
            labels = list(dict.fromkeys(text for text in texts if text))
            found.append(Sensor(path, chip, number, name, labels))
    return found


def none_here(sysfs: str) -> MeterError:
    """Why no chip shows power."""
    directory = os.path.join(sysfs, "class", "hwmon")
    if not os.path.isdir(directory):
        message = f"{directory} is not there"
    else:
        names = [optional_text(os.path.join(p, "name")) for p in entries(directory, r"hwmon\d+")]
        chips = ", ".join(name for name in names if name) or "none"
        message = f"no hwmon chip shows power (chips: {chips})"
    return MeterError(
        "no-device",
        message,
        "An INA226 at address 0x40 of bus 1 gets its driver so: sudo modprobe ina2xx; echo ina226 "
        "0x40 | sudo tee /sys/bus/i2c/devices/i2c-1/new_device",
    )


class Hwmon(Meter):
    """Power of one line, as a chip of the hwmon class measures it."""

    kind: ClassVar[str] = "hwmon"
    options_taken: ClassVar[Mapping[str, Option]] = {
        "sysfs": SYSFS,
        "chip": Option((str,), "the chip's name, as ina226"),
        "label": Option((str,), "the chip's or the channel's label"),
        "hwmon": Option((str,), "the chip's name on its bus, as 1-0040, or hwmonN"),
        "channel": Option((int,), "the channel's number: 1 is power1"),
        "shunt_tolerance_percent": Option((int, float), "how far the shunt may be from its value"),
        "accuracy_percent": Option(
            (int, float), "bound of the relative error, where the profile knows it (a calibration)"
        ),
        "period_s": Option((int, float), "seconds between two values, where the driver shows none"),
    }

    def __init__(self, options: Mapping[str, Any], scope: Optional[str] = None) -> None:
        super().__init__(options, scope)
        for name in ("shunt_tolerance_percent", "accuracy_percent", "period_s"):
            least = 0.0 if name != "period_s" else 1e-6
            if name in options and not least <= float(options[name]) < float("inf"):
                raise MeterError("bad-option", f"{name} can't be {options[name]}")
        self._files = Attributes()
        self._power: Optional[Attribute] = None
        self._current: Optional[Attribute] = None
        self._voltage: Optional[Attribute] = None

    def _asked(self) -> Sensor:
        """The one sensor that the options name."""
        sysfs = str(self.options.get("sysfs", "/sys"))
        there = sensors(sysfs)
        if not there:
            raise none_here(sysfs)
        wanted = {name: self.options[name] for name in CHOOSING if name in self.options}
        matching = [
            sensor
            for sensor in there
            if all(sensor.fits(name, value) for name, value in wanted.items())
        ]
        listed = "; ".join(map(str, matching or there))
        if not matching:
            words = ", ".join(f"{name} = {value!r}" for name, value in wanted.items())
            raise MeterError("no-device", f"no power sensor has {words}", f"There are: {listed}.")
        if len(matching) > 1:
            raise MeterError(
                "bad-option",
                f"{len(matching)} power sensors fit: {listed}",
                "Say which by hwmon, label or channel in its table. They are never added up.",
            )
        return matching[0]

    def open(self) -> List[Channel]:
        sensor = self._asked()
        chip = CHIPS.get(sensor.chip)
        names = entries(sensor.path, r"(in1_input|curr1_input)")
        if sensor.power:
            self._power = self._files.open(sensor.file(sensor.power))
        if sensor.chip in PAIRED and len(names) == 2:
            self._current = self._files.open(sensor.file("curr1_input"))
            self._voltage = self._files.open(sensor.file("in1_input"))
        shown_s = self._period_s(sensor, chip)
        period_s = shown_s or float(self.options.get("period_s", UNKNOWN_PERIOD_S))
        self._check_signs_and_units(period_s)
        self.poll_s = max(period_s / 2, FASTEST_POLL_S)
        averages = sensor.power.endswith("_average") or sensor.chip in PAIRED
        averaging_s = shown_s if averages else None
        return [self._channel(sensor, chip, period_s, averaging_s)]

    def _period_s(self, sensor: Sensor, chip: Optional[Chip]) -> Optional[float]:
        """Seconds between two values, as the driver or the data sheet has them."""
        for name in (f"power{sensor.number}_average_interval", "update_interval"):
            if name.startswith("power") and not sensor.power.endswith("_average"):
                continue
            interval_ms = optional_number(sensor.file(name))
            if interval_ms is not None and interval_ms > 0:
                return interval_ms / 1000
        if chip is not None and chip.period_s is not None:
            return chip.period_s
        return None

    def _check_signs_and_units(self, period_s: float) -> None:
        """Refuse a shunt that is the wrong way round, and a power that is no current times voltage.

        The three values are of different moments, so it takes three disagreements.
        """
        if self._current is None or self._voltage is None:
            if self._power is not None:
                self._power.number()
            return
        ratio = 1.0
        for attempt in range(3):
            if attempt:
                time.sleep(min(period_s, 0.1))
            amps = self._current.number() * 1e-3
            self._refuse_backwards(amps)
            watts = amps * self._voltage.number() * 1e-3
            if self._power is None:
                return
            shown = self._power.number() * 1e-6
            small = max(abs(watts), abs(shown)) < 0.1  # steps of the registers count for more
            ratio = 1.0 if small else abs(shown) / max(abs(watts), 1e-9)
            if 1 / UNIT_FACTOR < ratio < UNIT_FACTOR:
                return
        assert self._power is not None
        raise MeterError(
            "bad-reading",
            f"{self._power.path} is {ratio:.3g} times current by voltage: a unit is off",
            "The driver should show µW, mA and mV; a factor of 1000 is a wrong prefix.",
        )

    def _refuse_backwards(self, amps: float) -> None:
        if amps < -BACKWARDS_A:
            assert self._current is not None
            raise MeterError(
                "bad-reading",
                f"{self._current.path} is negative: {amps:.3f} A flow backwards",
                "Swap IN+ and IN- of the shunt. A device that feeds power back can't be measured.",
            )

    def _channel(
        self, sensor: Sensor, chip: Optional[Chip], period_s: float, averaging_s: Optional[float]
    ) -> Channel:
        gain: Optional[float] = None
        offset_w: Optional[float] = None
        resolution = 1e-6  # the file's own step, µW
        source = "not published"
        if chip is not None and self._voltage is not None:
            volts = self._voltage.number() * 1e-3
            shunt_uohm = optional_number(sensor.file("shunt_resistor")) or 0
            shunt_ohm = chip.own_shunt_ohm or shunt_uohm * 1e-6
            gain, source = self._gain(chip, volts)
            if shunt_ohm > 0:
                offset_w = volts * chip.shunt_offset_v / shunt_ohm
                step_a = chip.current_step_a(shunt_ohm)
                by_chip = step_a * chip.power_factor
                resolution = by_chip if sensor.power else volts * max(step_a, 1e-3)
        if "accuracy_percent" in self.options:
            gain = float(self.options["accuracy_percent"]) / 100
            source = "accuracy_percent in the profile"
        return Channel(
            sensor.labels[0] if sensor.labels else f"power{sensor.number}",
            POWER,
            self.scope,
            f"{sensor.chip} ({sensor.device})",
            period_s=period_s,
            resolution=resolution,
            gain_error=gain,
            offset_error_w=offset_w,
            lag_s=period_s,
            averaging_s=averaging_s,
            duty=0.5 if sensor.chip in PAIRED else 1.0,
            accuracy_source=source,
        )

    def _gain(self, chip: Chip, volts: float) -> Tuple[Optional[float], str]:
        """The bound of the relative error, and where it is from."""
        tolerance = self.options.get("shunt_tolerance_percent")
        if chip.own_shunt_ohm is None and tolerance is None:
            return None, f"{chip.sheet}; the shunt's tolerance is unknown: shunt_tolerance_percent"
        if volts <= 0:
            return None, f"{chip.sheet}; no bus voltage"
        gain = chip.shunt_gain + chip.bus_gain + chip.drift * AROUND_25_C
        gain += chip.bus_offset_v / volts + float(tolerance or 0) / 100
        shunt = f", shunt ± {float(tolerance):g} %" if tolerance is not None else ""
        return gain, f"{chip.sheet}{shunt}, at {volts:.2f} V and 25 ± {AROUND_25_C} °C"

    def read(self) -> List[Reading]:
        begin_ns = clock()
        if self._power is not None:
            watts = self._power.number() * 1e-6
            t_ns = now_between(begin_ns, clock())
        else:
            assert self._current is not None
            assert self._voltage is not None
            amps = self._current.number() * 1e-3
            t_ns = now_between(begin_ns, clock())  # of the current: the voltage hardly moves
            self._refuse_backwards(amps)
            watts = amps * self._voltage.number() * 1e-3
        return [(0, t_ns, watts)]

    def close(self) -> None:
        self._files.close()

    @classmethod
    def find(cls, sysfs: str = "/sys") -> List[Dict[str, Any]]:
        there = sensors(sysfs)
        if not there:
            raise none_here(sysfs)
        found = []
        for sensor in there:
            # What the shunt sits in only its owner knows; that it is a line is certain.
            table: Dict[str, Any] = {"kind": cls.kind, "scope": "rail", "hwmon": sensor.device}
            if sensor.chip:
                table["chip"] = sensor.chip
            if sum(other.path == sensor.path for other in there) > 1:
                table["channel"] = sensor.number
            if sysfs != "/sys":
                table["sysfs"] = sysfs
            found.append(table)
        return found
