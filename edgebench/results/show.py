"""The latency table for people: at a terminal, or as plain text in a file.

Which columns it has follows from the scenario (``edgebench.results.show_columns``).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from typing import TYPE_CHECKING, Any

from edgebench.reasons import Severity
from edgebench.results.columns import TABLES
from edgebench.results.rows import Row
from edgebench.results.show_columns import columns_of, plus_minus
from edgebench.results.tables import Tables, cells
from edgebench.verdict import Reason, Status, Verdict

if TYPE_CHECKING:
    import pandas as pd
    from rich.console import RenderableType
    from rich.table import Table
    from rich.text import Text

_STYLES = {Status.VALID: "green", Status.INVALID: "bold red", Status.UNDECIDED: "yellow"}


def render(tables: Tables) -> RenderableType:
    """One block a recording: its conditions, its rows, ratios, and reasons with what to do next.

    Print it with ``rich.console.Console().print``: without a terminal that is plain text.
    """
    from rich.console import Group
    from rich.text import Text

    rows = to_records(tables.latency)
    energy = {row["run_id"]: row for row in to_records(tables.energy)}
    power = {row["run_id"]: row for row in to_records(tables.power)}
    blocks: list[RenderableType] = []
    for identity in dict.fromkeys(row["recording_id"] for row in rows):
        session = [row for row in rows if row["recording_id"] == identity]
        measured = [energy[row["run_id"]] | power[row["run_id"]] for row in session]
        if blocks:
            blocks.append(Text())
        blocks.append(_heading(session))
        blocks.append(_table(session, measured, tables.verdicts))
        blocks += [Text(line, style="bold") for line in _ratios(session)]
        blocks += [Text(line) for line in _energy_ratios(session, measured)]
        blocks += [Text(line, style="dim") for line in _swap_lines(session)]
        blocks += [Text(line, style="dim") for line in _power_lines(measured)]
        blocks += list(_reasons(session, tables.verdicts, tables.energy_verdicts))
    return Group(*blocks) if blocks else Text("no recordings")


def to_records(frame: pd.DataFrame) -> list[Row]:
    """A table's rows as dictionaries that JSON can hold: plain types, None where missing."""
    columns = next(c for c in TABLES.values() if [each.name for each in c] == list(frame.columns))
    values = cells(frame, columns)
    return [dict(zip(values, row, strict=True)) for row in zip(*values.values(), strict=True)]


def _heading(session: Sequence[Row]) -> Text:
    from rich.text import Text

    first = session[0]
    launches = max(row["launches"] for row in session)
    conditions = [
        f"device {first['device']}",
        *(["EMULATED"] if first["emulated"] else []),
        first["scenario"],
        f"batch {first['batch']}",
        *_lengths(first),
        ("1 launch" if launches == 1 else f"{launches} launches")
        + (", interleaved" if len(session) > 1 else ""),
        f"{first['runtime']} {first['runtime_version'] or '(version unknown)'}",
    ]
    return Text.assemble(
        (" · ".join(conditions), "bold"),
        (f"\n{first['created_at']} · recording {first['recording_id']}", "dim"),
    )


def _lengths(row: Row) -> list[str]:
    """How long a call's input is, and of a decoder what it generates."""
    if row["context_len"] is not None:
        return [f"context {row['context_len']}"]
    if row["prompt_len"] is None:
        return [f"seq {row['seq_len']}"]
    new = [f"{row['new_tokens']} new tokens"] if row["new_tokens"] is not None else []
    return [f"prompt {row['prompt_len']}", *new]


def _table(
    session: Sequence[Row], measured: Sequence[Row], verdicts: Mapping[str, Verdict]
) -> Table:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="underline")
    table.add_column("artifact", overflow="fold")
    columns = columns_of(session, measured)
    for column in columns:
        table.add_column(column.name, justify="right", no_wrap=True)
    table.add_column("verdict", overflow="fold")
    for row, energy in zip(session, measured, strict=True):
        verdict = verdicts[row["run_id"]]
        code = f" {verdict.decisive[0].code}" if verdict.decisive else ""
        table.add_row(
            row["artifact"],
            *(column.cell(row | energy) for column in columns),
            Text(f"{verdict.status}{code}", style=_STYLES[verdict.status]),
        )
    return table


