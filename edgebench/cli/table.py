"""``edgebench table``: the tables, from the recordings."""

from __future__ import annotations

from typing import Annotated

import typer

from edgebench.cli.options import Json, Results


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
    from edgebench.cli.run import print_tables
    from edgebench.results.tables import build

    store = edgebench.api.store(results)
    tables = edgebench.api.write_tables(results, include_emulated=emulated)
    if runs:
        tables = build((store.load(id_) for id_ in runs), include_emulated=emulated)
    directory = edgebench.api.results_dir(results) / "tables"
    if store.list() and not emulated:
        # Some are there, so what is not shown was left out.
        nothing = "Every recording here is of an emulated device: `edgebench table --emulated`."
        print_tables(tables, directory, as_json=as_json, nothing=nothing)
    else:
        print_tables(tables, directory, as_json=as_json)
