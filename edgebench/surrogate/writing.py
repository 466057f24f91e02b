"""Writing a file at once or not at all: hidden name, fsync, rename."""

from __future__ import annotations

import os
from pathlib import Path

from edgebench.errors import StorageError


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file so that a reader sees the old one or all of the new one.

    Raises:
        StorageError: the disk is full, or the directory can't be written.
    """
    hidden = path.with_name(f".tmp-{os.getpid()}-{path.name}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with hidden.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        hidden.replace(path)
        directory = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)
    except OSError as error:
        hidden.unlink(missing_ok=True)
        raise StorageError(
            f"can't write: {error.strerror}", where=str(path), fix="Free space, or write elsewhere."
        ) from error


def write_text(path: Path, text: str) -> None:
    """Write a UTF-8 file; see ``write_bytes``."""
    write_bytes(path, text.encode())
