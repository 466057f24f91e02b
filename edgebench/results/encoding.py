"""The files of a recording as bytes: encoded for the store, read and verified from it.

Every file's SHA-256 stands in recording.json, and recording.json carries its own, so a file that
was truncated or edited is refused by name.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from pydantic import ValidationError

from edgebench.artifact import canonical_json, manifest_digest
from edgebench.errors import RecordingError
from edgebench.recording import (
    READING_COLUMNS,
    SAMPLE_COLUMNS,
    SCHEMA,
    TOKEN_COLUMNS,
    MeterRecord,
    Recording,
)

if TYPE_CHECKING:
    import numpy.typing as npt

DOCUMENT = "recording.json"
SAMPLES = "samples.parquet"
STATE = "state.jsonl"
READINGS = "meters.parquet"
TOKENS = "tokens.parquet"

Samples: TypeAlias = "Mapping[str, npt.NDArray[Any]]"
StateLine = Mapping[str, Any]


@dataclass(frozen=True)
class Attached:
    """A meter's trace that was attached to a recording: its meter, and readings as a recording's.

    ``readings``: [m] arrays by column of READING_COLUMNS, on the device's clock, meter 0.
    """

    meter: MeterRecord
    readings: Samples


@dataclass(frozen=True)
class Loaded:
    """A recording as read and verified: document, samples ([n] arrays by column), state, readings.

    ``readings``: [m] arrays by column of READING_COLUMNS; m = 0 where no meter was read.
    ``tokens``: [t] arrays by column of TOKEN_COLUMNS; t = 0 where calls give one token or none.
    ``attached``: traces of other meters that were attached later, the newest first.
    """

    path: Path
    recording: Recording
    samples: Samples
    state: tuple[StateLine, ...]
    readings: Samples
    attached: tuple[Attached, ...] = ()
    tokens: Samples = field(default_factory=lambda: _empty(TOKEN_COLUMNS))

    @property
    def id(self) -> str:
        return self.recording.id


def read(directory: Path) -> Loaded:
    """Read and verify the recording in a directory.

    Raises:
        RecordingError: a file is missing, truncated, changed, or of another schema version.
    """
    recording = read_document(directory)
    contents = {}
    for name in sorted({SAMPLES, STATE} | ({READINGS, TOKENS} & recording.files.keys())):
        data = _read_bytes(directory / name)
        entry = recording.files.get(name, {})
        if hashlib.sha256(data).hexdigest() != entry.get("sha256"):
            raise _broken(
                directory / name,
                f"{name} has {len(data)} bytes and not the content that was recorded "
                f"({entry.get('bytes')} bytes)",
            )
        contents[name] = data
    return Loaded(
        directory,
        recording,
        _parse_table(contents[SAMPLES], directory / SAMPLES, SAMPLE_COLUMNS),
        _parse_state(contents[STATE], directory / STATE),
        _parse_optional(contents.get(READINGS), directory / READINGS, READING_COLUMNS),
        tokens=_parse_optional(contents.get(TOKENS), directory / TOKENS, TOKEN_COLUMNS),
    )


def encode(
    recording: Recording,
    samples: Any,
    state: Sequence[StateLine],
    readings: Any = None,
    tokens: Any = None,
) -> dict[str, bytes]:
    """File name -> bytes of a recording, with ``files`` and ``digest`` filled in.

    Raises:
        RecordingError: samples, state or readings don't fit the format.
    """
    try:
        lines = b"".join(canonical_json(dict(line)) + b"\n" for line in state)
    except (TypeError, ValueError) as error:
        raise RecordingError(f"a device state is not JSON: {error}", where=recording.id) from error
    files = {SAMPLES: encode_table(samples, SAMPLE_COLUMNS, recording.id), STATE: lines}
    if readings is not None:
        files[READINGS] = encode_table(readings, READING_COLUMNS, recording.id)
    if tokens is not None:
        files[TOKENS] = encode_table(tokens, TOKEN_COLUMNS, recording.id)
    entries = {
        name: {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
        for name, data in files.items()
    }
    document = recording.model_copy(update={"files": entries}).model_dump(
        mode="json", by_alias=True
    )
    try:
        document["digest"] = manifest_digest(document)
        text = json.dumps(document, indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False)
    except ValueError as error:
        raise RecordingError(f"the document is not JSON: {error}", where=recording.id) from error
    return {**files, DOCUMENT: text.encode() + b"\n"}


def encode_table(values: Any, kinds: Mapping[str, str], where: str) -> bytes:
    """A table of columns as Parquet bytes.

    Args:
        values: a mapping from each name of ``kinds`` to a one-dimensional array, or an Arrow table.
        kinds: column name -> Arrow type.

    Raises:
        RecordingError: a column is missing, or does not fit its type.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = pa.schema([(name, getattr(pa, kind)()) for name, kind in kinds.items()])
    try:
        table = pa.table({name: values[name] for name in kinds}).cast(schema)
    except (KeyError, TypeError, ValueError, pa.ArrowException) as error:
        raise RecordingError(
            f"the samples do not have the columns of the format: {error}", where=where
        ) from error
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="zstd")
    return sink.getvalue()


