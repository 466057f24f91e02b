"""Process 1 of a stand-in: mounts what a boot mounts, reaps orphans, and waits.

It is a program of the host, started in fresh pid, mount, UTS, IPC and time namespaces. Everything
that runs in the stand-in is below it, so when it is killed the kernel kills all of it, detached
processes included: that is the stand-in's power switch. It also ends when the test process does,
because its standard input closes then.

Run as ``python -m <package>.init CONFIG`` by `machine.Machine`; prints one line, its pid as the
host sees it, when it is up.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
from pathlib import Path
from types import FrameType
from typing import Any

from .mounts import MS_NODEV, MS_NOSUID, bind, mount

DEVICES = ("null", "zero", "full", "random", "urandom", "tty")


def set_up(config: dict[str, Any]) -> None:
    """Mount /proc, /sys, /dev, /run and /tmp below the root, with the played files over them."""
    root, fuse, state = Path(config["root"]), Path(config["fuse"]), Path(config["state"])
    mount("proc", root / "proc", "proc")
    for name in config["played_proc"]:
        bind(fuse / "proc" / name, root / "proc" / name)
    bind(fuse / "sys", root / "sys")
    # The emulator looks for every absolute path below this folder first. That gives programs a
    # /proc/device-tree, which the host's procfs lacks, and in which no folder can be made.
    bind(fuse / "emulator_proc", root / "etc/qemu-binfmt/aarch64/proc")
    for name, mode in (("run", "0755"), ("tmp", "1777"), ("dev", "0755")):
        mount(name, root / name, "tmpfs", f"size={config['disk_bytes']},mode={mode}", MS_NOSUID)
    for name in DEVICES:
        bind(Path("/dev", name), root / "dev" / name)
    (root / "dev/pts").mkdir()
    mount("devpts", root / "dev/pts", "devpts", "newinstance,ptmxmode=0666,mode=0620,gid=5")
    (root / "dev/ptmx").symlink_to("pts/ptmx")
    (root / "dev/fd").symlink_to("/proc/self/fd")
    (root / "dev/shm").mkdir()
    mount("shm", root / "dev/shm", "tmpfs", "mode=1777", MS_NOSUID | MS_NODEV)
    (root / "run/sshd").mkdir()
    bind(state / "clock_offset_ns", root / "run/standin/clock_offset_ns")
    bind(fuse / "vcgencmd", root / "run/standin/vcgencmd")


def reap(_number: int, _frame: FrameType | None) -> None:
    """Collect every child that has ended, as process 1 must."""
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        return


def main() -> None:
    config = json.loads(sys.argv[1])
    # The host's procfs is still in place here, and names this process by the host's number.
    host_pid = os.readlink("/proc/self")
    if config["cgroup_procs"]:
        Path(config["cgroup_procs"]).write_text("0")  # "0": the process that writes
    set_up(config)
    socket.sethostname(config["hostname"])
    os.chroot(config["root"])
    os.chdir("/")
    signal.signal(signal.SIGCHLD, reap)
    os.write(1, f"{host_pid}\n".encode())
    while os.read(0, 1):
        pass


if __name__ == "__main__":
    main()
