"""``edgebench plot``: a run's power over time, as PNG and PDF."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from edgebench.cli.options import Json, Results


def register(app: typer.Typer) -> None:
    app.command("plot")(plot)


def plot(
    run: Annotated[str, typer.Argument(help="The recording: its id or the beginning of it.")],
    out: Annotated[
        Path | None,
        typer.Option(help="Directory of the figures (default: results/figures/ID)."),
    ] = None,
    channel: Annotated[
        str | None,
        typer.Option(help="Only this channel of the meters, by its name (default: all)."),
    ] = None,
    results: Results = None,
    as_json: Json = False,
) -> None:
    """Draw a run's power over time, with its windows, idle stretches and inferences.

    Writes a PNG and a PDF for each channel that has readings.
    """
    import edgebench.api
    from edgebench.cli.output import say_json

    paths = edgebench.api.plot_power(run, out, channel=channel, results=results)
    if as_json:
        say_json({"figures": [str(path) for path in paths]})
        return
    for path in paths:
        typer.echo(str(path))
