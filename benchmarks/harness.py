"""What edgebench's own timing adds to what it times.

Five parts, all in this process, pinned and set up as the agent's worker is.

1. **Our loop beside a bare one.** The agent's ``Lane.turn`` (inputs and outputs bound beforehand)
   and the plainest loop that there is (``begin; session.run(None, feed); end``) take turns on *one
   and the same* ONNX Runtime session and the same inputs, in blocks of 8 calls in random order. As
   in a run, the first call of a block settles the caches and is not counted. A pair of blocks gives
   one ratio of medians; the figure is the median over pairs, with its distribution-free 99 %
   interval. The bare loop is what a person would write by hand; it makes its inputs into ONNX
   Runtime's values anew in each call, so a ratio slightly below 1 is possible. MiniLM, int8 and
   fp32, sequence length 128.
2. **The null artifact.** The agent's null runtime does nothing: what its samples say is what the
   loop itself adds to every sample, and what a turn takes beyond them is never in a figure.
3. **The null meter.** A reading that reads nothing, and the agent's reading of the device's state
   (which the supervisor makes once a second in another process), both in microseconds.
4. **The supervisor at work.** The agent's own ``Supervisor.watch`` runs in another process, on
   another CPU where there is one, as in a run: it polls, and reads and spools the state. It is
   stopped and continued between blocks of the same session, in random order; each block under it
   begins with a state reading, so they come more often than in a run. Ratio of medians as in 1.
5. **A meter at work.** The same with the meters' process, which reads the files of an INA226 in the
   kernel's form as fast as it ever reads one (200 times a second), on another CPU where there is
   one. The files are ordinary ones: what an I2C transfer costs besides is the kernel's, and is not
   here.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common import Figure, Refusal, artifact, at_most, environment, run_benchmark, table, within

BLOCK = 8  #: calls a block, as a turn of a run has
PAIRS = {"int8": 120, "fp32": 60}
QUICK_PAIRS = 4
WATCH_BLOCK_S = 0.6  #: blocks of part 4 last about so long
WATCH_PAIRS, QUICK_WATCH_PAIRS = 60, 3
TOLERANCE = 0.01
#: A hundredth of the fastest model that is worth measuring, 100 us a call.
NULL_LIMIT_US = 1.0


@dataclass(frozen=True)
class Ratio:
    """Medians of two sides (ms), and the median over pairs of their ratio with its interval."""

    ours_ms: float
    theirs_ms: float
    ratio: float
    lo: float
    hi: float
    pairs: int

    @property
    def note(self) -> str:
        return f" [{self.lo:.4f}, {self.hi:.4f}] over {self.pairs} pairs"


Side = Callable[[int], "list[int]"]


def compare(ours: Side, theirs: Side, pairs: int, calls: int, rng: random.Random) -> Ratio:
    """Interleave two sides in pairs of blocks of ``calls`` durations (ns), in random order."""
    from edgebench.percentiles import order_statistic_interval

    medians: dict[str, list[float]] = {"ours": [], "theirs": []}
    sides = {"ours": ours, "theirs": theirs}
    for _ in range(pairs):
        for name in rng.sample(["ours", "theirs"], 2):
            medians[name].append(statistics.median(sides[name](calls)[1:]))
    ratios = [a / b for a, b in zip(medians["ours"], medians["theirs"], strict=True)]
    lo, hi = order_statistic_interval(ratios, 0.5)
    return Ratio(
        ours_ms=statistics.median(medians["ours"]) / 1e6,
        theirs_ms=statistics.median(medians["theirs"]) / 1e6,
        ratio=statistics.median(ratios),
        lo=lo,
        hi=hi,
        pairs=pairs,
    )


class Model:
    """One artifact, loaded and bound by the agent's own code, and the same session used barely."""

    def __init__(self, scheme: str) -> None:
        from edgebench.agent import agent
        from edgebench.artifact import Artifact

        found = Artifact.load(artifact(scheme))
        manifest, details = found.manifest, found.manifest.quantization.details
        options = ("session_options", "session_options_x86_without_vnni")
        entry = {
            "path": str(found.path),
            "model": manifest.model,
            "inputs": manifest.data.inputs,
            **{key: dict(details[key]) for key in options if key in details},
        }
        self.seq_len = manifest.statistics.seq_len
        protocol = {
            "batch": 1,
            "seq_len": self.seq_len,
            "runtime": {
                "kind": "onnxruntime",
                "provider": "CPUExecutionProvider",
                "threads": 1,
                "allow_spinning": False,
            },
        }
        self.lane, _ = agent.open_lane(0, entry, protocol)
        assert isinstance(self.lane.runtime, agent.OnnxRuntime)
        self.session = self.lane.runtime.session
        arrays = agent.load_arrays(str(found.path / manifest.data.inputs))
        names = self.lane.runtime.inputs
        self.feeds = [
            {name: feed[name] for name in names} for feed in agent.feeds(arrays, 1, self.seq_len)
        ]
        self.samples = agent.Samples()

    def ours(self, calls: int) -> list[int]:
        """One turn of the agent's loop: its durations (ns)."""
        from edgebench.agent import agent

        self.lane.position = 0
        self.samples.size = 0
        self.lane.turn(self.samples, 0, calls, agent.SETTLE, agent.MEASURE)
        return [int(value) for value in self.samples.columns[4, :calls]]

    def bare(self, calls: int) -> list[int]:
        """The same with a loop that knows nothing of ours."""
        session, feeds, clock = self.session, self.feeds, time.perf_counter_ns
        durations = []
        for i in range(calls):
            feed = feeds[i % len(feeds)]
            begin = clock()
            session.run(None, feed)
            end = clock()
            durations.append(end - begin)
        return durations


