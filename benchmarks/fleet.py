"""A hundred devices from one host: wall time against the time of one, and the host's memory.

A hundred profiles lead to one OpenSSH server on loopback, each with an agent root and a lock of its
own; one host process calls ``run_many`` on all of them at once. It is compared with the same call
on one more device of the same kind, before it. Each is new: agent and artifact are sent to it.

**Real**: the host's part, whole. The SSH connections, the sending, the agents with their locks and
spools, their supervisors and workers as processes of their own, collecting, checking, storing with
fsync.

**Played**: the devices' *work*. A hundred real devices have a hundred CPUs; here all share this
machine's, where a hundred models at once would measure nothing but that. So the agent that is sent
is this package's file with a runtime added in which a call sleeps for 20 ms. What else the devices
do (three interpreters that import numpy, a supervisor that looks ten times a second) does run here,
all hundred of it, and counts against us: it is most of the CPU time that the benchmark takes.

**The time of one is chosen**: two launches of 28 s each, about a minute, which is what a run of one
small model on a Raspberry Pi may take. The longer it is, the better the ratio. So the host's own
cost stands beside it, as CPU time a device, which does not depend on that choice, and the wall time
that each device adds, which depends on this machine's CPUs, since the devices start up on them.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common import (
    ROOT,
    Bench,
    Figure,
    Refusal,
    at_least,
    at_most,
    bench,
    environment,
    lock_name,
    remove_lock,
    run_benchmark,
    table,
)
from loopback import loopback

DEVICES, QUICK_DEVICES = 100, 3
LAUNCH_S, QUICK_LAUNCH_S = 28.0, 0.2
LIMIT_TIMES = 3.0
LIMIT_MB = 500.0

#: Added to the agent that is sent.
SLEEP = '''
class SleepRuntime(NullRuntime):
    """A model that takes 20 ms of time and none of the CPU."""

    def __init__(self, model: str | None, options: Document) -> None:
        self.call = lambda binding: time.sleep(0.02)


RUNTIMES["sleep"] = SleepRuntime


'''


@dataclass(frozen=True)
class Drive:
    """What it took the host to run some devices."""

    devices: int
    wall_s: float
    peak_bytes: int
    cpu_s: float
    recordings: int
    errors: Sequence[str]

    @property
    def peak_mb(self) -> float:
        return self.peak_bytes / 1e6


def sleeping_agent(target: Path) -> Path:
    """The package's agent with one more runtime.

    Raises:
        Refusal: it no longer ends as this benchmark expects.
    """
    from edgebench.agent import agent

    end = 'if __name__ == "__main__":'
    source = Path(agent.__file__).read_text()
    head, found, tail = source.rpartition(end)
    if not found:
        raise Refusal("the agent has no main part any more: correct benchmarks/fleet.py.")
    target.write_text(head.rstrip() + "\n\n" + SLEEP + found + tail)
    return target


def drive(
    place: Bench, config: Path, profiles: Sequence[Path], job: dict[str, Any], name: str
) -> Drive:
    """Run one host process over some devices.

    Raises:
        Refusal: it failed as a whole.
    """
    path = place.directory / f"{name}.json"
    store = place.results / name
    path.write_text(
        json.dumps({**job, "profiles": [str(profile) for profile in profiles], "store": str(store)})
    )
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("fleet_host.py")), str(path)],
        cwd=place.directory,
        env=environment(EDGEBENCH_SSH_CONFIG=str(config)),
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        print(done.stderr, file=sys.stderr)
        said = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
        raise Refusal(f"the host process failed ({done.returncode}): {said}")
    found = json.loads(done.stdout.splitlines()[-1])
    return Drive(
        devices=len(profiles),
        wall_s=found["wall_s"],
        peak_bytes=found["peak_bytes"],
        cpu_s=found["cpu_s"],
        recordings=found["recordings"],
        errors=found["errors"],
    )


def figures(one: Drive, many: Drive) -> list[Figure]:
    """The verdict."""
    return [
        at_least("devices with a recording", many.recordings, many.devices),
        at_most(
            f"{many.devices} devices over one, wall time",
            many.wall_s / one.wall_s,
            LIMIT_TIMES,
            " times",
            f" ({many.wall_s:.1f} s / {one.wall_s:.1f} s)",
        ),
        at_most("peak memory of the host process", many.peak_mb, LIMIT_MB, " MB"),
    ]


def measure(quick: bool) -> list[Figure]:
    """One device, then all."""
    sys.path.insert(0, str(ROOT))
    from tests.tiny import tiny_artifact

    count = QUICK_DEVICES if quick else DEVICES
    with bench() as place, loopback(place.directory) as server:
        job = {
            "agent": str(sleeping_agent(place.directory / "agent.py")),
            "runtime": "sleep",
            "artifact": str(tiny_artifact(place.directory).path),
            "options": {
                "launches": 2,
                "min_duration_s": QUICK_LAUNCH_S if quick else LAUNCH_S,
                "min_count": 20,
                "percentile": 50.0,
                "precision": 0.99,
                "warmup_tolerance": 0.99,
                "accuracy": None,
            },
        }
        locks = [lock_name(place.directory, f"-{i}") for i in range(count + 1)]
        profiles = [server.profile(f"device-{i}", lock) for i, lock in enumerate(locks)]
        try:
            one = drive(place, server.config, profiles[:1], job, "one")
            many = drive(place, server.config, profiles[1:], job, "many")
        finally:
            for lock in locks:
                remove_lock(lock)
    table(
        ("devices", "wall s", "recordings", "host CPU s", "host CPU s a device", "host peak MB"),
        (
            (
                str(found.devices),
                f"{found.wall_s:.1f}",
                str(found.recordings),
                f"{found.cpu_s:.1f}",
                f"{found.cpu_s / found.devices:.2f}",
                f"{found.peak_mb:.0f}",
            )
            for found in (one, many)
        ),
    )
    added_ms = 1e3 * (many.wall_s - one.wall_s) / (many.devices - 1)
    print(f"each device more adds {added_ms:.0f} ms here, its own start-up on these CPUs included")
    for error in dict.fromkeys([*one.errors, *many.errors]):
        print(f"failed: {error}")
    return figures(one, many)


if __name__ == "__main__":
    sys.exit(run_benchmark(__doc__, measure))
