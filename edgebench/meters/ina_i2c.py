"""TI's INA219, INA226, INA260 and INA3221 on an I2C bus that this user may open (smbus2).

For a chip that a kernel driver has, use the kinds "hwmon" or "ina3221" instead. Each chip measures
the voltage over a shunt and the voltage of the load's supply, in turn, all the time, and keeps the
means of some conversions; we set how many, and read each set of means once.

Power is bus voltage times shunt voltage over shunt, computed here: the chips' own power registers
need a calibration that rounds it to 20 or 25 steps of current, and lose its sign. The product of
two means leaves out what bus voltage and current do together within one averaging (about 20 ms):
-R·var(I) for a supply with source resistance R.

Data sheets (Texas Instruments), from which the registers and all errors are:

    INA219   SBOS448G  7.5 Electrical Characteristics; 8.6 Register Maps, Table "ADC Settings"
    INA226   SBOS547B  5.5 Electrical Characteristics; 7.1 Register Maps
    INA260   SBOS656C  7.5 Electrical Characteristics; 8.6 Register Maps
    INA3221  SBOS576B  7.5 Electrical Characteristics; 8.6 Register Maps

Errors are bounds (MAX columns), added up; of the INA226 and INA3221 with their drift from 25 °C to
0 or 50 °C, of the INA219 over its temperature range (grade A), of the INA260 at 25 °C.
"""

from __future__ import annotations

import errno
import glob
import importlib
import os
from typing import Any, ClassVar, Dict, List, Mapping, NamedTuple, Optional, Tuple

from edgebench.meters.base import (
    POWER,
    Channel,
    Meter,
    MeterError,
    Option,
    Reading,
    clock,
)

CONFIG, MANUFACTURER, DIE = 0x00, 0xFE, 0xFF
TEXAS_INSTRUMENTS = 0x5449
ADDRESSES = range(0x40, 0x50)

#: Die identity without its revision (the last four bits) -> chip.
DIES = {0x226: "INA226", 0x227: "INA260", 0x322: "INA3221"}

#: What a bus says when nobody answers at an address, by adapter.
EREMOTEIO = 121  # Linux's own; a host that is no Linux reads this file, too
SILENCE = (EREMOTEIO, errno.ENXIO, errno.EIO, errno.ETIMEDOUT)

#: A disturbed transfer is tried again so often before the chip counts as gone.
TRIES = 3

#: Without a new conversion for so long the chip stands still (seconds; a conversion takes 0.02).
STILL_S = 1.0

#: A current of 0.4 A over 100 mΩ is 40 mV, not a hair more.
ROUNDING = 1e-9

#: A bus voltage below this is no supply: the pin is not connected (V).
SUPPLY_V = 0.5

_COMMON: Mapping[str, Option] = {
    "bus": Option((int,), "the number N of /dev/i2c-N", required=True),
    "address": Option((int,), "the chip's address, 0x40 to 0x4f", required=True),
}
_SHUNT: Mapping[str, Option] = {
    "shunt_mohm": Option((int, float), "the shunt's resistance in milliohms", required=True),
    "shunt_tolerance_percent": Option(
        (int, float), "of the shunt; if not said, the gain error is unknown"
    ),
    "max_current_a": Option((int, float), "the most that will flow; refused if out of range"),
}


class Chip(NamedTuple):
    """What a data sheet says: steps, ranges and bounds, SI units; gains are ratios."""

    name: str
    #: One step of the shunt voltage (V), and the largest that it can tell.
    shunt_step: float
    shunt_range_v: float
    bus_step: float
    shunt_offset_v: float
    shunt_gain: float
    bus_offset_v: float
    bus_gain: float
    #: Seconds of one set of means, and for how long of it the shunt is looked at.
    period_s: float
    shunt_s: float
    sheet: str


#: 16 means of 1.1 ms at the shunt and 140 µs at the bus: the current is what changes.
_AVERAGES, _SHUNT_S, _BUS_S = 16, 1.1e-3, 140e-6
_PERIOD_S = _AVERAGES * (_SHUNT_S + _BUS_S)
#: The same as bits of the INA226, INA260 and INA3221: AVG, VBUSCT, VSHCT, both continuously.
_CONVERSIONS = (0b010 << 9) | (0b000 << 6) | (0b100 << 3) | 0b111


