"""Text from a file: with a ``text`` and a ``label`` column (JSON Lines, CSV, Parquet), or alone.

Text whose words are labelled is in ``token_data``.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgebench.artifact import sha256_file
from edgebench.errors import InputError


@dataclass(frozen=True)
class LabelledText:
    """Texts and their labels, as the file has them.

    ``source`` says where they came from without naming a directory of this machine.
    """

    texts: tuple[str, ...]
    labels: tuple[str | int, ...]
    source: str

    def first(self, count: int | None) -> LabelledText:
        """The first rows, and a source that says how many of how many."""
        total = len(self.texts)
        kept = total if count is None else min(count, total)
        source = f"{self.source}, {kept} of {total} rows"
        return LabelledText(self.texts[:kept], self.labels[:kept], source)


def read_data(path: Path) -> LabelledText:
    """Read labelled text.

    Raises:
        InputError: the file is missing, of another form, or has a row without text or label.
    """
    readers = {
        ".jsonl": _jsonl,
        ".ndjson": _jsonl,
        ".csv": _csv,
        ".parquet": _parquet,
    }
    if not path.is_file():
        raise InputError("there is no data file here", where=str(path), fix="Check --data.")
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise InputError(
            f"data of the form {path.suffix or '(no suffix)'} can't be read",
            where=str(path),
            fix=f"Give one of {', '.join(readers)}, with columns text and label.",
        )
    texts: list[str] = []
    labels: list[str | int] = []
    for number, row in enumerate(reader(path), start=1):
        text, label = row.get("text"), row.get("label")
        if not isinstance(text, str) or not text.strip():
            raise InputError(f"row {number} has no text", where=str(path), fix=_COLUMNS)
        if isinstance(label, bool) or not isinstance(label, str | int) or label == "":
            raise InputError(f"row {number} has no label", where=str(path), fix=_COLUMNS)
        texts.append(text)
        labels.append(label)
    if not texts:
        raise InputError("the data file has no rows", where=str(path), fix=_COLUMNS)
    source = f"{path.name} (sha256 {sha256_file(path)[:16]}…)"
    return LabelledText(tuple(texts), tuple(labels), source)


def read_texts(path: Path) -> tuple[str, ...]:
    """Unlabelled text: the column ``text`` of JSON Lines or CSV, else a text a line.

    Raises:
        InputError: the file is missing, is not text, or has none.
    """
    forms = {".jsonl": _jsonl, ".ndjson": _jsonl, ".csv": _csv}
    reader = forms.get(path.suffix.lower(), _lines)
    try:
        rows = [row.get("text") for row in reader(path)]
    except UnicodeDecodeError as error:
        raise InputError("the calibration file is not UTF-8 text", where=str(path)) from error
    except OSError as error:
        raise InputError(
            f"the calibration file can't be read: {error.strerror or error}", where=str(path)
        ) from error
    texts = tuple(text for text in rows if isinstance(text, str) and text.strip())
    if not texts:
        raise InputError(
            "the calibration file holds no text",
            where=str(path),
            fix="Give one text a line, or a file with a column text.",
        )
    return texts


_COLUMNS = "Every row needs text and label (a name, or a number from 0)."


def label_indices(data: LabelledText, names: tuple[str, ...] | None, count: int) -> list[int]:
    """Labels as indices of the model's outputs.

    Args:
        data: labels by name or by index (a CSV's digits count as an index unless they are a name).
        names: label names in the order of the outputs, if they are known.
        count: number of outputs.

    Raises:
        InputError: a label that the model does not have.
    """
    known = {name: index for index, name in enumerate(names or ())}
    indices = []
    for number, label in enumerate(data.labels, start=1):
        index = known.get(label) if isinstance(label, str) else label
        if index is None and isinstance(label, str) and label.isdecimal():
            index = int(label)
        if index is None or not 0 <= index < count:
            have = ", ".join(names) if names else f"0 to {count - 1} (their names are not known)"
            raise InputError(
                f"row {number} has the label {label!r}, the model has {have}",
                where=data.source,
                fix="Give data with the adapter's own labels, or their names with --labels.",
            )
        indices.append(index)
    return indices


def _jsonl(path: Path) -> Iterable[Mapping[str, Any]]:
    with path.open(encoding="utf-8") as stream:
        for number, line in enumerate(stream, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise InputError(f"line {number} is not JSON", where=str(path)) from error
            if not isinstance(row, dict):
                raise InputError(f"line {number} is not a JSON object", where=str(path))
            yield row


def _csv(path: Path) -> Iterable[Mapping[str, Any]]:
    with path.open(encoding="utf-8", newline="") as stream:
        yield from csv.DictReader(stream)


def _lines(path: Path) -> Iterable[Mapping[str, Any]]:
    with path.open(encoding="utf-8") as stream:
        for line in stream:
            yield {"text": line.strip()}


def _parquet(path: Path) -> Iterable[Mapping[str, Any]]:
    import pyarrow
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.read_table(path)
    except pyarrow.ArrowInvalid as error:
        raise InputError("the file is not readable Parquet", where=str(path)) from error
    if not {"text", "label"} <= set(table.column_names):
        raise InputError("the file has no text and label columns", where=str(path), fix=_COLUMNS)
    yield from table.select(["text", "label"]).to_pylist()
