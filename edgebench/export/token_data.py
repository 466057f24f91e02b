"""Text whose words are labelled: columns ``tokens`` and ``labels`` (JSON Lines, Parquet).

``tokens`` is a list of words, ``labels`` a list as long of names or indices: the form that data
sets of named entities have on the Hugging Face hub (there also called ``ner_tags`` or ``tags``).
The model sees pieces of words; as in training with transformers, a word's label is that of its
first piece, and the other pieces, [CLS], [SEP] and padding have none (``IGNORED``).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

from edgebench.artifact import sha256_file
from edgebench.errors import InputError
from edgebench.export.data import read_data

#: The label of a position that has none, as PyTorch's cross entropy ignores it.
IGNORED = -100

#: Names of the column of labels.
_LABELS = ("labels", "ner_tags", "tags")

_COLUMNS = "Every row needs tokens (a list of words) and labels (a list as long)."


@dataclass(frozen=True)
class LabelledWords:
    """Texts as lists of words with a label each, as the file has them.

    ``labels`` is empty where the file labels whole texts: it serves for inputs, and scores nothing.
    """

    words: tuple[tuple[str, ...], ...]
    labels: tuple[tuple[str | int, ...], ...]
    texts: tuple[str, ...]
    source: str

    def first(self, count: int | None) -> LabelledWords:
        """The first rows, and a source that says how many of how many."""
        total = len(self.texts)
        kept = total if count is None else min(count, total)
        source = f"{self.source}, {kept} of {total} rows"
        return LabelledWords(self.words[:kept], self.labels[:kept], self.texts[:kept], source)

    def indices(self, names: tuple[str, ...] | None, count: int) -> list[list[int]]:
        """Each word's label as the index of an output.

        Args:
            names: label names in the order of the outputs, if they are known.
            count: number of outputs.

        Raises:
            InputError: a label that the model does not have.
        """
        known = {name: index for index, name in enumerate(names or ())}
        found = []
        for number, row in enumerate(self.labels, start=1):
            indices = [known.get(label) if isinstance(label, str) else label for label in row]
            for label, index in zip(row, indices, strict=True):
                if index is None or not 0 <= index < count:
                    have = ", ".join(names) if names else f"0 to {count - 1} (no names known)"
                    raise InputError(
                        f"row {number} has the label {label!r}, the model has {have}",
                        where=self.source,
                        fix="Give data with the adapter's own labels, or name them with --labels.",
                    )
            found.append([index for index in indices if index is not None])
        return found


def read_words(path: Path) -> LabelledWords:
    """Read labelled words; a file of labelled texts gives texts alone.

    Raises:
        InputError: the file is missing, of another form, or has a row that is not whole.
    """
    rows = list(_rows(path)) if path.is_file() else []
    if not rows or "tokens" not in rows[0]:
        plain = read_data(path)  # says what is wrong with a file that can't be read
        return LabelledWords((), (), plain.texts, plain.source)
    words, labels = [], []
    for number, row in enumerate(rows, start=1):
        tokens = row.get("tokens")
        given = next((row[name] for name in _LABELS if name in row), None)
        if not _are(tokens, str) or not all(word.strip() for word in tokens):
            raise InputError(f"row {number} has no tokens", where=str(path), fix=_COLUMNS)
        if not _are(given, (str, int)) or len(given) != len(tokens):
            raise InputError(
                f"row {number} has {len(tokens)} tokens and "
                f"{len(given) if isinstance(given, list) else 'no'} labels",
                where=str(path),
                fix=_COLUMNS,
            )
        words.append(tuple(tokens))
        labels.append(tuple(given))
    source = f"{path.name} (sha256 {sha256_file(path)[:16]}…)"
    texts = tuple(" ".join(row) for row in words)
    return LabelledWords(tuple(words), tuple(labels), texts, source)


def _are(value: Any, kind: Any) -> TypeGuard[list[Any]]:
    """Whether a value is a list of these, with at least one."""
    return (
        isinstance(value, list)
        and bool(value)
        and all(isinstance(each, kind) and not isinstance(each, bool) for each in value)
    )


def _rows(path: Path) -> Iterator[Mapping[str, Any]]:
    """The rows of a file that can hold lists; none of another file."""
    if path.suffix.lower() == ".parquet":
        import pyarrow
        import pyarrow.parquet

        try:
            table = pyarrow.parquet.read_table(path)
        except pyarrow.ArrowInvalid as error:
            raise InputError("the file is not readable Parquet", where=str(path)) from error
        yield from table.to_pylist()
    elif path.suffix.lower() in (".jsonl", ".ndjson"):
        yield from _lines(path.read_text(encoding="utf-8").splitlines(), path)


def _lines(lines: Iterable[str], path: Path) -> Iterator[Mapping[str, Any]]:
    for number, line in enumerate(lines, start=1):
        if line.strip():
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise InputError(f"line {number} is not JSON", where=str(path)) from error
            if not isinstance(row, dict):
                raise InputError(f"line {number} is not a JSON object", where=str(path))
            yield row
