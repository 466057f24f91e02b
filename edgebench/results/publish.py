"""A directory that appears all at once: written under a hidden name, flushed, renamed.

A writer fills a hidden directory, fsyncs its files and itself, renames it and fsyncs the parent: on
POSIX the rename is atomic, so a kill at any instant leaves the whole directory or none. While it
writes it holds an advisory lock (flock) on the hidden directory. The kernel drops the lock with the
process, so a hidden directory that can be locked has no writer any more and may be removed.
"""

from __future__ import annotations

import fcntl
import os
import secrets
import shutil
from collections.abc import Mapping
from pathlib import Path

from edgebench.results.atomic import as_storage_error, fsync_directory, write_synced

_TEMPORARY = ".tmp-"


def publish(root: Path, name: str, files: Mapping[str, bytes]) -> Path:
    """Make the directory ``root/name`` with these files. Its parents are made where missing.

    Raises:
        StorageError: the disk is full, the directory can't be written, or the name is taken.
    """
    target = root / name
    with as_storage_error(root):
        _make_root(root)
        clean(root)
        temporary, lock = _claim(root, name)
        try:
            for each, data in files.items():
                write_synced(temporary / each, data)
            os.fsync(lock)
            temporary.rename(target)  # fails where the target exists and is not empty
            fsync_directory(root)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)  # gone already if all went well
            os.close(lock)
    return target


def clean(root: Path) -> int:
    """Remove what dead writers left; those of live writers stay. Returns how many went."""
    removed = 0
    for entry in sorted(root.glob(f"{_TEMPORARY}*")):
        lock = _try_lock(entry)
        if lock is not None:
            shutil.rmtree(entry, ignore_errors=True)
            os.close(lock)
            removed += 1
    return removed


def _make_root(root: Path) -> None:
    missing = [path for path in (root, *root.parents) if not path.exists()]
    root.mkdir(parents=True, exist_ok=True)
    for path in missing:
        fsync_directory(path.parent)


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