class Ina(Meter):
    """What the four chips have in common. One channel "power", or one a channel of the chip."""

    packages = ("smbus2",)
    addresses: ClassVar[range] = ADDRESSES
    #: Identity of its die; 0: it has none.
    die: ClassVar[int] = 0

    def __init__(self, options: Mapping[str, Any], scope: Optional[str] = None) -> None:
        super().__init__(options, scope)
        self.address: int = self.options["address"]
        if self.address not in self.addresses:
            raise MeterError(
                "bad-option",
                f"a {self.kind} meter has no address {self.address:#x}",
                f"It is {self.addresses[0]:#x} to {self.addresses[-1]:#x}, by its address pins.",
            )
        for name in ("shunt_mohm", "max_current_a"):
            if not self.options.get(name, 1) > 0:
                raise MeterError("bad-option", f"{name} must be above 0")
        if not 0 <= self.options.get("shunt_tolerance_percent", 0) < 100:
            raise MeterError("bad-option", "shunt_tolerance_percent must be 0 or more, below 100")
        self.chip = self.data_sheet()
        limit = self.chip.shunt_range_v / self.shunt_ohm()
        if self.options.get("max_current_a", 0) > limit * (1 + ROUNDING):
            raise MeterError(
                "bad-option",
                f"over {self.shunt_ohm() * 1e3:g} mΩ an {self.chip.name} measures up to "
                f"{limit:.3g} A, not {self.options['max_current_a']:g} A",
                "Use a smaller shunt.",
            )
        self.bus: Any = None
        self.before: Optional[int] = None
        self.last_ns = 0

    # what a chip adds

    def data_sheet(self) -> Chip:
        """Its figures, as it will be set."""
        raise NotImplementedError

    def configuration(self) -> int:
        """What is written to its configuration register."""
        raise NotImplementedError

    def identify(self) -> None:
        """Make sure that it is this chip, before anything is written to it."""
        self.require_die()

    def ready(self) -> bool:
        """Whether a set of means is there that has not been read."""
        raise NotImplementedError

    def inputs(self) -> List[Tuple[str, int, int]]:
        """Name, shunt register and bus register of each measured channel."""
        return [("power", 0x01, 0x02)]

    def shunt_and_bus(self, shunt: int, bus: int) -> Tuple[int, int]:
        """Two registers as steps, signed."""
        return signed(shunt), signed(bus)

    # the meter

    def shunt_ohm(self) -> float:
        """The shunt's resistance."""
        return float(self.options["shunt_mohm"]) / 1e3

    def open(self) -> List[Channel]:
        """Check the chip, set it, and see the supply's voltage.

        Raises:
            MeterError: driver-missing, no-device, permission, bad-option (a kernel driver has it),
                not-supported (another chip), bad-reading (no supply at its pin).
        """
        self.bus = open_bus(self.options["bus"])
        try:
            self.identify()
            wanted = self.configuration()
            before = self.word(CONFIG)
            self.write(CONFIG, wanted)
            self.before = before
            if self.word(CONFIG) != wanted:
                raise MeterError(
                    "not-supported",
                    f"{self.where()} does not keep its configuration: it is no {self.chip.name}",
                )
            self.poll_s = self.chip.period_s / 2
            self.last_ns = clock()
            while not self.ready():
                self.refuse_stillness()
            self.last_ns = clock()
        except OSError as error:
            raise self.told(error, opening=True) from error
        return [self.channel(*registers) for registers in self.inputs()]

    def read(self) -> List[Reading]:
        """The power of each channel, if there is a new set of means; else nothing.

        Raises:
            MeterError: vanished, frozen (no new conversion for a second), bad-reading (out of the
                range of the chip).
        """
        try:
            begin = clock()
            if not self.ready():
                self.refuse_stillness()
                return []
            self.last_ns = begin
            return [
                (index, begin, self.power(shunt, bus))
                for index, (_, shunt, bus) in enumerate(self.inputs())
            ]
        except OSError as error:
            raise self.told(error, opening=False) from error

    def close(self) -> None:
        """Put its configuration back."""
        bus, self.bus = self.bus, None
        if bus is None:
            return
        try:
            if self.before is not None:
                bus.write_word_data(self.address, CONFIG, swapped(self.before))
        except OSError as error:
            raise self.told(error, opening=False) from error
        finally:
            bus.close()

    def power(self, shunt_register: int, bus_register: int) -> float:
        """Watts of one channel."""
        shunt, bus = self.shunt_and_bus(self.word(shunt_register), self.word(bus_register))
        volts = shunt * self.chip.shunt_step
        if abs(volts) >= self.chip.shunt_range_v - 1.5 * self.chip.shunt_step:
            raise MeterError(
                "bad-reading",
                f"{self.where()}: more current than it can measure "
                f"({self.chip.shunt_range_v / self.shunt_ohm():.3g} A over this shunt)",
                "Use a smaller shunt, or a larger max_current_a.",
            )
        return bus * self.chip.bus_step * volts / self.shunt_ohm()

    def channel(self, name: str, shunt_register: int, bus_register: int) -> Channel:
        """What a channel delivers, at the supply's voltage of now."""
        chip, ohm = self.chip, self.shunt_ohm()
        _, bus = self.shunt_and_bus(self.word(shunt_register), self.word(bus_register))
        volts = bus * chip.bus_step
        if volts < SUPPLY_V:
            raise MeterError(
                "bad-reading",
                f"{self.where()} sees {volts:.3g} V at the load ({name}): not a supply",
                "Connect its VBUS (or IN-) pin to the device's supply, or name another channel.",
            )
        if "shunt_mohm" in self.options_taken:
            tolerance = self.options.get("shunt_tolerance_percent")
            shunt_text = "gain unknown: the shunt's tolerance is not in the profile"
            if tolerance is not None:
                shunt_text = f"shunt ± {tolerance:g} %"
        else:
            tolerance, shunt_text = 0.0, "shunt in the chip"
        chip_gain = chip.shunt_gain + chip.bus_gain + chip.bus_offset_v / volts
        return Channel(
            name,
            POWER,
            self.scope,
            f"{self.where()}, shunt {ohm * 1e3:g} mΩ",
            period_s=chip.period_s,
            resolution=chip.shunt_step / ohm * volts,
            gain_error=None if tolerance is None else chip_gain + tolerance / 100,
            offset_error_w=chip.shunt_offset_v / ohm * volts,
            lag_s=self.poll_s,
            averaging_s=chip.period_s,
            duty=chip.shunt_s / chip.period_s,
            accuracy_source=f"TI {chip.sheet}, at {volts:.3g} V; {shunt_text}",
        )

    def refuse_stillness(self) -> None:
        """Another program may have put the chip to sleep."""
        if clock() - self.last_ns > STILL_S * 1e9:
            raise MeterError(
                "frozen",
                f"{self.where()} has made no conversion for {STILL_S:g} s",
                "See what else uses it: another program may have put it to sleep.",
            )

    # the bus

    def where(self) -> str:
        """The chip and its place."""
        return f"{self.chip.name} on i2c-{self.options['bus']} at {self.address:#04x}"

    def word(self, register: int) -> int:
        """A register. The chips send the high byte first, SMBus words begin with the low one."""
        for rest in reversed(range(TRIES)):
            try:
                return swapped(self.bus.read_word_data(self.address, register))
            except OSError as error:
                if error.errno not in SILENCE or not rest:
                    raise
        raise AssertionError("not reached")

    def write(self, register: int, value: int) -> None:
        """Set a register."""
        self.bus.write_word_data(self.address, register, swapped(value))

    def require_die(self) -> None:
        """Refuse a chip with another identity."""
        manufacturer, die = self.word(MANUFACTURER), self.word(DIE)
        if manufacturer == TEXAS_INSTRUMENTS and die >> 4 == self.die:
            return
        other = DIES.get(die >> 4) if manufacturer == TEXAS_INSTRUMENTS else None
        raise MeterError(
            "not-supported",
            f"at {self.address:#04x} on i2c-{self.options['bus']} is "
            f"{'an ' + other if other else 'another chip'}, not an {self.chip.name} "
            f"(identity {manufacturer:#06x}, {die:#06x})",
            f'Use kind = "{kind_of(other)}".' if other else "Check the address.",
        )

    def told(self, error: OSError, opening: bool) -> MeterError:
        """A failure of the bus in our words."""
        bus, code = self.options["bus"], error.errno
        if code == errno.EBUSY:
            return MeterError(
                "bad-option",
                f"a kernel driver has the chip at {self.address:#04x} on i2c-{bus}",
                'Read it through that driver: kind = "hwmon" (an INA3221: kind = "ina3221").',
            )
        if code in SILENCE and not opening:
            return MeterError(
                "vanished", f"{self.where()} does not answer any more", "Check its wires."
            )
        if code in SILENCE:
            seen = [f"{address:#04x}" for address in ADDRESSES if answers(self.bus, address)]
            return MeterError(
                "no-device",
                f"nothing answers at {self.address:#04x} on i2c-{bus}; "
                + (f"chips answer at {', '.join(seen)}" if seen else "nothing from 0x40 to 0x4f"),
                "Correct the address." if seen else "Check the wires SDA, SCL, 3.3 V and ground.",
            )
        return MeterError("io", f"{self.where()}: {error.strerror}", "")

    @classmethod
    def find(cls) -> List[Dict[str, Any]]:
        """Chips of this kind on the buses of a board.

        A PC's buses are left alone: memory and voltage regulators listen there, and a read can be
        a command to them.
        """
        paths = sorted(glob.glob("/dev/i2c-*"), key=lambda path: int(path.rpartition("-")[2]))
        if not paths:
            raise no_bus("there is no /dev/i2c-*")
        if not os.path.exists("/proc/device-tree/model"):
            raise MeterError(
                "no-device",
                "the I2C buses of a PC are not searched",
                f'Name the chip in the profile: kind = "{cls.kind}", bus, address, shunt_mohm.',
            )
        found, refused = [], []
        for number in (int(path.rpartition("-")[2]) for path in paths):
            try:
                bus = open_bus(number)
            except MeterError as error:
                if error.code == "driver-missing":
                    raise
                refused.append(error)
                continue
            try:
                found += [
                    {"kind": cls.kind, "bus": number, "address": address}
                    for address in cls.addresses
                    if cls.is_at(bus, address)
                ]
            finally:
                bus.close()
        if not found and refused:
            raise refused[0]
        if not found:
            raise MeterError("no-device", f"no {cls.kind} answers on {', '.join(paths)}", "")
        return found

    @classmethod
    def is_at(cls, bus: Any, address: int) -> bool:
        """Whether this chip answers at an address, by its identity."""
        try:
            words = [bus.read_word_data(address, register) for register in (MANUFACTURER, DIE)]
        except OSError:
            return False
        manufacturer, die = map(swapped, words)
        return manufacturer == TEXAS_INSTRUMENTS and die >> 4 == cls.die


