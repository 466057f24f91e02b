"""Recordings on disk: written once, never changed, verified whenever they are read.

    results/runs/
      01JD…/                 a recording: visible only when complete
      .tmp-01JD…-3f9a1c02/   one that is being written, or whose writer died

A writer fills a hidden directory, fsyncs its files and itself, renames it and fsyncs the parent: on
POSIX the rename is atomic, so a kill at any instant leaves a whole recording or none. While it
writes it holds an advisory lock (flock) on the hidden directory. The kernel drops the lock with the
process, so a hidden directory that can be locked has no writer any more and may be removed.
"""

from __future__ import annotations

import fcntl
import os
import secrets
import shutil
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgebench.errors import RecordingError
from edgebench.recording import Recording
from edgebench.results.atomic import as_storage_error, fsync_directory, storage_error, write_synced
from edgebench.results.encoding import Loaded, StateLine, encode, read, read_document
from edgebench.results.ulid import is_ulid

__all__ = ["Loaded", "Store", "read"]

_TEMPORARY = ".tmp-"


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
    ) -> Path:
        """Store a recording; its ``files`` and ``digest`` are filled in here.

        Args:
            samples: a mapping from each name in SAMPLE_COLUMNS to a one-dimensional array, or a
                pyarrow Table with these columns.
            state: device states, one JSON object each.
            readings: what meters said, by READING_COLUMNS; None where none was read.

        Returns:
            the new directory.

        Raises:
            StorageError: the disk is full, the directory can't be written, or the id is taken.
            RecordingError: id, samples, state or readings are malformed; nothing was written.
        """
        if not is_ulid(recording.id):
            raise RecordingError("a recording's id must be a ULID", where=recording.id)
        payload = encode(recording, samples, state, readings)
        target = self.root / recording.id
        with as_storage_error(self.root):
            _make_root(self.root)
            self.clean()
            temporary, lock = _claim(self.root, recording.id)
            try:
                for name, data in payload.items():
                    write_synced(temporary / name, data)
                os.fsync(lock)
                temporary.rename(target)  # fails where the target exists and is not empty
                fsync_directory(self.root)
            finally:
                shutil.rmtree(temporary, ignore_errors=True)  # gone already if all went well
                os.close(lock)
        return target

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
        return read(self.root / matches[0])

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
                loaded.append(read(self.root / name))
            except RecordingError as error:
                broken.append(error)
        return tuple(loaded), tuple(broken)

    def clean(self) -> int:
        """Remove what dead writers left; those of live writers stay. Returns how many went."""
        removed = 0
        for entry in sorted(self.root.glob(f"{_TEMPORARY}*")):
            lock = _try_lock(entry)
            if lock is not None:
                shutil.rmtree(entry, ignore_errors=True)
                os.close(lock)
                removed += 1
        return removed


def _make_root(root: Path) -> None:
    if not root.is_dir():
        root.mkdir(parents=True, exist_ok=True)
        fsync_directory(root.parent)


def _claim(root: Path, name: str) -> tuple[Path, int]:
    """A new hidden directory and a descriptor of it that holds its lock."""
    while True:
        temporary = root / f"{_TEMPORARY}{name}-{secrets.token_hex(4)}"
        temporary.mkdir()
        lock = _try_lock(temporary)
        # Between mkdir and the lock another writer's clean() may have taken it for abandoned.
        if lock is not None:
            if temporary.exists():
                return temporary, lock
            os.close(lock)


def _try_lock(directory: Path) -> int | None:
    """A descriptor holding the directory's lock; None if it is held, gone, or can't be told."""
    try:
        descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        return None
    return descriptor
