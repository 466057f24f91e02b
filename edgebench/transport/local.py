"""This machine as a device: the same interface, without a network."""

from __future__ import annotations

import asyncio
import os
import shutil
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import Sequence
from pathlib import Path

from edgebench.transport.base import (
    CLOSE_GRACE_S,
    LAST_WORDS_BYTES,
    LINE_LIMIT_BYTES,
    Channel,
    CommandError,
    Completed,
    LinkLostError,
    Progress,
    TransferError,
    Transport,
)

_HERE = "this machine"


class LocalChannel(Channel):
    """A child process. It has its own session: a Ctrl-C at the terminal is not for it."""

    def __init__(self, process: Process) -> None:
        self._process = process
        self._words = b""
        self._listener = asyncio.create_task(self._listen())

    async def _listen(self) -> None:
        assert self._process.stderr is not None
        while data := await self._process.stderr.read(LAST_WORDS_BYTES):
            self._words = (self._words + data)[-LAST_WORDS_BYTES:]

    @property
    def last_words(self) -> str:
        return self._words.decode("utf-8", "replace").strip()

    async def readline(self) -> bytes:
        assert self._process.stdout is not None
        try:
            return await self._process.stdout.readline()
        except ValueError as error:  # asyncio's word for a line over the limit
            raise LinkLostError("the agent's answer is absurdly long", where=_HERE) from error

    async def write(self, data: bytes) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(data)
            await self._process.stdin.drain()
        except (BrokenPipeError, ConnectionResetError) as error:
            raise LinkLostError("the agent has ended", where=_HERE) from error

    async def wait(self) -> int:
        return await self._process.wait()

    async def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            await asyncio.wait_for(self._process.wait(), CLOSE_GRACE_S)
        except TimeoutError:
            self._process.kill()
            await self._process.wait()
        finally:
            # A grandchild may hold stderr open: what has not been said by now is not waited for.
            self._listener.cancel()


class LocalTransport(Transport):
    """Runs commands as children of this process and copies files on its own disks."""

    async def connect(self) -> None:
        return None

    async def close(self) -> None:
        return None

    def describe(self) -> str:
        return _HERE

    async def run(
        self, argv: Sequence[str], *, stdin: bytes | None = None, timeout_s: float | None = None
    ) -> Completed:
        process = await _start(argv, stdin=DEVNULL if stdin is None else PIPE)
        try:
            out, err = await asyncio.wait_for(process.communicate(stdin), timeout_s)
        except TimeoutError as error:
            raise CommandError(
                f"{argv[0]} did not end within {timeout_s:g} s", where=_HERE
            ) from error
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        return Completed(process.returncode or 0, out, err)

    async def open(self, argv: Sequence[str]) -> Channel:
        return LocalChannel(await _start(argv, stdin=PIPE))

    async def expand(self, path: str) -> str:
        return str(Path(path).expanduser())

    async def exists(self, remote: str) -> bool:
        return Path(remote).expanduser().exists()

    async def put(self, local: Path, remote: str, progress: Progress | None = None) -> None:
        await asyncio.to_thread(_copy, local, Path(remote).expanduser(), 0)
        _tell(progress, local.stat().st_size)

    async def get(
        self, remote: str, local: Path, *, offset: int = 0, progress: Progress | None = None
    ) -> None:
        source = Path(remote).expanduser()
        await asyncio.to_thread(_copy, source, local, offset)
        _tell(progress, max(0, source.stat().st_size - offset))


def _tell(progress: Progress | None, size: int) -> None:
    if progress is not None:
        progress(size, size)


def _copy(source: Path, target: Path, offset: int) -> None:
    temporary = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        if offset:
            with source.open("rb") as reading, target.open("r+b") as writing:
                reading.seek(offset)
                writing.seek(offset)
                shutil.copyfileobj(reading, writing)
                writing.truncate()
            return
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, temporary)
        temporary.replace(target)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise TransferError(
            f"can't copy {source}: {error.strerror}",
            where=str(target),
            fix="Check that the file is there, and the room and rights where it goes.",
        ) from error


async def _start(argv: Sequence[str], *, stdin: int) -> Process:
    try:
        return await asyncio.create_subprocess_exec(
            *argv,
            stdin=stdin,
            stdout=PIPE,
            stderr=PIPE,
            start_new_session=True,
            limit=LINE_LIMIT_BYTES,
        )
    except (OSError, ValueError) as error:  # ValueError: a NUL in an argument
        reason = error.strerror if isinstance(error, OSError) else error
        raise CommandError(f"can't start {argv[0]!r}: {reason}", where=_HERE) from error
