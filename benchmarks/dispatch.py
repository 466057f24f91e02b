"""From ``edgebench run --device X`` to the first timed inference, when there is nothing to send.

X is this machine behind a real OpenSSH server on loopback, with keys, configuration, agent root and
lock of the benchmark's own. A first run sends the agent and the int8 MiniLM; those after it are
measured (the page cache, too, is warm then).

**Which inference.** A run's first stage loads each artifact alone in a fresh worker and calls it a
few times through the timing loop, for load time and memory. The very first of these calls is taken:
from there on the device does nothing but the measurement that was asked for. Its time is that of
the worker's event before loading (device clock, brought to the host's by the recording's own
``clock``) plus the load time in the recording; input binding, some tens of microseconds, is the
rest. The *model load* is then left out, as the target says: "under 1 s plus model load". The first
call whose duration is stored comes later, in launch 0; it is printed beside it and judged by
nobody, since the whole first stage lies before it.

The figure is the median over the runs, from before the process is made. Events are seen by a tap on
the progress line (``tapped.py``), which costs an append each.

**What a second run sends** is counted in a run of its own with taps at the transport, as bytes of
files put on the device, and checked by looking at the agent's root there before and after: no file
may have appeared in its ``agents``, ``cache`` or ``site``.

The break-down comes from the same deep taps. The device shares this machine's CPUs. The login
shell's own start-up files are kept out of the figure, and what they would add is printed.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common import (
    Bench,
    Figure,
    Refusal,
    artifact,
    at_most,
    bench,
    environment,
    lock_name,
    remove_lock,
    run_benchmark,
    table,
)
from loopback import loopback, startup_files_s

RUNS, QUICK_RUNS = 7, 1
LIMIT_S = 1.0
#: As little as a run can do after what is measured here.
OPTIONS = ("--launches", "1", "--percentile", "50", "--accuracy", "none", "--precision", "99%")


@dataclass(frozen=True)
class Run:
    """One run: when it was told to start (Unix ns), what the taps saw, and its recording."""

    begin_ns: int
    log: dict[str, Any]
    recording: Any
    samples: Any
    state: Sequence[dict[str, Any]]

    def host_ns(self, device_ns: int) -> int:
        """A device time as the host's."""
        return int(device_ns + self.recording.clock.offset_ns)

    def event(self, name: str) -> dict[str, Any]:
        """The first event of a name."""
        return next(event for _, event in self.log["events"] if event["event"] == name)

    def since_s(self, unix_ns: int) -> float:
        """Seconds since the command."""
        return (unix_ns - self.begin_ns) / 1e9

    @property
    def worker_ready_s(self) -> float:
        return self.since_s(self.host_ns(self.event("solo")["t_ns"]))

    @property
    def load_s(self) -> float:
        return float(self.recording.solo[0].load_ns) / 1e9

    @property
    def first_call_s(self) -> float:
        """From the command to the first timed call."""
        return self.worker_ready_s + self.load_s

    @property
    def first_stored_s(self) -> float:
        """From the command to the first call whose duration the recording holds."""
        return self.since_s(self.host_ns(int(self.samples["start_ns"].min())))

    @property
    def sent_bytes(self) -> int:
        return sum(size for _, size in self.log["puts"])


