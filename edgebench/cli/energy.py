"""``edgebench energy attach``: the trace of any meter fills a recorded run's energy."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edgebench.cli.options import Json, Results

if TYPE_CHECKING:
    from edgebench.recording import Recording
    from edgebench.results.attachments import Stored

SCOPES = ("wall", "board", "module", "soc", "rail", "package", "gpu", "battery")


def register(app: typer.Typer) -> None:
    group = typer.Typer(
        help="Energy from meters that edgebench does not read itself.",
        no_args_is_help=True,
        rich_markup_mode=None,
    )
    # With a callback a group of one command keeps that command's name.
    group.callback()(_group)
    group.command("attach")(attach)
    app.add_typer(group, name="energy")


def _group() -> None:
    """Energy from meters that edgebench does not read itself."""


def attach(
    run: Annotated[str, typer.Argument(help="The recording: its id or the beginning of it.")],
    trace: Annotated[Path, typer.Option(help="The meter's log, as CSV.")],
    columns: Annotated[
        str,
        typer.Option(
            help="What the columns hold: time=NAME, and power=NAME, or energy=NAME (a counter), or "
            "current=NAME,voltage=NAME. DATE+TIME joins two columns; #2 is the second one."
        ),
    ],
    scope: Annotated[str, typer.Option(help=f"What the meter saw: {', '.join(SCOPES)}.")],
    time_unit: Annotated[
        str | None,
        typer.Option(
            help="s, ms, us, ns (Unix time, or since the trace began), iso, or a strptime format. "
            "Default: iso, or s where the cells are numbers."
        ),
    ] = None,
    power_unit: Annotated[
        str | None, typer.Option(help="W, mW, uW or kW (default: as its name says, else W).")
    ] = None,
    current_unit: Annotated[str | None, typer.Option(help="A, mA or uA (default: A).")] = None,
    voltage_unit: Annotated[str | None, typer.Option(help="V or mV (default: V).")] = None,
    energy_unit: Annotated[
        str | None, typer.Option(help="J, mJ, kJ, Wh, mWh or kWh (default: J).")
    ] = None,
    timezone: Annotated[
        str | None, typer.Option(help="Of local times without an offset, as Europe/Berlin or UTC.")
    ] = None,
    decimal: Annotated[str, typer.Option(help="The decimal sign: . or a comma.")] = ".",
    delimiter: Annotated[
        str | None, typer.Option(help="Between cells (default: found by the columns' names).")
    ] = None,
    offset: Annotated[
        str,
        typer.Option(
            help="How far the meter's clock is ahead of this host's (seconds), or auto: found by "
            "the run's own load pattern."
        ),
    ] = "auto",
    offset_bound: Annotated[
        float | None, typer.Option(help="Within so many seconds; with a given offset.")
    ] = None,
    accuracy: Annotated[
        str | None,
        typer.Option(help="Of a reading, from the meter's data sheet: a share, as 0.5%."),
    ] = None,
    offset_error: Annotated[
        str | None, typer.Option(help="The same in watts, as 0.01W: both together bound it.")
    ] = None,
    name: Annotated[
        str | None, typer.Option(help="The instrument, for the tables (default: the file's name).")
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Take power that no such device draws.")
    ] = False,
    results: Results = None,
    as_json: Json = False,
) -> None:
    """Align a meter's trace to a recorded run, and fill its energy and power.

    The recording stays as it is: the trace is stored beside it, below results/attachments.
    """
    import edgebench.api
    from edgebench.results.attach import Terms
    from edgebench.results.trace_csv import Role, TraceOptions, parse_columns

    wanted = parse_columns(columns)
    given: dict[Role, str | None] = {
        "time": time_unit,
        "power": power_unit,
        "current": current_unit,
        "voltage": voltage_unit,
        "energy": energy_unit,
    }
    units = {role: unit for role, unit in given.items() if unit is not None}
    _refuse_unused(units, wanted)
    terms = Terms(
        scope=parse_scope(scope),
        name=name or trace.name,
        gain_error=None if accuracy is None else parse_accuracy(accuracy),
        offset_error_w=None if offset_error is None else parse_watts(offset_error),
        offset_s=parse_offset(offset),
        offset_bound_s=offset_bound,
        force=force,
    )
    options = TraceOptions(units, timezone, decimal, _tab(delimiter))
    stored = edgebench.api.attach_trace(run, trace, wanted, terms, options=options, results=results)
    if as_json:
        _say_json(stored)
    else:
        _say(edgebench.api.store(results).load(run).recording, stored)
        _show(run, results)


def _refuse_unused(units: dict[Any, str], columns: dict[Any, str]) -> None:
    from edgebench.errors import UsageError

    for role in units:
        if role not in columns:
            raise UsageError(f"--{role}-unit is given and no column of {role}", where="--columns")


def _say_json(stored: Stored) -> None:
    from edgebench.cli.output import say_json

    say_json(
        {
            "attachment": stored.document.model_dump(mode="json", by_alias=True),
            "path": str(stored.path),
        }
    )


def _say(recording: Recording, stored: Stored) -> None:
    """Where the trace was placed, and what it does not cover."""
    from edgebench.results.attach import describe

    document, alignment = stored.document, stored.meter.alignment
    assert alignment is not None
    trace, channel = document.trace, stored.meter.channels[0]
    typer.echo(
        f"{trace.name}: {trace.readings} readings, one every {channel.period_s * 1e3:.3g} ms"
        + (f", {trace.missing} rows without one" if trace.missing else "")
        + (f", {trace.repeated} said twice" if trace.repeated else "")
    )
    typer.echo(f"placed within {alignment.bound_ns / 1e6:.3g} ms by {alignment.method}")
    if alignment.method.startswith("wall clock"):
        ahead = (alignment.offset_ns - recording.clock.offset_ns) / 1e9
        where = "ahead of" if ahead > 0 else "behind"
        typer.echo(f"its clock is {abs(ahead):.3g} s {where} this host's")
    whole = document.stretches - len(document.uncovered)
    typer.echo(f"it sees {whole} of {document.stretches} windows and idle stretches whole")
    if document.uncovered:
        typer.echo(f"left out: {describe(document.uncovered)}")
    typer.echo(f"stored: {stored.path}\n")


def _show(run: str, results: Path | None) -> None:
    """The run's rows, as `edgebench table RUN` prints them."""
    import edgebench.api
    from edgebench.cli.run import print_tables
    from edgebench.results.tables import build

    loaded = edgebench.api.store(results).load(run)
    tables = build([loaded], include_emulated=True)
    print_tables(tables, edgebench.api.results_dir(results) / "tables", as_json=False)


