"""Do the energy intervals hold the truth as often as they say?

Runs of a simulated device whose energy is known exactly (``energy_world.py``), seen by sensors of
every kind: power or counter, updating every 1 to 1,000 ms, looking 25 to 100 % of the time, fine or
coarse; with jitter, lag, rounding, wraps, a clock that is off, gain and offset errors drawn from
inside their stated bounds, launches that differ or are all alike, drift, ripple and other loads
between. Each run is given to ``edgebench.energy.measure`` as a recording would be. Counted is how
often the 95 % interval holds the truth, the energy a call of a typical launch.

* *Overall*: 93 to 97 %. Less would be a promise broken; more, an interval that is wide for nothing.
* *In every cell* of period x duty x quantity x accuracy x launches: at least 90 %.
* *Refused*: windows are made as long as the source asks for, so no run may be refused.

The first two for the energy a call, in total and idle-subtracted; idle power is shown beside. Each
cell of the tables has the coverage and the median half-width (half the interval over the truth): an
interval that covers because it is huge would show there. All draws are seeded: the same version
prints the same table.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import energy_world as world
import numpy as np
from common import Figure, at_least, at_most, run_benchmark, table

from edgebench.energy import EnergyError, EnergyFigures
from edgebench.stats import Estimate

RUNS_A_CELL, QUICK_RUNS_A_CELL = 300, 4
SEED = 20_231_202
LEAST_PERCENT, MOST_PERCENT, LEAST_IN_A_CELL = 93.0, 97.0, 90.0

#: The figures that are checked, and the one that is shown beside.
TOTAL, SUBTRACTED, IDLE = "total", "idle-subtracted", "idle power"


@dataclass
class Count:
    """Intervals that held the truth, and their relative half-widths."""

    held: list[bool] = field(default_factory=list)
    widths: list[float] = field(default_factory=list)

    def add(self, estimate: Estimate | None, truth: float) -> None:
        if estimate is None:  # nothing to hold: counts against it
            self.held.append(False)
            self.widths.append(np.inf)
            return
        self.held.append(bool(estimate.lo <= truth <= estimate.hi))
        self.widths.append((estimate.hi - estimate.lo) / 2 / truth)

    @property
    def percent(self) -> float:
        return 100 * float(np.mean(self.held)) if self.held else float("nan")

    @property
    def width_percent(self) -> float:
        return 100 * float(np.median(self.widths)) if self.widths else float("nan")

    @classmethod
    def of(cls, counts: Iterable[Count]) -> Count:
        whole = cls()
        for count in counts:
            whole.held += count.held
            whole.widths += count.widths
        return whole


@dataclass
class Coverage:
    """What came of the runs of some cells: cell and figure -> count."""

    counts: dict[tuple[world.Cell, str], Count] = field(default_factory=dict)
    refused: list[str] = field(default_factory=list)
    runs: int = 0

    def add(self, cell: world.Cell, device: world.Device, found: EnergyFigures) -> None:
        for name, estimate, truth in (
            (TOTAL, found.per_inference_j, device.per_inference_j),
            (SUBTRACTED, found.per_inference_idle_subtracted_j, device.subtracted_j),
            (IDLE, found.idle_power_w, device.idle_w),
        ):
            self.counts.setdefault((cell, name), Count()).add(estimate, truth)

    def overall(self, name: str) -> Count:
        return Count.of(count for (_, which), count in self.counts.items() if which == name)

    def cell(self, cell: world.Cell, name: str) -> Count:
        return self.counts.get((cell, name), Count())


def cover(runs_a_cell: int, cells: Sequence[world.Cell] = world.GRID, seed: int = SEED) -> Coverage:
    """Make the runs: each has a generator of its own, from seed, cell and number."""
    coverage = Coverage()
    for cell in cells:
        for number in range(runs_a_cell):
            rng = np.random.default_rng([seed, world.GRID.index(cell), number])
            device, shape, sensor = world.draw(cell, rng)
            run = world.simulate(device, shape, sensor, rng)
            coverage.runs += 1
            try:
                coverage.add(cell, device, run.measure())
            except EnergyError as error:
                coverage.refused.append(f"{error.code}: {error.message}")
    return coverage


def figures(percents: Mapping[str, Sequence[float]], runs: int, refused: int) -> list[Figure]:
    """The verdict.

    Args:
        percents: figure -> coverage overall, then of each cell (%).
    """
    found = []
    for name, (overall, *cells) in percents.items():
        what = f"{name}: {runs} intervals of 95 % that hold the truth"
        found.append(at_least(what, overall, LEAST_PERCENT, " %"))
        found.append(at_most(what, overall, MOST_PERCENT, " %"))
        what = f"{name}: the same in the worst of {len(cells)} cells"
        found.append(at_least(what, min(cells), LEAST_IN_A_CELL, " %"))
    found.append(at_most(f"runs of {runs} that were refused", refused, 0))
    return found


def show(coverage: Coverage, name: str) -> None:
    """One figure's table: a column a period."""
    lines: dict[str, list[str]] = {}
    for cell in world.GRID:
        row = f"{cell.quantity}, {cell.accuracy}, launches {cell.launches}, {100 * cell.duty:g} %"
        count = coverage.cell(cell, name)
        lines.setdefault(row, []).append(f"{count.percent:.1f} ± {count.width_percent:.2f}")
    head = ["sensor, launches, duty", *(f"{1000 * period:g} ms" for period in world.PERIODS_S)]
    table(head, [[row, *cells] for row, cells in lines.items()])


def measure(quick: bool) -> list[Figure]:
    """Make the runs and print their table."""
    coverage = cover(QUICK_RUNS_A_CELL if quick else RUNS_A_CELL)
    for name in (TOTAL, SUBTRACTED):
        print(f"energy a call, {name}: coverage ± median half-width, %")
        show(coverage, name)
        print()
    for name in (TOTAL, SUBTRACTED, IDLE):
        count = coverage.overall(name)
        print(f"{name}: {count.percent:.1f} % ± {count.width_percent:.2f} % over all cells")
    for text in coverage.refused[:10]:
        print(f"refused: {text}")
    percents = {
        name: [
            coverage.overall(name).percent,
            *(coverage.cell(cell, name).percent for cell in world.GRID),
        ]
        for name in (TOTAL, SUBTRACTED)
    }
    return figures(percents, coverage.runs, len(coverage.refused))


if __name__ == "__main__":
    sys.exit(run_benchmark(__doc__, measure))
