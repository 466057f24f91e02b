"""What is known of one run of a study: its scores, and the rows that edgebench measured for it.

A *run* here is a study's: one method trained and measured, with an id such as
``proposed-himalaya-llama2``. It is not one call of ``edgebench run``.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from edgebench.errors import UsageError

PROPOSED = ("proposed",)
BASELINE = ("comparative", "baseline")


@dataclass(frozen=True, slots=True)
class Observation:
    """One value of one metric.

    Attributes:
        value: may be NaN: then the metric has no figure, and the reason says where it was.
        seed, task: what pairs it with another run's; None where it has none.
        step: position in training or in a stream of tasks.
        condition: what else tells it apart, as "zero-shot"; "" for none.
        source: the file (or project) that it came from.
    """

    metric: str
    value: float
    seed: str | None = None
    task: str | None = None
    step: float | None = None
    condition: str = ""
    source: str = ""


@dataclass(frozen=True, slots=True)
class Measured:
    """One artifact on one device, as edgebench's three tables have it: figures by column.

    ``figures``: value, lower and upper end; ``absent``: column -> why it is empty.
    """

    device: str
    artifact: str
    scheme: str
    recording_id: str
    figures: Mapping[str, tuple[float, float | None, float | None]]
    absent: Mapping[str, str]
    source: str
    detail: str = ""

    @property
    def condition(self) -> str:
        return " ".join(part for part in (self.device, self.scheme, self.detail) if part)


@dataclass
class Run:
    """A run of a study with everything that was found for it."""

    run_id: str
    observations: list[Observation] = field(default_factory=list)
    measured: list[Measured] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def kind(self) -> str:
        """``proposed``, ``baseline`` or ``other``, by the run's id."""
        return kind_of(self.run_id)

    def of(self, metric: str) -> list[Observation]:
        return [seen for seen in self.observations if seen.metric == metric]


def kind_of(run_id: str) -> str:
    """What a run is in the comparison: decided by its id alone.

    Raises:
        UsageError: the id says both.
    """
    lower = run_id.lower()
    proposed = any(mark in lower for mark in PROPOSED)
    baseline = any(mark in lower for mark in BASELINE)
    if proposed and baseline:
        raise UsageError(
            f"the run id {run_id!r} says both proposed and baseline",
            fix="Rename the run: an id with 'proposed', or one with 'comparative' or 'baseline'.",
        )
    return "proposed" if proposed else "baseline" if baseline else "other"


def final(observations: Iterable[Observation]) -> list[Observation]:
    """The last step's value for each seed, task and condition; those without steps as they are."""
    last: dict[tuple[Any, ...], Observation] = {}
    plain: list[Observation] = []
    for seen in observations:
        if seen.step is None:
            plain.append(seen)
            continue
        key = (seen.metric, seen.seed, seen.task, seen.condition)
        if key not in last or (last[key].step or 0.0) <= seen.step:
            last[key] = seen
    return plain + list(last.values())


def finite(value: float) -> bool:
    return math.isfinite(value)
