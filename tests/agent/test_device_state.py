"""What the agent reads off a device: against small trees like those of real kernels."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from edgebench.agent import agent

STAT = """\
cpu  700 70 7 5000 50 5 25 20 40 4
cpu0 100 10 1 1000 10 1 5 0 0 0
cpu1 200 20 2 2000 20 2 10 10 30 3
cpu10 400 40 4 2000 20 2 10 10 10 1
intr 12345 1 2 3
ctxt 99
"""


@pytest.fixture
def tree(tmp_path, monkeypatch):
    """Writes files below PROC and SYS."""
    for name in ("PROC", "SYS"):
        (tmp_path / name.lower()).mkdir()
        monkeypatch.setattr(agent, name, str(tmp_path / name.lower()))
    monkeypatch.setattr(agent.shutil, "which", lambda name: None)
    monkeypatch.delenv("QEMU_CPU", raising=False)

    def write(path: str, text: str) -> Path:
        file = tmp_path / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
        return file

    return write


def zone(tree, number, millidegrees, kind="cpu-thermal"):
    tree(f"sys/class/thermal/thermal_zone{number}/temp", f"{millidegrees}\n")
    tree(f"sys/class/thermal/thermal_zone{number}/type", f"{kind}\n")


def cpufreq(tree, cpu, name, value):
    tree(f"sys/devices/system/cpu/cpu{cpu}/cpufreq/{name}", f"{value}\n")


def test_ticks_of_the_chosen_cpus_alone_are_added_up(tree):
    tree("proc/stat", STAT)
    # user + nice + system + irq + softirq; iowait is idle time, guest is within user.
    assert agent.cpu_ticks([1]) == {
        "total": 200 + 20 + 2 + 2000 + 20 + 2 + 10 + 10,
        "busy": 200 + 20 + 2 + 2 + 10,
        "steal": 10,
    }
    both = agent.cpu_ticks([0, 1])
    assert both["busy"] == 117 + 234
    assert agent.cpu_ticks([10])["busy"] == 456


def test_ticks_without_steal_or_without_such_a_cpu(tree):
    tree("proc/stat", "cpu0 100 10 1 1000\n")
    assert agent.cpu_ticks([0]) == {"total": 1111, "busy": 111, "steal": 0}
    assert agent.cpu_ticks([5]) is None


def test_no_proc_no_ticks(tree):
    assert agent.cpu_ticks([0]) is None


def test_state_of_a_pi(tree):
    tree("proc/stat", STAT)
    tree("proc/meminfo", "MemTotal:  3884000 kB\nMemFree: 1 kB\nMemAvailable:  2000 kB\n")
    tree("proc/vmstat", "nr_free_pages 1\npswpin 7\npswpout 9\noom_kill 2\n")
    zone(tree, 0, 61342)
    for cpu in (0, 1):
        cpufreq(tree, cpu, "scaling_cur_freq", 1500000 + cpu)
        cpufreq(tree, cpu, "cpuinfo_max_freq", 1800000)
        cpufreq(tree, cpu, "scaling_governor", "ondemand")
    tree("sys/devices/platform/soc/soc:firmware/get_throttled", "50005\n")
    state = agent.device_state("during", 3, [1])
    assert state["when"] == "during"
    assert state["launch"] == 3
    assert state["temperature_c"] == {"thermal_zone0:cpu-thermal": 61.342}
    assert state["frequency_khz"] == {"1": 1500001}
    assert state["frequency_max_khz"] == {"1": 1800000}
    assert state["governor"] == {"1": "ondemand"}
    assert state["memory_available_bytes"] == 2_048_000
    assert (state["swap_in_pages"], state["swap_out_pages"]) == (7, 9)
    assert state["cpu_ticks"]["busy"] == 234
    assert state["throttled"] == 0x50005
    assert agent.oom_kills() == 2
    assert agent.memory_total_bytes() == 3884000 * 1024


def test_what_a_device_does_not_tell_is_null_and_never_zero(tree):
    state = agent.device_state("before", None, [0])
    known = {"t_ns", "when", "load1"}
    assert {key for key, value in state.items() if value is not None} == known


def test_a_sensor_that_reads_as_nonsense_is_left_out(tree):
    zone(tree, 0, "")
    zone(tree, 1, 40000)
    assert agent.device_state("before", None, [0])["temperature_c"] == {
        "thermal_zone1:cpu-thermal": 40.0
    }


def test_reading_the_flags_can_be_left_out(tree):
    tree("sys/devices/platform/soc/soc:firmware/get_throttled", "1\n")
    assert agent.device_state("during", 0, [0], flags=False)["throttled"] is None
    assert agent.device_state("during", 0, [0])["throttled"] == 1


@pytest.mark.parametrize(
    ("said", "flags"),
    [
        ("throttled=0x0", 0),
        ("throttled=0x50000", 0x50000),
        ("throttled=0x50005\n", 0x50005),
        ("throttled=0xE0008", 0xE0008),
        ("VCHI initialization failed", None),
        ('error=1 error_msg="Command not registered"', None),
        ("", None),
    ],
)
def test_what_vcgencmd_says_about_throttling(tree, tmp_path, monkeypatch, said, flags):
    program = tree("bin/vcgencmd", f"#!/bin/sh\ncat <<'END'\n{said}\nEND\n")
    program.chmod(0o755)
    monkeypatch.setattr(agent.shutil, "which", lambda name: str(program))
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    assert agent.throttled_flags() == flags


def test_a_vcgencmd_that_fails_says_nothing(tree, monkeypatch):
    program = tree("bin/vcgencmd", "#!/bin/sh\necho throttled=0x0\nexit 255\n")
    program.chmod(0o755)
    monkeypatch.setattr(agent.shutil, "which", lambda name: str(program))
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    assert agent.throttled_flags() is None


def test_the_model_is_the_device_trees_before_dmis(tree):
    tree("sys/class/dmi/id/sys_vendor", "QEMU\n")
    tree("sys/class/dmi/id/product_name", "Standard PC\n")
    assert agent.machine_model() == "QEMU Standard PC"
    tree("sys/firmware/devicetree/base/model", "Raspberry Pi 5 Model B Rev 1.0\0")
    assert agent.machine_model() == "Raspberry Pi 5 Model B Rev 1.0"
    tree("proc/device-tree/model", "Raspberry Pi 4 Model B Rev 1.4\0")
    assert agent.machine_model() == "Raspberry Pi 4 Model B Rev 1.4"


def test_the_cpu_is_named_on_pc_and_pi(tree):
    tree("proc/cpuinfo", "processor\t: 0\nCPU part\t: 0xd08\n\nHardware\t: BCM2711\n")
    assert agent.cpu_model() == "BCM2711"
    tree("proc/cpuinfo", "processor\t: 0\nmodel name\t: Some CPU @ 2 GHz \n")
    assert agent.cpu_model() == "Some CPU @ 2 GHz"


# -- emulation


def parents(tree, tmp_path, *programs: str):
    """A chain of parent processes; each program is its executable and its first argument."""
    pid = os.getppid()
    for depth, program in enumerate(programs):
        here, above = pid + depth, pid + depth + 1 if depth + 1 < len(programs) else 0
        executable, _, argument = program.partition(" ")
        tree(f"proc/{here}/cmdline", f"{executable}\0{argument}\0")
        tree(f"proc/{here}/status", f"Name:\tx\nPPid:\t{above}\n")
        (tmp_path / f"proc/{here}/exe").symlink_to(executable)


@pytest.mark.parametrize(
    "program",
    ["/usr/bin/qemu-aarch64-static /bin/sh", "qemu-aarch64 /bin/sh", "/opt/qemu-riscv64 x"],
)
def test_a_parent_under_qemu_user_is_recognised(tree, tmp_path, program):
    parents(tree, tmp_path, "/bin/bash -c", program, "/sbin/init")
    assert agent.emulation().startswith("qemu-")


@pytest.mark.parametrize(
    "program",
    [
        "/usr/bin/vim qemu-aarch64-notes.txt",
        "/usr/bin/edgebench qemu-arm",
        "/usr/sbin/qemu-ga --daemonize",
        "/usr/bin/qemu-system-x86_64 -m",
        "/usr/bin/qemu-img convert",
    ],
)
def test_programs_that_only_speak_of_qemu_are_not(tree, tmp_path, program):
    parents(tree, tmp_path, "/bin/bash -c", program, "/sbin/init")
    assert agent.emulation() is None


def test_an_arm_process_on_a_pcs_kernel_is_emulated(tree, monkeypatch):
    tree("proc/version", "Linux version 6.1.0-18-amd64 (debian-kernel@lists.debian.org)")
    assert agent.emulation() is None
    monkeypatch.setattr(agent.platform, "machine", lambda: "aarch64")
    assert agent.emulation() == "qemu-user"


def test_a_virt_machine_is_named(tree):
    tree("proc/device-tree/model", "linux,dummy-virt\0")
    assert agent.emulation() == "virt"


def test_qemus_own_variable_tells(tree, monkeypatch):
    monkeypatch.setenv("QEMU_CPU", "cortex-a72")
    assert agent.emulation() == "qemu-user"
