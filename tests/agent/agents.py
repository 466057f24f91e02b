"""Real agents in real processes, spoken to through their pipes, and the plans to give them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from edgebench.agent import agent

AGENT = Path(agent.__file__)

#: Nothing here takes this long; a test that waits longer has found something.
PATIENCE_S = 60.0


class Refused(Exception):
    """The agent answered with an error."""

    def __init__(self, error: dict[str, Any]) -> None:
        super().__init__(f"{error['code']}: {error['message']}")
        self.code = error["code"]
        self.error = error


class ServingAgent:
    """One ``serve`` process, from its sentinel to the end of its stdin."""

    def __init__(
        self, root: Path, lock: str, *, python: str = sys.executable, **popen: Any
    ) -> None:
        self.root = root
        self.process = subprocess.Popen(
            [python, str(AGENT), "serve", "--root", str(root), "--lock", lock],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            **popen,
        )
        self.events: list[dict[str, Any]] = []
        self.number = 0
        line = ""
        while not line.startswith(agent.SENTINEL):
            line = self.line()
        assert line == f"{agent.SENTINEL} {agent.PROTOCOL}\n"

    def line(self) -> str:
        """The next line that the agent says."""
        line = self.process.stdout.readline()
        assert line, "the agent has ended"
        return line

    def say(self, line: str) -> None:
        """Write one raw line."""
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()

    def answer(self) -> dict[str, Any]:
        """The next reply; events that come before it are kept."""
        while True:
            document = json.loads(self.line())
            if "id" in document:
                return document
            self.events.append(document)

    def request(self, op: str, **arguments: Any) -> dict[str, Any]:
        """One request and its reply; Refused where that is an error."""
        self.number += 1
        self.say(json.dumps({"id": self.number, "op": op, **arguments}))
        reply = self.answer()
        assert reply.pop("id") == self.number
        if "error" in reply:
            raise Refused(reply["error"])
        return reply

    def start(self, plan: dict[str, Any], **arguments: Any) -> Path:
        """Start a run; its spool."""
        return Path(self.request("start", plan=plan, **arguments)["run_dir"])

    def following(self, run: str, offset: int = 0) -> Iterator[dict[str, Any]]:
        """The events of a run until it ends; the last is {"ended": ...}."""
        self.request("follow", run=run, offset=offset)
        while True:
            document = self.events.pop(0) if self.events else json.loads(self.line())
            assert document["run"] == run
            if "ended" in document:
                yield {"ended": document["ended"]}
                return
            yield document["event"]

    def until(self, run: str, event: str) -> dict[str, Any]:
        """Wait for an event of a run that is under way."""
        for found in self.following(run):
            assert "ended" not in found, f"the run ended without {event!r}"
            if found["event"] == event:
                return found
        raise AssertionError("unreachable")

    def result(self, run: str) -> dict[str, Any]:
        """Follow a run to its end; its result document."""
        for _ in self.following(run):
            pass
        found = self.request("collect", run=run)
        return json.loads((Path(found["run_dir"]) / found["result"]).read_text())

    def close(self) -> int:
        """Close its stdin; its exit status."""
        if self.process.poll() is None:
            self.process.stdin.close()
        code = self.process.wait(PATIENCE_S)
        self.process.stdout.close()
        return code


def null_entry(name: str = "null", **changes: Any) -> dict[str, Any]:
    """An artifact that does nothing."""
    entry = {
        "name": name,
        "digest": "sha256:" + "0" * 64,
        "path": None,
        "files": {},
        "runtime": "null",
        "model": None,
        "inputs": None,
        "evaluation": None,
        "session_options": {},
    }
    return {**entry, **changes}


def null_plan(*entries: dict[str, Any], **protocol: Any) -> dict[str, Any]:
    """A plan of null artifacts: one launch of some milliseconds."""
    return {
        "id": new_id(),
        "agent_protocol": agent.PROTOCOL,
        "owner": "somebody@host",
        "store": "host:/results/runs",
        "protocol": {
            "scenario": "single-stream",
            "batch": 1,
            "seq_len": 8,
            "launches": 1,
            "calls_per_turn": 8,
            "seed": 0,
            "stop": {
                "min_count": 20,
                "min_duration_s": 0.0,
                "max_duration_s": 30.0,
                "relative_half_width": 1e9,
            },
            "warmup": {"window": 4, "tolerance": 1e9, "max_s": 5.0},
            "deadline_s": 60.0,
            "accuracy": None,
            "runtime": {
                "kind": "null",
                "provider": "CPUExecutionProvider",
                "threads": 1,
                "cpus": None,
                "allow_spinning": False,
                "options": {},
            },
            "memory_limit_bytes": None,
            "cooldown": None,
            **protocol,
        },
        "artifacts": list(entries) or [null_entry()],
        "carry": {},
    }


def endless(**changes: Any) -> dict[str, Any]:
    """A stop rule that is not met within the test."""
    return {
        "min_count": 20,
        "min_duration_s": 50.0,
        "max_duration_s": 50.0,
        "relative_half_width": 1.0,
        **changes,
    }


def new_id() -> str:
    """A run id that nobody has."""
    return uuid.uuid4().hex[:26].upper()


def wait_until(condition: Callable[[], Any], what: str) -> Any:
    """Poll for something that sends no event, such as the death of somebody else's child."""
    until = time.monotonic() + PATIENCE_S
    while time.monotonic() < until:
        found = condition()
        if found:
            return found
        time.sleep(0.01)
    raise AssertionError(f"{what}: not within {PATIENCE_S:g} s")


def processes(role: str, root: Path) -> list[int]:
    """Pids of the agent's processes of a role (serve, supervise, work) below a root."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                argv = (entry / "cmdline").read_text().split("\0")
                state = (entry / "stat").read_text().rpartition(")")[2].split()[0]
            except OSError:
                continue
            if state != "Z" and role in argv and any(str(root) in part for part in argv):
                found.append(int(entry.name))
    return sorted(found)


def end_all(root: Path) -> None:
    """Kill what a test has left below a root."""
    for role in ("supervise", "work", "serve"):
        for pid in processes(role, root):
            with_pid_gone(pid, signal.SIGKILL)


def with_pid_gone(pid: int, number: int) -> None:
    """Signal a process that may be gone already."""
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return


def onnx_entry(artifact: Any) -> dict[str, Any]:
    """A real artifact, as a worker wants it."""
    manifest = artifact.manifest
    return {
        "name": artifact.name,
        "digest": artifact.digest,
        "path": str(artifact.path),
        "files": {},
        "model": manifest.model,
        "inputs": manifest.data.inputs,
        "evaluation": manifest.data.evaluation,
        "session_options": {},
    }


def onnx_runtime(**changes: Any) -> dict[str, Any]:
    """The protocol's runtime table for ONNX Runtime on one thread."""
    return {
        "kind": "onnxruntime",
        "provider": "CPUExecutionProvider",
        "threads": 1,
        "cpus": None,
        "allow_spinning": False,
        "options": {},
        **changes,
    }
