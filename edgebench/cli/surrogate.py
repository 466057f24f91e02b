"""``edgebench surrogate``: fit, calibrate, predict, evaluate."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edgebench.cli.options import Json
from edgebench.cli.output import console, progress, say_json
from edgebench.errors import InputError, UsageError

if TYPE_CHECKING:
    from edgebench.surrogate.document import CalibrationDocument
    from edgebench.surrogate.fitting import Fit

Tables = Annotated[
    list[Path],
    typer.Argument(help="CSV, Parquet, JSON with samples, or a results directory; several."),
]
Where = Annotated[
    Path, typer.Option("--surrogate", "-s", help="The surrogate's directory (surrogate/).")
]
Targets = Annotated[
    list[str] | None,
    typer.Option(
        "--target",
        help="HEAD=COLUMN where a table's columns have other names: energy_j, latency_ms, power_w.",
    ),
]

app = typer.Typer(
    name="surrogate",
    help="A differentiable model of energy, latency and peak power, for training against devices.",
    no_args_is_help=True,
    rich_markup_mode=None,
)


def register(main: typer.Typer) -> None:
    main.add_typer(app, name="surrogate")


@app.command("fit")
def fit(
    tables: Tables,
    out: Annotated[Path, typer.Option("--out", "-o", help="Directory to write.")] = Path(
        "surrogate"
    ),
    features: Annotated[
        str | None,
        typer.Option(
            "--features",
            help="Input columns, joined by commas; default: the statistics vector s.",
        ),
    ] = None,
    target: Targets = None,
    steps: Annotated[int, typer.Option("--steps", min=1, help="Training steps.")] = 1500,
    seed: Annotated[int, typer.Option("--seed", help="Seed of the training.")] = 0,
    leave_out: Annotated[
        bool,
        typer.Option(
            "--leave-out/--no-leave-out",
            help="Train once more without each device: without it there are no intervals.",
        ),
    ] = True,
    as_json: Json = False,
) -> None:
    """Fit a surrogate to measured tables of two or more devices."""
    _require_torch()
    from edgebench.surrogate.columns import STATISTICS
    from edgebench.surrogate.fitting import FitOptions
    from edgebench.surrogate.store import summary
    from edgebench.surrogate.training import TrainingOptions
    from edgebench.surrogate.workflow import fit_surrogate

    options = FitOptions(TrainingOptions(steps=steps, seed=seed), leave_out=leave_out)
    names = tuple(n.strip() for n in features.split(",")) if features else STATISTICS
    with progress() as update:
        written = fit_surrogate(
            tables, out, features=names, targets=_targets(target), options=options, report=update
        )
    fitted = written.fit
    if as_json:
        say_json(
            {
                "surrogate": str(out),
                "digest": fitted.surrogate.digest,
                "devices": fitted.surrogate.devices,
                "features": fitted.surrogate.features,
                "metrics": fitted.surrogate.metrics,
                "rows": fitted.n_rows,
                "leave_out": summary(fitted.leave_out),
            }
        )
        return
    _print_fit(fitted, out)


@app.command("calibrate")
def calibrate(
    samples: Tables,
    surrogate: Where = Path("surrogate"),
    device: Annotated[
        str | None, typer.Option("--device", "-d", help="The device whose rows are the samples.")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="Default: calibration/<device>_<k>samples.json."),
    ] = None,
    target: Targets = None,
    as_json: Json = False,
) -> None:
    """Fit a calibration for a device to a few samples measured there."""
    _require_torch()
    from edgebench.surrogate.document import to_json
    from edgebench.surrogate.workflow import calibrate_surrogate

    path, document = calibrate_surrogate(
        surrogate, samples, out, device=device, targets=_targets(target)
    )
    if as_json:
        say_json({"calibration": str(path), **to_json(document)})
        return
    _print_calibration(document, path)


@app.command("predict")
def predict(
    device: Annotated[str, typer.Option("--device", "-d", help="A device's tag.")],
    rows: Annotated[
        Path | None, typer.Argument(help="CSV or Parquet with the feature columns.")
    ] = None,
    at: Annotated[
        list[str] | None,
        typer.Option("--at", help="One row: seq_len=128,kept_layers=6,...; repeat it for several."),
    ] = None,
    surrogate: Where = Path("surrogate"),
    calibration: Annotated[
        Path | None,
        typer.Option("--calibration", help="File or directory; default: calibration/."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Predict energy, latency and power of forward passes on a device."""
    _require_torch()
    from edgebench.surrogate.workflow import predict_rows

    wanted = [_row(text) for text in at or []]
    if rows is not None:
        wanted += _rows_of(rows)
    if not wanted:
        raise UsageError("nothing to predict", fix="Give --at NAME=VALUE,... or a table.")
    found = predict_rows(surrogate, device, wanted, calibration=calibration)
    if as_json:
        say_json({"device": device, "predictions": found})
        return
    _print_table([k for k in found[0] if not k.endswith(("_lo", "_hi"))], found)


