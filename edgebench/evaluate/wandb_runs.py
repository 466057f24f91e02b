"""Runs of Weights & Biases as observations: offline run directories, and a project when asked.

An offline run is one file, ``run-<id>.wandb``: seven bytes (``:W&B``, 0xBEE1, version), then
LevelDB's log format (blocks of 32 KiB; records of CRC-32C, length, type) of protobuf ``Record``
messages, whose classes the ``wandb`` package brings. The package no longer reads such files
itself, so the log's thirty lines are here. A run that is still being written ends early: what is
there is read.

Format: https://github.com/google/leveldb/blob/main/doc/log_format.md.
"""

from __future__ import annotations

import importlib
import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from edgebench.errors import InputError
from edgebench.evaluate.observations import Observation

_MAGIC = b":W&B"
_HEADER_BYTES = 7
_BLOCK_BYTES = 32768
_FULL, _FIRST, _MIDDLE, _LAST = 1, 2, 3, 4
_INSTALL = "pip install 'edgebench[wandb]', or run with mode=trial, which leaves it out."


def offline_files(directory: Path) -> list[Path]:
    """The run files below a directory, oldest first."""
    return sorted(directory.glob("**/*run-*/run-*.wandb"))


def read_offline(path: Path) -> list[Observation]:
    """A run's history and summary. ``seed`` and ``task`` are taken from its configuration.

    Raises:
        InputError: the file is not such a run, or the ``wandb`` package is missing.
    """
    try:
        messages: Any = importlib.import_module("wandb.proto.wandb_internal_pb2")
    except ImportError as error:
        raise InputError(
            "reading a Weights & Biases run needs the wandb package, which is not installed",
            where=str(path),
            fix=_INSTALL,
        ) from error
    config: dict[str, Any] = {}
    history: list[dict[str, Any]] = []
    summary: dict[str, Any] = {}
    for data in _log_records(path):
        record = messages.Record()
        record.ParseFromString(data)
        kind = record.WhichOneof("record_type")
        if kind == "run":
            config |= _items(record.run.config.update)
        elif kind == "config":
            config |= _items(record.config.update)
        elif kind == "history":
            history.append(_items(record.history.item))
        elif kind == "summary":
            summary |= _items(record.summary.update)
    return _observations(config, history, summary, f"wandb {path.stem}")


def read_project(project: str, run_id: str) -> list[Observation]:
    """The runs of a project (``entity/project``) whose id, name or config ``run_id`` is this one.

    Raises:
        InputError: the package is missing, or the project can't be read.
    """
    try:
        import wandb
    except ImportError as error:
        raise InputError("reading a project needs the wandb package", fix=_INSTALL) from error
    found: list[Observation] = []
    try:
        for run in wandb.Api().runs(project):
            if run_id not in (run.id, run.name, run.config.get("run_id")):
                continue
            found += _observations(
                dict(run.config), list(run.scan_history()), dict(run.summary), f"wandb {run.id}"
            )
    except (wandb.errors.Error, ValueError) as error:
        raise InputError(
            f"the Weights & Biases project can't be read: {error}",
            where=project,
            fix="Check its name and WANDB_API_KEY, or leave it out.",
        ) from error
    return found


def _observations(
    config: dict[str, Any], history: list[dict[str, Any]], summary: dict[str, Any], source: str
) -> list[Observation]:
    seed, task = _text(config.get("seed")), _text(config.get("task"))
    found, with_steps = [], set()
    for position, row in enumerate(history):
        step = _number(row.get("_step"))
        for name, value in row.items():
            number = _number(value)
            if name.startswith("_") or number is None:
                continue
            with_steps.add(name)
            found.append(
                Observation(
                    name, number, seed, task, float(position) if step is None else step, "", source
                )
            )
    for name, value in summary.items():
        number = _number(value)
        if not name.startswith("_") and number is not None and name not in with_steps:
            found.append(Observation(name, number, seed, task, None, "", source))
    return found


def _log_records(path: Path) -> Iterator[bytes]:
    data = path.read_bytes()
    if data[: len(_MAGIC)] != _MAGIC:
        raise InputError("this is no run of Weights & Biases", where=str(path))
    position, parts = _HEADER_BYTES, b""
    while position + 7 <= len(data):
        left = _BLOCK_BYTES - position % _BLOCK_BYTES
        if left < 7:  # the rest of a block that is too short for a header
            position += left
            continue
        length, kind = struct.unpack_from("<HB", data, position + 4)
        body = data[position + 7 : position + 7 + length]
        if len(body) < length or kind == 0:
            return
        position += 7 + length
        parts = body if kind in (_FULL, _FIRST) else parts + body
        if kind in (_FULL, _LAST):
            yield parts


def _items(items: Any) -> dict[str, Any]:
    found = {}
    for item in items:
        key = item.key or "/".join(item.nested_key)
        try:
            value = json.loads(item.value_json)
        except ValueError:
            continue  # a figure or a table, which is no number
        found[key] = value["value"] if isinstance(value, dict) and "value" in value else value
    return found


def _number(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return {"NaN": float("nan")}.get(value) if isinstance(value, str) else None
    return float(value)


def _text(value: Any) -> str | None:
    return None if value is None else str(value)
