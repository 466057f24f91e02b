"""The INA3221 of a Jetson, by its kernel driver: three lines of a module on one chip.

JetPack 5 and later have the mainline driver (Documentation/hwmon/ina3221.rst), found below
/sys/bus/i2c/drivers/ina3221*/ADDRESS/hwmon/hwmonN:

    in1_label          VDD_IN; VDD_CPU_GPU_CV and VDD_SOC are its 2 and 3 on an Orin NX
    in1_input          mV, in steps of 8
    curr1_input        mA, in steps of 40 µV / shunt
    in1_enable         0 where the channel is switched off
    shunt1_resistor    µΩ
    update_interval    ms, for all enabled channels and averages together

There is no power file: current and voltage are multiplied here. JetPack 4 has a driver of its own
(``ina3221x``; drivers/staging/iio/meter/ina3221.c of NVIDIA's 4.9 kernel), found at
/sys/bus/i2c/drivers/ina3221x/ADDRESS/iio:deviceN:

    rail_name_0        VDD_IN, or POM_5V_IN on a Nano
    in_power0_input    mW, multiplied by the driver, rounded down

Error bounds are from the data sheet SBOS576A, Electrical Characteristics: gain 0.25 % of each of
shunt and bus at 25 °C and 50 ppm/°C more, offset 80 µV at the shunt and 16 mV at the bus. They are
put together as in hwmon.py. At 5 V and 5 mΩ the shunt's offset alone is 80 mW: this chip is made
for watts. How far the module's shunts are from their value the profile says, or the gain error is
unknown. The chip looks at one input of one channel at a time (SBOS576A, "Basic ADC Functions").
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
from edgebench.meters.sysfs import (
    SYSFS,
    Attribute,
    Attributes,
    entries,
    optional_number,
    optional_text,
)

CHANNELS = 3

#: The whole module's input: Orin NX and Nano, Xavier NX and TX2 in this order, then Nano.
WHOLE = ("VDD_IN", "POM_5V_IN")

#: SBOS576A, Electrical Characteristics, maximum values.
SHUNT_GAIN = BUS_GAIN = 0.0025
DRIFT = 2 * 50e-6
SHUNT_OFFSET_V, BUS_OFFSET_V = 80e-6, 16e-3
SHUNT_STEP_V, BUS_STEP_V = 40e-6, 8e-3

#: A board is taken to be within so much of the 25 °C of the data sheet.
AROUND_25_C = 25

#: JetPack 4's driver does not show its averaging: a period that is long, to be safe.
UNKNOWN_PERIOD_S = 1.0

#: A read waits for the end of a conversion, and holds the bus meanwhile.
FASTEST_POLL_S = 0.02

#: A current below this, against the arrow, is not the chip's offset (80 µV at 5 mΩ).
BACKWARDS_A = 0.016


class Line:
    """One channel of one chip: its label, and the files that make its power.

    Attributes:
        path: the hwmon or iio directory.
        number: 1 to 3 with hwmon, 0 to 2 with iio.
        iio: whether it is JetPack 4's driver.
    """

    def __init__(self, label: str, path: str, number: int, iio: bool) -> None:
        self.label = label
        self.path = path
        self.number = number
        self.iio = iio

    def file(self, name: str) -> str:
        """A file of the chip; # stands for the channel's number."""
        return os.path.join(self.path, name.replace("#", str(self.number)))

    @property
    def chip(self) -> str:
        """The chip's name on its bus, as 1-0040."""
        folder = os.path.dirname(os.path.realpath(self.path))
        return os.path.basename(folder if self.iio else os.path.dirname(folder))


def lines(sysfs: str) -> List[Line]:
    """Every labelled channel of every INA3221.

    Raises:
        MeterError: permission, io.
    """
    found: Dict[str, Line] = {}
    for driver in entries(os.path.join(sysfs, "bus", "i2c", "drivers"), r"ina3221.*"):
        for chip in entries(driver, r"\d+-[0-9a-f]{4}"):
            hwmons = entries(os.path.join(chip, "hwmon"), r"hwmon\d+")
            for path in [*hwmons, *entries(chip, r"iio:device\d+")]:
                iio = path not in hwmons
                for number in range(CHANNELS) if iio else range(1, CHANNELS + 1):
                    name = f"rail_name_{number}" if iio else f"in{number}_label"
                    label = optional_text(os.path.join(path, name))
                    if label:
                        line = Line(label, path, number, iio)
                        found.setdefault(os.path.realpath(line.file(name)), line)
    return list(found.values())