def decode_table(data: bytes, kinds: Mapping[str, str]) -> Samples:
    """Read-only [n] arrays by column of what ``encode_table`` wrote.

    Raises:
        ValueError: not such a table; the message says why.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        # One thread: the files are small, and a process that forks must not have a pool running.
        table = pq.read_table(io.BytesIO(data), columns=list(kinds), use_threads=False)
        columns = {n: table.column(n).to_numpy().astype(k) for n, k in kinds.items()}
    except (OSError, KeyError, ValueError, pa.ArrowException) as error:
        raise ValueError(str(error)) from error
    for column in columns.values():
        column.flags.writeable = False
    return columns


def _parse_table(data: bytes, path: Path, kinds: Mapping[str, str]) -> Samples:
    try:
        return decode_table(data, kinds)
    except ValueError as error:
        raise _broken(path, f"the samples are not readable: {error}") from error


def _parse_optional(data: bytes | None, path: Path, kinds: Mapping[str, str]) -> Samples:
    return _empty(kinds) if data is None else _parse_table(data, path, kinds)


def _empty(kinds: Mapping[str, str]) -> Samples:
    import numpy as np

    return {name: np.zeros(0, dtype=kind) for name, kind in kinds.items()}


def _parse_state(data: bytes, path: Path) -> tuple[StateLine, ...]:
    try:
        lines = tuple(json.loads(line) for line in data.splitlines())
    except ValueError as error:
        raise _broken(path, f"a line is not JSON: {error}") from error
    if not all(isinstance(line, dict) for line in lines):
        raise _broken(path, "a line is not a JSON object")
    return lines


def read_document(directory: Path) -> Recording:
    """Read and verify recording.json alone.

    Raises:
        RecordingError: missing, truncated, changed, or of another schema version.
    """
    path = directory / DOCUMENT
    try:
        document = json.loads(_read_bytes(path), parse_constant=_refuse_constant)
    except ValueError as error:
        raise _broken(path, "the document is not readable JSON (truncated?)") from error
    schema = document.get("schema") if isinstance(document, dict) else None
    if schema != SCHEMA:
        raise RecordingError(
            f"the recording has schema {schema!r}, this edgebench reads {SCHEMA!r}",
            where=str(path),
            fix="Read it with the edgebench version that wrote it.",
        )
    if document.get("digest") != manifest_digest(document):
        raise _broken(path, "the document was changed after it was recorded")
    try:
        return Recording.model_validate(document)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise _broken(path, f"malformed at {place}: {first['msg']}") from error


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _read_bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise _broken(path, f"can't be read: {error.strerror}") from error


def _broken(path: Path, what: str) -> RecordingError:
    return RecordingError(
        what, where=str(path), fix="Restore it from a copy, or move its directory out of the store."
    )
