"""Traces that were attached to a recording after it was made: any meter can fill its energy.

    results/attachments/
      01JD…/             the recording
        01JE…/           one trace: visible only when complete, never changed
          attachment.json    the document below
          readings.parquet   its readings on the device's clock (columns in READING_COLUMNS)

The recording stays as it was. Tables derive from it and its attachments; of several that were made
from the same columns of the same file the newest counts, so that a mistake is mended by attaching
again.

Schema history (``schema``):
    edgebench.attachment/1   first
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from edgebench.artifact import manifest_digest
from edgebench.errors import RecordingError
from edgebench.recording import READING_COLUMNS, MeterRecord, Recording
from edgebench.results.atomic import storage_error
from edgebench.results.encoding import Attached, Loaded, decode_table, encode_table
from edgebench.results.publish import publish
from edgebench.results.ulid import is_ulid

SCHEMA = "edgebench.attachment/1"
DOCUMENT = "attachment.json"
READINGS = "readings.parquet"

_FIX = "Restore it from a copy, or move its directory away and attach the trace again."


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class TraceFile(_Part):
    """The CSV file, and how it was read (``edgebench.results.trace_csv.Trace``)."""

    name: str
    sha256: str
    bytes: int
    columns: dict[str, str]
    units: dict[str, str]
    timezone: str | None
    decimal: str
    delimiter: str
    header_line: int
    readings: int
    missing: int
    repeated: int


class Uncovered(_Part):
    """A stretch of the run that the trace does not see whole: its figures do without it.

    ``missing_ns`` is how much of it lies outside the trace, or in a gap between two readings.
    """

    kind: str
    launch: int
    artifact: int | None
    begin_ns: int
    end_ns: int
    missing_ns: int


class Attachment(_Part):
    """attachment.json."""

    schema_: str = Field(alias="schema")
    id: str
    recording_id: str
    #: The recording's own digest: readings are of that content and no other.
    recording_digest: str
    created_at: str
    edgebench_version: str
    #: ``runs_on`` is "imported", with one channel and an alignment.
    meter: MeterRecord
    trace: TraceFile
    #: Windows and idle stretches of the run, and those that the trace does not see.
    stretches: int
    uncovered: list[Uncovered]
    #: readings.parquet -> {"sha256", "bytes"}; filled when it is written.
    files: dict[str, dict[str, Any]] = Field(default_factory=dict)
    #: SHA-256 of this document's canonical JSON without this member; filled when it is written.
    digest: str = ""


@dataclass(frozen=True)
class Stored(Attached):
    """An attachment as read and verified; ``readings`` has meter and channel 0 throughout."""

    path: Path
    document: Attachment


@dataclass(frozen=True)
class Attachments:
    """The attachments of all recordings, usually below ``results/attachments``."""

    root: Path

    @classmethod
    def beside(cls, runs: Path) -> Attachments:
        """Those that belong to the store of recordings at ``runs``."""
        return cls(runs.parent / "attachments")

    def write(self, document: Attachment, readings: Any) -> Stored:
        """Store an attachment; its ``files`` and ``digest`` are filled in here.

        Args:
            readings: a mapping from each name in READING_COLUMNS to a [n] array.

        Raises:
            StorageError: the disk is full, the directory can't be written, or the id is taken.
            RecordingError: an id or the readings are malformed; nothing was written.
        """
        if not (is_ulid(document.id) and is_ulid(document.recording_id)):
            raise RecordingError("an attachment's ids must be ULIDs", where=document.id)
        table = encode_table(readings, READING_COLUMNS, document.id)
        entry = {"sha256": hashlib.sha256(table).hexdigest(), "bytes": len(table)}
        body = document.model_copy(update={"files": {READINGS: entry}}).model_dump(
            mode="json", by_alias=True
        )
        body["digest"] = manifest_digest(body)
        text = json.dumps(body, indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False)
        files = {READINGS: table, DOCUMENT: text.encode() + b"\n"}
        return read(publish(self.root / document.recording_id, document.id, files))

    def list(self, recording_id: str) -> tuple[str, ...]:
        """Ids of a recording's attachments, oldest first; also those that a newer one replaces.

        Raises:
            StorageError: the directory can't be read. (A missing one is simply empty.)
        """
        directory = self.root / recording_id
        try:
            names = [entry.name for entry in os.scandir(directory) if entry.is_dir()]
        except FileNotFoundError:
            return ()
        except OSError as error:
            raise storage_error(error, directory) from error
        return tuple(sorted(name for name in names if is_ulid(name)))

    def load(self, recording: Recording) -> tuple[Stored, ...]:
        """A recording's attachments that count, the newest first, verified.

        Raises:
            RecordingError: one is broken, or was made for other content of the recording.
        """
        newest: dict[tuple[Any, ...], Stored] = {}
        for name in reversed(self.list(recording.id)):
            attached = read(self.root / recording.id / name)
            if attached.document.recording_digest != recording.digest:
                raise RecordingError(
                    "the trace was attached to another content of this recording",
                    where=str(attached.path),
                    fix=_FIX,
                )
            newest.setdefault(_key(attached.document), attached)
        return tuple(newest.values())

    def onto(self, loaded: Loaded) -> Loaded:
        """A recording with its attachments.

        Raises:
            RecordingError: one is broken.
        """
        return replace(loaded, attached=self.load(loaded.recording))


def _key(document: Attachment) -> tuple[Any, ...]:
    """What makes two attachments the same measurement, read anew: file, columns."""
    return (document.trace.sha256, tuple(sorted(document.trace.columns.items())))


def read(directory: Path) -> Stored:
    """Read and verify the attachment in a directory.

    Raises:
        RecordingError: a file is missing, truncated, changed, or of another schema version.
    """
    document = _read_document(directory / DOCUMENT)
    path = directory / READINGS
    data = _read_bytes(path)
    entry = document.files.get(READINGS, {})
    if hashlib.sha256(data).hexdigest() != entry.get("sha256"):
        raise RecordingError(
            f"{READINGS} has {len(data)} bytes and not the content that was attached "
            f"({entry.get('bytes')} bytes)",
            where=str(path),
            fix=_FIX,
        )
    try:
        found = decode_table(data, READING_COLUMNS)
    except ValueError as error:
        raise RecordingError(
            f"the readings are not readable: {error}", where=str(path), fix=_FIX
        ) from error
    return Stored(meter=document.meter, readings=found, path=directory, document=document)


def _read_document(path: Path) -> Attachment:
    try:
        body = json.loads(_read_bytes(path))
    except ValueError as error:
        raise RecordingError(
            "the document is not readable JSON (truncated?)", where=str(path), fix=_FIX
        ) from error
    schema = body.get("schema") if isinstance(body, dict) else None
    if schema != SCHEMA:
        raise RecordingError(
            f"the attachment has schema {schema!r}, this edgebench reads {SCHEMA!r}",
            where=str(path),
            fix="Read it with the edgebench version that wrote it.",
        )
    if body.get("digest") != manifest_digest(body):
        raise RecordingError(
            "the document was changed after it was attached", where=str(path), fix=_FIX
        )
    try:
        return Attachment.model_validate(body)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise RecordingError(
            f"malformed at {place}: {first['msg']}", where=str(path), fix=_FIX
        ) from error


def _read_bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise RecordingError(
            f"can't be read: {error.strerror}", where=str(path), fix=_FIX
        ) from error
