"""The faults that a stand-in can be given are real ones, and each can be taken back."""

from __future__ import annotations

import subprocess
import time
from pathlib import Path

import pytest

from .clients import said
from .machine import Process, until
from .standin import StandIn


def sleeping(pi: StandIn, seconds: str) -> list[Process]:
    return [p for p in pi.processes() if p.argv == ("sleep", seconds)]


def test_a_reboot_kills_detached_processes_and_changes_the_boot_id(standin: StandIn) -> None:
    boot_id = ["cat", "/proc/sys/kernel/random/boot_id"]
    first = said(standin.ssh(boot_id))
    detach = "setsid sleep 600 </dev/null >/dev/null 2>&1 & echo kept > ~/file"
    said(standin.ssh(["sh", "-c", detach]))
    until("the process is on its own", lambda: len(sleeping(standin, "600")) == 1)
    asleep = sleeping(standin, "600")[0]
    standin.reboot()
    assert not Path(f"/proc/{asleep.host_pid}").exists()
    assert said(standin.ssh(boot_id)) != first
    assert said(standin.ssh(["cat", "file"])) == "kept"


def test_the_monotonic_clock_is_the_devices_own_and_starts_over(standin_root: Path) -> None:
    read = ["python3", "-c", "import time; print(time.monotonic())"]
    with StandIn("pi4", uptime_s=5000) as pi:
        time.sleep(1)
        first = float(said(pi.ssh(read)))
        assert 5001 < first < pi.monotonic()
        pi.reboot()
        assert 5000 <= float(said(pi.ssh(read))) < 5000 + 20


def test_a_lost_power_supply_is_not_announced_to_the_other_end(standin: StandIn) -> None:
    with standin.client.start(["cat"]) as line:
        assert line.stdin is not None
        assert line.stdout is not None
        line.stdin.write("here\n")
        line.stdin.flush()
        assert line.stdout.readline() == "here\n"
        standin.power_off()
        with pytest.raises(subprocess.TimeoutExpired):
            line.wait(2)
        standin.power_on()
        line.stdin.write("still there?\n")  # the new boot knows no such connection: reset
        line.stdin.flush()
        assert line.wait(20) == 255


def test_a_cut_cable_hangs_both_old_and_new_connections_until_it_is_back(standin: StandIn) -> None:
    with standin.client.start(["cat"]) as line:
        assert line.stdin is not None
        assert line.stdout is not None
        line.stdin.write("before\n")
        line.stdin.flush()
        assert line.stdout.readline() == "before\n"
        standin.cut_network()
        line.stdin.write("after\n")
        line.stdin.flush()
        with pytest.raises(subprocess.TimeoutExpired):
            standin.ssh(["true"], timeout_s=2)
        assert line.poll() is None
        standin.restore_network()
        assert line.stdout.readline() == "after\n"
        line.stdin.close()
    said(standin.ssh(["true"]))


def test_killing_sshd_ends_connections_and_spares_detached_processes(standin: StandIn) -> None:
    said(standin.ssh(["sh", "-c", "setsid sleep 600 </dev/null >/dev/null 2>&1 &"]))
    until("the process is on its own", lambda: len(sleeping(standin, "600")) == 1)
    with standin.client.start(["sleep", "500"]) as line:
        until("the command runs", lambda: len(sleeping(standin, "500")) == 1)
        standin.kill_sshd()
        assert line.wait(10) == 255
    assert standin.ssh(["true"]).returncode == 255
    standin.start_sshd()
    said(standin.ssh(["true"]))
    assert len(sleeping(standin, "600")) == 1


def test_a_stepped_clock_moves_the_wall_time_of_a_running_program_and_nothing_else(
    standin: StandIn,
) -> None:
    program = (
        "import sys, time\n"
        "for line in sys.stdin:\n"
        "    print(time.time(), time.monotonic(), flush=True)\n"
    )
    with standin.client.start(["python3", "-c", program]) as line:

        def clocks() -> list[float]:
            assert line.stdin is not None
            assert line.stdout is not None
            line.stdin.write("\n")
            line.stdin.flush()
            return [float(word) for word in line.stdout.readline().split()]

        before = clocks()
        standin.step_clock(3600)
        after = clocks()
        assert line.stdin is not None
        line.stdin.close()
    assert 3600 <= after[0] - before[0] < 3620
    assert 0 <= after[1] - before[1] < 20
    standin.step_clock(-7200)
    assert abs(float(said(standin.ssh(["date", "+%s"]))) - (time.time() - 3600)) < 20


def test_a_full_disk_refuses_and_a_freed_one_takes(standin: StandIn) -> None:
    write = ["dd", "if=/dev/zero", "of=big", "bs=1M", "count=2"]
    standin.fill_disk(leave_bytes=1 << 20)
    assert "No space left" in standin.ssh(write).stderr
    standin.free_disk()
    said(standin.ssh(write))


def test_noise_of_startup_files_comes_before_the_output_of_a_command(standin: StandIn) -> None:
    standin.noisy_startup("Welcome to 'my' Pi!\n{\"a\": 1}")
    assert said(standin.ssh(["echo", "x"])) == "Welcome to 'my' Pi!\n{\"a\": 1}\nx"
    standin.noisy_startup("")
    assert said(standin.ssh(["echo", "x"])) == "x"


def test_a_changed_host_key_is_refused_by_those_who_knew_the_old_one(standin: StandIn) -> None:
    before = standin.host_fingerprint
    assert standin.rotate_host_key() != before
    assert "HOST IDENTIFICATION HAS CHANGED" in standin.ssh(["true"]).stderr


def test_a_process_over_the_memory_limit_is_killed_and_the_device_lives_on(
    standin_root: Path,
) -> None:
    with StandIn("pi4", memory_limit_bytes=256 << 20) as pi:
        hungry = pi.ssh(["python3", "-c", "x = bytearray(1 << 30); x[::4096] = b'1' * (1 << 18)"])
        assert hungry.returncode != 0
        said(pi.ssh(["true"]))
