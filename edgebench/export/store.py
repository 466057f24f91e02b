"""Writing artifacts so that a directory is either whole or not there.

An artifact is built in a hidden directory beside its place, ``.tmp-<host>-<pid>-<random>``, every
file is flushed to the disk, and the directory is renamed: on one file system that is atomic. A
failure or Ctrl-C removes the hidden directory; what a power cut or ``kill -9`` leaves behind is
swept by the next export on that host.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shutil
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path

from edgebench.artifact import Artifact
from edgebench.errors import ArtifactError, StorageError

_TEMPORARY = ".tmp-"
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_REFUSED = {errno.EACCES, errno.EPERM, errno.EROFS}


@contextlib.contextmanager
def staging(out: Path) -> Iterator[Path]:
    """A new hidden directory in ``out``, gone at the end whatever happens.

    Raises:
        StorageError: ``out`` can't be made or written, or the disk is full (also when that shows
            only later, inside the block).
    """
    with storage_errors(out):
        out.mkdir(parents=True, exist_ok=True)
        _sweep(out)
        host = re.sub(r"[^A-Za-z0-9]+", "_", socket.gethostname())
        temporary = Path(tempfile.mkdtemp(prefix=f"{_TEMPORARY}{host}-{os.getpid()}-", dir=out))
        try:
            yield temporary
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


@contextlib.contextmanager
def storage_errors(where: Path) -> Iterator[None]:
    """Turn the system's "no space" and "not allowed" into StorageError."""
    try:
        yield
    except (OSError, StorageError) as error:
        # The quantiser wraps the system's error, and names a hidden directory; say it our way.
        cause = error.__cause__ if isinstance(error, StorageError) else error
        if not isinstance(cause, OSError):
            raise
        if cause.errno in _FULL:
            raise StorageError(
                "the disk is full; nothing was written",
                where=str(where),
                fix="Free some space, or give another directory with --out.",
            ) from error
        if cause.errno in _REFUSED or cause.errno in {errno.ENOTDIR, errno.EEXIST}:
            raise StorageError(
                f"the directory can't be written: {cause.strerror}",
                where=str(where),
                fix="Mend its permissions, or give another directory with --out.",
            ) from error
        raise


def publish(built: Path, target: Path) -> Artifact:
    """Give a finished directory its name, and return the artifact that stands there.

    If a whole artifact of that name (so of that digest) is there already, it stays and is returned.

    Raises:
        OSError: the rename failed.
    """
    for file in sorted(built.rglob("*")):
        _fsync(file)
    _fsync(built)
    # mkdtemp's 0700 is for temporaries; others may read an artifact.
    built.chmod(0o777 & ~_umask())
    while True:
        try:
            built.rename(target)
            _fsync(target.parent)
            return Artifact.load(target)
        except OSError as error:
            if error.errno not in {errno.ENOTEMPTY, errno.EEXIST}:
                raise
        try:
            return Artifact.load(target)
        except ArtifactError:
            # What stands there is damaged: its name promises a digest that it does not have.
            _discard(target)


def write_atomically(file: Path, content: bytes) -> None:
    """Replace a small file by a rename."""
    handle, name = tempfile.mkstemp(prefix=_TEMPORARY, dir=file.parent)
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        Path(name).replace(file)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def _discard(directory: Path) -> None:
    """Rename away, then remove, so that no half-removed artifact is ever visible."""
    holder = Path(tempfile.mkdtemp(prefix=_TEMPORARY, dir=directory.parent))
    directory.rename(holder / "damaged")
    shutil.rmtree(holder, ignore_errors=True)


def _sweep(out: Path) -> None:
    """Remove the hidden directories of exports on this host whose process is gone."""
    host = re.sub(r"[^A-Za-z0-9]+", "_", socket.gethostname())
    for left in out.glob(f"{_TEMPORARY}{host}-*-*"):
        owner = left.name.removeprefix(f"{_TEMPORARY}{host}-").partition("-")[0]
        if owner.isdecimal() and not _alive(int(owner)):
            shutil.rmtree(left, ignore_errors=True)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