def _tab(delimiter: str | None) -> str | None:
    return "\t" if delimiter in ("\\t", "tab") else delimiter


def parse_scope(text: str) -> str:
    """What the meter saw."""
    return _one_of(text, SCOPES, "--scope")


def _one_of(text: str, known: Sequence[str], option: str) -> str:
    from edgebench.errors import UsageError

    if text not in known:
        raise UsageError(f"{option} must be one of {', '.join(known)}, not {text!r}")
    return text


def parse_accuracy(text: str) -> float:
    """A share such as "0.5%" or "0.005"; 0 is a claim that no meter can make."""
    from edgebench.cli.run import parse_share

    return parse_share(text, "--accuracy")


def parse_watts(text: str) -> float:
    """Watts such as "0.01W", "10 mW" or "0.01"."""
    from edgebench.errors import UsageError

    plain = text.strip()
    factor = 1.0
    for unit, worth in (("mW", 1e-3), ("uW", 1e-6), ("W", 1.0)):
        if plain.endswith(unit):
            plain, factor = plain.removesuffix(unit).strip(), worth
            break
    try:
        value = float(plain) * factor
    except ValueError:
        value = -1.0
    if not 0 <= value < float("inf"):
        raise UsageError(f"--offset-error must be watts such as 0.01W, not {text!r}")
    return value


def parse_offset(text: str) -> float | None:
    """Seconds, or None for "auto"."""
    from math import isfinite

    from edgebench.errors import UsageError

    if text == "auto":
        return None
    try:
        value = float(text.removesuffix("s"))
    except ValueError:
        value = float("nan")
    if not isfinite(value):
        raise UsageError(f"--offset must be auto or seconds, not {text!r}")
    return value
