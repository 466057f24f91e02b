"""Numbered places for stand-ins on this machine, and the broom for those whose owner died.

A slot is a folder with a lock that its owner holds, so that the kernel frees it when the owner
ends in any way. The number gives the stand-in its address. Namespaces, mounts and processes go
away by themselves (see machine.py); what a crash may leave is the folder, an empty control group,
and, for an instant, processes that are still ending. `take` removes all of these before use.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import signal
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from .machine import command, start_time, until

RUN = Path("/run/edgebench-standin")
SLOTS = 250  # the third byte of the address
# RFC 2544 sets 198.18.0.0/15 aside for tests between networks, so no real network uses it.
NETWORK = "198.18"
CGROUPS = (Path("/sys/fs/cgroup/memory"), Path("/sys/fs/cgroup"))


@dataclass(frozen=True)
class Slot:
    """A taken place. Every name that the stand-in uses outside its namespaces is from here."""

    number: int
    lock: IO[str]

    @property
    def home(self) -> Path:
        return RUN / str(self.number)

    @property
    def host_address(self) -> str:
        return f"{NETWORK}.{self.number}.1"

    @property
    def address(self) -> str:
        return f"{NETWORK}.{self.number}.2"

    @property
    def link(self) -> str:
        return f"standin{self.number}"

    def record(self, pids: Mapping[str, int]) -> None:
        """Write down whom to kill, if this process cannot do it itself."""
        known = {name: [pid, start_time(pid)] for name, pid in pids.items()}
        (self.home / "pids.json").write_text(json.dumps(known))

    def cgroup(self, limit_bytes: int) -> Path:
        """Make a control group with a memory limit (version 1 or 2); return its folder."""
        name = f"edgebench-standin-{self.number}"
        version_1, version_2 = CGROUPS
        if version_1.is_dir():
            group = version_1 / name
            group.mkdir(exist_ok=True)
            (group / "memory.limit_in_bytes").write_text(str(limit_bytes))
            return group
        (version_2 / "cgroup.subtree_control").write_text("+memory")
        group = version_2 / name
        group.mkdir(exist_ok=True)
        (group / "memory.max").write_text(str(limit_bytes))
        if (group / "memory.swap.max").exists():
            (group / "memory.swap.max").write_text("0")
        return group

    def clean(self) -> None:
        """Remove everything of this slot that exists outside its namespaces."""
        pids = self.home / "pids.json"
        if pids.exists():
            for pid, started in json.loads(pids.read_text()).values():
                if started is not None and start_time(pid) == started:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
                    until(f"process {pid} ends", lambda pid=pid: start_time(pid) is None)  # type: ignore[misc]
        if Path("/sys/class/net", self.link).exists():
            command(["ip", "link", "delete", self.link], check=False)
        for controller in CGROUPS:
            group = controller / f"edgebench-standin-{self.number}"
            if group.is_dir():
                until(f"{group} is empty", lambda group=group: _removed(group))  # type: ignore[misc]
        if self.home.is_dir():
            shutil.rmtree(self.home)

    def release(self) -> None:
        self.clean()
        self.lock.close()


def take() -> Slot:
    """Take the lowest free slot, after sweeping out what dead owners left in any."""
    RUN.mkdir(parents=True, exist_ok=True)
    mine: Slot | None = None
    for number in range(SLOTS):
        left = (RUN / str(number)).exists()
        if mine is not None and not left:
            continue
        lock = (RUN / f"{number}.lock").open("w")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.close()
            continue
        slot = Slot(number, lock)
        slot.clean()
        if mine is None:
            mine = slot
            mine.home.mkdir()
        else:
            lock.close()
    if mine is None:
        raise RuntimeError(f"all {SLOTS} places for stand-ins are taken (see {RUN})")
    return mine


def _removed(group: Path) -> bool:
    try:
        group.rmdir()
    except OSError:  # EBUSY while the last process is still going away
        return False
    return True
