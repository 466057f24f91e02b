"""What a Raspberry Pi says about itself: the texts that a stand-in shows.

Formats: arch/arm64/kernel/cpuinfo.c and the Raspberry Pi kernel for /proc/cpuinfo; the kernel's
hwmon, thermal and cpufreq documentation for /sys; Raspberry Pi's documentation of vcgencmd and of
revision codes. Figures (temperatures, rails) are plausible, and of no other worth.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

CORES = 4  # of both boards
POLICY = "devices/system/cpu/cpufreq/policy0"


@dataclass(frozen=True)
class Identity:
    """One board. `qemu_cpu` decides which instructions the emulated CPU really has."""

    model: str
    compatible: tuple[str, ...]
    revision: str
    serial: str
    cpu_variant: int
    cpu_part: int
    cpu_revision: int
    features: str
    qemu_cpu: str
    memory_kb: int
    min_khz: int
    max_khz: int
    has_pmic: bool


PI4 = Identity(
    model="Raspberry Pi 4 Model B Rev 1.4",
    compatible=("raspberrypi,4-model-b", "brcm,bcm2711"),
    revision="c03114",  # new flag, 4 GB, Sony UK, BCM2711, 4B, rev 1.4
    serial="10000000a1b2c3d4",
    cpu_variant=0x0,
    cpu_part=0xD08,  # Cortex-A72
    cpu_revision=3,
    features="fp asimd evtstrm crc32 cpuid",
    qemu_cpu="cortex-a72",
    memory_kb=3_884_360,  # MemTotal of a 4 GB board with the firmware's share taken off
    min_khz=600_000,
    max_khz=1_800_000,
    has_pmic=False,
)
PI5 = Identity(
    model="Raspberry Pi 5 Model B Rev 1.0",
    compatible=("raspberrypi,5-model-b", "brcm,bcm2712"),
    revision="c04170",  # new flag, 4 GB, Sony UK, BCM2712, 5, rev 1.0
    serial="10000000e5f6a7b8",
    cpu_variant=0x4,
    cpu_part=0xD0B,  # Cortex-A76
    cpu_revision=1,
    features="fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm "
    "lrcpc dcpop asimddp",
    qemu_cpu="cortex-a76",
    memory_kb=4_136_448,
    min_khz=1_500_000,
    max_khz=2_400_000,
    has_pmic=True,
)
IDENTITIES: Mapping[str, Identity] = {"pi4": PI4, "pi5": PI5}

# Rail: (ADC channel of its current, of its voltage, amperes, volts). Two have no current.
PMIC_RAILS: Mapping[str, tuple[int | None, int, float, float]] = {
    "3V7_WL_SW": (0, 8, 0.0849, 3.6984),
    "3V3_SYS": (1, 9, 0.0263, 3.3207),
    "1V8_SYS": (2, 10, 0.1932, 1.8036),
    "DDR_VDD2": (3, 11, 0.0205, 1.1004),
    "DDR_VDDQ": (4, 12, 0.0000, 0.6040),
    "1V1_SYS": (5, 13, 0.1796, 1.1048),
    "0V8_SW": (6, 14, 0.3396, 0.8026),
    "VDD_CORE": (7, 15, 1.2214, 0.7203),
    "3V3_DAC": (17, 20, 0.0002, 3.3071),
    "3V3_ADC": (18, 21, 0.0004, 3.3059),
    "0V8_AON": (16, 19, 0.0021, 0.7963),
    "HDMI": (22, 23, 0.0101, 5.1209),
    "EXT5V": (None, 24, 0.0, 5.1188),
    "BATT": (None, 25, 0.0, 0.0),
}


def cpuinfo(identity: Identity) -> str:
    """/proc/cpuinfo of a 64-bit Raspberry Pi kernel."""
    cores = "".join(
        f"processor\t: {core}\nBogoMIPS\t: 108.00\nFeatures\t: {identity.features}\n"
        f"CPU implementer\t: 0x41\nCPU architecture: 8\nCPU variant\t: {identity.cpu_variant:#x}\n"
        f"CPU part\t: {identity.cpu_part:#x}\nCPU revision\t: {identity.cpu_revision}\n\n"
        for core in range(CORES)
    )
    return (
        f"{cores}Revision\t: {identity.revision}\nSerial\t\t: {identity.serial}\n"
        f"Model\t\t: {identity.model}\n"
    )


def meminfo(total_kb: int, used_kb: int) -> str:
    """/proc/meminfo, the lines that programs read, of a machine without swap."""
    free_kb = total_kb - used_kb
    lines = {
        "MemTotal": total_kb,
        "MemFree": free_kb,
        "MemAvailable": free_kb,
        "Buffers": 0,
        "Cached": 0,
        "SwapCached": 0,
        "SwapTotal": 0,
        "SwapFree": 0,
    }
    return "".join(f"{name + ':':<16}{kb:>8} kB\n" for name, kb in lines.items())


def proc_stat(uptime_s: float, boot_time_s: int, busy: float) -> str:
    """/proc/stat of a machine whose cores were busy for the fraction `busy` since boot."""
    ticks = int(uptime_s * 100)  # USER_HZ is 100 on arm64
    work = int(ticks * busy)
    line = f"{work} 0 0 {ticks - work} 0 0 0 0 0 0"
    total = f"{CORES * work} 0 0 {CORES * (ticks - work)} 0 0 0 0 0 0"
    cores = "".join(f"cpu{core} {line}\n" for core in range(CORES))
    return (
        f"cpu  {total}\n{cores}intr 0\nctxt 0\nbtime {boot_time_s}\n"
        "processes 1000\nprocs_running 1\nprocs_blocked 0\n"
    )


def pmic_read_adc(rails: Mapping[str, tuple[int | None, int, float, float]] = PMIC_RAILS) -> str:
    """What `vcgencmd pmic_read_adc` prints: all currents, then all voltages."""
    currents = [
        f"{name + '_A':>12} current({channel})={amperes:.8f}A"
        for name, (channel, _, amperes, _) in rails.items()
        if channel is not None
    ]
    volts = [
        f"{name + '_V':>12} volt({channel})={volts:.8f}V"
        for name, (_, channel, _, volts) in rails.items()
    ]
    return "\n".join(currents + volts) + "\n"


def sysfs_texts(identity: Identity, online_cores: int) -> dict[str, str]:
    """The files under /sys at boot, by path; an INA226 sees 5.1 V and 600 mA."""
    tree = "firmware/devicetree/base"
    files = {
        # device-tree strings end in NUL, and have no newline
        f"{tree}/model": identity.model + "\0",
        f"{tree}/compatible": "".join(name + "\0" for name in identity.compatible),
        f"{tree}/serial-number": identity.serial + "\0",
        "class/thermal/thermal_zone0/type": "cpu-thermal\n",
        "class/thermal/thermal_zone0/temp": "48312\n",  # m°C
        "class/hwmon/hwmon0/name": "cpu_thermal\n",
        "class/hwmon/hwmon1/name": "rpi_volt\n",
        "class/hwmon/hwmon1/in0_lcrit_alarm": "0\n",
        "class/hwmon/hwmon2/name": "ina226\n",
        "class/hwmon/hwmon2/in1_input": "5100\n",  # mV, the bus
        "class/hwmon/hwmon2/curr1_input": "600\n",  # mA
        "class/hwmon/hwmon2/power1_input": "3062500\n",  # µW, a multiple of the chip's 6250
        "class/hwmon/hwmon2/shunt_resistor": "10000\n",  # µΩ, the driver's default
        "class/hwmon/hwmon2/update_interval": "35\n",  # ms: 16 averages of 2 x 1.1 ms
        "devices/system/cpu/possible": f"0-{CORES - 1}\n",
        "devices/system/cpu/present": f"0-{CORES - 1}\n",
        "devices/system/cpu/online": f"0-{online_cores - 1}\n" if online_cores > 1 else "0\n",
        "devices/platform/soc/soc:firmware/get_throttled": "0\n",
    }
    frequency = {
        "affected_cpus": "0 1 2 3",
        "related_cpus": "0 1 2 3",
        "cpuinfo_min_freq": identity.min_khz,
        "cpuinfo_max_freq": identity.max_khz,
        "scaling_min_freq": identity.min_khz,
        "scaling_max_freq": identity.max_khz,
        "scaling_cur_freq": identity.max_khz,
        "scaling_driver": "cpufreq-dt",
        "scaling_governor": "ondemand",
        "scaling_available_governors": "conservative ondemand userspace powersave performance "
        "schedutil",
    }
    files |= {f"{POLICY}/{name}": f"{value}\n" for name, value in frequency.items()}
    return files


def sysfs_links() -> dict[str, str]:
    """The links under /sys: the cores share one clock, and two names one thermometer."""
    links = {f"devices/system/cpu/cpu{core}/cpufreq": "../cpufreq/policy0" for core in range(CORES)}
    links["class/hwmon/hwmon0/temp1_input"] = "../../thermal/thermal_zone0/temp"
    return links