def none_here(sysfs: str) -> MeterError:
    """Why there is no channel."""
    directory = os.path.join(sysfs, "bus", "i2c", "drivers")
    drivers = [os.path.basename(path) for path in entries(directory, r"ina3221.*")]
    if not drivers:
        message = f"no driver of an INA3221 in {directory}"
    else:
        message = f"the driver {drivers[0]} has no chip with labelled channels"
    return MeterError(
        "no-device",
        message,
        "Jetson modules have the chip and NVIDIA's kernel its driver: sudo modprobe ina3221. For "
        "a chip of your own without a driver, use kind ina3221-i2c.",
    )


class Ina3221(Meter):
    """Lines of a Jetson module, a channel each; they are never added up."""

    kind: ClassVar[str] = "ina3221"
    default_scope: ClassVar[str] = "module"
    options_taken: ClassVar[Mapping[str, Option]] = {
        "sysfs": SYSFS,
        "label": Option((str, list), "a line or a list of lines; the module's input unless said"),
        "shunt_tolerance_percent": Option((int, float), "how far the shunts may be off"),
        "accuracy_percent": Option(
            (int, float), "bound of the relative error, where the profile knows it (a calibration)"
        ),
        "period_s": Option((int, float), "seconds between two values, for JetPack 4's driver"),
    }

    def __init__(self, options: Mapping[str, Any], scope: Optional[str] = None) -> None:
        super().__init__(options, scope)
        label = options.get("label")
        texts = label if isinstance(label, list) else [label] if label is not None else []
        if label == [] or not all(isinstance(text, str) for text in texts):
            raise MeterError("bad-option", f"label must be a text or a list of them, not {label!r}")
        for name in ("shunt_tolerance_percent", "accuracy_percent", "period_s"):
            least = 0.0 if name != "period_s" else 1e-6
            if name in options and not least <= float(options[name]) < float("inf"):
                raise MeterError("bad-option", f"{name} can't be {options[name]}")
        self._labels = list(dict.fromkeys(texts))
        self._own_scope = scope
        self._files = Attributes()
        #: Per channel: power alone, or current and voltage.
        self._sources: List[List[Attribute]] = []

    def _asked(self) -> List[Line]:
        sysfs = str(self.options.get("sysfs", "/sys"))
        there = lines(sysfs)
        if not there:
            raise none_here(sysfs)
        labels = self._labels or [name for name in WHOLE if name in {x.label for x in there}][:1]
        listed = ", ".join(f"{line.label} ({line.chip})" for line in there)
        if not labels:
            raise MeterError(
                "no-device",
                f"no line is the whole module's input ({' or '.join(WHOLE)})",
                f"Say which by label. There are: {listed}.",
            )
        asked = []
        for label in labels:
            named = [line for line in there if line.label == label]
            if not named:
                raise MeterError("no-device", f"no line {label!r}", f"There are: {listed}.")
            if len(named) > 1:
                message = f"{len(named)} lines are called {label!r}: {listed}"
                raise MeterError("bad-option", message, "Use kind ina3221-i2c with an address.")
            asked.append(named[0])
        return asked

    def open(self) -> List[Channel]:
        channels = []
        periods = []
        for line in self._asked():
            if line.iio:
                power = self._files.open(line.file("in_power#_input"))
                power.number()
                self._sources.append([power])
                channel = self._iio_channel(line)
            else:
                if optional_number(line.file("in#_enable")) == 0:
                    raise MeterError(
                        "not-supported",
                        f"the line {line.label} is switched off",
                        f"echo 1 | sudo tee {line.file('in#_enable')}",
                    )
                current = self._files.open(line.file("curr#_input"))
                voltage = self._files.open(line.file("in#_input"))
                self._refuse_backwards(current, current.number() * 1e-3)
                self._sources.append([current, voltage])
                channel = self._hwmon_channel(line, voltage.number() * 1e-3)
            channels.append(channel)
            periods.append(channel.period_s)
        self.poll_s = max(min(periods) / 2, FASTEST_POLL_S)
        return channels

    def _scope_of(self, line: Line) -> str:
        return self._own_scope or ("module" if line.label in WHOLE else "rail")

    def _refuse_backwards(self, current: Attribute, amps: float) -> None:
        if amps < -BACKWARDS_A:
            message = f"{current.path} is negative: {amps:.3f} A flow backwards"
            raise MeterError("bad-reading", message, "A module that feeds power back has no load.")

    def _iio_channel(self, line: Line) -> Channel:
        period_s = float(self.options.get("period_s", UNKNOWN_PERIOD_S))
        gain, source = None, "SBOS576A; JetPack 4 does not show the shunt"
        if "accuracy_percent" in self.options:
            gain = float(self.options["accuracy_percent"]) / 100
            source = "accuracy_percent in the profile"
        return Channel(
            line.label,
            POWER,
            self._scope_of(line),
            f"ina3221 ({line.chip})",
            period_s=period_s,
            resolution=1e-3,
            gain_error=gain,
            lag_s=period_s,
            duty=1 / (2 * CHANNELS),
            accuracy_source=source,
        )

    def _hwmon_channel(self, line: Line, volts: float) -> Channel:
        interval_ms = optional_number(line.file("update_interval")) or 0
        shown_s = interval_ms / 1000 if interval_ms > 0 else None
        period_s = shown_s or float(self.options.get("period_s", UNKNOWN_PERIOD_S))
        shunt_ohm = (optional_number(line.file("shunt#_resistor")) or 0) * 1e-6
        offset_w: Optional[float] = None
        step_a = 1e-3  # the file's own
        if shunt_ohm > 0:
            offset_w = volts * SHUNT_OFFSET_V / shunt_ohm
            step_a = max(step_a, SHUNT_STEP_V / shunt_ohm)
        gain: Optional[float] = None
        tolerance = self.options.get("shunt_tolerance_percent")
        if "accuracy_percent" in self.options:
            gain = float(self.options["accuracy_percent"]) / 100
            source = "accuracy_percent in the profile"
        elif tolerance is None or volts <= 0:
            source = "SBOS576A; the shunt's tolerance is unknown: shunt_tolerance_percent"
        else:
            gain = SHUNT_GAIN + BUS_GAIN + DRIFT * AROUND_25_C + BUS_OFFSET_V / volts
            gain += float(tolerance) / 100
            source = f"SBOS576A, shunt ± {float(tolerance):g} %, at {volts:.2f} V and 25 ± 25 °C"
        enabled = [
            optional_number(os.path.join(line.path, f"in{number}_enable")) != 0
            for number in range(1, CHANNELS + 1)
        ]
        return Channel(
            line.label,
            POWER,
            self._scope_of(line),
            f"ina3221 ({line.chip})",
            period_s=period_s,
            resolution=volts * step_a,
            gain_error=gain,
            offset_error_w=offset_w,
            lag_s=period_s,
            averaging_s=shown_s,
            duty=1 / (2 * sum(enabled)),
            accuracy_source=source,
        )

    def read(self) -> List[Reading]:
        found = []
        for index, source in enumerate(self._sources):
            begin_ns = clock()
            first = source[0].number()
            t_ns = now_between(begin_ns, clock())  # of the current: the voltage hardly moves
            if len(source) == 1:
                watts = first * 1e-3
            else:
                self._refuse_backwards(source[0], first * 1e-3)
                watts = first * 1e-3 * source[1].number() * 1e-3
            found.append((index, t_ns, watts))
        return found

    def close(self) -> None:
        self._files.close()

    @classmethod
    def find(cls, sysfs: str = "/sys") -> List[Dict[str, Any]]:
        there = lines(sysfs)
        if not there:
            raise none_here(sysfs)
        found = []
        for line in there:
            table: Dict[str, Any] = {"kind": cls.kind, "label": line.label}
            if sysfs != "/sys":
                table["sysfs"] = sysfs
            found.append(table)
        return found
