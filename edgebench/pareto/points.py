"""Points from a table: edgebench's three tables joined by run, or any CSV with the same columns."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from edgebench.errors import InputError

TABLES = ("latency", "energy", "power")
_LABELS = ("run_id", "artifact", "device", "scheme")


@dataclass(frozen=True)
class Points:
    """Figures of several objectives, one row a point.

    Attributes:
        values: [n, m] floats, finite.
        labels: [n] what each point is: artifact and device, or its row.
        left_out: label -> why a row is no point.
    """

    columns: tuple[str, ...]
    values: npt.NDArray[np.float64]
    labels: tuple[str, ...]
    left_out: Mapping[str, str]


def read(path: Path, columns: Sequence[str], device: str | None = None) -> Points:
    """The points of a CSV file, or of a results directory's ``tables/``.

    Rows that are INVALID, and rows without one of the figures, are no points; ``left_out`` names
    them.

    Raises:
        InputError: no such file, no such column, or no point at all.
    """
    rows = _joined(path) if path.is_dir() else _rows(path)
    if device is not None:
        rows = [row for row in rows if row.get("device") == device]
        if not rows:
            raise InputError(f"no row is of the device {device!r}", where=str(path))
    known = {name for row in rows for name in row}
    for column in columns:
        if column not in known:
            numeric = ", ".join(sorted(n for n in known if n not in _LABELS)[:12])
            raise InputError(
                f"there is no column {column!r}", where=str(path), fix=f"There is: {numeric} …"
            )
    values, labels, left_out = [], [], {}
    for position, row in enumerate(rows, start=1):
        label = " ".join(row[n] for n in ("artifact", "device") if row.get(n)) or f"row {position}"
        if label in labels or label in left_out:
            label = f"{label} ({row.get('run_id') or position})"
        if row.get("verdict") == "INVALID":
            left_out[label] = f"INVALID: {row.get('reasons', '')}"
            continue
        numbers = [_number(row.get(column)) for column in columns]
        missing = [c for c, number in zip(columns, numbers, strict=True) if number is None]
        if missing:
            left_out[label] = f"no {missing[0]}"
            continue
        values.append([number for number in numbers if number is not None])
        labels.append(label)
    if not values:
        why = "; ".join(f"{k}: {v}" for k, v in list(left_out.items())[:3]) or "it has no rows"
        raise InputError(
            f"there is no point with all of {', '.join(columns)} ({why})",
            where=str(path),
            fix="Measure what is missing; nothing stands in for it.",
        )
    return Points(tuple(columns), np.array(values, dtype=float), tuple(labels), left_out)


def _joined(directory: Path) -> list[dict[str, str]]:
    """One row a run id, with the columns of every table; the energy table's verdict counts too."""
    folder = directory / "tables" if (directory / "tables").is_dir() else directory
    joined: dict[str, dict[str, str]] = {}
    for table in TABLES:
        path = folder / f"{table}.csv"
        if not path.is_file():
            continue
        for row in _rows(path):
            entry = joined.setdefault(row.get("run_id", ""), {})
            broken = "INVALID" in (entry.get("verdict"), row.get("verdict"))
            entry.update({k: v for k, v in row.items() if v or k not in entry})
            if broken:
                entry["verdict"] = "INVALID"
    if not joined:
        raise InputError(
            "there are no tables here", where=str(directory), fix="Write them: edgebench table."
        )
    return list(joined.values())


def _rows(path: Path) -> list[dict[str, str]]:
    try:
        with path.open(newline="", encoding="utf-8-sig") as stream:
            return list(csv.DictReader(stream))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"the table can't be read: {error}", where=str(path)) from error


def _number(text: str | None) -> float | None:
    try:
        value = float(text or "")
    except ValueError:
        return None
    return value if math.isfinite(value) else None