def null_artifact(turns: int) -> tuple[float, float]:
    """Microseconds a call: what the samples say, and what a turn takes in all."""
    from edgebench.agent import agent

    lane = agent.Lane(0, agent.NullRuntime(None, {}), [None])
    samples = agent.Samples()
    recorded: list[float] = []
    whole: list[float] = []
    for _ in range(turns):
        samples.size = 0
        begin = time.perf_counter_ns()
        lane.turn(samples, 0, BLOCK, agent.SETTLE, agent.MEASURE)
        whole.append((time.perf_counter_ns() - begin) / BLOCK)
        recorded.append(statistics.median(samples.columns[4, 1:BLOCK].tolist()))
    return statistics.median(recorded) / 1e3, statistics.median(whole) / 1e3


def readings(count: int) -> tuple[float, float]:
    """Microseconds a reading: of nothing, and of the device's state as the supervisor reads it."""
    from edgebench.agent import agent

    cpus = agent.available_cpus()

    def took(read: Callable[[], Any]) -> float:
        times = []
        for _ in range(count):
            begin = time.perf_counter_ns()
            read()
            times.append(time.perf_counter_ns() - begin)
        return statistics.median(times) / 1e3

    return took(lambda: {"t_ns": agent.clock()}), took(
        lambda: agent.device_state("during", 0, cpus, flags=False)
    )


WATCH = """
import subprocess, sys
from edgebench.agent import agent
supervisor = agent.Supervisor(sys.argv[1])
worker = subprocess.Popen(["sleep", "600"])
print("watching", flush=True)
try:
    supervisor.watch(worker)
finally:
    worker.kill()
"""


@contextlib.contextmanager
def supervisor(cpus: list[int]) -> Iterator[Callable[[bool], None]]:
    """The agent's supervisor in another process; the function lets it run or stops it."""
    from edgebench.agent import agent

    with tempfile.TemporaryDirectory(prefix="edgebench-bench-") as name:
        plan = {
            "id": "harness",
            "artifacts": [],
            "about": {"identity": agent.identity(), "versions": agent.versions()},
            "protocol": {"deadline_s": 3600.0, "runtime": {"cpus": cpus}},
        }
        (Path(name) / "plan.json").write_text(json.dumps(plan))
        process = subprocess.Popen(
            [sys.executable, "-c", WATCH, name],
            env=environment(),
            stdout=subprocess.PIPE,
            start_new_session=True,
        )
        try:
            assert process.stdout is not None
            process.stdout.readline()

            def let(run: bool) -> None:
                os.kill(process.pid, signal.SIGCONT if run else signal.SIGSTOP)

            yield let
        finally:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


#: What the kernel's ina2xx driver shows of a chip that converts every millisecond.
INA226 = {
    "name": "ina226",
    "in1_input": "5000",
    "curr1_input": "800",
    "power1_input": "4000000",
    "shunt_resistor": "10000",
    "update_interval": "1",
}


