"""Recordings -> the latency, energy and power tables, the same bytes from the same recordings.

CSV is RFC 4180 in UTF-8: CRLF line ends, a header, empty cells where a value is missing, floats as
Python's shortest repr, booleans as ``true`` and ``false``. Parquet holds the same values with the
types of ``columns.py`` and nulls. Rows are ordered by recording id (so by time), then artifact.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgebench.results.atomic import replace_files
from edgebench.results.columns import SCHEMA, TABLES, Column
from edgebench.results.encoding import Loaded
from edgebench.results.rows import Row, rows
from edgebench.verdict import Verdict

if TYPE_CHECKING:
    import pandas as pd

_PANDAS = {"string": "string", "float": "float64", "integer": "Int64", "boolean": "boolean"}


@dataclass(frozen=True)
class Tables:
    """The three tables as DataFrames, and the verdicts behind each ``run_id``.

    ``energy_verdicts`` are those of the energy and the power table.
    """

    latency: pd.DataFrame
    energy: pd.DataFrame
    power: pd.DataFrame
    verdicts: Mapping[str, Verdict] = field(default_factory=dict)
    energy_verdicts: Mapping[str, Verdict] = field(default_factory=dict)


def build(recordings: Iterable[Loaded], *, include_emulated: bool = False) -> Tables:
    """One row a recording and artifact in each table.

    Args:
        recordings: in any order; one given twice counts once.
        include_emulated: rows of emulated devices too (they are INVALID as figures).

    Raises:
        RecordingError: a recording's manifest is malformed.
    """
    unique = {loaded.id: loaded for loaded in recordings}
    found: dict[str, list[Row]] = {name: [] for name in TABLES}
    verdicts, energy_verdicts = {}, {}
    for _, loaded in sorted(unique.items()):
        if loaded.recording.device.emulated and not include_emulated:
            continue
        for index in range(len(loaded.recording.artifacts)):
            latency, energy, power, judged = rows(loaded, index)
            found["latency"].append(latency)
            found["energy"].append(energy)
            found["power"].append(power)
            verdicts[latency["run_id"]] = judged["latency"]
            energy_verdicts[latency["run_id"]] = judged["energy"]
    frames = {name: _frame(found[name], columns) for name, columns in TABLES.items()}
    return Tables(frames["latency"], frames["energy"], frames["power"], verdicts, energy_verdicts)


def write(tables: Tables, directory: Path) -> tuple[Path, ...]:
    """Write ``{latency,energy,power}.{csv,parquet}``; each file is replaced whole.

    Returns:
        the paths written.

    Raises:
        StorageError: the directory can't be written, or the disk is full.
    """
    contents = {}
    for name, columns in TABLES.items():
        values = cells(getattr(tables, name), columns)
        contents[f"{name}.csv"] = _csv(values)
        contents[f"{name}.parquet"] = _parquet(values, columns)
    replace_files(directory, contents)
    return tuple(directory / name for name in contents)


def _frame(found: list[Row], columns: tuple[Column, ...]) -> pd.DataFrame:
    import pandas as pd

    return pd.DataFrame(
        {c.name: pd.array([row[c.name] for row in found], dtype=_PANDAS[c.kind]) for c in columns}
    )


def cells(frame: pd.DataFrame, columns: tuple[Column, ...]) -> dict[str, list[Any]]:
    """Column name -> Python values, None where missing."""
    casts = {"string": str, "float": float, "integer": int, "boolean": bool}
    values: dict[str, list[Any]] = {}
    for column in columns:
        series = frame[column.name]
        present = series.notna()
        values[column.name] = [
            casts[column.kind](value) if there else None
            for value, there in zip(series, present, strict=True)
        ]
    return values


def _csv(values: Mapping[str, list[Any]]) -> bytes:
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\r\n")
    writer.writerow(values)
    for row in zip(*values.values(), strict=True):
        writer.writerow([_text(value) for value in row])
    return text.getvalue().encode()


def _text(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    return repr(value) if isinstance(value, float) else str(value)


def _parquet(values: Mapping[str, list[Any]], columns: tuple[Column, ...]) -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    types = {
        "string": pa.string(),
        "float": pa.float64(),
        "integer": pa.int64(),
        "boolean": pa.bool_(),
    }
    fields = [
        pa.field(c.name, types[c.kind], metadata={"unit": c.unit} if c.unit else None)
        for c in columns
    ]
    schema = pa.schema(fields, metadata={"edgebench.schema": SCHEMA})
    sink = io.BytesIO()
    pq.write_table(pa.table(dict(values), schema=schema), sink, compression="zstd")
    return sink.getvalue()
