"""A device over SSH, by asyncssh: commands, channels, and files by SFTP.

What the profile leaves out comes from the ssh configuration (``~/.ssh/config``, or the file that
EDGEBENCH_SSH_CONFIG names): aliases, jump hosts, keys, agents. Host keys are always verified; there
is no way to turn that off. Only ``trust_host_key`` accepts one, after a person has seen it.

A command that is running when the link breaks, or its time is up, may go on running there: sshd
does not end it. What must not outlive its host ends itself when its stdin closes.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import asyncssh

from edgebench.device_spec import SshSpec
from edgebench.transport import known_hosts
from edgebench.transport.base import (
    Channel,
    CommandError,
    Completed,
    LinkLostError,
    Progress,
    TransferError,
    Transport,
)
from edgebench.transport.known_hosts import HostKey
from edgebench.transport.quote import shell_line
from edgebench.transport.ssh_channel import SshChannel, returncode_of
from edgebench.transport.ssh_files import fetch, relative, send
from edgebench.transport.ssh_link import Link, first_unknown_key, open_link

if TYPE_CHECKING:
    from asyncssh import SFTPClient


class SshTransport(Transport):
    """A connection to the device of a profile.

    Args:
        spec: the profile's transport table.
        device: the profile's name, for messages.
    """

    def __init__(self, spec: SshSpec, device: str) -> None:
        self._spec = spec
        self._device = device
        self._link: Link | None = None
        self._sftp: SFTPClient | None = None
        self._sftp_lock = asyncio.Lock()

    def describe(self) -> str:
        spec = self._spec
        user = f"{spec.user}@" if spec.user else ""
        return f"{user}{spec.host}" + (f":{spec.port}" if spec.port else "")

    async def connect(self) -> None:
        if self._link is None:
            self._link = await open_link(self._spec, self._device)

    async def close(self) -> None:
        link, self._link, self._sftp = self._link, None, None
        if link is not None:
            await link.close()

    async def fetch_host_key(self) -> HostKey | None:
        """The first key on the way there, jump hosts included, that nobody has accepted yet.

        None when all are known. Logs in nowhere that is not known.

        Raises:
            DeviceError: unreachable, or a key has *changed*, which setup never mends.
        """
        return await first_unknown_key(self._spec)

    def trust_host_key(self, key: HostKey) -> None:
        """Remember a key that a person has compared and accepted, in their own known_hosts.

        Raises:
            StorageError: the file can't be written.
        """
        known_hosts.add(key)

    async def run(
        self, argv: Sequence[str], *, stdin: bytes | None = None, timeout_s: float | None = None
    ) -> Completed:
        line = shell_line(argv)
        try:
            with self._told(argv[0]):
                async with asyncio.timeout(timeout_s):
                    return await self._completed(line, stdin)
        except TimeoutError as error:
            raise CommandError(
                f"{argv[0]} did not end within {timeout_s:g} s", where=self._device
            ) from error

    async def _completed(self, line: str, stdin: bytes | None) -> Completed:
        process = await self._start(line, stdin=stdin)
        try:
            out, err = await process.communicate(stdin)
            await process.wait_closed()
            return Completed(returncode_of(process, self._device), out or b"", err or b"")
        finally:
            # Not waited for: over a dead link nobody answers.
            process.close()

    async def open(self, argv: Sequence[str]) -> Channel:
        line = shell_line(argv)
        with self._told(argv[0]):
            process = await self._start(line, stdin=b"")
            return SshChannel(process, self._connection(), self._device)

    async def _start(self, line: str, *, stdin: bytes | None) -> asyncssh.SSHClientProcess[bytes]:
        # A terminal would echo, translate line ends, and turn bytes into signals.
        return await self._connection().create_process(
            line,
            encoding=None,
            request_pty=False,
            stdin=asyncssh.DEVNULL if stdin is None else asyncssh.PIPE,
        )

    async def expand(self, path: str) -> str:
        if not path.startswith("~/") and path != "~":
            return path
        with self._told(path):
            home = await (await self._files()).realpath(".")
        return str(home) + path[1:]

    async def exists(self, remote: str) -> bool:
        with self._told(remote):
            return await (await self._files()).exists(relative(remote))

    async def put(self, local: Path, remote: str, progress: Progress | None = None) -> None:
        with self._told(remote):
            await send(await self._files(), self._device, local, remote, progress)

    async def get(
        self, remote: str, local: Path, *, offset: int = 0, progress: Progress | None = None
    ) -> None:
        with self._told(remote):
            await fetch(await self._files(), remote, local, offset, progress)

    def _connection(self) -> asyncssh.SSHClientConnection:
        if self._link is None:
            raise LinkLostError("not connected", where=self._device)
        return self._link.connection

    async def _files(self) -> SFTPClient:
        async with self._sftp_lock:
            if self._sftp is None:
                self._sftp = await self._connection().start_sftp_client()
            return self._sftp

    @contextlib.contextmanager
    def _told(self, what: str) -> Iterator[None]:
        """Turn what asyncssh raises on an open connection into sentences."""
        try:
            yield
        except (asyncssh.SFTPConnectionLost, asyncssh.SFTPNoConnection) as error:
            raise self._lost() from error
        except asyncssh.SFTPNoSuchFile as error:
            raise TransferError("there is no such file", where=f"{self._device}: {what}") from error
        except asyncssh.SFTPPermissionDenied as error:
            raise TransferError(
                "no permission",
                where=f"{self._device}: {what}",
                fix="Check who owns it, and `agent.root` in the profile.",
            ) from error
        except asyncssh.SFTPBadMessage as error:
            raise TransferError(
                "no file can be moved: the device's start-up files print text where SFTP begins",
                where=self._device,
                fix="Let its ~/.bashrc and the like print only in interactive shells, or set "
                "`Subsystem sftp internal-sftp` in its sshd_config.",
            ) from error
        except asyncssh.SFTPError as error:
            raise TransferError(
                f"the file can't be moved: {error.reason}", where=f"{self._device}: {what}"
            ) from error
        except asyncssh.ChannelOpenError as error:
            if self._connection().is_closed():
                raise self._lost() from error
            raise CommandError(
                f"the device starts no command: {error.reason}",
                where=f"{self._device}: {what}",
                fix="Check MaxSessions and ForceCommand of its SSH server, and its SFTP subsystem.",
            ) from error
        except (asyncssh.DisconnectError, BrokenPipeError, ConnectionError) as error:
            raise self._lost() from error
        except asyncssh.Error as error:
            raise LinkLostError(f"the connection failed: {error}", where=self._device) from error
        except TimeoutError:
            raise  # also an OSError; the caller knows whose time is up
        except OSError as error:
            raise TransferError(
                f"a file on this side: {error.strerror}",
                where=str(error.filename or what),
                fix="Check the room and the rights here.",
            ) from error

    def _lost(self) -> LinkLostError:
        return LinkLostError("the connection to the device was lost", where=self._device)