def run_once(place: Bench, profile: Path, config: Path, model: Path, depth: str) -> Run:
    """One run with taps.

    Raises:
        Refusal: it failed.
    """
    from edgebench.results.store import Store

    store = Store(place.results / "runs")
    before = set(store.list())
    log = place.directory / "log.json"
    tapped = Path(__file__).with_name("tapped.py")
    command = [sys.executable, str(tapped), str(log), depth, "run", "--device", str(profile)]
    begin_ns = time.time_ns()
    done = subprocess.run(
        [*command, "--results", str(place.results), *OPTIONS, str(model)],
        cwd=place.directory,
        env=environment(EDGEBENCH_SSH_CONFIG=str(config)),
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        said = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
        raise Refusal(f"the run failed ({done.returncode}): {said}")
    (new,) = set(store.list()) - before
    loaded = store.load(new)
    return Run(
        begin_ns, json.loads(log.read_text()), loaded.recording, loaded.samples, loaded.state
    )


def files_there(root: Path) -> set[str]:
    """What stands on the device that a run could have sent."""
    return {
        str(path.relative_to(root))
        for part in ("agents", "cache", "site")
        for path in (root / part).rglob("*")
    }


def breakdown(run: Run) -> list[tuple[str, float]]:
    """Seconds of each step before the first timed call, from a deeply tapped run."""
    marks = dict(run.log["marks"])
    spans = run.log["spans"]
    connecting = next(at for at, event in run.log["events"] if event["event"] == "connecting")

    def spent(name: str) -> float:
        return sum(end - begin for label, begin, end in spans if label == name) / 1e9

    first = {label: begin for label, begin, _ in reversed(spans)}
    started = next(end for label, _, end in spans if label == "request start")
    asked = [label for label, begin, _ in spans if label.startswith("request ") and begin < started]
    requests = {label: spent(label) for label in dict.fromkeys(asked) if label != "request start"}
    supervisor = run.host_ns(int(run.state[0]["t_ns"]))
    worker = run.host_ns(run.event("solo")["t_ns"])
    link = spent("connect") + spent("expand") + spent("agent start")
    before_start = (first["request start"] - connecting) / 1e9
    steps = [
        ("interpreter up", run.since_s(marks["begin"])),
        ("command line imported", (marks["command line imported"] - marks["begin"]) / 1e9),
        (
            "measuring and SSH imported",
            (marks["measure and transport imported"] - marks["command line imported"]) / 1e9,
        ),
        (
            "options, profile, artifact read and verified",
            (connecting - marks["measure and transport imported"]) / 1e9,
        ),
        ("SSH connection", spent("connect")),
        ("home directory asked for (SFTP)", spent("expand")),
        ("agent started (shell, python3)", spent("agent start")),
        *((f"{label} ", value) for label, value in requests.items()),
        ("host's own work in between", before_start - link - sum(requests.values())),
        ("request start", spent("request start")),
        ("supervisor up, state read", (supervisor - started) / 1e9),
        ("worker up: numpy, ONNX Runtime", (worker - supervisor) / 1e9),
        ("model load (not judged)", run.load_s),
    ]
    return [(name.strip(), value) for name, value in steps]


def figures(net_s: float, sent_bytes: int, new_files: int) -> list[Figure]:
    """The verdict."""
    return [
        at_most("command to first timed inference, less model load", net_s, LIMIT_S, " s"),
        at_most("files sent by a second run", sent_bytes, 0, " bytes"),
        at_most("files that a second run left in agents, cache, site", new_files, 0),
    ]


def measure(quick: bool) -> list[Figure]:
    """A first run, a deeply tapped one, and those that count."""
    model = artifact("int8")
    with bench() as place, loopback(place.directory) as server:
        lock = lock_name(place.directory, "-ssh")
        profile = server.profile("dispatch", lock)
        root = server.directory / "devices" / "dispatch"
        try:
            cold = run_once(place, profile, server.config, model, "deep")
            there = files_there(root)
            deep = run_once(place, profile, server.config, model, "deep")
            new_files = len(files_there(root) - there)
            runs = [
                run_once(place, profile, server.config, model, "shallow")
                for _ in range(QUICK_RUNS if quick else RUNS)
            ]
        finally:
            remove_lock(lock)
    steps = breakdown(deep)
    table(("step (one run, deep taps)", "ms"), ((name, f"{1e3 * s:.0f}") for name, s in steps))
    print()
    nets = [run.first_call_s - run.load_s for run in runs]
    table(
        ("run", "first timed call s", "of that load s", "net s", "first stored call s"),
        (
            (
                str(i),
                f"{run.first_call_s:.3f}",
                f"{run.load_s:.3f}",
                f"{run.first_call_s - run.load_s:.3f}",
                f"{run.first_stored_s:.3f}",
            )
            for i, run in enumerate(runs, 1)
        ),
    )
    print(
        f"start-up files of this user's shell, kept out: {1e3 * startup_files_s():.0f} ms a command"
    )
    print(f"the first run sent {cold.sent_bytes / 1e6:.1f} MB in {len(cold.log['puts'])} files")
    return figures(statistics.median(nets), deep.sent_bytes, new_files)


if __name__ == "__main__":
    sys.exit(run_benchmark(__doc__, measure))
