"""A device over SSH on loopback: a real OpenSSH server, the native agent, and its connections to
cut. What the host does to it is real; that it is another machine is only played."""

from __future__ import annotations

import getpass
import importlib
import json
import os
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from edgebench.agent import agent
from edgebench.device import Device, load
from edgebench.recording import SAMPLE_COLUMNS
from edgebench.workspace import Workspace
from tests.agent.agents import processes, wait_until
from tests.measure.bench import Bench
from tests.transport.conftest import Sshd

#: The module; the package's own ``run`` is a function.
measure = importlib.import_module("edgebench.measure.run")

#: A launch of half a second each, so that there is time to cut something.
SHORT = ("--launches", "2", "--percentile", "50", "--precision", "90%", "--accuracy", "none")


@dataclass
class Far(Bench):
    """A workspace with one device, ``far``, at the other end of an SSH server."""

    server: Sshd = field(kw_only=True)
    #: Copies of every spool, as it was when the host began to fetch it.
    copies: list[Path] = field(default_factory=list)

    def profile(self, more: str = "", name: str = "far", **changes: Any) -> Path:
        agent_table = {"root": str(self.root), "lock": self.lock, **changes}
        path = self.path / "devices" / f"{name}.toml"
        path.write_text(
            'extends = "linux-ssh"\n'
            f'transport = {{ host = "127.0.0.1", port = {self.server.port}, '
            f'user = "{getpass.getuser()}" }}\n'
            f"{more or self.runtime()}\n"
            "[agent]\n"
            # A JSON string is a TOML string too.
            + "".join(f"{key} = {json.dumps(value)}\n" for key, value in agent_table.items())
        )
        return path

    @staticmethod
    def runtime(python: str = sys.executable) -> str:
        return f"runtime = {{ threads = 1, python = {json.dumps(python)} }}"

    def device(self, more: str = "", **changes: Any) -> Device:
        return load(str(self.profile(more, **changes)), Workspace.find(self.path))

    # -- breaking the link

    def sshds(self) -> list[int]:
        """The server's processes without what they run: the listener first, then connections."""
        found = []
        for pid in self.server.processes():
            program = Path(f"/proc/{pid}/exe")
            try:
                if program.readlink().name.startswith("sshd"):
                    found.append(pid)
            except OSError:  # it ended while being looked at
                continue
        return found

    def cut(self) -> None:
        """End every connection; the server takes new ones, and commands live on."""
        for pid in self.sshds()[1:]:
            signalled(pid, signal.SIGKILL)

    def freeze(self) -> None:
        """Pull the cable: connections stay open and nothing comes through any more."""
        for pid in self.sshds()[1:]:
            signalled(pid, signal.SIGSTOP)

    def kill_server(self) -> None:
        """Kill the SSH server and its connections; commands live on."""
        for pid in self.sshds():
            signalled(pid, signal.SIGKILL)
        process = self.server._process
        assert process is not None
        process.wait()

    # -- looking

    def settled(self) -> None:
        """Nothing runs, nothing is spooled, nothing is half-written, and the lock is free."""
        for role in ("serve", "supervise", "work"):
            wait_until(lambda role=role: not processes(role, self.path), f"the end of each {role}")
        assert self.spools() == []
        assert not list(self.store.root.glob(".*"))
        assert not agent.is_held(agent.open_lock(agent.lock_path(self.lock)))
        loaded, broken = self.store.load_all()
        assert broken == ()
        assert len(loaded) == len({each.recording.id for each in loaded})

    def copied(self) -> list[list[int]]:
        """The samples that lay on the device, from the last copy of its spool."""
        spool = self.copies[-1]
        name = "result.json" if (spool / "result.json").exists() else "partial.json"
        found = []
        for entry in json.loads((spool / name).read_text())["samples"]:
            table = np.load(spool / entry["file"])
            found += [[entry["launch"], *map(int, row)] for row in table]
        return found

    def stored(self, run_id: str) -> list[list[int]]:
        """The same of a recording."""
        samples = self.store.load(run_id).samples
        return np.stack([samples[name] for name in SAMPLE_COLUMNS], axis=1).tolist()

    def is_whole(self, run_id: str) -> None:
        """No sample lost, none twice: the recording has what lay on the device, and only that."""
        assert self.store.list().count(run_id) == 1
        assert self.stored(run_id) == self.copied() != []

    @contextmanager
    def copying(self) -> Iterator[None]:
        """Copy each spool before it is fetched."""
        fetch = measure.fetch

        async def copy_first(session: Any, run_id: str, target: Path) -> Any:
            copy = self.path / f"copy-{len(self.copies)}"
            spool = self.root / "runs" / run_id
            if spool.exists():
                self.copies.append(Path(shutil.copytree(spool, copy, symlinks=True)))
            return await fetch(session, run_id, target)

        measure.fetch = copy_first
        try:
            yield
        finally:
            measure.fetch = fetch


def signalled(pid: int, number: int) -> None:
    """Signal a process that may be gone already."""
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return


def once(event: str, act: Callable[[], Any], **members: Any) -> Callable[[dict[str, Any]], None]:
    """A reporter that does something the first time that an event comes with these members."""
    done: list[bool] = []

    def report(found: dict[str, Any]) -> None:
        report.events.append(found)
        if found["event"] != event or done:
            return
        if all(found.get(key) == value for key, value in members.items()):
            done.append(True)
            act()

    report.events = []
    return report
