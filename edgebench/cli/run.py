"""``edgebench run``: measure artifacts on a device."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from edgebench.cli.options import (
    DeviceNames,
    EnergyPrecision,
    Json,
    Launches,
    MaxDuration,
    OfflineBatch,
    Precision,
    Results,
    SeqLen,
    Threads,
    Wait,
)
from edgebench.cli.output import error_document, say_error

if TYPE_CHECKING:
    from edgebench.errors import EdgebenchError, MeasurementError
    from edgebench.recording import Recording
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
        str | None,
        typer.Option(
            help="single-stream: one query after another; offline: batches. Of decoders: prefill "
            "(the first token), decode (one step behind a context), generate (both). Default: "
            "generate for decoders, else single-stream."
        ),
    ] = None,
    batch: OfflineBatch = None,
    seq_len: SeqLen = None,
    prompt_len: Annotated[
        int | None,
        typer.Option(
            help="Tokens of a decoder's prompt, or of decode's context (default: as exported)."
        ),
    ] = None,
    new_tokens: Annotated[
        int | None, typer.Option(help="Tokens that a call of generate gives (default 32).")
    ] = None,
    launches: Launches = 5,
    percentile: Annotated[
        float | None,
        typer.Option(
            help="Highest percentile to support: 90 needs 64 samples, 99 needs 662 (default 99; of "
            "prefill and generate 90)."
        ),
    ] = None,
    min_count: Annotated[
        int | None, typer.Option(help="Samples an artifact (default: what --percentile needs).")
    ] = None,
    precision: Precision = "2%",
    max_duration: MaxDuration = 120.0,
    accuracy: Annotated[
        str,
        typer.Option(
            help="Task accuracy on the device, over all examples, none, or a number of them. all "
            "takes it over from an earlier run of the same artifact and device; fresh measures it "
            "again."
        ),
    ] = "all",
    energy: Annotated[
        str,
        typer.Option(
            help="auto: where a meter of the profile sees the device; on: make energy windows in "
            "any case, for a trace that `edgebench energy attach` brings later; off."
        ),
    ] = "auto",
    energy_precision: EnergyPrecision = "5%",
    energy_max_duration: Annotated[
        float, typer.Option(help="Seconds after which a launch's energy rounds end.")
    ] = 120.0,
    energy_window: Annotated[
        float | None,
        typer.Option(help="Seconds of back-to-back calls a window (default: the meter's need)."),
    ] = None,
    adapter: Annotated[
        str | None,
        typer.Option(
            help="Of swappable artifacts: the adapter that is active (default: the first); none "
            "runs the base alone."
        ),
    ] = None,
    threads: Threads = None,
    seed: Annotated[int, typer.Option(help="Seed of every random order.")] = 0,
    results: Results = None,
    wait: Wait = True,
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
        prompt_len=prompt_len,
        new_tokens=new_tokens,
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
        energy=energy,  # type: ignore[arg-type]  # likewise
        energy_precision=parse_share(energy_precision, "--energy-precision"),
        energy_max_duration_s=energy_max_duration,
        energy_window_s=energy_window,
        adapter=adapter,
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
    errors = [outcome.error for outcome in outcomes if outcome.error is not None]
    if not done:
        for error in errors[1:]:
            say_error(error)
        raise errors[0]
    finish(done, errors, results=results, as_json=as_json)


def finish(
    recordings: Sequence[Recording],
    errors: Sequence[EdgebenchError],
    *,
    results: Path | None,
    as_json: bool,
) -> None:
    """Show what was measured; where a part of it failed, say so and exit with its code."""
    every = [*errors, *filter(None, map(failure, recordings))]
    show([recording.id for recording in recordings], every, results=results, as_json=as_json)
    for error in every:
        say_error(error)
    if every:
        raise typer.Exit(every[0].exit_code)


def failure(recording: Recording) -> MeasurementError | None:
    """The first worker of a recording that failed, as an error; None if all were well."""
    from edgebench.errors import MeasurementError
    from edgebench.reasons import RULES, Code

    bad = ("out-of-memory", "killed", "crashed", "error")
    found = [
        (recording.artifacts[solo.artifact].name, solo)
        for solo in recording.solo
        if solo.outcome in bad
    ] + [
        (f"launch {launch.index + 1} of {recording.protocol.launches}", launch)
        for launch in recording.launches
        if launch.outcome in bad
    ]
    if not found:
        return None
    name, ended = found[0]
    code = Code.WORKER_ERROR if ended.outcome == "error" else Code(ended.outcome)
    text = (ended.error or "no text").splitlines()[0][:300].rstrip(". ")
    return MeasurementError(
        f"{name} could not be measured: {ended.outcome}: {text}",
        where=recording.device.name,
        fix=RULES[code].fix,
    )


def show(
    ids: Sequence[str],
    errors: Sequence[EdgebenchError] = (),
    *,
    results: Path | None,
    as_json: bool,
) -> None:
    """Print recordings as tables (or JSON) and bring the table files up to date."""
    import edgebench.api
    from edgebench.results.tables import build

    store = edgebench.api.store(results)
    # What was just measured is shown in any case; the files leave emulated rows out.
    tables = build((store.load(id_) for id_ in ids), include_emulated=True)
    edgebench.api.write_tables(results)
    directory = edgebench.api.results_dir(results) / "tables"
    print_tables(tables, directory, errors, as_json=as_json)


def print_tables(
    tables: Tables,
    directory: Path,
    errors: Sequence[EdgebenchError] = (),
    *,
    as_json: bool,
    nothing: str = "There is no recording yet. Make one with `edgebench run`.",
) -> None:
    """Tables on stdout, and where their files are; ``nothing`` where they have no row."""
    from edgebench.cli.output import console, say_json
    from edgebench.results.show import render, to_records

    if as_json:
        frames = {"latency": tables.latency, "energy": tables.energy, "power": tables.power}
        document: dict[str, Any] = {name: to_records(frame) for name, frame in frames.items()}
        say_json({**document, "errors": [error_document(error) for error in errors]})
        return
    output = console()
    if len(tables.latency):
        output.print(render(tables))
    else:
        output.print(nothing)
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
