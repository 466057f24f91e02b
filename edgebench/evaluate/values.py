"""From what is known of a run to its metrics: means over seeds, and the primary metrics.

Every metric is a ``Value``: a figure with its interval and the number of values behind it, or no
figure and the reason. Means are over seeds and tasks, of the last step where there are steps; the
interval is Student's t at 95 % over those values, or, for a measured figure, the table's own.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from edgebench.evaluate.directions import (
    ACCURACY,
    HYPERVOLUME,
    JOULES_AT_ROUGE,
    RETAINED_ACCURACY_AUC,
    TABLE_FIGURES,
    TARGET_DEV_SCORE,
)
from edgebench.evaluate.observations import Measured, Observation, Run, final

#: Budgets that are part of the metric's own name.
DEV_SCORE_MAX_BYTES = 1_000_000
DEV_SCORE_MAX_FLOP_PERCENT = 10.0

#: The unseen device of the hyper-volume, as device profiles name it.
HYPERVOLUME_DEVICE = "pixel8"

#: Reference point of the hyper-volume: the budgets, and no accuracy at all.
HYPERVOLUME_BUDGETS = {
    "energy_per_inference_j": 6.0,
    "latency_p50_ms": 80.0,
    "power_peak_w": 11.0,
}


@dataclass(frozen=True, slots=True)
class Value:
    """A metric of a run. ``value`` is None where it can't be formed; ``reason`` then says why."""

    value: float | None
    reason: str = ""
    lo: float | None = None
    hi: float | None = None
    n: int = 0
    source: str = ""


def absent(reason: str) -> Value:
    return Value(None, reason)


def values_of(run: Run) -> dict[str, Value]:
    """Every metric that was observed or measured, by name; a condition stands in brackets."""
    found = _observed(run)
    for name, value in _measured(run).items():
        found.setdefault(name, value)
    return found


def primary_value(run: Run, metric: str) -> Value:
    """A primary metric, or any other by name.

    ``JOULES_AT_ROUGE`` is without its condition here; ``study`` compares ROUGE-L with the baseline.
    """
    special = _PRIMARY.get(metric)
    if special is not None:
        return special(run)
    values = values_of(run)
    if metric in values:
        return values[metric]
    alike = [name for name in values if name.startswith(f"{metric} [")]
    if len(alike) > 1:
        return absent(
            f"{len(alike)} values, under {', '.join(map(_bracket, alike))}: choose with "
            "--device and --scheme, or name one as the metric"
        )
    return values[alike[0]] if alike else absent("the run has no such metric")


def mean(observations: Sequence[Observation]) -> Value:
    """Mean of the last values, with Student's interval at 95 % from two values on."""
    values = np.array([seen.value for seen in observations], dtype=float)
    source = "; ".join(dict.fromkeys(seen.source for seen in observations if seen.source))
    broken = int((~np.isfinite(values)).sum())
    if broken:
        return Value(
            None, f"{broken} of {len(values)} values are no number ({source})", n=len(values)
        )
    if not len(values):
        return absent("no value")
    centre = float(values.mean())
    if len(values) == 1:
        return Value(centre, n=1, source=source)
    half = float(stats.t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / math.sqrt(len(values)))
    return Value(centre, lo=centre - half, hi=centre + half, n=len(values), source=source)


def _observed(run: Run) -> dict[str, Value]:
    groups: dict[str, list[Observation]] = defaultdict(list)
    for seen in final(run.observations):
        groups[f"{seen.metric} [{seen.condition}]" if seen.condition else seen.metric].append(seen)
    return {name: mean(group) for name, group in groups.items()}


def _measured(run: Run) -> dict[str, Value]:
    names = dict.fromkeys(name for table in TABLE_FIGURES.values() for name in table)
    several = len(run.measured) > 1
    conditions = [row.condition for row in run.measured]
    found: dict[str, Value] = {}
    for row in run.measured:
        condition = row.condition
        if conditions.count(condition) > 1:
            condition = f"{condition} {row.artifact}"
        for name in names:
            if name not in row.figures and name not in row.absent:
                continue
            key = f"{name} [{condition}]" if several else name
            found[key] = _figure(row, name)
    return found


def _figure(row: Measured, name: str) -> Value:
    if name in row.figures:
        value, lo, hi = row.figures[name]
        return Value(value, lo=lo, hi=hi, n=1, source=f"recording {row.recording_id}")
    return absent(row.absent.get(name, "not measured"))


