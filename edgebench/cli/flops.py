"""``edgebench flops``: the operations and bytes of an artifact's graph, by operator."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from edgebench.cli.options import Json


def register(app: typer.Typer) -> None:
    app.command("flops")(flops)


def flops(
    artifacts: Annotated[
        list[Path], typer.Argument(help="Artifact directories; the first is what others add to.")
    ],
    adapter: Annotated[
        str | None, typer.Option(help="Of a swappable artifact: the adapter that is active.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Count what an artifact's graph computes and moves for one sample, by operator.

    Shapes are those of its own inputs. docs/flops.md has each operator's formula.
    """
    import edgebench.api
    from edgebench.cli.output import console, say_json

    found = [edgebench.api.count_flops(path, adapter=adapter) for path in artifacts]
    if as_json:
        say_json(
            [
                {
                    "path": str(path),
                    "flops": cost.flops,
                    "weight_bytes": cost.weight_bytes,
                    "value_bytes": cost.value_bytes,
                    "uncounted": list(cost.uncounted),
                    "nodes": [asdict(node) for node in cost.nodes],
                }
                for path, cost in zip(artifacts, found, strict=True)
            ]
        )
        return
    from rich.table import Table

    output = console()
    for path, cost in zip(artifacts, found, strict=True):
        more = f", {100 * (cost.flops / found[0].flops - 1):+.2f} %" if cost is not found[0] else ""
        output.print(
            f"{path.name}: {cost.flops / 1e6:.4g} million operations a sample{more}; "
            f"{cost.weight_bytes / 1e6:.4g} MB of weights and {cost.value_bytes / 1e6:.4g} MB of "
            "values read and written"
        )
        table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="underline")
        table.add_column("operator")
        for name in ("nodes", "MFLOP", "share", "weights MB", "values MB"):
            table.add_column(name, justify="right")
        for op, nodes, count, weights, values in cost.by_op():
            table.add_row(
                op,
                str(nodes),
                f"{count / 1e6:.4g}",
                f"{100 * count / max(cost.flops, 1):.1f} %",
                f"{weights / 1e6:.4g}",
                f"{values / 1e6:.4g}",
            )
        output.print(table)
        if cost.uncounted:
            output.print(f"not counted, no formula: {', '.join(cost.uncounted)}")
