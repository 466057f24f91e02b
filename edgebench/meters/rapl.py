"""RAPL: the energy counters of x86 processors, by the kernel's powercap class.

Files (Documentation/power/powercap/powercap.rst; drivers/powercap/intel_rapl_common.c):

    /sys/class/powercap/intel-rapl:0/name                    package-0
    /sys/class/powercap/intel-rapl:0/energy_uj               µJ, only grows until it wraps
    /sys/class/powercap/intel-rapl:0/max_energy_range_uj     µJ, where it wraps
    /sys/class/powercap/intel-rapl:0:0/name                  core (a part of package-0)

AMD processors show the same files under the same names. ``intel-rapl-mmio`` is a second road to the
counters of a package; it is taken where the first one is missing.

The register counts 32 bits of an energy unit, so one step of the value is max_energy_range_uj
divided by 2^32 - 1 (``get_max_energy_counter``): 15.3 or 61 µJ on most machines, 1 J for psys on
Sapphire Rapids. It is updated about every millisecond and wraps after about a minute of high
power (Intel SDM volume 3B, 14.9.3 "Package RAPL Domain" and 14.9.5 "DRAM RAPL Domain").

Intel publishes no accuracy, and with "energy filtering" on (SGX, or by a register) it adds noise on
purpose (INTEL-SA-00389), so gain and offset are unknown here. Since Linux 5.10 only root reads
energy_uj, because the counter leaks what others compute (CVE-2020-8694).
"""

from __future__ import annotations

import os
import re
from typing import Any, ClassVar, Dict, List, Mapping, Optional, Tuple

from edgebench.meters.base import ENERGY, Channel, Meter, MeterError, Option, Reading, read_number
from edgebench.meters.sysfs import SYSFS, Attribute, Attributes, entries, optional_text

ZONE = r"[a-z-]*rapl[a-z-]*:\d+(?::\d+)*"

#: The MSR is "updated every ~1msec" (Intel SDM 3B, 14.9.3); AMD states no period.
PERIOD_S = 0.001

#: Often enough for a window's edges, and seldom against the cost: a read interrupts one CPU.
POLL_S = 0.010

#: The register's width (ENERGY_STATUS_MASK in intel_rapl_common.c).
COUNTS = 2**32 - 1

#: What a domain sees. psys is "the entire SoC instead of just the CPU package" and needs more from
#: the maker of the machine (kernel commit 3521ba1cc351); what else he counts there isn't published.
SCOPES = {"package": "package", "psys": "soc"}

UDEV = (
    'SUBSYSTEM=="powercap", ACTION=="add", KERNEL=="*rapl*:*", RUN+="/bin/chmod a+r %S%p/energy_uj"'
)
PERMISSION = (
    "Until the next boot: sudo chmod a+r {path}. For good: put {rule} into "
    "/etc/udev/rules.d/60-rapl.rules. Whoever reads it can guess at others' secrets "
    "(CVE-2020-8694): not on a shared machine."
)


class Zone:
    """One counter: its directory, its own name, and that of the package it is a part of."""

    def __init__(self, path: str, name: str, parent: str) -> None:
        self.path = path
        self.name = name
        self.parent = parent

    @property
    def domain(self) -> str:
        """package, core, uncore, dram, psys: the name without the numbers of socket and die."""
        return "package" if self.name.startswith("package-") else self.name

    @property
    def title(self) -> str:
        """Its name among all: "package-1", "package-1/core"."""
        return f"{self.parent}/{self.name}" if self.parent else self.name


def zones(sysfs: str) -> List[Zone]:
    """The RAPL counters of a machine, each once.

    Raises:
        MeterError: permission, io.
    """
    directory = os.path.join(sysfs, "class", "powercap")
    found: Dict[str, Zone] = {}
    paths = entries(directory, ZONE)
    for path in sorted(paths, key=lambda path: "mmio" in path):
        name = optional_text(os.path.join(path, "name"))
        if name is None or not os.path.exists(os.path.join(path, "energy_uj")):
            continue
        above = re.sub(r":\d+$", "", path)
        parent = optional_text(os.path.join(above, "name")) if above in paths else None
        zone = Zone(path, name, parent or "")
        found.setdefault(zone.title, zone)
    return list(found.values())


