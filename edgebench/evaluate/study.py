"""The evaluation step: read the runs of a study, and write what its readers expect.

Written, each directory's files together (hidden names, fsynced, renamed):

``{results_dir}/{run_id}/metrics.json`` and ``{run_id}_{topic}[_{condition}].pdf``
``{results_dir}/comparison/aggregated_metrics.json``
``{results_dir}/comparison/significance.csv``, ``metrics.csv``, ``budgets.csv``
``{results_dir}/comparison/comparison_{topic}[_{condition}][_pairN].pdf``
"""

from __future__ import annotations

import math
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from edgebench.errors import InputError, UsageError
from edgebench.evaluate.comparison import Best, Budget, Gap, best, check_budgets, gap
from edgebench.evaluate.directions import (
    JOULES_AT_ROUGE,
    PRIMARY,
    Direction,
    direction_of,
    parse_direction,
)
from edgebench.evaluate.observations import Observation, Run, final, kind_of
from edgebench.evaluate.significance import Comparison, compare, holm
from edgebench.evaluate.sources import read_run
from edgebench.evaluate.values import Value, absent, primary_value, rouge, values_of

STUDY = "study.toml"
Mode = Literal["trial", "full"]
_RESAMPLES = {"trial": 499, "full": 9999}


@dataclass(frozen=True)
class Request:
    """What is asked for.

    Attributes:
        run_ids: in the order in which they are to appear.
        primary_metric: exact name; None takes ``study.toml``'s, or the only one of the five
            that every run has a figure of.
        directions: metric -> direction, for what edgebench does not know.
        budgets: metric -> limit: from above where less is better, from below otherwise.
        device, scheme: only rows of these.
        wandb_project: ``entity/project`` to read as well, in the mode full.
        mode: "trial" reads no Weights & Biases, uses no network and takes few resamples.
    """

    results_dir: Path
    run_ids: tuple[str, ...]
    primary_metric: str | None = None
    directions: Mapping[str, Direction] = field(default_factory=dict)
    budgets: Mapping[str, float] = field(default_factory=dict)
    device: str | None = None
    scheme: str | None = None
    wandb_project: str | None = None
    mode: Mode = "full"


@dataclass(frozen=True)
class Evaluation:
    """What the runs say, before it is written.

    ``values``: metric -> run id -> value, the primary metric first.
    """

    request: Request
    runs: tuple[Run, ...]
    primary_metric: str
    direction: Direction
    directions: Mapping[str, Direction]
    values: Mapping[str, Mapping[str, Value]]
    proposed: Best
    baseline: Best
    gap: Gap
    comparisons: tuple[Comparison, ...]
    budgets: tuple[Budget, ...]


def evaluate(request: Request) -> Evaluation:
    """Read the runs and compare them.

    Raises:
        UsageError: no run, a run twice, an id that says both, no primary metric, no direction.
        InputError: a run has nothing, or a file can't be read.
    """
    request = _with_study(_checked(request))
    runs = tuple(_filtered(_read(request, run_id), request) for run_id in request.run_ids)
    primary = _primary(request, runs)
    values: dict[str, dict[str, Value]] = {primary: _primary_values(runs, primary)}
    for run in runs:
        for name, value in values_of(run).items():
            if name != primary:
                values.setdefault(name, {})[run.run_id] = value
    for metric in request.budgets:
        if metric not in values:
            values[metric] = {run.run_id: primary_value(run, metric) for run in runs}
    asked = {primary, *request.budgets}
    for name in [name for name in values if name not in asked]:
        if all(value.value is None and not value.n for value in values[name].values()):
            del values[name]  # a column that no run has a figure in
    for by_run in values.values():
        for run in runs:
            by_run.setdefault(run.run_id, absent("the run has no such metric"))
    given = request.directions
    directions = {}
    for name in values:
        try:
            directions[name] = direction_of(name, given)
        except UsageError:
            if name == primary or name in request.budgets:
                raise
    direction = directions[primary]
    proposed = best("proposed", values[primary], direction)
    baseline = best("baseline", values[primary], direction)
    return Evaluation(
        request=request,
        runs=runs,
        primary_metric=primary,
        direction=direction,
        directions=directions,
        values=values,
        proposed=proposed,
        baseline=baseline,
        gap=gap(proposed, baseline, direction),
        comparisons=tuple(_comparisons(runs, values, _RESAMPLES[request.mode])),
        budgets=tuple(check_budgets(request.budgets, directions, values, request.run_ids)),
    )


