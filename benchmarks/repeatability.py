"""Do ten runs say the same thing, and do their intervals say how far to trust them?

Ten separate ``edgebench run``s of the same two artifacts, fp32 and int8, one after another: the
default five launches each, at least 200 calls an artifact and at most 7 s a launch, so that ten fit
into ten minutes, without task accuracy. Only what the tables print is used.

* *The ratio.* (max - min) / median over the ten runs of the interleaved int8-over-fp32 ratio. Both
  artifacts take turns in the same workers, so what moves the machine moves both.
* *The interval.* The 99 % interval that each run prints for its own p50 is taken over its launches.
  Counted is in how many of the ten it holds the median of all ten runs' p50. That median is the
  best that is known of the truth, and itself uncertain: a miss is therefore allowed.

For contrast the table shows the spread of the absolute p50, which on a shared machine is several
times that of the ratio, and which is no figure of this benchmark.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from common import Figure, Refusal, artifact, at_least, at_most, bench, run_benchmark, table

RUNS, QUICK_RUNS = 10, 2
SPREAD_LIMIT_PERCENT = 1.5
HELD_OF_TEN = 9
SCHEMES = ("fp32", "int8")


@dataclass(frozen=True)
class Interval:
    """A printed p50 with its interval, in ms."""

    value: float
    lo: float
    hi: float

    def holds(self, truth: float) -> bool:
        return self.lo <= truth <= self.hi


def spread_percent(values: Sequence[float]) -> float:
    """(max - min) / median, in percent."""
    return 100 * (max(values) - min(values)) / statistics.median(values)


def held(intervals: Sequence[Interval]) -> int:
    """How many intervals hold the median of their own values."""
    truth = statistics.median(interval.value for interval in intervals)
    return sum(interval.holds(truth) for interval in intervals)


def figures(ratios: Sequence[float], p50: dict[str, Sequence[Interval]]) -> list[Figure]:
    """The verdict."""
    found = [
        at_most(
            f"int8/fp32 ratio, spread over {len(ratios)} runs",
            spread_percent(ratios),
            SPREAD_LIMIT_PERCENT,
            " %",
        )
    ]
    for scheme, intervals in p50.items():
        needed = len(intervals) * HELD_OF_TEN / 10
        name = f"{scheme}: p50 intervals that hold the median of {len(intervals)} runs"
        found.append(at_least(name, held(intervals), needed))
    return found


def measure(quick: bool) -> list[Figure]:
    """Make the runs."""
    paths = {scheme: artifact(scheme) for scheme in SCHEMES}
    options = ["--percentile", "90", "--min-count", "200", "--max-duration", "7"]
    options += ["--accuracy", "none"]
    if quick:
        options = ["--percentile", "50", "--accuracy", "none", "--launches", "2"]
        options += ["--precision", "99%"]
    ratios: list[float] = []
    p50: dict[str, list[Interval]] = {scheme: [] for scheme in SCHEMES}
    rows = []
    with bench() as place:
        for number in range(1, (QUICK_RUNS if quick else RUNS) + 1):
            document = place.run(*options, *(str(path) for path in paths.values()))
            lines = {row["scheme"]: row for row in document["latency"]}
            speedup = lines["int8"]["speedup_vs_reference"]
            if speedup is None:
                raise Refusal("a run has no ratio: see its reasons with `edgebench run`.")
            ratios.append(speedup)
            row = [str(number), f"{speedup:.4f}"]
            for scheme in SCHEMES:
                figure = [lines[scheme][f"latency_p50_ms{end}"] for end in ("", "_lo", "_hi")]
                p50[scheme].append(Interval(*figure))
                row.append(f"{figure[0]:.2f} [{figure[1]:.2f}, {figure[2]:.2f}]")
            rows.append([*row, lines["int8"]["verdict"]])
            print(f"run {number}: int8 is {speedup:.4f} times faster", file=sys.stderr)
    table(("run", "ratio", "fp32 p50 ms", "int8 p50 ms", "verdict"), rows)
    for scheme in SCHEMES:
        values = [interval.value for interval in p50[scheme]]
        print(f"{scheme}: the p50 of the runs spread by {spread_percent(values):.1f} %")
    return figures(ratios, p50)


if __name__ == "__main__":
    sys.exit(run_benchmark(__doc__, measure))
