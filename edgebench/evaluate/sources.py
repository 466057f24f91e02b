"""Reading what there is of a run: edgebench's tables, score files, and Weights & Biases runs.

For a run ``R`` of the study in ``results_dir``, in this order:

``{results_dir}/R/tables/{latency,energy,power}.csv``
    written by ``edgebench run --results {results_dir}/R``; each row is the run's.
``{results_dir}/tables/{latency,energy,power}.csv``
    rows whose ``run_id``, ``recording_id`` or ``artifact`` is ``R``, or whose ``artifact`` begins
    with ``R-`` (the artifact was exported with ``--name R``).
``{results_dir}/R/scores.csv``
    one observation a row: ``metric``, ``value`` and, where they mean something, ``seed``, ``task``,
    ``step``, ``condition``.
``{results_dir}/R/**/wandb``
    run directories of Weights & Biases, offline ones too (``wandb_runs``).
"""

from __future__ import annotations

import csv
import math
from pathlib import Path
from typing import Any

from edgebench.errors import InputError
from edgebench.evaluate.directions import TABLE_FIGURES
from edgebench.evaluate.observations import Measured, Observation, Run

SCORES = "scores.csv"
_SCORE_COLUMNS = {"metric", "value", "seed", "task", "step", "condition"}


def read_run(results_dir: Path, run_id: str) -> Run:
    """Everything on disk about a run, but for Weights & Biases.

    Raises:
        InputError: a table or score file can't be read as what it should be.
    """
    run = Run(run_id)
    own = results_dir / run_id
    run.measured += _tables(own / "tables", None)
    run.measured += _tables(results_dir / "tables", run_id)
    scores = own / SCORES
    if scores.is_file():
        run.observations += read_scores(scores)
    return run


def read_scores(path: Path) -> list[Observation]:
    """The observations of a ``scores.csv``. An empty or ``nan`` value is kept as NaN.

    Raises:
        InputError: a column is missing or unknown, or a value is no number.
    """
    rows = _csv(path)
    if not rows:
        return []
    columns = set(rows[0])
    missing = {"metric", "value"} - columns
    unknown = columns - _SCORE_COLUMNS
    if missing or unknown:
        what = (
            f"has no column {sorted(missing)[0]!r}"
            if missing
            else (f"has a column {sorted(unknown)[0]!r} that means nothing here")
        )
        raise InputError(
            f"{SCORES} {what}",
            where=str(path),
            fix=f"Its columns are {', '.join(sorted(_SCORE_COLUMNS))}; the first two are needed.",
        )
    found = []
    for line, row in enumerate(rows, start=2):
        metric = (row["metric"] or "").strip()
        if not metric:
            raise InputError("a score has no metric", where=f"{path}, line {line}")
        found.append(
            Observation(
                metric=metric,
                value=_number(row["value"], path, line),
                seed=_word(row.get("seed")),
                task=_word(row.get("task")),
                step=_step(row.get("step"), path, line),
                condition=_word(row.get("condition")) or "",
                source=f"{path.parent.name}/{path.name}",
            )
        )
    return found


def _tables(directory: Path, run_id: str | None) -> list[Measured]:
    """The newest row for each device, artifact, scheme and scenario."""
    rows: dict[str, dict[str, dict[str, str]]] = {}
    for table in TABLE_FIGURES:
        path = directory / f"{table}.csv"
        if not path.is_file():
            continue
        for row in _csv(path):
            missing = {"run_id", "device", "artifact", "verdict"} - row.keys()
            if missing:
                raise InputError(
                    f"this is not one of edgebench's tables: no column {sorted(missing)[0]!r}",
                    where=str(path),
                    fix="Make it again with `edgebench table`.",
                )
            if run_id is None or _is_of(row, run_id):
                rows.setdefault(row["run_id"], {})[table] = row
    newest: dict[tuple[str, ...], Measured] = {}
    for key in sorted(rows, key=lambda name: _created(rows[name])):
        measured = _measured(rows[key], directory)
        newest[(measured.device, measured.artifact, measured.scheme, measured.detail)] = measured
    return list(newest.values())


def _is_of(row: dict[str, str], run_id: str) -> bool:
    artifact = row["artifact"]
    return run_id in (row["run_id"], row.get("recording_id"), artifact) or artifact.startswith(
        f"{run_id}-"
    )


def _created(tables: dict[str, dict[str, str]]) -> tuple[str, str]:
    row = next(iter(tables.values()))
    return row.get("created_at", ""), row["run_id"]


def _measured(tables: dict[str, dict[str, str]], directory: Path) -> Measured:
    first = tables.get("latency") or next(iter(tables.values()))
    figures: dict[str, tuple[float, float | None, float | None]] = {}
    absent: dict[str, str] = {}
    for table, row in tables.items():
        for name in TABLE_FIGURES[table]:
            value = _cell(row.get(name))
            if row["verdict"] == "INVALID":
                absent[name] = f"the row is INVALID: {row.get('reasons_text') or row['reasons']}"
            elif value is None:
                absent[name] = row.get("reason") or row.get("reasons") or "not measured"
            else:
                figures[name] = value, _cell(row.get(f"{name}_lo")), _cell(row.get(f"{name}_hi"))
    return Measured(
        device=first["device"],
        artifact=first["artifact"],
        scheme=first.get("scheme", ""),
        recording_id=first.get("recording_id", ""),
        figures=figures,
        absent=absent,
        source=str(directory),
        detail=_detail(first),
    )


def _detail(row: dict[str, str]) -> str:
    """What else tells two rows apart: only what differs from the usual."""
    parts = []
    if row.get("lowering") not in (None, "", "merged"):
        parts.append(row["lowering"])
    if row.get("scenario") not in (None, "", "single-stream"):
        parts.append(row["scenario"])
    if row.get("runtime") not in (None, "", "onnxruntime"):
        parts.append(row["runtime"])
    if row.get("seq_len"):
        parts.append(f"seq {row['seq_len']}")
    if row.get("threads") not in (None, "", "1"):
        parts.append(f"{row['threads']} threads")
    return " ".join(parts)


def _csv(path: Path) -> list[dict[str, str]]:
    try:
        with path.open(newline="", encoding="utf-8-sig") as stream:
            return list(csv.DictReader(stream))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"the file can't be read as CSV: {error}", where=str(path)) from error


def _cell(text: Any) -> float | None:
    if text in (None, ""):
        return None
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def _number(text: str | None, path: Path, line: int) -> float:
    if text is None or not text.strip():
        return math.nan
    try:
        return float(text)
    except ValueError as error:
        raise InputError(
            f"{text!r} is no number",
            where=f"{path}, line {line}",
            fix="Leave the cell empty where there is no value.",
        ) from error


def _step(text: str | None, path: Path, line: int) -> float | None:
    return None if text is None or not text.strip() else _number(text, path, line)


def _word(text: str | None) -> str | None:
    return text.strip() or None if text is not None else None
