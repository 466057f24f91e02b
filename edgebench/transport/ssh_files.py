"""Files by SFTP: whole or not at all."""

from __future__ import annotations

import contextlib
import posixpath
import secrets
from pathlib import Path
from typing import TYPE_CHECKING, Any

import asyncssh

from edgebench.errors import DeviceError
from edgebench.transport.base import Progress, TransferError

if TYPE_CHECKING:
    from asyncssh import SFTPClient

#: Pieces of a file that continues one (fetch with an offset).
_PIECE_BYTES = 4 * 1024 * 1024


async def send(
    files: SFTPClient, device: str, local: Path, remote: str, progress: Progress | None
) -> None:
    """Put a file there under a temporary name, check its size, and rename it.

    Raises:
        TransferError: the disk is full, or it arrived short.
        asyncssh.SFTPError, OSError: for the caller to put into words.
    """
    target = relative(remote)
    directory, name = posixpath.split(target)
    temporary = posixpath.join(directory, f".{name}.{secrets.token_hex(4)}.part")
    size = _size(local)
    if directory:
        await files.makedirs(directory, exist_ok=True)
    try:
        await files.put(str(local), temporary, progress_handler=_handler(progress))
        arrived = await files.getsize(temporary)
        if arrived != size:
            raise TransferError(f"{arrived} of {size} bytes of {local.name} arrived", where=device)
        await _rename(files, temporary, target)
    except asyncssh.SFTPFailure as error:
        raise await _failed(files, directory or ".", size, f"{device}: {remote}", error) from error
    finally:
        await _discard(files, temporary)


async def fetch(
    files: SFTPClient, remote: str, local: Path, offset: int, progress: Progress | None
) -> None:
    """Get a file, or with an offset what it has beyond that."""
    source = relative(remote)
    if offset:
        await _continue(files, source, local, offset, progress)
        return
    temporary = local.with_name(f".{local.name}.{secrets.token_hex(4)}.part")
    try:
        await files.get(source, str(temporary), progress_handler=_handler(progress))
        temporary.replace(local)
    finally:
        temporary.unlink(missing_ok=True)


def relative(path: str) -> str:
    """SFTP begins in the home directory, and knows no tilde."""
    if path in ("~", "~/"):
        return "."
    return path.removeprefix("~/")


def _size(local: Path) -> int:
    try:
        return local.stat().st_size
    except OSError as error:
        raise TransferError(f"can't read it: {error.strerror}", where=str(local)) from error


def _handler(progress: Progress | None) -> Any:
    if progress is None:
        return None
    return lambda _source, _target, done, size: progress(done, size)


async def _rename(files: SFTPClient, temporary: str, target: str) -> None:
    try:
        await files.posix_rename(temporary, target)
    except asyncssh.SFTPOpUnsupported:
        # Without OpenSSH's extension SFTP renames over nothing; not one step, but the last ones.
        with contextlib.suppress(asyncssh.SFTPNoSuchFile):
            await files.remove(target)
        await files.rename(temporary, target)


async def _discard(files: SFTPClient, temporary: str) -> None:
    """Remove what an unfinished transfer left; after a good one it is no longer there."""
    with contextlib.suppress(asyncssh.Error, BrokenPipeError):
        if await files.exists(temporary):
            await files.remove(temporary)


async def _continue(
    files: SFTPClient, source: str, local: Path, offset: int, progress: Progress | None
) -> None:
    async with files.open(source, "rb") as reading:
        size = (await reading.stat()).size or 0
        with local.open("r+b") as writing:
            writing.seek(offset)
            done = offset
            while done < size:
                piece: bytes = await reading.read(min(_PIECE_BYTES, size - done), done)
                if not piece:
                    break
                writing.write(piece)
                done += len(piece)
                if progress is not None:
                    progress(done - offset, size - offset)
            writing.truncate()


async def _failed(
    files: SFTPClient, directory: str, size: int, where: str, error: asyncssh.SFTPFailure
) -> DeviceError:
    """OpenSSH's SFTP says only "Failure" for a full disk (protocol 3 has no word for it)."""
    free = None
    with contextlib.suppress(asyncssh.SFTPError):
        found = await files.statvfs(directory)
        free = found.bavail * found.frsize
    if free is not None and free < size:
        return TransferError(
            f"the device's disk is full: {size} bytes are needed, {free} are free",
            where=where,
            fix="Free some space there, then run again.",
        )
    return TransferError(
        f"can't write the file: {error.reason}",
        where=where,
        fix="Check the room and the rights there.",
    )
