"""``edgebench table``: the tables, from the recordings."""

from __future__ import annotations

from typing import Annotated

import typer

from edgebench.cli.output import Json, Results


def register(app: typer.Typer) -> None:
    app.command("table")(table)


def table(
    runs: Annotated[
        list[str] | None,
        typer.Argument(help="Recordings to print (ids or their beginnings); none prints all."),
    ] = None,
    results: Results = None,
    emulated: Annotated[
        bool, typer.Option("--emulated", help="Include rows of emulated devices.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Regenerate all tables from the recordings, byte for byte, and print them.

    Writes results/tables/{latency,energy,power}.{csv,parquet}.
    """
    import edgebench.api
    from edgebench.cli.output import console, say_json
    from edgebench.results.show import render, to_records

    store = edgebench.api.store(results)
    edgebench.api.write_tables(results, include_emulated=emulated)
    loaded = [store.load(id_) for id_ in (runs or store.list())]
    if not emulated:
        loaded = [entry for entry in loaded if not entry.recording.device.emulated]
    if as_json:
        say_json(to_records(loaded))
        return
    output = console()
    if not loaded:
        output.print("There is no recording yet. Make one with `edgebench run`.")
    else:
        output.print(render(loaded))
    output.print(f"tables: {edgebench.api.results_dir(results) / 'tables'}")
