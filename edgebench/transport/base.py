"""The interface of a transport: the few things that measuring needs from a device.

Commands are argument lists, always; a transport that has to build a shell line quotes them in one
place (``quote.py``). Failures of the link are DeviceError, of the kinds below; a command's own
failure is its return code. Paths on the device are absolute, or begin with ``~/``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from edgebench.errors import DeviceError, LinkError

#: Called with (bytes done, bytes in all) while a file moves.
Progress = Callable[[int, int], None]

#: A JSON line of the agent is far below this; a longer one is not from the agent.
LINE_LIMIT_BYTES = 16 * 1024 * 1024
#: How much of a command's stderr is kept to explain why it ended.
LAST_WORDS_BYTES = 4096
#: How long a command has to end by itself after its stdin closed (seconds).
CLOSE_GRACE_S = 5.0


class UnreachableError(LinkError):
    """No connection: unknown name, nothing listening, no answer."""


class HostKeyUnknownError(DeviceError):
    """The host key has never been accepted."""


class HostKeyChangedError(DeviceError):
    """The host key is another one than was accepted, or is revoked."""


class LoginRefusedError(DeviceError):
    """The device answers and does not let us in."""


class LinkLostError(LinkError):
    """The connection broke while it was in use. What runs on the device may go on."""


class CommandError(DeviceError):
    """A command can't be started, or did not end in its time."""


class TransferError(DeviceError):
    """A file could not be moved; nothing half-written is left under its name."""


@dataclass(frozen=True)
class Completed:
    """A command that has ended on the device. ``returncode``: negative signal, as subprocess has it
    (-1 where the signal is not known)."""

    returncode: int
    stdout: bytes
    stderr: bytes


class Channel(ABC):
    """A running command with open stdin and stdout: the agent's JSON lines."""

    @abstractmethod
    async def readline(self) -> bytes:
        """The next line with its end, or b"" when the far side has closed.

        Raises:
            LinkLostError: the connection broke, or the line is absurdly long.
        """

    @abstractmethod
    async def write(self, data: bytes) -> None:
        """Send bytes to stdin; DeviceError if the far side is gone."""

    @abstractmethod
    async def wait(self) -> int:
        """Wait for the command to end; its return code. LinkLostError if that can't be known."""

    @abstractmethod
    async def close(self) -> None:
        """Close stdin and wait for the command to end; ends it where it does not. Never raises
        DeviceError: a link that is gone is closed."""

    @property
    @abstractmethod
    def last_words(self) -> str:
        """The end of what it wrote to stderr."""


class Transport(ABC):
    """A connection to one device."""

    async def __aenter__(self) -> Self:
        await self.connect()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()

    @abstractmethod
    async def connect(self) -> None:
        """Open the connection; DeviceError with what to do where it can't be."""

    @abstractmethod
    async def close(self) -> None:
        """Close it; runs on the device go on."""

    @abstractmethod
    def describe(self) -> str:
        """Where this leads, for messages: "pi@pi4.local:22", "this machine"."""

    @abstractmethod
    async def run(
        self, argv: Sequence[str], *, stdin: bytes | None = None, timeout_s: float | None = None
    ) -> Completed:
        """Run a command to its end; DeviceError if the link fails or the time is up."""

    @abstractmethod
    async def open(self, argv: Sequence[str]) -> Channel:
        """Start a command and keep its stdin and stdout open."""

    @abstractmethod
    async def expand(self, path: str) -> str:
        """The absolute path of one that begins with ``~/``, for use in an argument list."""

    @abstractmethod
    async def exists(self, remote: str) -> bool:
        """Whether there is a file or directory of that name."""

    @abstractmethod
    async def put(self, local: Path, remote: str, progress: Progress | None = None) -> None:
        """Copy a file there, and make the directory that it belongs in.

        It appears whole or not: it is written under a temporary name, its size is checked, and it
        is renamed over what was there.
        """

    @abstractmethod
    async def get(
        self, remote: str, local: Path, *, offset: int = 0, progress: Progress | None = None
    ) -> None:
        """Copy a file from there.

        Args:
            remote: the file on the device.
            local: where it goes; its directory exists. Replaced in one step.
            offset: skip that many bytes, which ``local`` has already: only the rest is sent, and
                put after them.
            progress: told about the bytes of this call.
        """
