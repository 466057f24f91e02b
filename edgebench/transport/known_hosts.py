"""The files of accepted host keys: which keys hold for a host, where they stand, and adding one.

The format is OpenSSH's (sshd(8), SSH_KNOWN_HOSTS FILE FORMAT). A key that is there is never changed
or removed here: only a person decides that.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import hmac
import os
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import asyncssh

from edgebench.errors import StorageError
from edgebench.transport.base import HostKeyChangedError

#: Host keys, keys of certificate authorities, and revoked keys of a host.
Trusted = tuple[
    Sequence[asyncssh.SSHKey],
    Sequence[asyncssh.SSHKey],
    Sequence[asyncssh.SSHKey],
]


@dataclass(frozen=True)
class HostKey:
    """A key that a host has shown, to be looked at and perhaps accepted.

    ``host`` is the name under which known_hosts lists it ("pi4.local", "[127.0.0.1]:2222"),
    ``file`` where it would be added, ``line`` what would be.
    """

    host: str
    algorithm: str
    fingerprint: str
    file: Path
    public: str

    @property
    def line(self) -> str:
        return f"{self.host} {self.public}"


@dataclass(frozen=True)
class KnownHosts:
    """The files that hold for one host, in ssh's order; ``write_to`` is the user's own first."""

    files: tuple[Path, ...]
    write_to: Path

    def lookup(self, name: str, address: str, port: int | None) -> Trusted:
        """The keys that hold for a host.

        Raises:
            HostKeyChangedError: a file can't be read, so that nothing can be verified.
        """
        stamps = []
        for file in self.files:
            if file.is_file():
                state = file.stat()
                stamps.append((file, state.st_mtime_ns, state.st_size))
        known = _parse(tuple(stamps))
        return known.match(name, address, port)[:3]

    def places(self, name: str, address: str, port: int | None) -> list[str]:
        """ "file:line (SHA256:...)" of every key that is listed for the host."""
        found = []
        for file in self.files:
            if not file.is_file():
                continue
            for number, line in enumerate(file.read_text(errors="replace").splitlines(), 1):
                try:
                    entry = asyncssh.import_known_hosts(line)
                except ValueError:
                    continue
                for key in entry.match(name, address, port)[0]:
                    found.append(f"{file}:{number} ({key.get_fingerprint()})")
        return found


@functools.lru_cache(maxsize=64)
def _parse(stamps: tuple[tuple[Path, int, int], ...]) -> asyncssh.SSHKnownHosts:
    """Parsed once for all devices of a rack; the stamps say when a file has changed."""
    known = asyncssh.SSHKnownHosts()
    for file, _, _ in stamps:
        try:
            known.load(file.read_text())
        except (OSError, ValueError) as error:
            raise HostKeyChangedError(
                f"the file of known host keys can't be read: {error}",
                where=str(file),
                fix="Correct or remove the line; until then no host key can be verified.",
            ) from error
    return known


def listed_name(name: str, port: int, *, alias: bool) -> str:
    """The name that known_hosts has for a host: with its port only where that is not 22.

    An alias (HostKeyAlias) stands alone, as ssh writes it.
    """
    return name if alias or port == 22 else f"[{name}]:{port}"


def add(key: HostKey, *, hashed: bool | None = None) -> None:
    """Append an accepted key to its file, in one write; the file is made with mode 0600.

    Args:
        key: the key that a person has looked at.
        hashed: hide the host's name as ssh's HashKnownHosts does; None: as the file's others are.

    Raises:
        StorageError: the file can't be written.
    """
    if key.file.exists() and not key.file.is_file():
        raise StorageError(
            "the host key can't be remembered: ssh's configuration keeps no known hosts",
            where=str(key.file),
            fix="Name a file in UserKnownHostsFile of ~/.ssh/config.",
        )
    try:
        key.file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        before = key.file.read_bytes() if key.file.exists() else b""
        if hashed is None:
            hashed = before.lstrip().startswith(b"|1|")
        name = _hashed(key.host) if hashed else key.host
        line = f"{name} {key.public}\n".encode()
        if before and not before.endswith(b"\n"):
            line = b"\n" + line
        handle = os.open(key.file, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        try:
            os.write(handle, line)
            os.fsync(handle)
        finally:
            os.close(handle)
    except OSError as error:
        raise StorageError(
            f"the host key can't be remembered: {error.strerror}",
            where=str(key.file),
            fix="Mend the rights of that file, or set UserKnownHostsFile in ~/.ssh/config.",
        ) from error


def _hashed(name: str) -> str:
    """|1|salt|HMAC-SHA1(salt, name)|, as ssh-keygen -H writes it."""
    salt = secrets.token_bytes(20)
    digest = hmac.new(salt, name.encode(), hashlib.sha1).digest()
    return f"|1|{base64.b64encode(salt).decode()}|{base64.b64encode(digest).decode()}"
