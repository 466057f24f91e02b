"""Trees of sysfs in a folder, as kernel drivers lay them out and print them.

Formats: the docstrings of edgebench/meters/{rapl,hwmon,ina3221,battery,odpm}.py name their sources.
Figures are plausible, and of no other worth.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from pathlib import Path


class Tree:
    """A sysfs below a folder. Texts get the newline that drivers print."""

    def __init__(self, root: Path) -> None:
        self.root = root
        root.mkdir(parents=True, exist_ok=True)

    @property
    def option(self) -> dict[str, str]:
        """The option ``sysfs`` of the meters."""
        return {"sysfs": str(self.root)}

    def put(self, path: str, value: object) -> None:
        """Write a file in place, so that who has it open reads the new value.

        One write of the same length never shows a half: numbers are padded in front by zeros.
        """
        file = self.root / path
        text = str(value)
        if file.exists():
            old = len(file.read_bytes()) - 1
            if isinstance(value, int) and len(text) < old:
                text = f"{value:0{old}d}"
        data = (text + "\n").encode()
        file.parent.mkdir(parents=True, exist_ok=True)
        with file.open("r+b" if file.exists() else "w+b", buffering=0) as stream:
            os.pwrite(stream.fileno(), data, 0)
            stream.truncate(len(data))

    def fill(self, folder: str, files: Mapping[str, object]) -> None:
        """Write several files of one folder."""
        for name, value in files.items():
            self.put(f"{folder}/{name}", value)

    def remove(self, path: str) -> None:
        """Take a file away."""
        (self.root / path).unlink()

    def link(self, path: str, target: str) -> None:
        """A symbolic link; the target is relative to it."""
        place = self.root / path
        place.parent.mkdir(parents=True, exist_ok=True)
        place.symlink_to(target)


#: 2^32 - 1 steps of 61 µJ (1/2^14 J), as an Intel client shows it.
RANGE_UJ = 262143328850


def rapl(tree: Tree, packages: int = 1, mmio: bool = False, psys: bool = False) -> None:
    """Packages with cores and memory, each zone in the flat folder of links that the class has."""
    base = "class/powercap"
    tree.put(f"{base}/intel-rapl/enabled", 1)
    for package in range(packages):
        zone = f"{base}/intel-rapl:{package}"
        for path, name, start in (
            (zone, f"package-{package}", 104_500_000_000),
            (f"{zone}:0", "core", 60_000_000_000),
            (f"{zone}:1", "dram", 20_000_000_000),
        ):
            files = {"name": name, "energy_uj": start, "max_energy_range_uj": RANGE_UJ}
            tree.fill(path, files)
    if psys:
        files = {"name": "psys", "energy_uj": 7_000_000, "max_energy_range_uj": 4294967295 * 10**6}
        tree.fill(f"{base}/intel-rapl:{packages}", files)
    if mmio:
        files = {"name": "package-0", "energy_uj": 5, "max_energy_range_uj": RANGE_UJ}
        tree.fill(f"{base}/intel-rapl-mmio:0", files)


def hwmon(tree: Tree, number: int, files: Mapping[str, object], device: str = "") -> str:
    """A chip of the hwmon class; returns its folder. ``device`` is its name on its bus."""
    folder = f"class/hwmon/hwmon{number}"
    tree.fill(folder, files)
    if device:
        (tree.root / "devices" / device).mkdir(parents=True, exist_ok=True)
        tree.link(f"{folder}/device", f"../../../devices/{device}")
    return folder


#: 5.1 V and 600 mA by an INA226 on 10 mΩ, whose driver's steps are 250 µA and 6250 µW.
INA226 = {
    "name": "ina226",
    "in0_input": 6,
    "in1_input": 5100,
    "curr1_input": 600,
    "power1_input": 3062500,
    "shunt_resistor": 10000,
    "update_interval": 35,
}


def jetson(tree: Tree, shunt_uohm: int = 5000, driver: str = "ina3221") -> str:
    """An Orin NX: three labelled channels. Returns the hwmon folder."""
    folder = f"bus/i2c/drivers/{driver}/1-0040/hwmon/hwmon3"
    rails = (("VDD_IN", 5000, 1200), ("VDD_CPU_GPU_CV", 4992, 240), ("VDD_SOC", 4992, 400))
    files: dict[str, object] = {"name": "ina3221", "samples": 1, "update_interval": 7}
    for number, (label, volts, amps) in enumerate(rails, 1):
        files[f"in{number}_label"] = label
        files[f"in{number}_enable"] = 1
        files[f"in{number}_input"] = volts
        files[f"curr{number}_input"] = amps
        files[f"shunt{number}_resistor"] = shunt_uohm
    files["in7_label"] = "sum of shunt voltages"
    tree.fill(folder, files)
    return folder


def jetpack4(tree: Tree) -> str:
    """A Nano with JetPack 4: NVIDIA's own driver, as an iio device. Returns its folder."""
    folder = "bus/i2c/drivers/ina3221x/6-0040/iio:device0"
    files: dict[str, object] = {"name": "ina3221x", "running_mode": 0}
    rails = (("POM_5V_IN", 2450), ("POM_5V_GPU", 40), ("POM_5V_CPU", 650))
    for number, (label, power) in enumerate(rails):
        files[f"rail_name_{number}"] = label
        files[f"in_power{number}_input"] = power
        files[f"in_voltage{number}_input"] = 5000
        files[f"in_current{number}_input"] = power // 5
    tree.fill(folder, files)
    return folder


def battery(tree: Tree, name: str = "battery", **changes: object) -> str:
    """A phone's battery that delivers 2 W, with the kernel's sign. Returns its folder."""
    folder = f"class/power_supply/{name}"
    files: dict[str, object] = {
        "type": "Battery",
        "present": 1,
        "status": "Discharging",
        "current_now": -500000,
        "voltage_now": 4000000,
        "temp": 291,
    }
    tree.fill(folder, {**files, **changes})
    return folder


def boot_ms() -> int:
    """CLOCK_BOOTTIME in the milliseconds that the driver prints."""
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME) // 1_000_000


def energy_value(rails: Mapping[str, int], t_ms: int | None = None) -> str:
    """What ``energy_value_show`` prints; rail -> µW·s."""
    t = boot_ms() if t_ms is None else t_ms
    rows = [f"CH{n}(T={t})[{rail}], {energy}" for n, (rail, energy) in enumerate(rails.items())]
    return "\n".join([f"t={t}", *rows])


def odpm(tree: Tree, number: int, name: str, rails: Mapping[str, int]) -> str:
    """One power monitor of a Pixel. Returns its folder."""
    folder = f"bus/iio/devices/iio:device{number}"
    files: dict[str, object] = {
        "name": name,
        "sampling_rate": "250.000000",
        "energy_value": energy_value(rails),
        "enabled_rails": "\n".join(f"CH{n}[{rail}]:ANY" for n, rail in enumerate(rails)),
    }
    tree.fill(folder, files)
    return folder


PIXEL_M = {"S10M_VDD_TPU": 5601234, "VSYS_PWR_MODEM": 29254011, "S4M_VDD_CPUCL0": 46412055}
PIXEL_S = {"VSYS_PWR_WLAN_BT": 193004512, "S2S_VDD_G3D": 3715220314}