class Ina219(Ina):
    """INA219: 12 bits; the shunt voltage's range is chosen by ``max_current_a``."""

    kind = "ina219"
    options_taken: ClassVar[Mapping[str, Option]] = {**_COMMON, **_SHUNT}

    RESET = 0x399F
    #: PGA bits -> range (V) and offset of grade A (V).
    RANGES = ((0.04, 100e-6), (0.08, 125e-6), (0.16, 150e-6), (0.32, 200e-6))
    #: 32 V bus range; one bus conversion of 12 bits; 32 of the shunt; both continuously.
    SETTING = (1 << 13) | (0b0011 << 7) | (0b1101 << 3) | 0b111
    #: Conversion ready, math overflow: bits of the bus voltage register.
    CNVR, OVF = 1 << 1, 1 << 0

    def pga(self) -> int:
        """Bits of the smallest range that takes the largest current."""
        most_v = self.options.get("max_current_a", 0) * self.shunt_ohm() or self.RANGES[-1][0]
        fits = [
            bits
            for bits, (range_v, _) in enumerate(self.RANGES)
            if most_v <= range_v * (1 + ROUNDING)
        ]
        return fits[0] if fits else len(self.RANGES) - 1

    def data_sheet(self) -> Chip:
        range_v, offset_v = self.RANGES[self.pga()]
        # ± 1 % each over temperature; a 4 mV step has no offset of its own in the sheet.
        return Chip(
            "INA219",
            10e-6,
            range_v,
            4e-3,
            offset_v,
            0.01,
            0.0,
            0.01,
            17.02e-3 + 532e-6,
            17.02e-3,
            "SBOS448G",
        )

    def configuration(self) -> int:
        return self.SETTING | (self.pga() << 11)

    def identify(self) -> None:
        """It has no identity: it must hold its reset value, or what a run of ours left there."""
        held = self.word(CONFIG)
        ours = [self.SETTING | (bits << 11) for bits in range(len(self.RANGES))]
        if held in (self.RESET, *ours):
            return
        if self.word(MANUFACTURER) == TEXAS_INSTRUMENTS:
            self.require_die()
        raise MeterError(
            "not-supported",
            f"{self.where()} holds the configuration {held:#06x}, not {self.RESET:#06x}: another "
            "chip, or another program has set it",
            "Check the address, stop other programs that use it, and switch its power off and on.",
        )

    def ready(self) -> bool:
        bus = self.word(0x02)
        if bus & self.OVF:
            raise MeterError(
                "bad-reading", f"{self.where()} tells of an overflow: its data mean nothing", ""
            )
        if bus & self.CNVR:
            self.word(0x03)  # reading the power register clears the flag
            return True
        return False

    def shunt_and_bus(self, shunt: int, bus: int) -> Tuple[int, int]:
        return signed(shunt), bus >> 3

    @classmethod
    def is_at(cls, bus: Any, address: int) -> bool:
        try:
            return swapped(bus.read_word_data(address, CONFIG)) == cls.RESET
        except OSError:
            return False


