"""``edgebench exporters``: which adapter families can be exported."""

from __future__ import annotations

from dataclasses import asdict

import typer

from edgebench.cli.options import Json, WorkspaceCode


def register(app: typer.Typer) -> None:
    app.command("exporters")(exporters)


def exporters(
    workspace_code: WorkspaceCode = True,
    as_json: Json = False,
) -> None:
    """List the adapter families: what recognises them, and the forms that each can take.

    peft_type is what adapter_config.json says. Every family exports text and token classification
    and feature extraction, at every precision of `edgebench export -q`; --json has them all.
    """
    import edgebench.api
    from edgebench.cli.output import console, say_json

    found = edgebench.api.list_exporters(workspace_code=workspace_code)
    if as_json:
        say_json([asdict(family) for family in found])
        return
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for title in ("family", "peft_type", "lowerings", "what it is"):
        table.add_column(title, overflow="fold")
    for family in found:
        table.add_row(
            family.name,
            ", ".join(family.kinds),
            ", ".join(family.lowerings),
            f"broken: {family.error}" if family.error else family.summary,
        )
    console().print(table)
