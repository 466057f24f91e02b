"""``edgebench resume``: pick up what a device measured while nobody listened."""

from __future__ import annotations

from typing import Annotated

import typer

from edgebench.cli.options import DeviceNames, Json, Results


def register(app: typer.Typer) -> None:
    app.command("resume")(resume)


def resume(
    device: DeviceNames = None,
    results: Results = None,
    everything: Annotated[
        bool,
        typer.Option("--all", help="Also runs of yours that began for other results directories."),
    ] = False,
    as_json: Json = False,
) -> None:
    """Collect the runs that were left on devices, waiting for those still under way."""
    import edgebench.api
    from edgebench.cli.output import console, progress
    from edgebench.cli.progress import FleetProgress
    from edgebench.cli.run import finish

    devices = device or ["local"]
    with progress() as update:
        report = FleetProgress(update)
        found = [
            recording
            for name in devices
            for recording in edgebench.api.resume(
                name, results=results, everything=everything, report=report
            )
        ]
    if found or as_json:
        finish(found, [], results=results, as_json=as_json)
    else:
        console().print(f"There is no run to pick up on {', '.join(devices)}.")
