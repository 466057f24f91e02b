"""``edgebench directions``: what int8 and fp16 directions cost on a device, and the bound E_max."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edgebench.cli.options import (
    BaseModel,
    DeviceName,
    EnergyPrecision,
    ExportSeqLen,
    Json,
    Launches,
    MaxDuration,
    Precision,
    Results,
    Threads,
    TimingTexts,
    Wait,
    WorkspaceCode,
)
from edgebench.cli.output import Answer

if TYPE_CHECKING:
    from edgebench.adapters.energy_bound import LinearCosts
    from edgebench.overhead.budget import Figure
    from edgebench.overhead.directions import DirectionMeasurement


def register(app: typer.Typer) -> None:
    app.command("directions")(directions)


def directions(
    adapter: Annotated[Path, typer.Argument(help="Directory of a HEST adapter's checkpoint.")],
    base: BaseModel = None,
    device: DeviceName = "local",
    quant: Annotated[
        str, typer.Option("--quant", "-q", help="Precision of the base that they are on.")
    ] = "fp32",
    points: Annotated[
        int, typer.Option(help="Artifacts to measure, 5 to 12; more narrow the intervals.")
    ] = 8,
    int8: Annotated[
        int | None, typer.Option(help="int8 directions to give E_max for; default the adapter's.")
    ] = None,
    fp16: Annotated[
        int | None, typer.Option(help="fp16 directions to give E_max for; default the adapter's.")
    ] = None,
    seq_len: ExportSeqLen = 128,
    data: TimingTexts = None,
    launches: Launches = 5,
    precision: Precision = "2%",
    max_duration: MaxDuration = 240.0,
    energy_precision: EnergyPrecision = "5%",
    energy_window: Annotated[
        float | None,
        typer.Option(help="Seconds of an energy window (default: what the meters need)."),
    ] = None,
    threads: Threads = None,
    results: Results = None,
    wait: Wait = True,
    workspace_code: WorkspaceCode = True,
    as_json: Json = False,
) -> None:
    """Measure what a HEST adapter's directions cost: joules and milliseconds for each kind.

    Exports the adapter with other numbers of int8 and fp16 directions, measures them in one
    session, fits the costs, and writes results/tables/direction-costs.json, which a training script
    reads. Exit code: 0 there is a bound in joules, 2 there is none (no meter, or a measurement that
    can't be used): the reason is given, and no other unit takes its place.

    Example: edgebench directions my-hest --base path/to/base-model --device mypi -q int8
    """
    import edgebench.api
    from edgebench.cli.output import console, progress, say_json
    from edgebench.cli.progress import FleetProgress
    from edgebench.cli.run import parse_share
    from edgebench.errors import UsageError
    from edgebench.measure import RunOptions

    if (int8 is None) != (fp16 is None):
        raise UsageError("one number of directions is not enough", fix="Give --int8 and --fp16.")
    options = RunOptions(
        launches=launches,
        percentile=50,
        precision=parse_share(precision, "--precision"),
        max_duration_s=max_duration,
        energy_precision=parse_share(energy_precision, "--energy-precision"),
        energy_window_s=energy_window,
        threads=threads,
        accuracy=None,
    )
    options.check()
    with progress() as update:
        found = edgebench.api.measure_directions(
            adapter,
            base=base,
            device=device,
            quant=quant,
            points=points,
            of=None if int8 is None or fp16 is None else (int8, fp16),
            options=options,
            results=results,
            wait=wait,
            workspace_code=workspace_code,
            progress=update,
            report=FleetProgress(update),
            seq_len=seq_len,
            data=data,
        )
    if as_json:
        say_json(found.document())
    else:
        console().print(render(found))
        where = edgebench.api.results_dir(results) / "tables" / "direction-costs.json"
        console().print(f"written: {where}")
    if found.exit_code:
        raise Answer(found.exit_code)


def render(found: DirectionMeasurement) -> Any:
    """One row an artifact, then what each kind of direction costs, for people."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    points = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="underline")
    for name in ("int8", "fp16", "p50 ms", "mJ a call"):
        points.add_column(name, justify="right", no_wrap=True)
    for point in found.points:
        points.add_row(
            str(point.n_int8),
            str(point.n_fp16),
            _figure(point.latency_ms, 1),
            _figure(point.energy_j, 1e3),
        )
    said = f"{found.directions} directions on {found.modules} modules"
    parts: list[Any] = [
        Text(f"{found.adapter} on {found.base} · device {found.device} · {said}", "bold"),
        Text(f"{found.created_at} · recording {found.recording_id} · {found.scheme}", "dim"),
        points,
        Text(_costs("energy, µJ", found.energy, 1e6, found.energy_reason)),
        Text(_costs("latency, µs", found.latency, 1e3, found.latency_reason)),
    ]
    own = f"{found.n_int8} int8 and {found.n_fp16} fp16 directions"
    if found.e_max_j is not None:
        parts.append(Text(f"E_max of {own}: {1e3 * found.e_max_j:.4g} mJ a call", "green"))
    else:
        parts.append(Text(f"no E_max: energy is not known ({found.energy_reason})", "yellow"))
    return Group(*parts)


def _costs(what: str, costs: LinearCosts | None, scale: float, reason: str) -> str:
    if costs is None:
        return f"{what}: unknown ({reason})"
    names = ("a call without", "an int8 direction", "an fp16 direction")
    words = [
        f"{name} {scale * value:.4g} ({scale * lo:.3g} to {scale * hi:.3g})"
        for name, value, lo, hi in zip(names, costs.cost, costs.lo, costs.hi, strict=True)
    ]
    return f"{what}: {', '.join(words)}; {100 * costs.coverage:g} % intervals"


def _figure(figure: Figure, scale: float) -> str:
    if figure.value is None:
        return "—"
    if figure.lo is None or figure.hi is None:
        return f"{scale * figure.value:.4g}"
    half = max(figure.hi - figure.value, figure.value - figure.lo)
    return f"{scale * figure.value:.4g} ± {scale * half:.2g}"