@app.command("evaluate")
def evaluate(
    tables: Tables,
    surrogate: Where = Path("surrogate"),
    samples: Annotated[
        list[int] | None, typer.Option("--samples", "-k", min=1, help="Sample sizes; 5 and 10.")
    ] = None,
    draws: Annotated[int, typer.Option("--draws", min=1, help="Random draws a size.")] = 30,
    seed: Annotated[int, typer.Option("--seed", help="Seed of the draws.")] = 0,
    target: Targets = None,
    as_json: Json = False,
) -> None:
    """Calibrate with a few rows of a device's table, predict its others, many times."""
    _require_torch()
    from edgebench.surrogate.workflow import evaluate_surrogate

    lines = evaluate_surrogate(
        surrogate,
        tables,
        sizes=samples or (5, 10),
        draws=draws,
        seed=seed,
        targets=_targets(target),
    )
    if as_json:
        say_json({"scores": lines})
        return
    _print_table(list(lines[0]), lines)
    if any(line["trained_on"] for line in lines):
        typer.echo("note devices that it was trained on say nothing of new ones")


def _require_torch() -> None:
    import importlib.util

    missing = [n for n in ("torch", "safetensors") if importlib.util.find_spec(n) is None]
    if missing:
        raise InputError(
            f"a surrogate needs {' and '.join(missing)}",
            fix="pip install 'edgebench[surrogate]'.",
        )


def _targets(given: list[str] | None) -> dict[str, str]:
    pairs = [text.partition("=") for text in given or []]
    if any(not head or not column for head, _, column in pairs):
        raise UsageError("--target must be HEAD=COLUMN", fix="E.g. --target latency_ms=p50.")
    return {head: column for head, _, column in pairs}


def _row(text: str) -> dict[str, float]:
    found = {}
    for part in text.split(","):
        name, _, value = part.partition("=")
        try:
            found[name.strip()] = float(value)
        except ValueError:
            raise UsageError(
                f"--at can't read {part!r}", fix="It must be NAME=NUMBER,NAME=NUMBER,..."
            ) from None
    return found


def _rows_of(path: Path) -> list[dict[str, float]]:
    import pandas as pd

    try:
        frame = pd.read_parquet(path) if path.suffix == ".parquet" else pd.read_csv(path)
        numbers = frame.select_dtypes("number")
    except (OSError, ValueError) as error:
        raise InputError(
            f"the table can't be read: {error}", where=str(path), fix="Give CSV or Parquet."
        ) from error
    return [{str(k): float(v) for k, v in row.items()} for row in numbers.to_dict("records")]


def _print_fit(fitted: Fit, out: Path) -> None:
    surrogate = fitted.surrogate
    typer.echo(
        f"{out}: {', '.join(surrogate.metrics)} from {', '.join(surrogate.features)} · "
        f"{len(surrogate.devices)} devices, {fitted.n_rows} rows"
    )
    from edgebench.surrogate.store import summary

    lines = [
        {"left out": device, "metric": metric, "samples": k, **figures}
        for metric, sizes in summary(fitted.leave_out).items()
        for k, devices in sizes.items()
        if k in {"5", "10"}
        for device, figures in devices.items()
    ]
    if lines:
        _print_table(list(lines[0]), lines)
    else:
        typer.echo("note no device was left out, so predictions of new devices have no intervals")


def _print_calibration(document: CalibrationDocument, path: Path) -> None:
    from edgebench.surrogate.document import WARNINGS

    lines = []
    for name, metric in document.metrics.items():
        interval = metric.interval
        lines.append(
            {
                "metric": name,
                "method": metric.method,
                "alpha": metric.alpha,
                "beta": metric.beta,
                **{f"left-out error, {m}": v for m, v in metric.loo_log_rms.items()},
                "90 % interval": f"x{_factor(interval.log_half_width):.3g}" if interval else None,
            }
        )
    typer.echo(f"{path}: {document.device}, {document.n_samples} samples")
    _print_table(list(lines[0]), lines)
    for warning in document.warnings:
        typer.echo(f"warning {warning}: {WARNINGS[warning]}")


def _factor(log_half_width: float) -> float:
    import math

    return math.exp(log_half_width)


def _print_table(columns: list[str], lines: list[dict[str, Any]]) -> None:
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="")
    for column in columns:
        table.add_column(
            column, justify="left" if column in {"device", "metric", "left out"} else "right"
        )
    for line in lines:
        cells = []
        for column in columns:
            text = _cell(line[column])
            low, high = line.get(f"{column}_lo"), line.get(f"{column}_hi")
            cells.append(f"{text} ({_cell(low)} to {_cell(high)})" if low is not None else text)
        table.add_row(*cells)
    console().print(table)


def _cell(value: Any) -> str:
    if value is None:
        return "—"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