def _checked(request: Request) -> Request:
    if not request.run_ids:
        raise UsageError("no run is named", fix="""Give run_ids='["proposed-...", "..."]'.""")
    seen = set()
    for run_id in request.run_ids:
        if run_id in seen:
            raise UsageError(f"the run {run_id!r} is named twice: it can't be compared with itself")
        if not run_id or run_id != Path(run_id).name or run_id.startswith("."):
            raise UsageError(f"{run_id!r} can't be a run's id: it is no plain directory name")
        seen.add(run_id)
        kind_of(run_id)
    if not request.results_dir.is_dir():
        raise InputError("there is no such results directory", where=str(request.results_dir))
    if request.mode not in _RESAMPLES:
        raise UsageError(f"unknown mode {request.mode!r}", fix="Say mode=trial or mode=full.")
    return request


def _with_study(request: Request) -> Request:
    """Fill in from ``study.toml``; what was said on the command line goes first."""
    path = request.results_dir / STUDY
    if not path.is_file():
        return request
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise InputError(f"{STUDY} can't be read: {error}", where=str(path)) from error
    unknown = document.keys() - {"primary_metric", "direction", "metrics", "budgets"}
    if unknown:
        raise InputError(
            f"{STUDY} has an unknown entry {sorted(unknown)[0]!r}",
            where=str(path),
            fix="It may have primary_metric, direction, [metrics] and [budgets].",
        )
    primary = request.primary_metric or document.get("primary_metric")
    directions = {
        k: parse_direction(str(v), str(path)) for k, v in document.get("metrics", {}).items()
    }
    if "direction" in document and document.get("primary_metric") is not None:
        name = str(document["primary_metric"])
        directions[name] = parse_direction(str(document["direction"]), str(path))
    budgets = document.get("budgets", {})
    for name, limit in budgets.items():
        if (
            isinstance(limit, bool)
            or not isinstance(limit, (int, float))
            or not math.isfinite(limit)
        ):
            raise InputError(f"the budget of {name!r} is no number", where=str(path))
    return Request(
        **{
            **{name: getattr(request, name) for name in request.__dataclass_fields__},
            "primary_metric": None if primary is None else str(primary),
            "directions": {**directions, **request.directions},
            "budgets": {**budgets, **request.budgets},
        }
    )


def _read(request: Request, run_id: str) -> Run:
    run = read_run(request.results_dir, run_id)
    if request.mode == "full":
        from edgebench.evaluate import wandb_runs

        for path in wandb_runs.offline_files(request.results_dir / run_id):
            run.observations += wandb_runs.read_offline(path)
        if request.wandb_project is not None:
            run.observations += wandb_runs.read_project(request.wandb_project, run_id)
    if not run.observations and not run.measured:
        raise InputError(
            f"nothing was found of the run {run_id!r}",
            where=str(request.results_dir / run_id),
            fix=f"It needs {run_id}/tables (edgebench run --results), {run_id}/scores.csv, or a "
            "Weights & Biases run (mode=full).",
        )
    return run


def _filtered(run: Run, request: Request) -> Run:
    run.measured = [
        row
        for row in run.measured
        if request.device in (None, row.device) and request.scheme in (None, row.scheme)
    ]
    return run


