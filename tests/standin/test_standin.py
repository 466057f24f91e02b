"""The stand-in is what it says: each of its claims, shown over a real ssh connection."""

from __future__ import annotations

import errno
import signal
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper

from .clients import said
from .identity import PI5
from .machine import until
from .slots import RUN
from .standin import StandIn

READ_FOR_EVER = """
import os, sys, time
fd = os.open(sys.argv[1], os.O_RDONLY)
while True:
    print(os.pread(fd, 64, 0).decode().strip(), flush=True)
    time.sleep(0.02)
"""


# Identity


def test_a_program_over_ssh_sees_arm64_and_a_raspberry_pi_4(shared_standin: StandIn) -> None:
    script = "uname -m; hostname; cat /sys/firmware/devicetree/base/model /proc/device-tree/model"
    machine, host, models = said(shared_standin.ssh(["sh", "-c", script])).split("\n")
    assert (machine, host) == ("aarch64", "raspberrypi")
    assert models == "Raspberry Pi 4 Model B Rev 1.4\0" * 2
    cpuinfo = said(shared_standin.ssh(["cat", "/proc/cpuinfo"]))
    assert "CPU part\t: 0xd08" in cpuinfo
    assert "Revision\t: c03114" in cpuinfo


def test_the_emulated_cpu_is_the_one_it_names(shared_standin: StandIn) -> None:
    hwcap = "import ctypes; print(ctypes.CDLL(None).getauxval(16))"
    asimddp = 1 << 20  # HWCAP_ASIMDDP, the dot product that a Cortex-A72 lacks
    assert not int(said(shared_standin.ssh(["python3", "-c", hwcap]))) & asimddp
    newer = shared_standin.run(["python3", "-c", hwcap], env={"QEMU_CPU": PI5.qemu_cpu})
    assert int(said(newer)) & asimddp


def test_it_has_no_numpy_until_somebody_installs_it(shared_standin: StandIn) -> None:
    assert "No module named" in shared_standin.ssh(["python3", "-c", "import numpy"]).stderr


def test_listing_proc_shows_the_real_processes(shared_standin: StandIn) -> None:
    listed = said(shared_standin.ssh(["ps", "-e", "-o", "pid,args"]))
    assert "sshd" in listed
    assert {"1", "2"} <= set(said(shared_standin.ssh(["ls", "/proc"])).split())


# Sensors


def test_a_sensor_changes_under_a_program_that_keeps_it_open(standin: StandIn) -> None:
    path = "class/thermal/thermal_zone0/temp"
    line = standin.client.start(["python3", "-c", READ_FOR_EVER, f"/sys/{path}"])
    with line:
        assert line.stdout is not None
        assert line.stdout.readline() == "48312\n"
        standin.set(path, 81000)
        assert "81000\n" in [line.stdout.readline() for _ in range(20)]
        assert said(standin.ssh(["vcgencmd", "measure_temp"])) == "temp=81.0'C"
        line.terminate()


def test_a_sensor_that_is_a_function_is_asked_at_every_read_with_the_devices_clock(
    standin: StandIn,
) -> None:
    standin.set("class/hwmon/hwmon2/curr1_input", lambda t: f"{t:.6f}")
    program = (
        "import time\n"
        "for _ in range(20):\n"
        "    before = time.monotonic()\n"
        "    at = float(open('/sys/class/hwmon/hwmon2/curr1_input').read())\n"
        "    assert before - 1e-6 <= at <= time.monotonic() + 1e-6, (before, at)\n"
    )
    assert said(standin.ssh(["python3", "-c", program])) == ""


def test_the_power_chip_rounds_and_holds_as_an_ina226_does(standin: StandIn) -> None:
    standin.set_power(lambda t: 3.0 + t % 1)
    micro_watts = [int(standin.get("class/hwmon/hwmon2/power1_input")) for _ in range(50)]
    assert all(value % 6250 == 0 for value in micro_watts)
    assert len(set(micro_watts)) <= 3, "50 reads take far less than three periods of 35 ms"


def test_a_sensor_can_fail_and_can_go_away(standin: StandIn) -> None:
    path = "class/thermal/thermal_zone0/temp"
    standin.set(path, "", error=errno.EIO)
    assert "Input/output error" in standin.run(["cat", f"/sys/{path}"]).stderr
    standin.remove("class/thermal/thermal_zone0")
    assert "No such file" in standin.run(["cat", f"/sys/{path}"]).stderr