def _single(run: Run, *names: str) -> Value:
    """The first of these names that the run has one figure of."""
    values = values_of(run)
    for name in names:
        if name in values:
            return values[name]
        alike = [key for key in values if key.startswith(f"{name} [")]
        if len(alike) == 1:
            return values[alike[0]]
        if alike:
            return absent(
                f"{len(alike)} values of {name}, under {', '.join(map(_bracket, alike))}: choose "
                "with --device and --scheme"
            )
    return absent(f"the run has no {names[0]}")


def _accuracy(run: Run) -> Value:
    return _single(run, ACCURACY, "accuracy")


def _retained_accuracy(run: Run) -> Value:
    """Area under retained accuracy over tasks, divided by the span of tasks: an accuracy."""
    curves: dict[str | None, dict[float, float]] = defaultdict(dict)
    for seen in run.of("retained_accuracy"):
        if seen.step is None or not math.isfinite(seen.value):
            return absent(
                "retained_accuracy needs a step (how many tasks were seen) and a number in each row"
            )
        curves[seen.seed][seen.step] = seen.value
    if not curves:
        return absent("the run has no retained_accuracy")
    areas = []
    for seed, curve in curves.items():
        steps = np.array(sorted(curve))
        if len(steps) < 2:
            return absent("one task has no area under its curve: two are needed")
        heights = np.array([curve[step] for step in steps])
        area = float(np.trapezoid(heights, steps) / (steps[-1] - steps[0]))
        areas.append(Observation("auc", area, seed, source="retained_accuracy over steps"))
    return mean(areas)


def _dev_score(run: Run) -> Value:
    """Post-tune score (or the only one), if the adapter keeps both budgets."""
    size = _single(run, "adapter_bytes")
    flops = _single(run, "flop_overhead_percent", "extra_flops")
    if size.value is None:
        return absent(f"the size budget can't be checked: {size.reason}")
    if flops.value is None:
        return absent(f"the FLOP budget can't be checked: {flops.reason}")
    percent = flops.value
    if not any(name.startswith("flop_overhead_percent") for name in values_of(run)):
        percent = 100 * flops.value
    if size.value > DEV_SCORE_MAX_BYTES:
        return absent(f"over budget: the adapter has {size.value / 1e6:.3g} MB, more than 1")
    if percent > DEV_SCORE_MAX_FLOP_PERCENT:
        return absent(f"over budget: {percent:.3g} % more FLOPs, more than 10 %")
    return _single(run, "dev_score [post-tune]", "dev_score")


def _hypervolume(run: Run) -> Value:
    """Share of the box between budgets and ideal (no cost, accuracy 1) that is dominated."""
    from edgebench.pareto import hypervolume

    names = ("accuracy", *HYPERVOLUME_BUDGETS)
    rows = [
        row for row in run.measured if row.device.replace("-", "").startswith(HYPERVOLUME_DEVICE)
    ]
    if not rows:
        return absent(f"the run has no measurement on {HYPERVOLUME_DEVICE}")
    points = []
    for row in rows:
        missing = [name for name in names if name not in row.figures]
        if missing:
            why = row.absent.get(missing[0], "not measured")
            return absent(f"{row.artifact} on {row.device} has no {missing[0]}: {why}")
        points.append([row.figures[name][0] for name in names])
    volume = hypervolume(
        points,
        ["maximise", "minimise", "minimise", "minimise"],
        reference=[0.0, *HYPERVOLUME_BUDGETS.values()],
        ideal=[1.0, 0.0, 0.0, 0.0],
    )
    return Value(volume, n=len(points), source=f"{len(points)} measured points")


def _joules(run: Run) -> Value:
    return _single(run, "energy_per_inference_j")


def rouge(run: Run) -> Value:
    """ROUGE-L of a run, for the condition of ``JOULES_AT_ROUGE``."""
    return _single(run, "rouge_l", "ROUGE-L", "rougeL")


def _bracket(name: str) -> str:
    return name.partition(" [")[2].rstrip("]")


_PRIMARY: dict[str, Callable[[Run], Value]] = {
    ACCURACY: _accuracy,
    RETAINED_ACCURACY_AUC: _retained_accuracy,
    TARGET_DEV_SCORE: _dev_score,
    HYPERVOLUME: _hypervolume,
    JOULES_AT_ROUGE: _joules,
}
