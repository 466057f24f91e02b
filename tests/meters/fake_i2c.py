"""An ``smbus2`` without a bus: chips with registers, conversions and time of their own.

The chips are made from TI's data sheets (register maps, tables of conversion times), not from
``edgebench.meters.ina_i2c``: what that writes into the configuration register decides here when a
set of means is ready and what it is of. Words come as SMBus has them: low byte first, while the
chips send the high byte first.

    bus = Bus({0x40: Ina226(volts=lambda s: 5.0, amps=lambda s: 0.8, shunt_ohm=0.01)})
    install(monkeypatch, {1: bus})       # `smbus2.SMBus(1)`

Reading a word takes 0.4 ms of the world's time, as it does at 100 kHz.
"""

from __future__ import annotations

import errno
import math
import sys
import types
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

WORD_S = 0.0004
EREMOTEIO = 121

#: INA226, INA260, INA3221: bits of a conversion time -> seconds; bits of AVG -> averages.
CONVERSION_S = (140e-6, 204e-6, 332e-6, 588e-6, 1.1e-3, 2.116e-3, 4.156e-3, 8.244e-3)
AVERAGES = (1, 4, 16, 64, 128, 256, 512, 1024)
#: INA219: bits of ADC settings -> seconds.
ADC_219 = {
    **dict.fromkeys((0b0000, 0b0100), 84e-6),
    **dict.fromkeys((0b0001, 0b0101), 148e-6),
    **dict.fromkeys((0b0010, 0b0110), 276e-6),
    **dict.fromkeys((0b0011, 0b0111, 0b1000), 532e-6),
    **{0b1001: 1.06e-3, 0b1010: 2.13e-3, 0b1011: 4.26e-3, 0b1100: 8.51e-3},
    **{0b1101: 17.02e-3, 0b1110: 34.05e-3, 0b1111: 68.10e-3},
}


class Chip:
    """A chip on a bus: what its pins see, and its registers.

    Args:
        volts, amps: at its load, as functions of the bus's seconds.
        shunt_ohm: of the real shunt.
    """

    RESET = 0x0000
    identity: Mapping[int, int]

    def __init__(
        self,
        volts: Callable[[float], float] = lambda second: 5.0,
        amps: Callable[[float], float] = lambda second: 0.5,
        shunt_ohm: float = 0.1,
    ) -> None:
        self.volts, self.amps, self.shunt_ohm = volts, amps, shunt_ohm
        self.config = self.RESET
        self.identity = dict(type(self).identity)
        self.begun = 0.0
        self.read_sets = 0
        self.overflow = False
        self.asleep = False
        self.error = 0
        self.disturbed = 0
        self.written: list[tuple[int, int]] = []

    def set_s(self) -> float:
        """Seconds that one set of means takes, by the configuration."""
        raise NotImplementedError

    def sets(self, second: float) -> int:
        """Complete sets since the configuration was written."""
        if self.config & 0b111 != 0b111 or self.asleep:
            return 0
        return math.floor((second - self.begun) / self.set_s() + 1e-9)

    def mean(self, quantity: Callable[[float], float], second: float) -> float:
        """Over the last complete set."""
        end = self.begun + self.sets(second) * self.set_s()
        return sum(quantity(end - (i + 0.5) * self.set_s() / 32) for i in range(32)) / 32

    def is_new(self, second: float) -> bool:
        return self.sets(second) > self.read_sets

    def take(self, second: float) -> None:
        """The flag of a new set is cleared."""
        self.read_sets = self.sets(second)

    def measured(self, register: int, second: float) -> int | None:
        """A register of measurements or flags, as an integer that may be negative."""
        raise NotImplementedError

    def read(self, register: int, second: float) -> int:
        if register == 0:
            return self.config
        if register in self.identity:
            return self.identity[register]
        value = self.measured(register, second)
        return 0 if value is None else value & 0xFFFF

    def write(self, register: int, value: int, second: float) -> None:
        self.written.append((register, value))
        if register == 0:
            self.config, self.begun, self.read_sets = value, second, 0


def limited(value: float, step: float, most: int) -> int:
    """Steps, rounded, held at the ends of the range."""
    return max(-most - 1, min(most, round(value / step)))


class Ina219(Chip):
    RESET = 0x399F
    identity: ClassVar[dict[int, int]] = {}

    def set_s(self) -> float:
        return ADC_219[self.config >> 7 & 0b1111] + ADC_219[self.config >> 3 & 0b1111]

    def measured(self, register: int, second: float) -> int | None:
        if register == 1:
            most = 4000 << (self.config >> 11 & 0b11)
            value = self.mean(self.amps, second) * self.shunt_ohm
            return max(-most, min(most, round(value / 10e-6)))
        if register == 2:
            flags = self.is_new(second) << 1 | self.overflow
            return limited(self.mean(self.volts, second), 4e-3, 8000) << 3 | flags
        if register == 3:
            self.take(second)
        return None


