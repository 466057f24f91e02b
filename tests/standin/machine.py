"""The processes and namespaces behind a stand-in: its keeper, and the machine that reboots.

    test process ── sockets ── keeper          mount and network namespace, disk, FUSE
        │                        └ (joined by)
        └────────── a pipe ──── init (pid 1)   pid, UTS, IPC and time namespace; one a boot
                                  └ sshd and all that it starts, in the arm64 root

Nothing here outlives the test process: keeper and init end when their socket or pipe closes, and
the kernel then removes their namespaces, mounts and network devices.
"""

# ruff: noqa: RUF005 - a command line reads best as lines of words

from __future__ import annotations

import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from .mounts import PACKET_BYTES

PACKAGE = (__package__ or "").split(".")
# So that `python -m PACKAGE.module` finds the helpers, from here and from inside a namespace.
IMPORT_ROOT = str(Path(__file__).resolve().parents[len(PACKAGE)])
HELPER_ENV = os.environ | {"PYTHONPATH": IMPORT_ROOT}
PLAYED_PROC = ("cpuinfo", "meminfo", "loadavg", "stat", "swaps", "sys/kernel/random/boot_id")
WAIT_S = 20.0  # far above what any step takes, even on a loaded machine


@dataclass(frozen=True)
class Process:
    """A process inside: its pid there, its pid on the host, its user id and command line."""

    pid: int
    host_pid: int
    uid: int
    argv: tuple[str, ...]


def command(argv: Sequence[str], *, check: bool = True) -> str:
    """Run a tool of the host; RuntimeError with what it said where it fails."""
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    if check and done.returncode != 0:
        raise RuntimeError(f"{' '.join(argv)}: {done.stderr.strip() or done.returncode}")
    return done.stdout


def until(what: str, ready: Callable[[], bool], timeout_s: float = WAIT_S) -> None:
    """Poll until `ready()`; TimeoutError naming `what` after `timeout_s`."""
    end = time.monotonic() + timeout_s
    while not ready():
        if time.monotonic() > end:
            raise TimeoutError(f"the stand-in did not get there in {timeout_s:.0f} s: {what}")
        time.sleep(0.005)


def start_time(pid: int) -> str | None:
    """When a process began, in ticks: with the pid, its identity. None where there is none."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return stat.rpartition(")")[2].split()[19]  # field 22 of proc(5), counted after the name


class Keeper:
    """Starts the process of sysfs.py and talks to it."""

    def __init__(self, config: Mapping[str, Any], live: Callable[[str], str]) -> None:
        """`live` gives the text of a live file; an OSError from it is what the reader gets."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        live_ours, live_theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        fds = (theirs.fileno(), live_theirs.fileno())
        self.fuse, self._log = Path(config["fuse"]), Path(config["log"])
        self._control, self._guard = ours, threading.Lock()
        with theirs, live_theirs, self._log.open("a") as log:
            self._process = subprocess.Popen(
                ["unshare", "--mount", "--net", "--propagation", "private", sys.executable]
                + ["-m", ".".join([*PACKAGE, "sysfs"]), *map(str, fds), json.dumps(dict(config))],
                cwd=IMPORT_ROOT,
                env=HELPER_ENV,
                pass_fds=fds,
                stdin=subprocess.DEVNULL,
                stderr=log,
                start_new_session=True,  # so that Ctrl-C in a terminal is the tests' alone
            )
        self.pid = self._process.pid  # unshare becomes the keeper by exec
        self._answering = threading.Thread(target=self._answer, args=(live_ours, live), daemon=True)
        self._answering.start()
        until("its /sys is mounted", self._is_up)

    def _is_up(self) -> bool:
        if self._process.poll() is not None:
            raise RuntimeError(f"the stand-in's keeper ended:\n{self._log.read_text()}")
        return self.path(self.fuse / "emulator_proc").is_dir()

    def path(self, path: Path) -> Path:
        """A path of the keeper's mount namespace, as the test process can open it."""
        return Path(f"/proc/{self.pid}/root") / path.relative_to("/")

    def ask(self, **request: Any) -> dict[str, Any]:
        """One request to the keeper (see sysfs.serve_control) and its answer."""
        with self._guard:
            self._control.send(json.dumps(request).encode())
            answer: dict[str, Any] = json.loads(self._control.recv(PACKET_BYTES))
        if "wrong" in answer:
            raise ValueError(f"the keeper knows no {answer['wrong']!r}")
        return answer

    def enter(self, argv: Sequence[str]) -> list[str]:
        """`argv` to be run by the host's tools in the keeper's mount and network namespaces."""
        return ["nsenter", "-t", str(self.pid), "--mount", "--net", *argv]

    def close(self) -> None:
        """End the keeper; its mounts and its network go with it."""
        self._control.close()
        self._process.wait(WAIT_S)
        self._answering.join(WAIT_S)

    @staticmethod
    def _answer(link: socket.socket, live: Callable[[str], str]) -> None:
        """Serve live files, on a thread of the test process, until the keeper is gone."""
        with link:
            while packet := link.recv(PACKET_BYTES):
                try:
                    answer: dict[str, Any] = {"text": live(json.loads(packet)["path"])}
                except OSError as error:
                    answer = {"error": error.errno}
                link.send(json.dumps(answer).encode())


