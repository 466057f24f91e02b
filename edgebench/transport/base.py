"""The interface of a transport: the few things that measuring needs from a device.

Commands are argument lists, always; a transport that has to build a shell line quotes them in one
place. Failures of the link are DeviceError; a command's own failure is its return code.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

#: Called with (bytes done, bytes in all) while a file moves.
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Completed:
    """A command that has ended on the device."""

    returncode: int
    stdout: bytes
    stderr: bytes


class Channel(ABC):
    """A running command with open stdin and stdout: the agent's JSON lines."""

    @abstractmethod
    async def readline(self) -> bytes:
        """The next line with its end, or b"" when the far side has closed."""

    @abstractmethod
    async def write(self, data: bytes) -> None:
        """Send bytes to stdin; DeviceError if the far side is gone."""

    @abstractmethod
    async def close(self) -> None:
        """Close stdin and wait for the command to end."""


class Transport(ABC):
    """A connection to one device."""

    async def __aenter__(self) -> Transport:
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
    async def put(self, local: Path, remote: str, progress: Progress | None = None) -> None:
        """Copy a file there: under a temporary name first, so that it appears whole or not."""

    @abstractmethod
    async def get(self, remote: str, local: Path) -> None:
        """Copy a file from there."""
