"""``edgebench pareto`` and ``edgebench hypervolume``: fronts and volumes of measured points."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edgebench.cli.options import Json
from edgebench.cli.output import console, say_json
from edgebench.errors import UsageError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from edgebench.pareto.front import Objective
    from edgebench.pareto.points import Points

Source = Annotated[
    Path | None,
    typer.Argument(help="A results directory or a CSV file (default: the workspace's results)."),
]
Objectives = Annotated[
    list[str] | None,
    typer.Option(
        "--objective",
        help="COLUMN, or COLUMN:maximise; repeat it. The direction of edgebench's own columns is "
        "known. Default: accuracy, energy_per_inference_j, latency_p50_ms, power_peak_w.",
    ),
]
Budgets = Annotated[
    list[str] | None, typer.Option("--budget", help="COLUMN=LIMIT: the worst that counts; repeat.")
]
Device = Annotated[str | None, typer.Option("--device", "-d", help="Only points of this device.")]

COSTS = ("energy_per_inference_j", "latency_p50_ms", "power_peak_w")
DEFAULT = ("accuracy", "energy_per_inference_j", "latency_p50_ms", "power_peak_w")


def register(app: typer.Typer) -> None:
    app.command("pareto")(pareto)
    app.command("hypervolume")(hypervolume)


def pareto(
    source: Source = None,
    objective: Objectives = None,
    budget: Budgets = None,
    device: Device = None,
    out: Annotated[
        Path | None, typer.Option(help="Write pareto.csv, pareto.png and pareto.pdf here.")
    ] = None,
    controller: Annotated[
        Path | None,
        typer.Option(
            help="A CSV of tokens (token_entropy_nats, position, energy_j, latency_ms, power_w of "
            "what was best for each): fits the tree of depth 3 that picks a point of this front; "
            "writes controller.json to --out."
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """The points that no other beats in everything: a table, and a plot."""
    from rich.table import Table
    from rich.text import Text

    from edgebench.pareto import front

    columns, ways = _objectives(objective)
    points = _points(source, columns, device)
    on = front(points.values, ways)
    if out is not None:
        from edgebench.pareto.plot import draw
        from edgebench.results.atomic import replace_files

        files = {"pareto.csv": _csv(points, on)}
        if len(columns) > 1:
            files |= draw(points, ways, _budgets(budget))
        replace_files(out, files)
    fitted = _controller(controller, out, points, on) if controller is not None else None
    if as_json:
        say_json(
            {
                "objectives": dict(zip(columns, ways, strict=True)),
                "controller": fitted,
                "points": [
                    {
                        "label": label,
                        "values": dict(zip(columns, map(float, row), strict=True)),
                        "on_front": bool(keep),
                    }
                    for label, row, keep in zip(points.labels, points.values, on, strict=True)
                ],
                "left_out": dict(points.left_out),
            }
        )
        return
    table = Table(box=None, pad_edge=False)
    table.add_column("on the front")
    for column, way in zip(columns, ways, strict=True):
        table.add_column(f"{column} {'↑' if way == 'maximise' else '↓'}", justify="right")
    for label, row, keep in zip(points.labels, points.values, on, strict=True):
        if keep:
            table.add_row(label, *(f"{value:.4g}" for value in row))
    console().print(table)
    console().print(Text(f"{int(on.sum())} of {len(on)} points are on the front"))
    if fitted is not None:
        console().print(
            Text(
                f"controller: {fitted['bytes']} bytes, one decision "
                f"{fitted['decision_us']:.2g} µs here, {fitted['written']}"
            )
        )
    _say_left_out(points)


def hypervolume(
    source: Source = None,
    objective: Objectives = None,
    budget: Budgets = None,
    device: Device = None,
    share: Annotated[
        bool,
        typer.Option(
            "--share", help="As a share of the box between the budgets and (0 cost, score 1)."
        ),
    ] = False,
    as_json: Json = False,
) -> None:
    """The exact volume that the points dominate within the budgets (the reference point)."""
    from rich.text import Text

    from edgebench.pareto import hypervolume as volume_of

    columns, ways = _objectives(objective)
    limits = _budgets(budget)
    reference = []
    for column, way in zip(columns, ways, strict=True):
        if column not in limits and way == "minimise":
            raise UsageError(
                f"no budget is given for {column}",
                fix=f"A volume needs a reference point: --budget {column}=LIMIT.",
            )
        reference.append(limits.get(column, 0.0))
    points = _points(source, columns, device)
    ideal = [1.0 if way == "maximise" else 0.0 for way in ways] if share else None
    volume = volume_of(points.values, ways, reference=reference, ideal=ideal)
    if as_json:
        say_json(
            {
                "hypervolume": volume,
                "share": share,
                "points": len(points.labels),
                "objectives": dict(zip(columns, ways, strict=True)),
                "reference": dict(zip(columns, reference, strict=True)),
                "left_out": dict(points.left_out),
            }
        )
        return
    bounds = ", ".join(f"{c} {r:g}" for c, r in zip(columns, reference, strict=True))
    unit = "of the box" if share else "in the product of the units"
    console().print(
        Text(f"hypervolume {volume:.6g} {unit}, {len(points.labels)} points, reference {bounds}")
    )
    _say_left_out(points)


def _controller(
    tokens: Path, out: Path | None, points: Points, on: npt.NDArray[np.bool_]
) -> dict[str, Any]:
    """Fit, write and time the controller of a front."""
    from edgebench.pareto import tree
    from edgebench.pareto.points import read
    from edgebench.results.atomic import replace_files

    if out is None:
        raise UsageError("a controller is written to a directory", fix="Say --out DIRECTORY.")
    missing = [name for name in COSTS if name not in points.columns]
    if missing:
        raise UsageError(
            f"a controller picks an energy, a latency and a power: {missing[0]} is no objective",
            fix=f"Add --objective {missing[0]}.",
        )
    chosen = points.values[on][:, [points.columns.index(name) for name in COSTS]]
    seen = read(tokens, (*tree.FEATURES, *tree.TARGETS)).values
    fitted = tree.fit(seen[:, :2], seen[:, 2:], chosen)
    data = fitted.dumps()
    replace_files(out, {"controller.json": data})
    return {
        "bytes": len(data),
        "decision_us": tree.decision_time_us(fitted, seen[:, :2]),
        "written": str(out / "controller.json"),
    }


def _objectives(given: Sequence[str] | None) -> tuple[list[str], list[Objective]]:
    from edgebench.evaluate.directions import direction_of, parse_direction

    columns: list[str] = []
    ways: list[Objective] = []
    for text in given or DEFAULT:
        name, colon, way = text.partition(":")
        if name in columns:
            raise UsageError(f"the objective {name!r} is given twice", where="--objective")
        columns.append(name)
        ways.append(parse_direction(way, "--objective") if colon else direction_of(name, {}))
    return columns, ways


def _points(source: Path | None, columns: Sequence[str], device: str | None) -> Points:
    from edgebench.api import results_dir
    from edgebench.pareto.points import read

    return read(results_dir(source), columns, device)


def _budgets(given: Sequence[str] | None) -> dict[str, float]:
    from edgebench.cli.evaluate import parse_budget

    return dict(parse_budget(text) for text in given or [])


def _csv(points: Points, on: npt.NDArray[np.bool_]) -> bytes:
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\r\n")
    writer.writerow(["label", *points.columns, "on_front"])
    for label, row, keep in zip(points.labels, points.values, on, strict=True):
        writer.writerow([label, *(repr(float(v)) for v in row), "true" if keep else "false"])
    return text.getvalue().encode()


def _say_left_out(points: Points) -> None:
    from rich.text import Text

    for label, why in points.left_out.items():
        console(stderr=True).print(Text(f"left out: {label}: {why}"))
