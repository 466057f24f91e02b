"""A command over SSH whose stdin and stdout stay open."""

from __future__ import annotations

import asyncio
import contextlib

import asyncssh

from edgebench.transport.base import (
    CLOSE_GRACE_S,
    LAST_WORDS_BYTES,
    LINE_LIMIT_BYTES,
    Channel,
    LinkLostError,
)

_PIECE_BYTES = 256 * 1024


class SshChannel(Channel):
    """One SSH session. Lines are split here: asyncssh would cut a long one at its window's size."""

    def __init__(
        self,
        process: asyncssh.SSHClientProcess[bytes],
        connection: asyncssh.SSHClientConnection,
        device: str,
    ) -> None:
        self._process = process
        # Kept, since a channel that has closed does not know it any more.
        self._connection = connection
        self._device = device
        self._buffer = bytearray()
        self._ended = False
        self._words = b""
        # An unread stderr would fill its window and hold up stdout.
        self._listener = asyncio.create_task(self._listen())

    async def _listen(self) -> None:
        with contextlib.suppress(asyncssh.Error, OSError):
            while data := await self._process.stderr.read(LAST_WORDS_BYTES):
                self._words = (self._words + data)[-LAST_WORDS_BYTES:]

    @property
    def last_words(self) -> str:
        return self._words.decode("utf-8", "replace").strip()

    async def readline(self) -> bytes:
        searched = 0
        while (end := self._buffer.find(b"\n", searched)) < 0 and not self._ended:
            searched = len(self._buffer)
            if searched > LINE_LIMIT_BYTES:
                raise LinkLostError("the agent's answer is absurdly long", where=self._device)
            try:
                piece = await self._process.stdout.read(_PIECE_BYTES)
            except (asyncssh.Error, OSError) as error:
                raise self._lost() from error
            if piece:
                self._buffer += piece
            elif self._connection.is_closed():
                # sshd died: its end of file is not the command's.
                raise self._lost()
            else:
                self._ended = True
        length = end + 1 if end >= 0 else len(self._buffer)
        line = bytes(self._buffer[:length])
        del self._buffer[:length]
        return line

    async def write(self, data: bytes) -> None:
        try:
            self._process.stdin.write(data)
            await self._process.stdin.drain()
        except (asyncssh.Error, OSError) as error:
            raise self._lost() from error

    async def wait(self) -> int:
        try:
            await self._process.wait_closed()
        except (asyncssh.Error, OSError) as error:
            raise self._lost() from error
        return returncode_of(self._process, self._device)

    async def close(self) -> None:
        try:
            with contextlib.suppress(asyncssh.Error, OSError):
                self._process.stdin.write_eof()
                await asyncio.wait_for(self._drained(), CLOSE_GRACE_S)
        finally:
            self._process.close()
            self._listener.cancel()

    async def _drained(self) -> None:
        """Read to the end: what is not read holds the command up in its last write."""
        while await self._process.stdout.read(_PIECE_BYTES):
            pass
        await self._process.wait_closed()

    def _lost(self) -> LinkLostError:
        return LinkLostError("the connection to the device was lost", where=self._device)


def returncode_of(process: asyncssh.SSHClientProcess[bytes], device: str) -> int:
    """The return code of an ended command; LinkLostError where the server never said it."""
    if process.returncode is None:
        raise LinkLostError("the connection to the device was lost", where=device)
    return process.returncode
