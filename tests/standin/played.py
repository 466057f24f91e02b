"""The files that a stand-in plays, and their values: sensors, identity, firmware answers."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping

from . import identity as pi
from .identity import Identity
from .machine import Keeper

Value = str | int | Callable[[float], object]


class Played:
    """Sets what the stand-in's programs read. The base of `Device`, where the docs say how."""

    _keeper: Keeper
    _clock: Callable[[], float]

    def boottime(self) -> float:
        """The device's CLOCK_BOOTTIME."""
        raise NotImplementedError

    def __init__(self) -> None:
        self._values: dict[str, Callable[[float], object]] = {}

    def set(self, path: str, value: Value, *, kind: str = "attribute", error: int = 0) -> None:
        """Set a played file from now on, until set again.

        `path` is below /sys ("class/thermal/thermal_zone0/temp"), or "/proc/loadavg" and the like
        (PLAYED_PROC), or "/vcgencmd/get_throttled". A value that is a function gets the device's
        CLOCK_MONOTONIC in seconds and is asked at every read; OSError from it is what the reader
        gets (any other exception ends the serving of all such values). A newline is added unless
        the text ends with one or with NUL. With `error` the file exists but every read fails with
        that errno.
        """
        path = _played(path)
        if callable(value):
            self._values[path] = value
            self._keeper.ask(op="put", path=path, text=None, kind=kind, error=error)
        else:
            self._keeper.ask(op="put", path=path, text=_line(value), kind=kind, error=error)
            self._values.pop(path, None)

    def get(self, path: str) -> str:
        """What a read of a played file gives now, a setting written by the device included."""
        path = _played(path)
        if path in self._values:
            return self._live(path)
        text = self._keeper.ask(op="text", path=path)["text"]
        if text is None:
            raise FileNotFoundError(path)
        return str(text)

    def remove(self, path: str) -> None:
        """Take a played file or folder away, as a driver that is unbound does."""
        self._keeper.ask(op="remove", path=_played(path))

    def set_power(self, watts: float | Callable[[float], float], volts: float = 5.1) -> None:
        """Make the INA226 see this power. Its registers are held and rounded as the chip's are."""
        chip = "class/hwmon/hwmon2"
        period_s = int(self.get(f"{chip}/update_interval")) / 1000

        def held(t: float) -> float:
            return watts(t // period_s * period_s) if callable(watts) else watts

        self.set(f"{chip}/in1_input", round(volts * 1000))
        self.set(f"{chip}/curr1_input", lambda t: round(held(t) / volts * 1000))
        # drivers/hwmon/ina2xx.c, INA226 on 10 mΩ: 250 µA and 25 times that, 6250 µW, a bit
        self.set(f"{chip}/power1_input", lambda t: round(held(t) * 1e6 / 6250) * 6250)

    def set_rapl(self, watts: float, packages: int = 1) -> None:
        """Make it show the energy counters of x86 packages that draw so much each.

        Only root may read them, as since Linux 5.10.
        """
        for package in range(packages):
            zone = f"class/powercap/intel-rapl:{package}"
            self.set(f"{zone}/name", f"package-{package}")
            self.set(f"{zone}/max_energy_range_uj", 262143328850)
            self.set(f"{zone}/energy_uj", lambda t: round(t * watts * 1e6), kind="secret")

    def set_jetson(self, rails: Mapping[str, tuple[float, float]]) -> None:
        """Make it show a Jetson's INA3221; up to three rails: label -> (volts, amperes)."""
        chip = "bus/i2c/drivers/ina3221/1-0040/hwmon/hwmon3"
        self.set(f"{chip}/name", "ina3221")
        self.set(f"{chip}/update_interval", 7)  # ms: three channels, each 2 x 1.1 ms
        for number, (label, (volts, amperes)) in enumerate(rails.items(), 1):
            self.set(f"{chip}/in{number}_label", label)
            self.set(f"{chip}/in{number}_enable", 1)
            self.set(f"{chip}/shunt{number}_resistor", 5000)  # µΩ
            # drivers/hwmon/ina3221.c: steps of 8 mV, and of 40 µV at the shunt
            self.set(f"{chip}/in{number}_input", round(volts * 1000 / 8) * 8)
            self.set(f"{chip}/curr{number}_input", round(amperes * 5e-3 / 40e-6) * 8)

    def set_battery(self, watts: float, status: str = "Discharging", volts: float = 3.9) -> None:
        """Make it show a phone's battery that delivers so much, with the kernel's sign."""
        supply = "class/power_supply/battery"
        self.set(f"{supply}/type", "Battery")
        self.set(f"{supply}/present", 1)
        self.set(f"{supply}/status", status)
        self.set(f"{supply}/voltage_now", round(volts * 1e6))
        self.set(f"{supply}/current_now", -round(watts / volts * 1e6))

    def set_odpm(self, rails: Mapping[str, float]) -> None:
        """Make it show a Pixel's power monitor: rail -> watts. The driver renews it every 50 ms."""
        monitor = "bus/iio/devices/iio:device0"

        def shown(_: float) -> str:
            t = int(self.boottime() * 1000) // 50 * 50
            rows = [
                f"CH{number}(T={t})[{rail}], {round(t * watts * 1000)}"
                for number, (rail, watts) in enumerate(rails.items())
            ]
            return "\n".join([f"t={t}", *rows])

        self.set(f"{monitor}/name", "s2mpg10-odpm")
        self.set(f"{monitor}/sampling_rate", "1000.000000")
        enabled = [f"CH{number}[{rail}]:ANY" for number, rail in enumerate(rails)]
        self.set(f"{monitor}/enabled_rails", "\n".join(enabled))
        self.set(f"{monitor}/energy_value", shown)

    def set_throttled(self, flags: int) -> None:
        """The firmware's flags: bits 0 under-voltage, 1 capped, 2 throttled, 3 soft limit.

        Bits 16 to 19 are the same since boot.
        """
        self.set("/vcgencmd/get_throttled", f"throttled={flags:#x}")
        self.set("devices/platform/soc/soc:firmware/get_throttled", f"{flags:x}")
        self.set("class/hwmon/hwmon1/in0_lcrit_alarm", flags & 1)

    def _live(self, path: str) -> str:
        return _line(self._values[path](self._clock()))

    def play(self, board: Identity, memory_limit_bytes: int | None) -> None:
        """Set every file to what `board` shows at rest."""
        cores = min(pi.CORES, len(os.sched_getaffinity(0)))
        for path, text in pi.sysfs_texts(board, cores).items():
            kind = "setting" if path.endswith(("/scaling_governor", "/scaling_max_freq")) else ""
            self.set(path, text, kind=kind or "attribute")
        for path, target in pi.sysfs_links().items():
            self._keeper.ask(op="put", path=_played(path), text=target, kind="link", error=0)
        total_kb = min(board.memory_kb, (memory_limit_bytes or board.memory_kb * 1024) // 1024)
        self.set("/proc/cpuinfo", pi.cpuinfo(board))
        self.set("/proc/meminfo", pi.meminfo(total_kb, total_kb // 10))
        self.set("/proc/loadavg", "0.05 0.04 0.01 1/120 1000")
        self.set("/proc/swaps", "Filename\t\t\t\tType\t\tSize\t\tUsed\t\tPriority")
        self.set("/proc/stat", lambda t: pi.proc_stat(t, int(time.time() - t), busy=0.01))
        self.set_throttled(0)
        temperature = "class/thermal/thermal_zone0/temp"
        self.set(
            "/vcgencmd/measure_temp", lambda _: f"temp={int(self.get(temperature)) / 1000:.1f}'C"
        )
        frequency = f"{pi.POLICY}/scaling_cur_freq"
        self.set(
            "/vcgencmd/measure_clock_arm",
            lambda _: f"frequency(48)={self.get(frequency).strip()}000",
        )
        self.set("/vcgencmd/measure_volts_core", "volt=0.8600V")
        if board.has_pmic:
            self.set("/vcgencmd/pmic_read_adc", pi.pmic_read_adc())


def _played(path: str) -> str:
    return path if path.startswith("/") else f"/sys/{path}"


def _line(value: object) -> str:
    text = str(value)
    return text if text.endswith(("\n", "\0")) else text + "\n"
