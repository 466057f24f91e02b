"""`StandIn`: an arm64 Linux machine with a Raspberry Pi's face, to ssh into and to maltreat.

    with StandIn("pi4") as pi:
        print(pi.ssh(["uname", "-m"]).stdout)            # aarch64
        pi.set("class/thermal/thermal_zone0/temp", 81000)
        pi.reboot()

Every fault here is done to real processes, sockets and filesystems. machine.py says what the
stand-in is made of; README.md, what it never proves.
"""

from __future__ import annotations

import os
import shlex
import signal
import struct
from pathlib import Path

from .clients import make_key
from .device import Device
from .machine import WAIT_S, command, until


class StandIn(Device):
    """A device with everything that can go wrong with one."""

    def kill(self, pid: int, number: int = signal.SIGKILL) -> None:
        """Send a signal to a process by its pid inside; ProcessLookupError where there is none."""
        for process in self.processes():
            if process.pid == pid:
                os.kill(process.host_pid, number)
                return
        raise ProcessLookupError(f"no process {pid} in the stand-in")

    def kill_sshd(self) -> None:
        """Kill the ssh daemon and all of its connections; other processes live on."""

        def none_left() -> bool:
            found = [p for p in self.processes() if p.argv and Path(p.argv[0]).name == "sshd"]
            for process in found:
                os.kill(process.host_pid, signal.SIGKILL)
            return not found

        until("every sshd is dead", none_left)
        if self._sshd is not None:
            self._sshd.wait(WAIT_S)

    def rotate_host_key(self) -> str:
        """Give the device another host key, which no client knows; return its fingerprint."""
        self.host_public_key = make_key(self._host_key)
        self.kill_sshd()
        self.start_sshd()
        return self.host_fingerprint

    def reboot(self, *, clean: bool = False) -> None:
        """End every process, detached ones too, and boot again. The disk stays as it was."""
        self.power_off(clean=clean)
        self.power_on()

    def cut_network(self) -> None:
        """Pull the cable: packets vanish both ways, and connections hang."""
        self._cable.pull()

    def restore_network(self) -> None:
        """Plug the cable in again. TCP goes on when it next tries."""
        self._cable.plug()

    def shape_network(self, mbit_per_s: float | None) -> None:
        """Limit the link's rate in both directions; None lifts the limit."""
        self._cable.shape(mbit_per_s)

    def step_clock(self, seconds: float) -> None:
        """Step the wall clock of every process, running ones too; CLOCK_MONOTONIC goes on."""
        path = self._keeper.path(self._slot.home / "state/clock_offset_ns")
        with path.open("r+b", buffering=0) as file:
            (offset_ns,) = struct.unpack("=q", file.read(8))
            file.seek(0)
            file.write(struct.pack("=q", offset_ns + round(seconds * 1e9)))

    def fill_disk(self, leave_bytes: int = 0) -> None:
        """Leave only so much free space in the homes, by making their filesystem that small."""
        now = os.statvfs(self.root / "home")
        used_bytes = (now.f_blocks - now.f_bfree) * now.f_frsize
        self._resize_homes(used_bytes + leave_bytes)

    def free_disk(self) -> None:
        """Give the homes their first size again."""
        self._resize_homes(self._home_bytes)

    def noisy_startup(self, text: str, user: str = "pi") -> None:
        """Make the user's start-up files print `text`, for commands over ssh too; "" ends that.

        Debian's bash reads ~/.bashrc for those. Its first line normally stops there when the shell
        is not interactive; the noise comes before it. With `sftp="external"` it also breaks SFTP,
        as it does on a real machine.
        """
        quiet = (self.root / "etc/skel/.bashrc").read_text()
        noise = f"printf '%s\\n' {shlex.quote(text)}\n" if text else ""
        (self.home(user) / ".bashrc").write_text(noise + quiet)

    def _resize_homes(self, size_bytes: int) -> None:
        where = f"{self._config['root']}/home"
        command(self._keeper.enter(["mount", "-o", f"remount,size={size_bytes}", where]))
