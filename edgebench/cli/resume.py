"""``edgebench resume``: pick up what a device measured while nobody listened."""

from __future__ import annotations

import typer

from edgebench.cli.output import DeviceName, Json, Results


def register(app: typer.Typer) -> None:
    app.command("resume")(resume)


def resume(device: DeviceName = "local", results: Results = None, as_json: Json = False) -> None:
    """Collect the runs that were left on a device, waiting for those still under way."""
    import edgebench.api
    from edgebench.cli.output import console, progress
    from edgebench.cli.progress import RunProgress
    from edgebench.cli.run import finish

    with progress() as update:
        found = edgebench.api.resume(device, results=results, report=RunProgress(device, update))
    if found or as_json:
        finish(found, [], results=results, as_json=as_json)
    else:
        console().print(f"There is no run to pick up on {device}.")
