"""Best, gap and budgets: pure functions over the metrics of all runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from edgebench.evaluate.directions import Direction
from edgebench.evaluate.observations import kind_of
from edgebench.evaluate.values import Value


@dataclass(frozen=True, slots=True)
class Best:
    """The best run of a kind; both None where none has a figure."""

    run_id: str | None
    value: float | None

    def document(self) -> dict[str, Any]:
        return {"run_id": self.run_id, "value": self.value}


@dataclass(frozen=True, slots=True)
class Gap:
    """(proposed - baseline) / baseline x 100, its sign turned where less is better."""

    percent: float | None
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Budget:
    """One metric of one run against its limit. ``met`` is None where it can't be said."""

    run_id: str
    metric: str
    limit: float
    direction: Direction
    value: float | None
    met: bool | None
    reason: str = ""


def best(kind: str, values: Mapping[str, Value], direction: Direction) -> Best:
    """The best of a kind; of equal ones the first.

    Args:
        kind: "proposed" or "baseline".
        values: by run id, in the order in which the runs were given.
    """
    found: Best = Best(None, None)
    for run_id, value in values.items():
        if kind_of(run_id) != kind or value.value is None:
            continue
        if found.value is None or better(value.value, found.value, direction):
            found = Best(run_id, value.value)
    return found


def better(one: float, other: float, direction: Direction) -> bool:
    return one > other if direction == "maximise" else one < other


def gap(proposed: Best, baseline: Best, direction: Direction) -> Gap:
    """How much better the best proposed run is than the best baseline, in percent: more is better.

    A percentage needs a baseline above zero: of a zero there is none, and of a negative one the
    sign would say the opposite.
    """
    if proposed.value is None:
        return Gap(None, "no proposed run has a figure of the primary metric")
    if baseline.value is None:
        return Gap(None, "no baseline has a figure of the primary metric")
    if baseline.value == 0:
        return Gap(None, "the baseline is zero: there is no percentage of it")
    if baseline.value < 0:
        return Gap(None, "the baseline is negative: a percentage of it would turn the sign")
    percent = (proposed.value - baseline.value) / baseline.value * 100
    if percent == 0:
        return Gap(0.0)
    return Gap(percent if direction == "maximise" else -percent)


def check_budgets(
    budgets: Mapping[str, float],
    directions: Mapping[str, Direction],
    values: Mapping[str, Mapping[str, Value]],
    run_ids: Sequence[str],
) -> list[Budget]:
    """Each budget for each run: a limit from above where less is better, from below otherwise.

    Args:
        values: metric -> run id -> value.
    """
    found = []
    for metric, limit in budgets.items():
        direction = directions[metric]
        for run_id in run_ids:
            value = values.get(metric, {}).get(run_id)
            if value is None or value.value is None:
                reason = value.reason if value is not None else "the run has no such metric"
                found.append(Budget(run_id, metric, limit, direction, None, None, reason))
                continue
            met = value.value <= limit if direction == "minimise" else value.value >= limit
            found.append(Budget(run_id, metric, limit, direction, value.value, met))
    return found