def test_root_can_set_the_governor_and_nobody_else(standin: StandIn) -> None:
    path = "/sys/devices/system/cpu/cpu3/cpufreq/scaling_governor"
    write = ["sh", "-c", f"echo performance > {path}"]
    assert "Permission denied" in standin.ssh(write).stderr
    said(standin.run(write))
    policy = "devices/system/cpu/cpufreq/policy0/scaling_governor"
    assert standin.get(policy) == "performance\n"


def test_vcgencmd_answers_as_the_firmware_of_that_board_does(standin_root: Path) -> None:
    with StandIn("pi4") as pi4, StandIn("pi5") as pi5:
        pi4.set_throttled(0x50005)
        assert said(pi4.ssh(["vcgencmd", "get_throttled"])) == "throttled=0x50005"
        assert said(pi5.ssh(["vcgencmd", "get_throttled"])) == "throttled=0x0"
        assert "VDD_CORE_A current(7)=" in said(pi5.ssh(["vcgencmd", "pmic_read_adc"]))
        assert "not registered" in pi4.ssh(["vcgencmd", "pmic_read_adc"]).stdout


# More than one


def test_two_devices_and_two_clients_at_once_are_apart(standin_root: Path) -> None:
    with StandIn("pi4") as one, StandIn("pi5") as two:
        assert one.host != two.host
        assert one.host_fingerprint != two.host_fingerprint
        said(one.ssh(["sh", "-c", "echo one > ~/name"]))
        assert two.ssh(["cat", "name"]).returncode != 0
        assert "Raspberry Pi 5" in said(two.ssh(["cat", "/proc/device-tree/model"]))
        other = one.add_client("lab")
        assert said(other.ssh(["sh", "-c", "whoami; cat /home/pi/name"])) == "lab\none"
        one.reboot()
        said(two.ssh(["true"]))


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_nothing_is_left_when_the_test_process_dies(standin_root: Path, number: int) -> None:
    package = (__package__ or "").split(".")
    program = (
        f"from {__package__}.standin import StandIn\n"
        "with StandIn('pi4') as pi:\n"
        "    print(pi._slot.number, pi._keeper.pid, pi.machine.init_pid, flush=True)\n"
        "    input()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program],
        cwd=Path(__file__).resolve().parents[len(package)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as owner:
        assert owner.stdout is not None
        slot, *pids = owner.stdout.readline().split()
        owner.send_signal(number)
        owner.wait(20)
    for pid in pids:
        until(f"{pid} ends", is_gone(Path(f"/proc/{pid}")))
    until("its cable is gone", is_gone(Path(f"/sys/class/net/standin{slot}")))
    with StandIn("pi4") as pi:  # and what is on disk is swept out by the next one
        assert said(pi.ssh(["true"])) == ""
    assert not (RUN / slot).exists()


def is_gone(path: Path) -> Callable[[], bool]:
    return lambda: not path.exists()


# ONNX Runtime for arm64


def test_arm64_onnxruntime_runs_a_model_from_unpacked_wheels(
    standin: StandIn, standin_wheels: list[Path]
) -> None:
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "tiny",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 2])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 1])],
        [helper.make_tensor("w", TensorProto.FLOAT, [2, 1], [10.0, 1.0])],
    )
    opsets = [helper.make_opsetid("", 17)]  # with IR 8, read by every release since 2022
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=8), standin.home() / "m")
    for wheel in standin_wheels:
        # 20 s if the device did this itself
        zipfile.ZipFile(wheel).extractall(standin.home() / "s")
    program = (
        "import numpy, onnxruntime as ort, platform\n"
        "session = ort.InferenceSession('m', providers=['CPUExecutionProvider'])\n"
        "x = numpy.array([[2, 3]], numpy.float32)\n"
        "print(platform.machine(), ort.__version__, session.run(None, {'x': x})[0].tolist())\n"
    )
    environment = ["env", "PYTHONPATH=/home/pi/s"]
    answer = said(standin.ssh([*environment, "python3", "-c", program]))
    assert answer == "aarch64 1.31.1 [[23.0]]"


def test_a_device_can_come_with_onnxruntime_installed(standin_root: Path) -> None:
    with StandIn("pi4", onnxruntime=True) as pi:
        program = "import onnxruntime; print(onnxruntime.__version__)"
        assert said(pi.ssh(["python3", "-c", program])) == "1.31.1"
