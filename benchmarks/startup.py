"""How long ``edgebench --help`` takes, beside an empty interpreter and the import of Typer.

How it is taken: three commands are started as processes of their own, in random order in each of
15 rounds, after one warm-up each (which writes byte code and fills the page cache). Wall time runs
from before the process is made to after it has ended. The figure is the median; beside it stand
what no Python program gets below (``python -c pass``) and what ours adds to its own library
(``python -c 'import typer'``). Last, the same command is run once more in a process that says which
modules were imported for it: none of the heavy ones may be.
"""

from __future__ import annotations

import json
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence

from common import ROOT, Figure, Refusal, at_most, environment, run_benchmark, table

LIMIT_MS = 250.0
ROUNDS, QUICK_ROUNDS = 15, 3

COMMANDS = {
    "python -c pass": ["-c", "pass"],
    "python -c 'import typer'": ["-c", "import typer"],
    "edgebench --help": ["-m", "edgebench", "--help"],
}

#: What help has no use for: each costs from tens of milliseconds to seconds.
HEAVY = (
    "asyncssh",
    "numpy",
    "onnx",
    "onnxruntime",
    "pandas",
    "peft",
    "pyarrow",
    "pydantic",
    "rich",
    "scipy",
    "torch",
    "transformers",
)

MODULES = """
import contextlib, io, json, sys
from edgebench.cli.main import main
with contextlib.suppress(SystemExit), contextlib.redirect_stdout(io.StringIO()):
    main(["--help"])
print(json.dumps(sorted(sys.modules)))
"""


def seconds(arguments: Sequence[str]) -> float:
    """Wall time of one process."""
    begin = time.perf_counter()
    done = subprocess.run(
        [sys.executable, *arguments],
        env=environment(),
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        check=False,
    )
    elapsed = time.perf_counter() - begin
    if done.returncode:
        words = done.stderr.decode(errors="replace").strip().splitlines()
        raise Refusal(f"{' '.join(arguments)} failed: {words[-1] if words else done.returncode}")
    return elapsed


def heavy_modules() -> list[str]:
    """Heavy modules that ``edgebench --help`` imports."""
    done = subprocess.run(
        [sys.executable, "-c", MODULES],
        env=environment(),
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    loaded = {name.partition(".")[0] for name in json.loads(done.stdout.splitlines()[-1])}
    return sorted(loaded.intersection(HEAVY))


def figures(help_ms: float, heavy: Sequence[str]) -> list[Figure]:
    """The verdict."""
    note = f" ({', '.join(heavy)})" if heavy else ""
    return [
        at_most("edgebench --help", help_ms, LIMIT_MS, " ms"),
        at_most("heavy modules imported for it", len(heavy), 0, note=note),
    ]


def measure(quick: bool) -> list[Figure]:
    """Time the three commands."""
    rng = random.Random(0)
    for arguments in COMMANDS.values():
        seconds(arguments)
    times: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for _ in range(QUICK_ROUNDS if quick else ROUNDS):
        for name in rng.sample(sorted(COMMANDS), len(COMMANDS)):
            times[name].append(1e3 * seconds(COMMANDS[name]))
    medians = {name: statistics.median(values) for name, values in times.items()}
    table(
        ("command", "median ms", "least ms", "most ms"),
        (
            (name, f"{medians[name]:.0f}", f"{min(values):.0f}", f"{max(values):.0f}")
            for name, values in times.items()
        ),
    )
    own = medians["edgebench --help"] - medians["python -c 'import typer'"]
    print(f"edgebench's own part: {own:.0f} ms")
    return figures(medians["edgebench --help"], heavy_modules())


if __name__ == "__main__":
    sys.exit(run_benchmark(__doc__, measure))