def _primary(request: Request, runs: Sequence[Run]) -> str:
    if request.primary_metric is not None:
        return request.primary_metric
    formed = [
        name for name in PRIMARY if all(primary_value(run, name).value is not None for run in runs)
    ]
    if len(formed) == 1:
        return formed[0]
    found = f"{len(formed)} of the known ones fit" if formed else "none of the known ones fits"
    raise UsageError(
        f"the study's primary metric is not said, and {found}",
        where=str(request.results_dir),
        fix=f"Write primary_metric = ... into {STUDY}, or give primary_metric=... "
        f"(known: {'; '.join(PRIMARY)}).",
    )


def _primary_values(runs: Sequence[Run], metric: str) -> dict[str, Value]:
    values = {run.run_id: primary_value(run, metric) for run in runs}
    if metric != JOULES_AT_ROUGE:
        return values
    reference = best("baseline", values, "minimise")
    by_id = {run.run_id: run for run in runs}
    if reference.run_id is None:
        return values
    at_least = rouge(by_id[reference.run_id])
    for run in runs:
        if run.kind != "proposed" or values[run.run_id].value is None:
            continue
        own = rouge(run)
        if at_least.value is None or own.value is None:
            missing = reference.run_id if at_least.value is None else run.run_id
            values[run.run_id] = absent(f"its quality can't be compared: {missing} has no ROUGE-L")
        elif own.value < at_least.value:
            values[run.run_id] = absent(
                f"ROUGE-L {own.value:.4g} is below the {at_least.value:.4g} of {reference.run_id}"
            )
    return values


def _comparisons(
    runs: Sequence[Run], values: Mapping[str, Mapping[str, Value]], resamples: int
) -> list[Comparison]:
    """Every proposed run against every baseline, in each metric that both have values of."""
    found: list[Comparison] = []
    for metric in values:
        compared = []
        for proposed in (run for run in runs if run.kind == "proposed"):
            for baseline in (run for run in runs if run.kind == "baseline"):
                one, other = samples(proposed, metric), samples(baseline, metric)
                if one and other:
                    compared.append(
                        compare(
                            metric,
                            proposed.run_id,
                            one,
                            baseline.run_id,
                            other,
                            resamples=resamples,
                        )
                    )
        found += holm(compared)
    return found


def samples(run: Run, metric: str) -> list[Observation]:
    """The values of a metric behind its mean: one a seed and task, of the last step."""
    plain, _, condition = metric.partition(" [")
    names = {plain, plain.lower()} if plain in PRIMARY else {plain}
    return [
        seen
        for seen in final(run.observations)
        if seen.metric in names and seen.condition == condition.rstrip("]")
    ]


def json_number(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def run_document(evaluation: Evaluation, run: Run) -> dict[str, Any]:
    """``metrics.json`` of a run."""
    values = {name: by_run[run.run_id] for name, by_run in evaluation.values.items()}
    return {
        "run_id": run.run_id,
        "primary_metric": evaluation.primary_metric,
        "metrics": {name: json_number(value.value) for name, value in values.items()},
        "reasons": {name: value.reason for name, value in values.items() if value.value is None},
        "details": {
            name: {
                "n": value.n,
                "lo": json_number(value.lo),
                "hi": json_number(value.hi),
                "source": value.source,
                "direction": evaluation.directions.get(name),
            }
            for name, value in values.items()
            if value.value is not None
        },
        "budgets": [
            {
                "metric": b.metric,
                "limit": b.limit,
                "value": b.value,
                "met": b.met,
                "reason": b.reason,
            }
            for b in evaluation.budgets
            if b.run_id == run.run_id
        ],
    }


def aggregated_document(evaluation: Evaluation) -> dict[str, Any]:
    """``aggregated_metrics.json``: the contract's members, and ``gap_reason`` where gap is null."""
    document: dict[str, Any] = {
        "primary_metric": evaluation.primary_metric,
        "metrics": {
            name: {run_id: json_number(value.value) for run_id, value in by_run.items()}
            for name, by_run in evaluation.values.items()
        },
        "best_proposed": evaluation.proposed.document(),
        "best_baseline": evaluation.baseline.document(),
        "gap": json_number(evaluation.gap.percent),
    }
    if evaluation.gap.percent is None:
        document["gap_reason"] = evaluation.gap.reason
    return document
