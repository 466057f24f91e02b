"""``edgebench run``: measure artifacts on a device."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from edgebench.cli.output import DeviceNames, Json, Results

if TYPE_CHECKING:
    from edgebench.measure import Outcome
    from edgebench.results.tables import Tables


def register(app: typer.Typer) -> None:
    app.command("run")(run)


def run(
    artifacts: Annotated[
        list[Path] | None,
        typer.Argument(help="Artifact directories; none takes the workspace's newest."),
    ] = None,
    device: DeviceNames = None,
    scenario: Annotated[
        str, typer.Option(help="single-stream: one query after another; offline: batches.")
    ] = "single-stream",
    batch: Annotated[
        int | None, typer.Option(help="Samples a call in the offline scenario (default 8).")
    ] = None,
    seq_len: Annotated[
        int | None, typer.Option(help="Tokens a sample (default: as exported).")
    ] = None,
    launches: Annotated[
        int, typer.Option(help="Worker processes; intervals are taken over them.")
    ] = 5,
    percentile: Annotated[
        float,
        typer.Option(help="Highest percentile to support: 90 needs 64 samples, 99 needs 662."),
    ] = 99.0,
    min_count: Annotated[
        int | None, typer.Option(help="Samples an artifact (default: what --percentile needs).")
    ] = None,
    precision: Annotated[
        str, typer.Option(help="Half-width of the median's interval that is enough, per launch.")
    ] = "2%",
    max_duration: Annotated[
        float, typer.Option(help="Seconds after which a launch ends in any case.")
    ] = 120.0,
    accuracy: Annotated[
        str,
        typer.Option(
            help="Task accuracy on the device, over all examples, none, or a number of them. all "
            "takes it over from an earlier run of the same artifact and device; fresh measures it "
            "again."
        ),
    ] = "all",
    threads: Annotated[
        int | None, typer.Option(help="Threads of the model (default: the profile's).")
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of every random order.")] = 0,
    results: Results = None,
    wait: Annotated[
        bool, typer.Option("--wait/--no-wait", help="Wait for a device that is in use.")
    ] = True,
    as_json: Json = False,
) -> None:
    """Measure artifacts on a device, interleaved, and store a recording.

    Several devices are measured side by side, each with a recording of its own.

    Writes results/runs/ID and regenerates results/tables/{latency,energy,power}.{csv,parquet}.
    """
    import edgebench.api
    from edgebench.cli.output import progress
    from edgebench.cli.progress import FleetProgress
    from edgebench.measure import RunOptions

    options = RunOptions(
        scenario=scenario,  # type: ignore[arg-type]  # RunOptions.check names the valid ones
        batch=batch,
        seq_len=seq_len,
        launches=launches,
        percentile=percentile,
        min_count=min_count,
        precision=parse_share(precision, "--precision"),
        max_duration_s=max_duration,
        accuracy=parse_accuracy(accuracy),
        reuse_accuracy=accuracy != "fresh",
        threads=threads,
        seed=seed,
    )
    devices = device or ["local"]
    with progress() as update:
        outcomes = edgebench.api.run_on(
            devices,
            artifacts or [],
            options=options,
            results=results,
            wait=wait,
            report=FleetProgress(update),
        )
    done = [outcome.recording for outcome in outcomes if outcome.recording is not None]
    if done:
        show([recording.id for recording in done], results=results, as_json=as_json)
    raise_failures(outcomes)


def raise_failures(outcomes: Sequence[Outcome]) -> None:
    """Raise the first device's error, or the first artifact that could not be measured.

    Several errors are printed, each with its device; the first one's exit code counts.
    """
    from edgebench.errors import MeasurementError

    errors = [outcome.error for outcome in outcomes if outcome.error is not None]
    for error in errors[1:]:
        typer.echo(f"error: {error}", err=True)
    if errors:
        raise errors[0]
    for outcome in outcomes:
        if outcome.recording is None:
            continue
        for solo in outcome.recording.solo:
            if solo.outcome != "ok":
                entry = outcome.recording.artifacts[solo.artifact]
                raise MeasurementError(
                    f"{entry.name} could not be measured: {solo.outcome} ({solo.error})",
                    where=outcome.device,
                    fix="The recording says so; the others' figures stand.",
                )


def show(ids: Sequence[str], *, results: Path | None, as_json: bool) -> None:
    """Print recordings as tables (or JSON) and bring the table files up to date."""
    import edgebench.api
    from edgebench.results.tables import build

    store = edgebench.api.store(results)
    # What was just measured is shown in any case; the files leave emulated rows out.
    tables = build((store.load(id_) for id_ in ids), include_emulated=True)
    edgebench.api.write_tables(results)
    print_tables(tables, edgebench.api.results_dir(results) / "tables", as_json=as_json)


def print_tables(tables: Tables, directory: Path, *, as_json: bool) -> None:
    """Tables on stdout, and where their files are."""
    from edgebench.cli.output import console, say_json
    from edgebench.results.show import render, to_records

    if as_json:
        frames = {"latency": tables.latency, "energy": tables.energy, "power": tables.power}
        say_json({name: to_records(frame) for name, frame in frames.items()})
        return
    output = console()
    if len(tables.latency):
        output.print(render(tables))
    else:
        output.print("There is no recording yet. Make one with `edgebench run`.")
    output.print(f"tables: {directory}/{{latency,energy,power}}.{{csv,parquet}}")


def parse_share(text: str, option: str) -> float:
    """A share such as "2%" or "0.02"."""
    from edgebench.errors import UsageError

    try:
        value = float(text[:-1]) / 100 if text.endswith("%") else float(text)
    except ValueError:
        value = -1.0
    if not 0 < value < 1:
        raise UsageError(f"{option} must be a share such as 2%, not {text!r}")
    return value


def parse_accuracy(text: str) -> Literal["all"] | int | None:
    """ "all", "fresh", "none", or a number of examples."""
    from edgebench.errors import UsageError

    if text in ("all", "fresh"):
        return "all"
    if text == "none":
        return None
    if not text.isdigit() or int(text) < 1:
        raise UsageError(
            f"--accuracy must be all, fresh, none, or a number of examples, not {text!r}"
        )
    return int(text)