class Machine:
    """One boot: from power on to power off."""

    def __init__(self, keeper: Keeper, config: Mapping[str, Any], uptime_s: int) -> None:
        """Boot; CLOCK_MONOTONIC starts at `uptime_s` in there, whatever the host's is."""
        offset_s = uptime_s - int(time.monotonic())
        self.monotonic_offset_s = offset_s
        self._cgroup_procs = str(config["cgroup_procs"])
        boottime_offset_s = uptime_s - int(time.clock_gettime(time.CLOCK_BOOTTIME))
        self.boottime_offset_s = boottime_offset_s
        log = Path(config["log"])
        with log.open("a") as errors:
            self._process = subprocess.Popen(
                keeper.enter(
                    ["unshare", "--pid", "--fork", "--kill-child", "--mount", "--uts", "--ipc"]
                    + ["--time", f"--monotonic={offset_s}", f"--boottime={boottime_offset_s}"]
                    + [sys.executable, "-m", ".".join([*PACKAGE, "init"]), json.dumps(dict(config))]
                ),
                cwd=IMPORT_ROOT,
                env=HELPER_ENV,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                start_new_session=True,
                text=True,
            )
        said = _pipe(self._process.stdout).readline()
        if not said:
            self._process.wait(WAIT_S)
            raise RuntimeError(f"the stand-in did not boot:\n{log.read_text()}")
        self.init_pid = int(said)
        self._namespace = os.readlink(f"/proc/{self.init_pid}/ns/pid")

    @property
    def on(self) -> bool:
        return self._process.poll() is None

    @property
    def root(self) -> Path:
        """The root as its own programs see it, /proc and /sys included."""
        return Path(f"/proc/{self.init_pid}/root")

    def enter(self, argv: Sequence[str], uid: int = 0) -> list[str]:
        """`argv` as a program of the arm64 root, in all of this machine's namespaces."""
        target = ["nsenter", "-t", str(self.init_pid), "--mount", "--uts", "--ipc", "--net"]
        target += ["--pid", "--time", "--root", "--wd", f"--setuid={uid}", f"--setgid={uid}", "--"]
        if self._cgroup_procs:  # nsenter does not enter control groups of version 1
            join = f'echo 0 > {shlex.quote(self._cgroup_procs)} && exec "$@"'
            target = ["sh", "-c", join, "sh", *target]
        return [*target, *argv]

    def processes(self) -> list[Process]:
        """Every living process inside but init, oldest first."""
        found = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit() and int(entry.name) != self.init_pid:
                process = self._look(entry)
                if process is not None:
                    found.append(process)
        return sorted(found, key=lambda process: process.pid)

    def _look(self, entry: Path) -> Process | None:
        try:
            if os.readlink(entry / "ns/pid") != self._namespace:
                return None
            status = dict(
                line.split(":\t", 1) for line in (entry / "status").read_text().splitlines()
            )
            argv = (entry / "cmdline").read_bytes().decode(errors="replace").split("\0")[:-1]
        except (FileNotFoundError, ProcessLookupError):  # it ended while being looked at
            return None
        except PermissionError:  # a process of the host that even root here may not look into
            return None
        if status["State"].startswith(("Z", "X")):
            return None
        if argv and "qemu" in argv[0]:
            argv = argv[2:]  # the emulator, and the program's file: argv[0] follows (binfmt flag P)
        pid = int(status["NSpid"].split()[-1])
        return Process(pid, int(entry.name), int(status["Uid"].split()[0]), tuple(argv))

    def power_off(self) -> None:
        """Kill init, and so every process inside, at once."""
        if self.on:
            os.kill(self.init_pid, signal.SIGKILL)
        self._process.wait(WAIT_S)
        _pipe(self._process.stdin).close()
        _pipe(self._process.stdout).close()


def _pipe(stream: IO[str] | None) -> IO[str]:
    if stream is None:
        raise RuntimeError("the process was started without this pipe")
    return stream