class Ina226(Chip):
    RESET = 0x4127
    identity: ClassVar[dict[int, int]] = {0xFE: 0x5449, 0xFF: 0x2260}
    STEPS = (2.5e-6, 1.25e-3)

    def set_s(self) -> float:
        one = CONVERSION_S[self.config >> 6 & 0b111] + CONVERSION_S[self.config >> 3 & 0b111]
        return AVERAGES[self.config >> 9 & 0b111] * one

    def measured(self, register: int, second: float) -> int | None:
        if register == 1:
            return limited(self.mean(self.amps, second) * self.shunt_ohm, self.STEPS[0], 32767)
        if register == 2:
            return limited(self.mean(self.volts, second), self.STEPS[1], 32767)
        if register == 6:
            flags = self.is_new(second) << 3 | self.overflow << 2
            self.take(second)
            return flags
        return None


class Ina260(Ina226):
    RESET = 0x6127
    identity: ClassVar[dict[int, int]] = {0xFE: 0x5449, 0xFF: 0x2270}
    #: Its register 1 is the current, in steps of 1.25 mA: as the voltage over 1 ohm.
    STEPS = (1.25e-3, 1.25e-3)

    def __init__(self, **pins: Any) -> None:
        super().__init__(**pins, shunt_ohm=1.0)


class Ina3221(Chip):
    RESET = 0x7127
    identity: ClassVar[dict[int, int]] = {0xFE: 0x5449, 0xFF: 0x3220}

    def set_s(self) -> float:
        one = CONVERSION_S[self.config >> 6 & 0b111] + CONVERSION_S[self.config >> 3 & 0b111]
        enabled = bin(self.config >> 12 & 0b111).count("1")
        return AVERAGES[self.config >> 9 & 0b111] * one * max(enabled, 1)

    def measured(self, register: int, second: float) -> int | None:
        if 1 <= register <= 6:
            channel = (register + 1) // 2
            if not self.config >> (15 - channel) & 1:
                return 0
            if register % 2:
                # Channel n carries n times the current.
                value = channel * self.mean(self.amps, second) * self.shunt_ohm
                return limited(value, 40e-6, 4095) << 3
            return limited(self.mean(self.volts, second), 8e-3, 4095) << 3
        if register == 0x0F:
            flags = int(self.is_new(second))
            self.take(second)
            return flags
        return None


class Bus:
    """One bus: chips by address, and its time.

    Attributes:
        open_error: errno of opening it.
        claimed: addresses that a kernel driver has (EBUSY).
    """

    def __init__(self, chips: dict[int, Chip], open_error: int = 0) -> None:
        self.chips = chips
        self.open_error = open_error
        self.claimed: set[int] = set()
        self.second = 0.0
        self.opened = 0
        self.transfers = 0

    def now_ns(self) -> int:
        """Stands in for ``time.perf_counter_ns``."""
        return round(self.second * 1e9)

    def chip(self, address: int) -> Chip:
        self.second += WORD_S
        self.transfers += 1
        if address in self.claimed:
            raise OSError(errno.EBUSY, "Device or resource busy")
        chip = self.chips.get(address)
        if chip is None:
            raise OSError(EREMOTEIO, "Remote I/O error")
        if chip.disturbed:
            chip.disturbed -= 1
            raise OSError(EREMOTEIO, "Remote I/O error")
        if chip.error:
            raise OSError(chip.error, "Remote I/O error")
        return chip


def little_endian(word: int) -> int:
    return int.from_bytes(word.to_bytes(2, "big"), "little")


def module(buses: dict[int, Bus]) -> types.ModuleType:
    """A module named smbus2 over these buses."""

    class SMBus:
        def __init__(self, bus: int) -> None:
            there = buses.get(bus)
            if there is None:
                raise FileNotFoundError(errno.ENOENT, "No such file or directory")
            if there.open_error:
                raise OSError(there.open_error, "Permission denied")
            self.bus: Bus | None = there
            there.opened += 1

        def read_word_data(self, i2c_addr: int, register: int) -> int:
            assert self.bus is not None, "closed"
            chip = self.bus.chip(i2c_addr)
            return little_endian(chip.read(register, self.bus.second))

        def write_word_data(self, i2c_addr: int, register: int, value: int) -> None:
            assert self.bus is not None, "closed"
            assert 0 <= value <= 0xFFFF
            chip = self.bus.chip(i2c_addr)
            chip.write(register, little_endian(value), self.bus.second)

        def close(self) -> None:
            if self.bus is not None:
                self.bus.opened -= 1
                self.bus = None

    made = types.ModuleType("smbus2", __doc__)
    made.__dict__["SMBus"] = SMBus
    return made


def install(monkeypatch: Any, buses: dict[int, Bus]) -> types.ModuleType:
    """``import smbus2`` finds these buses until the test ends."""
    made = module(buses)
    monkeypatch.setitem(sys.modules, "smbus2", made)
    return made
