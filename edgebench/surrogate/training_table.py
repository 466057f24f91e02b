"""Measurements as a surrogate needs them: features, device tags, and up to three targets.

Three sources are read: a CSV or Parquet file; a directory of edgebench's own tables (``latency``,
``energy`` and ``power``, joined by run); and a JSON document with ``samples``, as `edgebench
sample` writes it. A row that edgebench found INVALID, or that an emulated device gave, is left out.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from edgebench.errors import InputError
from edgebench.surrogate.columns import DEVICE, METRICS, STATISTICS, TARGETS, target_columns

if TYPE_CHECKING:
    import pandas as pd

Array = NDArray[np.float64]


@dataclass(frozen=True)
class TrainingTable:
    """Measurements, one row each.

    Attributes:
        features: names of the columns of ``x``.
        x: [rows, features].
        device: [rows] device tags.
        y: [rows, 3] targets in the order of ``METRICS`` (J, ms, W); NaN where not measured.
        n_left_out: rows that were not taken because they were INVALID or emulated.
    """

    features: tuple[str, ...]
    x: Array
    device: NDArray[np.str_]
    y: Array
    n_left_out: int = 0

    @property
    def devices(self) -> tuple[str, ...]:
        return tuple(sorted({str(name) for name in self.device}))

    @property
    def metrics(self) -> tuple[str, ...]:
        """The heads that at least one row has a figure for."""
        return tuple(n for i, n in enumerate(METRICS) if np.isfinite(self.y[:, i]).any())

    def where(self, mask: NDArray[np.bool_]) -> TrainingTable:
        return TrainingTable(self.features, self.x[mask], self.device[mask], self.y[mask])

    def of(self, device: str) -> TrainingTable:
        """The rows of one device.

        Raises:
            InputError: there is none.
        """
        mask = self.device == device
        if not mask.any():
            raise InputError(
                f"no row is of the device {device!r}", fix=f"There are {', '.join(self.devices)}."
            )
        return self.where(mask)

    def without(self, device: str) -> TrainingTable:
        return self.where(self.device != device)


def read_tables(
    paths: Sequence[Path],
    *,
    features: Sequence[str] = STATISTICS,
    targets: Mapping[str, str] | None = None,
    device: str | None = None,
) -> TrainingTable:
    """Read one or several tables into one.

    Args:
        paths: CSV, Parquet, JSON with ``samples``, or a directory of edgebench's tables.
        features: the columns that are the surrogate's inputs.
        targets: head -> column, where the columns have other names than edgebench's.
        device: the tag of all rows, for tables that have no column ``device``.

    Raises:
        InputError: a file can't be read, a column is missing, or a figure can't be.
    """
    if not paths:
        raise InputError(
            "no table was given", fix="Name one: CSV, Parquet, or a results directory."
        )
    parts = [_convert(_read(p), str(p), tuple(features), targets or {}, device) for p in paths]
    joined = TrainingTable(
        tuple(features),
        np.concatenate([part.x for part in parts]),
        np.concatenate([part.device for part in parts]),
        np.concatenate([part.y for part in parts]),
        sum(part.n_left_out for part in parts),
    )
    if not len(joined.x):
        raise InputError(
            "the tables have no row that can be used",
            where=", ".join(str(path) for path in paths),
            fix="INVALID rows, rows of emulated devices and rows without a figure don't count.",
        )
    return joined


def _read(path: Path) -> pd.DataFrame:
    import pandas as pd

    try:
        if path.is_dir():
            return _read_directory(path)
        if path.suffix == ".parquet":
            return pd.read_parquet(path)
        if path.suffix == ".json":
            return pd.DataFrame(_flat_samples(json.loads(path.read_text("utf-8"))))
        return pd.read_csv(path)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"the table can't be read: {type(error).__name__}: {error}",
            where=str(path),
            fix="Give CSV, Parquet, JSON with samples, or edgebench's results directory.",
        ) from error


def _read_directory(path: Path) -> pd.DataFrame:
    """edgebench's three tables, one row a run."""
    import pandas as pd

    directory = path / "tables" if (path / "tables").is_dir() else path
    frame = pd.read_parquet(directory / "latency.parquet")
    for name, columns in (
        ("energy", ("energy_per_inference_j",)),
        ("power", ("power_peak_w",)),
    ):
        file = directory / f"{name}.parquet"
        if file.is_file():
            other = pd.read_parquet(file)[["run_id", *columns]]
            # A run may have several power sources: the mean of scopes would mix them.
            other = other.dropna(subset=list(columns))
            if other["run_id"].duplicated().any():
                raise ValueError(
                    f"{file.name} has several power sources a run; keep one scope of it and "
                    "give the table as CSV"
                )
            frame = frame.merge(other, on="run_id", how="left")
    return frame


def _flat_samples(document: Any) -> list[dict[str, Any]]:
    """The rows of a calibration document: members of ``statistics`` become columns."""
    rows = []
    for sample in document["samples"]:
        row = {k: v for k, v in sample.items() if not isinstance(v, dict | list)}
        for name in ("statistics", "measured"):
            if isinstance(sample.get(name), dict):
                row.update(sample[name])
        row.setdefault(DEVICE, document.get(DEVICE))
        rows.append(row)
    return rows


def _convert(
    frame: pd.DataFrame,
    where: str,
    features: tuple[str, ...],
    targets: Mapping[str, str],
    device: str | None,
) -> TrainingTable:
    missing = [name for name in features if name not in frame]
    if missing:
        raise InputError(
            f"the table has no column {', '.join(missing)}",
            where=where,
            fix="Name its feature columns with --features.",
        )
    if device is None and (DEVICE not in frame or frame[DEVICE].isna().any()):
        raise InputError(
            "the table does not say which device each row is of",
            where=where,
            fix="It needs a column 'device', or --device NAME where all rows are of one.",
        )
    columns = target_columns([str(c) for c in frame.columns], targets, where)
    x = _numbers(frame[list(features)], where)
    y = np.full((len(frame), len(METRICS)), np.nan)
    for i, head in enumerate(METRICS):
        if head in columns:
            y[:, i] = _numbers(frame[[columns[head]]], where)[:, 0]
    if (y <= 0).any() or np.isinf(y).any():
        raise InputError(
            "a measured figure is zero, negative or infinite",
            where=where,
            fix="What was not measured must be empty: take the row out, or leave its cell empty.",
        )
    tags = np.array([device] * len(frame) if device is not None else frame[DEVICE], dtype=np.str_)
    keep = np.isfinite(x).all(axis=1) & np.isfinite(y).any(axis=1)
    n_usable = int(keep.sum())
    if "verdict" in frame:
        keep &= (frame["verdict"] != "INVALID").to_numpy()
    if "emulated" in frame:
        keep &= ~frame["emulated"].fillna(False).to_numpy(dtype=bool)
    table = TrainingTable(features, x[keep], tags[keep], y[keep], n_usable - int(keep.sum()))
    return table


def _numbers(frame: pd.DataFrame, where: str) -> Array:
    import pandas as pd

    try:
        values: Array = frame.apply(pd.to_numeric).to_numpy(dtype=np.float64, na_value=np.nan)
    except (ValueError, TypeError) as error:
        raise InputError(
            f"a figure is not a number: {error}", where=where, fix="Mend the cell."
        ) from error
    return values


__all__ = ["METRICS", "STATISTICS", "TARGETS", "TrainingTable", "read_tables"]
