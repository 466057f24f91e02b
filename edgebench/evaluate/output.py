"""Writing an evaluation: documents, tables and figures, each directory's files together."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from edgebench.evaluate.study import Evaluation, aggregated_document, run_document
from edgebench.results.atomic import replace_files

COMPARISON = "comparison"


def write(evaluation: Evaluation, *, figures: bool = True) -> list[Path]:
    """Write everything; each directory is written whole or not at all.

    Raises:
        StorageError: a directory can't be written, or the disk is full.
        InputError: figures are asked for and matplotlib is missing.
    """
    from edgebench.evaluate import figures as drawing

    root = evaluation.request.results_dir
    contents: dict[Path, dict[str, bytes]] = {}
    for run in evaluation.runs:
        files = {"metrics.json": _json(run_document(evaluation, run))}
        if figures:
            files |= drawing.of_run(evaluation, run)
        contents[root / run.run_id] = files
    compared = {
        "aggregated_metrics.json": _json(aggregated_document(evaluation)),
        "metrics.csv": _csv(_METRICS, _metric_rows(evaluation)),
        "significance.csv": _csv(_SIGNIFICANCE, map(asdict, evaluation.comparisons)),
        "budgets.csv": _csv(_BUDGETS, map(asdict, evaluation.budgets)),
    }
    if figures:
        compared |= drawing.of_comparison(evaluation)
    contents[root / COMPARISON] = compared
    written = []
    for directory, files in contents.items():
        replace_files(directory, files)
        written += [directory / name for name in files]
    return written


_METRICS = ("metric", "direction", "run_id", "kind", "value", "lo", "hi", "n", "reason", "source")
_SIGNIFICANCE = (
    "metric", "run_id", "other_id", "test", "n", "n_other",
    "difference", "lo", "hi", "p", "p_holm", "reason",
)  # fmt: skip
_BUDGETS = ("run_id", "metric", "limit", "direction", "value", "met", "reason")


def _metric_rows(evaluation: Evaluation) -> Iterable[dict[str, Any]]:
    kinds = {run.run_id: run.kind for run in evaluation.runs}
    for metric, by_run in evaluation.values.items():
        for run_id in evaluation.request.run_ids:
            value = by_run[run_id]
            yield {
                **asdict(value),
                "metric": metric,
                "direction": evaluation.directions.get(metric),
                "run_id": run_id,
                "kind": kinds[run_id],
            }


def _json(document: Any) -> bytes:
    return (json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode()


def _csv(columns: Sequence[str], rows: Iterable[dict[str, Any]]) -> bytes:
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, columns, lineterminator="\r\n", extrasaction="ignore")
    writer.writeheader()
    for row in rows:
        writer.writerow({name: _cell(row.get(name)) for name in columns})
    return text.getvalue().encode()


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    return repr(value) if isinstance(value, float) else str(value)
