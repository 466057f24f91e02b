"""``edgebench evaluate``: the evaluation step of a study."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edgebench.cli.options import Json
from edgebench.cli.output import console, say_json
from edgebench.errors import UsageError

if TYPE_CHECKING:
    from edgebench.evaluate import Evaluation

_KEYS = (
    "results_dir", "run_ids", "primary_metric", "direction", "mode", "device", "scheme",
    "wandb_project", "figures",
)  # fmt: skip


def register(app: typer.Typer) -> None:
    app.command("evaluate")(evaluate)


def evaluate(
    settings: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[KEY=VALUE]...",
            help='results_dir=PATH run_ids=\'["proposed-a", "baseline-b"]\', and any option '
            "below as key=value.",
        ),
    ] = None,
    results_dir: Annotated[
        Path | None, typer.Option(help="The study's directory: a directory a run in it.")
    ] = None,
    run_id: Annotated[
        list[str] | None, typer.Option(help="A run; repeat it. Its id says proposed or baseline.")
    ] = None,
    primary_metric: Annotated[
        str | None, typer.Option(help="Its exact name (default: what study.toml says).")
    ] = None,
    direction: Annotated[
        str | None,
        typer.Option(help="maximise or minimise, of a primary metric that edgebench doesn't know."),
    ] = None,
    budget: Annotated[
        list[str] | None,
        typer.Option(
            help="METRIC=LIMIT: from above where less is better, else from below; repeat."
        ),
    ] = None,
    device: Annotated[str | None, typer.Option(help="Only measurements on this device.")] = None,
    scheme: Annotated[str | None, typer.Option(help="Only measurements in this precision.")] = None,
    wandb_project: Annotated[
        str | None, typer.Option(help="ENTITY/PROJECT of Weights & Biases to read as well.")
    ] = None,
    mode: Annotated[
        str | None,
        typer.Option(help="full, or trial: no Weights & Biases, no network, few resamples."),
    ] = None,
    figures: Annotated[
        bool | None, typer.Option("--figures/--no-figures", help="Draw the PDF figures.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Compare the runs of a study: metrics, best, gap, significance, budgets, figures."""
    from edgebench.api import evaluate_runs
    from edgebench.evaluate.directions import parse_direction

    given = _settings(settings or [])
    directory = results_dir or given.get("results_dir")
    if directory is None:
        raise UsageError("no results directory is given", fix="Say results_dir=PATH.")
    metric = primary_metric or given.get("primary_metric")
    way = direction or given.get("direction")
    if way is not None and metric is None:
        raise UsageError(
            "a direction needs the metric that it is of",
            where="direction",
            fix="Say primary_metric=NAME too.",
        )
    evaluation, written = evaluate_runs(
        Path(directory),
        run_id or _run_ids(given.get("run_ids")),
        primary_metric=metric,
        directions={metric: parse_direction(way, "direction")} if way and metric else {},
        budgets=dict(parse_budget(text) for text in budget or []),
        device=device or given.get("device"),
        scheme=scheme or given.get("scheme"),
        wandb_project=wandb_project or given.get("wandb_project"),
        mode=mode or given.get("mode", "full"),
        figures=_flag(given.get("figures")) if figures is None else figures,
    )
    if as_json:
        from edgebench.evaluate.study import aggregated_document

        say_json({**aggregated_document(evaluation), "written": [str(path) for path in written]})
        return
    _show(evaluation, written)


def _settings(words: list[str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for word in words:
        key, equals, value = word.partition("=")
        if not equals or key not in _KEYS:
            raise UsageError(
                f"{word!r} means nothing here", fix=f"Say KEY=VALUE, of {', '.join(_KEYS)}."
            )
        found[key] = value
    return found


def _run_ids(text: str | None) -> tuple[str, ...]:
    if text is None:
        return ()
    try:
        found = json.loads(text)
    except ValueError:
        found = None
    if not isinstance(found, list) or not all(isinstance(one, str) for one in found):
        raise UsageError(
            f"run_ids is no JSON list of names: {text}",
            fix="""Say run_ids='["proposed-a", "baseline-b"]', quoted for the shell.""",
        )
    return tuple(found)


def parse_budget(text: str) -> tuple[str, float]:
    name, equals, limit = text.rpartition("=")
    try:
        value = float(limit)
    except ValueError:
        value = float("nan")
    if not equals or not math.isfinite(value):
        raise UsageError(f"{text!r} is no budget", where="--budget", fix="Say METRIC=NUMBER.")
    return name, value


def _flag(text: str | None) -> bool:
    if text is None or text.lower() in ("true", "yes", "1"):
        return True
    if text.lower() in ("false", "no", "0"):
        return False
    raise UsageError(f"figures={text} is neither true nor false")


def _show(evaluation: Evaluation, written: list[Path]) -> None:
    from rich.table import Table
    from rich.text import Text

    out = console()
    out.print(Text(f"{evaluation.primary_metric} ({evaluation.direction})", style="bold"))
    table = Table(box=None, pad_edge=False)
    for name in ("run", "kind", "value", "n"):
        table.add_column(name, justify="right" if name in ("value", "n") else "left")
    by_run = evaluation.values[evaluation.primary_metric]
    for run in evaluation.runs:
        value = by_run[run.run_id]
        table.add_row(run.run_id, run.kind, _figure(value), str(value.n) if value.n else "")
    out.print(table)
    gap = evaluation.gap
    if gap.percent is None:
        out.print(Text(f"no gap: {gap.reason}"))
    else:
        out.print(
            Text(
                f"{evaluation.proposed.run_id} against {evaluation.baseline.run_id}: "
                f"{gap.percent:+.2f} % (more is better)"
            )
        )
    for one in evaluation.comparisons:
        if one.metric in (evaluation.primary_metric, evaluation.primary_metric.lower()):
            said = one.reason if one.p is None else f"p {one.p:.4g}, {one.p_holm:.4g} after Holm"
            out.print(Text(f"  {one.run_id} - {one.other_id}: {one.test}: {said}"))
    for budget in evaluation.budgets:
        word = {True: "pass", False: "FAIL", None: "unknown"}[budget.met]
        value_text = "" if budget.value is None else f" {budget.value:.4g}"
        limit = f"{'at most' if budget.direction == 'minimise' else 'at least'} {budget.limit:g}"
        said = f" ({budget.reason})" if budget.reason else ""
        out.print(
            Text(f"budget {word}: {budget.run_id} {budget.metric}{value_text}, {limit}{said}")
        )
    out.print(Text(f"{len(written)} files written, in {evaluation.request.results_dir}"))


def _figure(value: Any) -> str:
    if value.value is None:
        return f"— ({value.reason})"
    if value.lo is None or value.hi is None:
        return f"{value.value:.4g}"
    return f"{value.value:.4g} [{value.lo:.4g}, {value.hi:.4g}]"