def _ratios(session: Sequence[Row]) -> Iterator[str]:
    """``against fp32: int8 2.77× ± 0.02 faster``, a line a reference; of generate a line for each
    of TTFT, TPOT and the whole call."""
    by_digest = {row["artifact_digest"]: row for row in session}
    labels = _labels(session)
    several = session[0]["scenario"] == "generate"
    kinds = {"TTFT ": "ttft_", "TPOT ": "tpot_", "": ""} if several else {"": ""}
    references = dict.fromkeys(row["reference_artifact_digest"] for row in session)
    for digest, (word_before, kind) in product(references, kinds.items()):
        parts = []
        for row in session:
            name = f"{kind}speedup_vs_reference"
            ratio = row[name]
            if row["reference_artifact_digest"] == digest and ratio is not None:
                text = plus_minus(row, name).replace(" ±", "× ±", 1)
                lo, hi = row[f"{name}_lo"], row[f"{name}_hi"]
                word = "alike"
                if lo is not None and lo > 1:
                    word = "faster"
                elif hi is not None and hi < 1:
                    word = "as fast"
                parts.append(f"{labels[row['run_id']]} {text} {word}")
        if parts:
            yield f"{word_before}against {labels[by_digest[digest]['run_id']]}: {', '.join(parts)}"


def _labels(session: Sequence[Row]) -> dict[str, str]:
    """The shortest name that tells the rows of one session apart: scheme, artifact, or digest."""
    for column in ("scheme", "artifact"):
        if len({row[column] for row in session}) == len(session):
            return {row["run_id"]: row[column] for row in session}
    return {row["run_id"]: f"{row['artifact']} {row['artifact_digest'][-8:]}" for row in session}


def _energy_ratios(session: Sequence[Row], measured: Sequence[Row]) -> Iterator[str]:
    """How many times less energy a call takes than the reference's, as the figures say it."""
    energy = {
        row["artifact_digest"]: each["energy_per_inference_j"]
        for row, each in zip(session, measured, strict=True)
    }
    labels = _labels(session)
    parts = [
        f"{labels[row['run_id']]} {energy[row['reference_artifact_digest']] / mine:.2f}×"
        for row in session
        if row["reference_artifact_digest"] != row["artifact_digest"]
        and (mine := energy[row["artifact_digest"]])
        and energy[row["reference_artifact_digest"]]
    ]
    if parts:
        yield f"energy a call, the reference's over each: {', '.join(parts)}"


def _swap_lines(session: Sequence[Row]) -> Iterator[str]:
    """Which adapter of a swappable artifact was active, and what changing it takes."""
    labels = _labels(session)
    for row in session:
        if row["adapter_swap_us"] is not None:
            swap, load = (plus_minus(row, f"adapter_{name}_us") for name in ("swap", "load"))
            active = f"with {row['adapter']}" if row["adapter"] else "without an adapter"
            yield f"{labels[row['run_id']]} {active}: a swap takes {swap} µs, a load {load} µs"


def _power_lines(measured: Sequence[Row]) -> Iterator[str]:
    for reason in dict.fromkeys(row["reason"] for row in measured if row["reason"]):
        yield f"no energy, no power: {reason}"
    for source in dict.fromkeys(row["source"] for row in measured if row["source"]):
        row = next(row for row in measured if row["source"] == source)
        period, idle = row["power_peak_sampling_period_ms"], plus_minus(row, "idle_power_w")
        peak = f"; peak W is the largest of {period:.3g} ms readings" if period else ""
        yield f"energy: {source}, scope {row['scope']}, idle {idle} W included{peak}"


def _reasons(
    session: Sequence[Row], verdicts: Mapping[str, Verdict], energy: Mapping[str, Verdict]
) -> Iterator[Text]:
    """Each reason once, with the rows that it concerns; the gravest first."""
    from rich.text import Text

    labels = _labels(session)
    concerned: dict[str, tuple[Reason, list[str]]] = {}
    for row in session:
        judged = (verdicts[row["run_id"]], energy[row["run_id"]])
        mine = {reason.text: reason for verdict in judged for reason in verdict.reasons}
        for text, reason in mine.items():
            concerned.setdefault(text, (reason, []))[1].append(labels[row["run_id"]])
    order = list(Severity)
    styles: dict[Severity, Any] = {
        Severity.INVALID: "red",
        Severity.UNDECIDED: "yellow",
        Severity.NOTE: "dim",
    }
    for reason, names in sorted(concerned.values(), key=lambda item: order.index(item[0].severity)):
        who = "" if len(names) == len(session) else f"{', '.join(names)}: "
        yield Text.assemble(
            (f"{reason.severity} ", styles[reason.severity]),
            f"{who}{reason.seen}. ",
            (reason.fix, "dim"),
        )
