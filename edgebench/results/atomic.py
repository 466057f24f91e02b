"""Writing so that a reader sees the old content or the new one, whole, whatever happens between."""

from __future__ import annotations

import errno
import os
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from edgebench.errors import StorageError

#: Why a directory can't be written, in words that say what to do.
_FIXES = {
    errno.ENOSPC: "Free some space there, or give another results directory.",
    errno.EDQUOT: "The quota is used up: free some space, or give another results directory.",
    errno.ENOTEMPTY: "Recordings are never overwritten: a new one needs a new id.",
    errno.EEXIST: "Recordings are never overwritten: a new one needs a new id.",
}
_WRITABLE = "Give a results directory that you may write to."


@contextmanager
def as_storage_error(root: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise storage_error(error, root) from error


def storage_error(error: OSError, root: Path) -> StorageError:
    fix = _FIXES.get(error.errno or 0, _WRITABLE)
    reason = error.strerror or str(error)
    return StorageError(
        f"the results could not be stored: {reason[:1].lower()}{reason[1:]}",
        where=str(root),
        fix=fix,
    )


def write_synced(path: Path, data: bytes) -> None:
    with path.open("xb") as stream:
        stream.write(data)
        stream.flush()
        os.fsync(stream.fileno())


def fsync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def replace_files(directory: Path, contents: Mapping[str, bytes]) -> None:
    """Write files into a directory: all are on the disk under hidden names before any is renamed.

    Raises:
        StorageError: the directory can't be made or written, or the disk is full; every file is
            then as it was, unless the renaming itself failed.
    """
    with as_storage_error(directory):
        directory.mkdir(parents=True, exist_ok=True)
        mark = secrets.token_hex(4)
        hidden = {name: directory / f".{name}.{mark}.tmp" for name in contents}
        try:
            for name, data in contents.items():
                write_synced(hidden[name], data)
            for name, path in hidden.items():
                path.replace(directory / name)
            fsync_directory(directory)
        finally:
            for path in hidden.values():
                path.unlink(missing_ok=True)