@contextlib.contextmanager
def meters(cpus: list[int]) -> Iterator[Callable[[bool], None]]:
    """The meters' process, reading an INA226; the function lets it run or stops it."""
    from edgebench.agent import agent
    from edgebench.measure.host_meters import read_spool

    with tempfile.TemporaryDirectory(prefix="edgebench-bench-") as name:
        hwmon = Path(name) / "class/hwmon/hwmon0"
        hwmon.mkdir(parents=True)
        for file, text in INA226.items():
            (hwmon / file).write_text(text + "\n")
        spec = {"kind": "hwmon", "scope": "board", "sysfs": name, "chip": "ina226"}
        others = [cpu for cpu in agent.available_cpus() if cpu not in cpus]
        config = Path(name) / "config.json"
        everywhere = {"directory": name, "cpus": others or None}
        config.write_text(json.dumps({"meters": [spec], **everywhere}))
        process = subprocess.Popen(
            [sys.executable, "-m", "edgebench.meters.sampler", "record", str(config)],
            env=environment(),
            stdin=subprocess.PIPE,
            start_new_session=True,
        )
        try:
            while not len(read_spool(Path(name)).readings["t_ns"]):
                if process.poll() is not None or "failure" in read_spool(Path(name)).meters.get(
                    0, {}
                ):
                    raise Refusal(f"the meter does not open: {read_spool(Path(name)).meters}")
                time.sleep(0.05)

            def let(run: bool) -> None:
                os.kill(process.pid, signal.SIGCONT if run else signal.SIGSTOP)

            yield let
        finally:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


Beside = Callable[[list[int]], "contextlib.AbstractContextManager[Callable[[bool], None]]"]


def beside(process: Beside, model: Model, pairs: int, cpus: list[int], rng: random.Random) -> Ratio:
    """p50 with a process at work against p50 with it stopped."""
    calls = max(BLOCK, int(WATCH_BLOCK_S * 1e9 / statistics.median(model.ours(BLOCK))))
    with process(cpus) as let:

        def side(run: bool) -> Side:
            def block(calls: int) -> list[int]:
                let(run)
                return model.ours(calls)

            return block

        return compare(side(True), side(False), pairs, calls, rng)


def figures(
    loops: dict[str, Ratio], recorded_us: float, watched: Ratio, metered: Ratio
) -> list[Figure]:
    """The verdict."""
    return [
        *(
            within(f"our p50 over a bare loop's, {name}", found.ratio, TOLERANCE, found.note)
            for name, found in loops.items()
        ),
        at_most("null artifact, recorded a call", recorded_us, NULL_LIMIT_US, " us"),
        within(
            "p50 beside a working supervisor over p50 without",
            watched.ratio,
            TOLERANCE,
            watched.note,
        ),
        within(
            "p50 beside a working meter over p50 without", metered.ratio, TOLERANCE, metered.note
        ),
    ]


def measure(quick: bool) -> list[Figure]:
    """All five parts."""
    from edgebench.agent import agent

    artifact("int8"), artifact("fp32")
    rng = random.Random(0)
    cpus = agent.available_cpus()[-1:]
    agent.pin(cpus)
    gc.disable()
    loops = {}
    for scheme, pairs in PAIRS.items():
        model = Model(scheme)
        model.ours(BLOCK), model.bare(BLOCK)
        loops[scheme] = compare(model.ours, model.bare, QUICK_PAIRS if quick else pairs, BLOCK, rng)
        del model
        gc.collect()
    recorded_us, turn_us = null_artifact(200 if quick else 20_000)
    nothing_us, state_us = readings(50 if quick else 2_000)
    pairs = QUICK_WATCH_PAIRS if quick else WATCH_PAIRS
    model = Model("int8")
    watched = beside(supervisor, model, pairs, cpus, rng)
    metered = beside(meters, model, pairs, cpus, rng)
    table(
        ("same session, interleaved", "p50 ms", "p50 ms", "ratio"),
        [(f"{name}: our loop | bare loop", *_cells(found)) for name, found in loops.items()]
        + [("int8: supervisor works | is stopped", *_cells(watched))]
        + [("int8: meter works | is stopped", *_cells(metered))],
    )
    print()
    table(
        ("floor", "us"),
        [
            ("null artifact: in a sample", f"{recorded_us:.3f}"),
            ("null artifact: a call of a turn, all told", f"{turn_us:.3f}"),
            ("null meter: a reading", f"{nothing_us:.3f}"),
            ("device state: a reading (one a second)", f"{state_us:.1f}"),
        ],
    )
    print(f"device state costs {state_us / 1e4:.3f} % of one CPU, which is not the model's")
    return figures(loops, recorded_us, watched, metered)


def _cells(found: Ratio) -> tuple[str, str, str]:
    return f"{found.ours_ms:.3f}", f"{found.theirs_ms:.3f}", f"{found.ratio:.4f}"


if __name__ == "__main__":
    sys.exit(run_benchmark(__doc__, measure))