def none_here(sysfs: str) -> MeterError:
    """Why there is no counter."""
    directory = os.path.join(sysfs, "class", "powercap")
    there = "is not there" if not os.path.isdir(directory) else "has no RAPL zone"
    return MeterError(
        "no-device",
        f"{directory} {there}",
        "It takes an x86 processor and its driver: sudo modprobe intel_rapl_msr (Intel and AMD). "
        "A virtual machine has none, and containers hide it: run on the machine itself.",
    )


class Rapl(Meter):
    """Energy counters of processor packages, or of parts of them; a channel each, never summed."""

    kind: ClassVar[str] = "rapl"
    default_scope: ClassVar[str] = "package"
    options_taken: ClassVar[Mapping[str, Option]] = {
        "sysfs": SYSFS,
        "domain": Option(
            (str,),
            "package (every socket, a channel each; the default), core, uncore, dram, psys, or one "
            "zone by its name, as package-1 or package-1/core",
        ),
    }

    def __init__(self, options: Mapping[str, Any], scope: Optional[str] = None) -> None:
        super().__init__(options, scope)
        self._own_scope = scope
        self._files = Attributes()
        self._counters: List[Attribute] = []

    def _asked(self) -> List[Zone]:
        sysfs = str(self.options.get("sysfs", "/sys"))
        there = zones(sysfs)
        if not there:
            raise none_here(sysfs)
        domain = str(self.options.get("domain", "package"))
        named = [zone for zone in there if domain == zone.title]
        asked = named or [zone for zone in there if domain in (zone.name, zone.domain)]
        if not asked:
            titles = ", ".join(zone.title for zone in there)
            raise MeterError(
                "no-device", f"this machine has no RAPL domain {domain}", f"It has: {titles}."
            )
        return asked

    def open(self) -> List[Channel]:
        channels = []
        for zone in self._asked():
            energy = os.path.join(zone.path, "energy_uj")
            fix = PERMISSION.format(path=energy, rule=UDEV)
            counter = self._files.open(energy, fix)
            counter.number()  # a zone that can't be read is told now, not in the run
            range_uj = read_number(os.path.join(zone.path, "max_energy_range_uj"))
            if range_uj <= 0:
                message = f"{zone.path}/max_energy_range_uj says {range_uj}"
                raise MeterError("bad-reading", message)
            self._counters.append(counter)
            channels.append(
                Channel(
                    zone.title,
                    ENERGY,
                    self._own_scope or SCOPES.get(zone.domain, "rail"),
                    f"RAPL {zone.title} ({os.path.basename(zone.path)})",
                    period_s=PERIOD_S,
                    resolution=max(range_uj / COUNTS, 1.0) * 1e-6,  # the file's own step is 1 µJ
                    lag_s=PERIOD_S,
                    wrap_j=range_uj * 1e-6,
                    accuracy_source="not published: Intel and AMD give no error bound for RAPL",
                )
            )
        self.poll_s = POLL_S
        return channels

    def read(self) -> List[Reading]:
        found = []
        for index, counter in enumerate(self._counters):
            t_ns, value_uj = counter.timed()
            found.append((index, t_ns, value_uj * 1e-6))
        return found

    def close(self) -> None:
        self._files.close()

    @classmethod
    def find(cls, sysfs: str = "/sys") -> List[Dict[str, Any]]:
        there = zones(sysfs)
        if not there:
            raise none_here(sysfs)
        domains = list(dict.fromkeys(zone.domain for zone in there))
        where: Tuple[Tuple[str, str], ...] = (("sysfs", sysfs),) if sysfs != "/sys" else ()
        return [dict(where, kind=cls.kind, domain=domain) for domain in domains]