class Ina226(Ina):
    """INA226: 16 bits, ± 81.92 mV over the shunt."""

    kind = "ina226"
    die = 0x226
    options_taken: ClassVar[Mapping[str, Option]] = {**_COMMON, **_SHUNT}
    #: Flags of the mask/enable register.
    MASK_ENABLE, CVRF, OVF = 0x06, 1 << 3, 1 << 2

    def data_sheet(self) -> Chip:
        # Drift over 25 K: 0.1 µV/K, 40 µV/K, 50 ppm/K.
        return Chip(
            "INA226",
            2.5e-6,
            81.92e-3,
            1.25e-3,
            10e-6 + 2.5e-6,
            0.001 + 0.00125,
            7.5e-3 + 1e-3,
            0.001 + 0.00125,
            _PERIOD_S,
            _AVERAGES * _SHUNT_S,
            "SBOS547B",
        )

    def configuration(self) -> int:
        return 0x4000 | _CONVERSIONS

    def ready(self) -> bool:
        flags = self.word(self.MASK_ENABLE)
        if flags & self.OVF:
            raise MeterError(
                "bad-reading", f"{self.where()} tells of an overflow: its data mean nothing", ""
            )
        return bool(flags & self.CVRF)


class Ina260(Ina226):
    """INA260: as the INA226, with a shunt of 2 mΩ in the chip; its register 1 is the current."""

    kind = "ina260"
    die = 0x227
    options_taken: ClassVar[Mapping[str, Option]] = {
        **_COMMON,
        "max_current_a": _SHUNT["max_current_a"],
    }
    #: The shunt in the chip. Steps of 1.25 mA, ± 5 mA and 15 A are told as its voltage here.
    SHUNT_OHM = 2e-3

    def shunt_ohm(self) -> float:
        return self.SHUNT_OHM

    def data_sheet(self) -> Chip:
        ohm = self.SHUNT_OHM
        return Chip(
            "INA260",
            1.25e-3 * ohm,
            15.0 * ohm,
            1.25e-3,
            5e-3 * ohm,
            0.0015,
            7.5e-3,
            0.001,
            _PERIOD_S,
            _AVERAGES * _SHUNT_S,
            "SBOS656C",
        )

    def configuration(self) -> int:
        return 0x6000 | _CONVERSIONS


