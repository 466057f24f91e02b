"""``edgebench devices``: which device profiles there are."""

from __future__ import annotations

from dataclasses import asdict

import typer

from edgebench.cli.options import Json


def register(app: typer.Typer) -> None:
    app.command("devices")(devices)


def devices(as_json: Json = False) -> None:
    """List the device profiles: the workspace's own and the built-in ones."""
    import edgebench.api
    from edgebench.cli.output import console, say_json

    found = edgebench.api.list_devices()
    if as_json:
        say_json([asdict(device) for device in found])
        return
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for title in ("device", "reached by", "runs on", "what it is", "tested"):
        table.add_column(title, overflow="fold")
    for device in found:
        if device.error:
            table.add_row(device.id, "", "", f"broken: {device.error}", "")
            continue
        what = f"{device.name} (can't be run yet)" if device.refuses else device.name
        table.add_row(device.id, device.transport, device.provider, what, device.tested)
    console().print(table)
