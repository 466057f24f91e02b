"""Recordings on disk: written once, never changed, verified whenever they are read.

    results/runs/
      01JD…/                 a recording: visible only when complete
      .tmp-01JD…-3f9a1c02/   one that is being written, or whose writer died

How a recording appears all at once is in ``edgebench.results.publish``. What was attached to one
later (``edgebench.results.attachments``) comes with it when it is read.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgebench.errors import RecordingError
from edgebench.recording import Recording
from edgebench.results.atomic import storage_error
from edgebench.results.attachments import Attachments
from edgebench.results.encoding import Loaded, StateLine, encode, read, read_document
from edgebench.results.publish import clean, publish
from edgebench.results.ulid import is_ulid

__all__ = ["Loaded", "Store", "read"]


@dataclass(frozen=True)
class Store:
    """The recordings below one directory, usually ``results/runs``."""

    root: Path

    def write(
        self,
        recording: Recording,
        samples: Any,
        state: Sequence[StateLine],
        readings: Any = None,
        tokens: Any = None,
    ) -> Path:
        """Store a recording; its ``files`` and ``digest`` are filled in here.

        Args:
            samples: a mapping from each name in SAMPLE_COLUMNS to a one-dimensional array, or a
                pyarrow Table with these columns.
            state: device states, one JSON object each.
            readings: what meters said, by READING_COLUMNS; None where none was read.
            tokens: times of generated tokens, by TOKEN_COLUMNS; None where none was generated.

        Returns:
            the new directory.

        Raises:
            StorageError: the disk is full, the directory can't be written, or the id is taken.
            RecordingError: id, samples, state or readings are malformed; nothing was written.
        """
        if not is_ulid(recording.id):
            raise RecordingError("a recording's id must be a ULID", where=recording.id)
        files = encode(recording, samples, state, readings, tokens)
        return publish(self.root, recording.id, files)

    def list(self) -> tuple[str, ...]:
        """Ids of all recordings, oldest first.

        Raises:
            StorageError: the directory can't be read. (A missing one is simply empty.)
        """
        try:
            names = [entry.name for entry in os.scandir(self.root) if entry.is_dir()]
        except FileNotFoundError:
            return ()
        except OSError as error:
            raise storage_error(error, self.root) from error
        return tuple(sorted(name for name in names if is_ulid(name)))

    def load(self, id_or_prefix: str) -> Loaded:
        """Read and verify one recording, named by its id or an unambiguous beginning of it.

        Raises:
            RecordingError: none or several match, or the recording is broken (the file is named).
        """
        wanted = id_or_prefix.upper()
        matches = [name for name in self.list() if name.startswith(wanted)]
        if wanted in matches:
            matches = [wanted]
        if len(matches) != 1:
            what = f"{len(matches)} recordings begin" if matches else "no recording begins"
            raise RecordingError(
                f"{what} with {id_or_prefix!r}",
                where=str(self.root),
                fix="Give more of the id."
                if matches
                else "`edgebench table` lists all recordings.",
            )
        return self._read(matches[0])

    def _read(self, name: str) -> Loaded:
        return Attachments.beside(self.root).onto(read(self.root / name))

    def documents(self) -> Iterator[Recording]:
        """The documents of all readable recordings, the newest first, without their samples."""
        for name in reversed(self.list()):
            with suppress(RecordingError):
                yield read_document(self.root / name)

    def load_all(self) -> tuple[tuple[Loaded, ...], tuple[RecordingError, ...]]:
        """Every readable recording, oldest first, and what is wrong with the others."""
        loaded, broken = [], []
        for name in self.list():
            try:
                loaded.append(self._read(name))
            except RecordingError as error:
                broken.append(error)
        return tuple(loaded), tuple(broken)

    def clean(self) -> int:
        """Remove what dead writers left; those of live writers stay. Returns how many went."""
        return clean(self.root)