class Ina3221I2c(Ina):
    """INA3221: three channels of 13 bits; ``channel`` picks one, otherwise all three are read."""

    kind = "ina3221-i2c"
    die = 0x322
    addresses = range(0x40, 0x44)
    options_taken: ClassVar[Mapping[str, Option]] = {
        **_COMMON,
        **_SHUNT,
        "channel": Option((int,), "1, 2 or 3; without it all three, with equal shunts"),
    }
    MASK_ENABLE, CVRF = 0x0F, 1 << 0

    def __init__(self, options: Mapping[str, Any], scope: Optional[str] = None) -> None:
        if options.get("channel", 1) not in (1, 2, 3):
            raise MeterError("bad-option", "channel of an ina3221-i2c meter is 1, 2 or 3")
        chosen = options.get("channel")
        self.channels = (1, 2, 3) if chosen is None else (chosen,)
        super().__init__(options, scope)

    def data_sheet(self) -> Chip:
        # Drift over 25 K: 0.5 µV/K, 80 µV/K, 50 ppm/K. The channels take turns.
        return Chip(
            "INA3221",
            40e-6,
            163.8e-3,
            8e-3,
            80e-6 + 12.5e-6,
            0.0025 + 0.00125,
            16e-3 + 2e-3,
            0.0025 + 0.00125,
            _PERIOD_S * len(self.channels),
            _AVERAGES * _SHUNT_S,
            "SBOS576B",
        )

    def configuration(self) -> int:
        return sum(1 << (15 - number) for number in self.channels) | _CONVERSIONS

    def ready(self) -> bool:
        return bool(self.word(self.MASK_ENABLE) & self.CVRF)

    def inputs(self) -> List[Tuple[str, int, int]]:
        return [(f"channel {number}", 2 * number - 1, 2 * number) for number in self.channels]

    def shunt_and_bus(self, shunt: int, bus: int) -> Tuple[int, int]:
        return signed(shunt) >> 3, signed(bus) >> 3


