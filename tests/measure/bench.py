"""A workspace of a test's own: a profile of this machine with a root and lock of its own, tiny
artifacts, and the command line in a process."""

from __future__ import annotations

import contextlib
import io
import json
import os
import signal
import subprocess
import sys
import uuid
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edgebench.agent import agent
from edgebench.artifact import Artifact
from edgebench.cli.main import main
from edgebench.device import Device, load
from edgebench.measure import RunOptions
from edgebench.results.store import Store
from edgebench.workspace import Workspace
from tests.agent.agents import PATIENCE_S, end_all, processes, wait_until
from tests.tiny import tiny_artifact

REPOSITORY = Path(__file__).parents[2]

#: One short launch: what a test of the path needs, and no figure.
QUICK = RunOptions(launches=1, percentile=50, min_duration_s=0.0, precision=0.9, accuracy=None)


@dataclass
class Bench:
    """One test's devices, artifacts and results."""

    path: Path
    lock: str = field(default_factory=lambda: f"test-{uuid.uuid4().hex[:12]}")
    started: list[subprocess.Popen[str]] = field(default_factory=list)

    def __post_init__(self) -> None:
        for name in ("devices", "exporters", "results"):
            (self.path / name).mkdir(exist_ok=True)
        self.profile()

    @property
    def root(self) -> Path:
        """Where the agent lives."""
        return self.path / "root"

    @property
    def store(self) -> Store:
        return Store(self.path / "results" / "runs")

    def profile(self, more: str = "", name: str = "bench") -> Path:
        """Write a profile of this machine."""
        path = self.path / "devices" / f"{name}.toml"
        path.write_text(
            f'extends = "local"\n{more}\n[agent]\nroot = "{self.root}"\nlock = "{self.lock}"\n'
        )
        return path

    def device(self, more: str = "") -> Device:
        return load(str(self.profile(more)), Workspace.find(self.path))

    def artifact(self, name: str = "tiny", **options: Any) -> Artifact:
        return tiny_artifact(self.path / "artifacts", name=name, **options)

    def command(self, *arguments: str | Path | Artifact) -> list[str]:
        """The command line; an artifact stands for its directory."""
        words = [part.path if isinstance(part, Artifact) else part for part in arguments]
        return [sys.executable, "-m", "edgebench", *map(str, words)]

    def start(self, *arguments: str | Path | Artifact, **popen: Any) -> subprocess.Popen[str]:
        """Start the command line in this workspace."""
        environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "COLUMNS": "200"}
        process = subprocess.Popen(
            self.command(*arguments),
            cwd=self.path,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            **popen,
        )
        self.started.append(process)
        return process

    def run(
        self, *arguments: str | Path | Artifact, **popen: Any
    ) -> subprocess.CompletedProcess[str]:
        """Run the command line to its end."""
        process = self.start(*arguments, **popen)
        out, err = process.communicate(timeout=PATIENCE_S)
        return subprocess.CompletedProcess(arguments, process.returncode, out, err)

    def call(self, *arguments: str | Path | Artifact) -> subprocess.CompletedProcess[str]:
        """The command line within this process: the same, without the second that imports take."""
        out, err, code = io.StringIO(), io.StringIO(), 0
        with (
            contextlib.chdir(self.path),
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(err),
        ):
            try:
                main(self.command(*arguments)[3:])
            except SystemExit as done:
                code = int(done.code or 0)
        return subprocess.CompletedProcess(arguments, code, out.getvalue(), err.getvalue())

    def spools(self) -> list[Path]:
        """Runs that the device has not forgotten."""
        return sorted((self.root / "runs").glob("*"))

    def wait_for_event(self, name: str, *, step: str | None = None, count: int = 1) -> Path:
        """Wait until the run on the device has said something; its spool."""

        def said() -> Path | None:
            for spool in self.spools():
                events = spool / "events.jsonl"
                lines = events.read_text().splitlines() if events.exists() else []
                found = [json.loads(line) for line in lines if line.endswith("}")]
                if step is not None:
                    found = [event for event in found if event.get("step") == step]
                if sum(event["event"] == name for event in found) >= count:
                    return spool
            for process in self.started:
                assert process.poll() in (None, -signal.SIGKILL), process.communicate()
            return None

        return wait_until(said, f"the event {name}")

    def wait_for_end(self) -> Path:
        """Wait until the run on the device has ended, whoever listens; its spool."""
        wait_until(
            lambda: [s for s in self.spools() if (s / "result.json").exists()], "the run's end"
        )
        wait_until(lambda: not processes("supervise", self.root), "the supervisor's end")
        (spool,) = self.spools()
        return spool

    def agents(self) -> list[int]:
        """Pids of the agents that serve here."""
        return processes("serve", self.root)

    def kill_worker(self) -> None:
        """Kill the worker that measures now."""
        (worker,) = processes("work", self.root)
        os.kill(worker, signal.SIGKILL)

    def nothing_is_left(self) -> None:
        """No process, no spool, no recording, and the lock is free."""
        wait_until(lambda: not processes("serve", self.root), "the agent's end")
        for role in ("serve", "supervise", "work"):
            assert processes(role, self.root) == []
        assert self.spools() == []
        assert self.store.list() == ()
        assert not list(self.store.root.glob(".*"))
        assert not agent.is_held(agent.open_lock(agent.lock_path(self.lock)))

    def close(self) -> None:
        for process in self.started:
            if process.poll() is None:
                kill(process)
        end_all(self.path)
        Path(agent.lock_path(self.lock)).unlink(missing_ok=True)


def kill(process: subprocess.Popen[str], number: int = signal.SIGKILL) -> None:
    """Signal a process and reap it."""
    process.send_signal(number)
    process.communicate(timeout=PATIENCE_S)
