"""Studies made up for tests: score files and edgebench's own tables."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import jsonschema

PROPOSED, BASELINE = "proposed-method", "comparative-method"


def scores(root: Path, run_id: str, rows: Sequence[Mapping[str, Any]]) -> None:
    """``{root}/{run_id}/scores.csv`` from rows with any of its columns."""
    directory = root / run_id
    directory.mkdir(parents=True, exist_ok=True)
    columns = ["metric", "value", "seed", "task", "step", "condition"]
    with (directory / "scores.csv").open("w", newline="") as stream:
        writer = csv.DictWriter(stream, columns)
        writer.writeheader()
        writer.writerows(rows)


def by_seed(metric: str, values: Sequence[Any]) -> list[dict[str, Any]]:
    return [{"metric": metric, "value": v, "seed": seed} for seed, v in enumerate(values)]


def tables(root: Path, run_id: str, **rows: list[dict[str, Any]]) -> None:
    """``{root}/{run_id}/tables/*.csv`` with the columns that the rows name."""
    directory = root / run_id / "tables"
    directory.mkdir(parents=True, exist_ok=True)
    for table, found in rows.items():
        full = [
            {
                "run_id": f"r{index}",
                "recording_id": f"rec{index}",
                "created_at": f"2026-11-{index + 1:02d}",
                "device": "pixel8",
                "artifact": f"model-{index}",
                "scheme": "int8",
                "verdict": "VALID",
                **row,
            }
            for index, row in enumerate(found)
        ]
        with (directory / f"{table}.csv").open("w", newline="") as stream:
            writer = csv.DictWriter(stream, list(dict.fromkeys(k for row in full for k in row)))
            writer.writeheader()
            writer.writerows(full)


def aggregated(root: Path) -> dict[str, Any]:
    """``aggregated_metrics.json``, held against its schema."""
    document = json.loads((root / "comparison" / "aggregated_metrics.json").read_text())
    schema = resources.files("edgebench.evaluate").joinpath("aggregated.schema.json").read_text()
    jsonschema.validate(document, json.loads(schema))
    return document