def swapped(word: int) -> int:
    """A word with its two bytes in the other order."""
    return ((word & 0xFF) << 8) | (word >> 8)


def signed(word: int) -> int:
    """16 bits in two's complement."""
    return word - 0x10000 if word & 0x8000 else word


def kind_of(chip: Optional[str]) -> str:
    """The kind that reads a chip."""
    return "ina3221-i2c" if chip == "INA3221" else str(chip).lower()


def answers(bus: Any, address: int) -> bool:
    """Whether somebody acknowledges an address."""
    try:
        bus.read_word_data(address, CONFIG)
    except OSError:
        return False
    return True


def no_bus(what: str) -> MeterError:
    """There is no such bus."""
    return MeterError(
        "no-device",
        what,
        "Enable I2C: on a Raspberry Pi sudo raspi-config nonint do_i2c 0; elsewhere "
        "sudo modprobe i2c-dev.",
    )


def open_bus(number: int) -> Any:
    """An ``smbus2.SMBus``.

    Raises:
        MeterError: driver-missing, no-device, permission, io.
    """
    try:
        smbus2 = importlib.import_module("smbus2")
    except ImportError as error:
        raise MeterError(
            "driver-missing",
            "smbus2, which talks to I2C buses, is not installed",
            "Install it with `edgebench setup --device NAME`, or there: pip install smbus2",
        ) from error
    try:
        return smbus2.SMBus(number)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENODEV, errno.ENXIO):
            raise no_bus(f"there is no /dev/i2c-{number}") from error
        if error.errno in (errno.EACCES, errno.EPERM):
            raise MeterError(
                "permission",
                f"/dev/i2c-{number} can't be opened: permission denied",
                "Join its group and log in again: sudo usermod -aG i2c $USER",
            ) from error
        raise MeterError("io", f"/dev/i2c-{number} can't be opened: {error.strerror}") from error
