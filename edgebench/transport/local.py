"""This machine as a device: the same interface, without a network."""

from __future__ import annotations

import asyncio
import os
import shutil
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import Sequence
from pathlib import Path

from edgebench.errors import DeviceError
from edgebench.transport.base import Channel, Completed, Progress, Transport

#: A JSON line of the agent is far below this; asyncio's own limit of 64 KiB is not.
LINE_LIMIT_BYTES = 16 * 1024 * 1024


class LocalChannel(Channel):
    """A child process. It has its own session: a Ctrl-C at the terminal is not for it."""

    def __init__(self, process: Process) -> None:
        self._process = process

    async def readline(self) -> bytes:
        assert self._process.stdout is not None
        return await self._process.stdout.readline()

    async def write(self, data: bytes) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(data)
            await self._process.stdin.drain()
        except (BrokenPipeError, ConnectionResetError) as error:
            raise DeviceError("the agent has ended", where="this machine") from error

    async def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            await asyncio.wait_for(self._process.wait(), 5.0)
        except TimeoutError:
            self._process.kill()
            await self._process.wait()


class LocalTransport(Transport):
    """Runs commands as children of this process and copies files on its own disks."""

    async def connect(self) -> None:
        return None

    async def close(self) -> None:
        return None

    def describe(self) -> str:
        return "this machine"

    async def run(
        self, argv: Sequence[str], *, stdin: bytes | None = None, timeout_s: float | None = None
    ) -> Completed:
        process = await _start(argv, stdin=DEVNULL if stdin is None else PIPE, stderr=PIPE)
        try:
            out, err = await asyncio.wait_for(process.communicate(stdin), timeout_s)
        except TimeoutError as error:
            process.kill()
            await process.wait()
            raise DeviceError(
                f"{argv[0]} did not end within {timeout_s:g} s", where="this machine"
            ) from error
        return Completed(process.returncode or 0, out, err)

    async def open(self, argv: Sequence[str]) -> Channel:
        return LocalChannel(await _start(argv, stdin=PIPE, stderr=None))

    async def put(self, local: Path, remote: str, progress: Progress | None = None) -> None:
        target = Path(remote).expanduser()
        temporary = target.with_name(f".{target.name}.{os.getpid()}.part")
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(local, temporary)
            temporary.replace(target)
        except OSError as error:
            temporary.unlink(missing_ok=True)
            raise DeviceError(f"can't write the file: {error.strerror}", where=remote) from error
        if progress is not None:
            size = target.stat().st_size
            progress(size, size)

    async def get(self, remote: str, local: Path) -> None:
        try:
            shutil.copyfile(Path(remote).expanduser(), local)
        except OSError as error:
            raise DeviceError(f"can't copy the file: {error.strerror}", where=remote) from error


async def _start(argv: Sequence[str], *, stdin: int, stderr: int | None) -> Process:
    try:
        return await asyncio.create_subprocess_exec(
            *argv,
            stdin=stdin,
            stdout=PIPE,
            stderr=stderr,
            start_new_session=True,
            limit=LINE_LIMIT_BYTES,
        )
    except OSError as error:
        raise DeviceError(
            f"can't start {argv[0]}: {error.strerror}", where="this machine"
        ) from error
