"""Verifying a host while connecting to it, and saying what went wrong.

``Guard`` and ``Verifier`` are what asyncssh asks about a host key; ``told`` turns what asyncssh and
the system raise meanwhile into the errors of ``base``.
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import asyncssh

from edgebench.transport.base import (
    HostKeyChangedError,
    HostKeyUnknownError,
    LoginRefusedError,
    UnreachableError,
)
from edgebench.transport.known_hosts import HostKey, KnownHosts, listed_name


class Guard(asyncssh.SSHClient):
    """Sees the host key that was not among the known ones. It never accepts one."""

    def __init__(self) -> None:
        self.shown: asyncssh.SSHKey | None = None
        self.authority: asyncssh.SSHKey | None = None

    def validate_host_public_key(
        self, host: str, addr: str, port: int, key: asyncssh.SSHKey
    ) -> bool:
        self.shown = key
        return False

    def validate_host_ca_key(self, host: str, addr: str, port: int, key: asyncssh.SSHKey) -> bool:
        self.authority = key
        return False


@dataclass
class Verifier:
    """Looks host keys up for one hop, and remembers what it was asked."""

    known: KnownHosts
    name: str
    port: int
    alias: bool
    address: str = ""

    def __call__(self, host: str, address: str, port: int | None) -> Any:
        # An alias stands for one machine whatever its address: several phones behind one adb port.
        self.name, self.address = host, "" if self.alias else address
        return (*self.known.lookup(self.name, self.address, port), (), (), (), ())

    @property
    def listed(self) -> str:
        return listed_name(self.name, self.port, alias=self.alias)

    def places(self) -> list[str]:
        return self.known.places(self.name, self.address, None if self.port == 22 else self.port)


class UnknownHostKey(Exception):
    """Inside this package: a hop showed a key that nobody has accepted yet."""

    def __init__(self, key: HostKey) -> None:
        super().__init__(key.fingerprint)
        self.key = key


@contextlib.contextmanager
def told(
    where: str, guard: Guard | None = None, verifier: Verifier | None = None
) -> Iterator[None]:
    """Turn what asyncssh and the system raise while connecting into sentences."""
    try:
        yield
    except asyncssh.HostKeyNotVerifiable as error:
        assert guard is not None and verifier is not None
        raise _unverified(error, where, guard, verifier) from error
    except asyncssh.PermissionDenied as error:
        raise LoginRefusedError(
            "no key of yours is accepted there",
            where=where,
            fix="Copy yours with `ssh-copy-id`, check the user's name, and unlock the key in your "
            "agent (`ssh-add`); passwords are not used.",
        ) from error
    except asyncssh.KeyExchangeFailed as error:
        raise UnreachableError(
            f"no agreement on how to speak: {error.reason}",
            where=where,
            fix="If the host was set up anew, its known_hosts line may be of another kind of key; "
            "else its SSH server is too old.",
        ) from error
    except asyncssh.DisconnectError as error:
        raise UnreachableError(
            f"it hung up while connecting: {error.reason}",
            where=where,
            fix="Check that an SSH server listens there, and what it says in its log.",
        ) from error
    except asyncssh.ChannelOpenError as error:
        raise UnreachableError(
            f"the jump host can't reach it: {error.reason}",
            where=where,
            fix="Check that it is on, and that the jump host may forward (AllowTcpForwarding).",
        ) from error
    except socket.gaierror as error:
        raise UnreachableError(
            "no machine of that name is known",
            where=where,
            fix="Check `host` in the profile, or give the machine's address.",
        ) from error
    except asyncssh.KeyImportError as error:
        raise LoginRefusedError(
            f"the private key can't be read: {error}", where=where, fix="Check `identity_file`."
        ) from error
    except asyncssh.ConfigParseError as error:
        raise UnreachableError(
            f"the ssh configuration has a mistake: {error}", where=where, fix="Correct it."
        ) from error
    except TimeoutError:
        raise  # the whole way has one time limit, which says so
    except OSError as error:
        if error.filename is not None:
            raise LoginRefusedError(
                f"can't read {error.filename}: {error.strerror}",
                where=where,
                fix="Check its rights.",
            ) from error
        raise UnreachableError(
            f"can't connect: {error.strerror or error}",
            where=where,
            fix="Check that it is on, its address, and that its SSH server runs.",
        ) from error


def _unverified(
    error: asyncssh.HostKeyNotVerifiable, where: str, guard: Guard, verifier: Verifier
) -> Exception:
    places = verifier.places()
    if guard.shown is not None and not places:
        public = guard.shown.export_public_key().decode().split()
        return UnknownHostKey(
            HostKey(
                host=verifier.listed,
                algorithm=guard.shown.get_algorithm(),
                fingerprint=guard.shown.get_fingerprint(),
                file=verifier.known.write_to,
                public=" ".join(public[:2]),
            )
        )
    if guard.authority is not None:
        return HostKeyUnknownError(
            "its host certificate is signed by an authority that is not known: "
            f"{guard.authority.get_fingerprint()}",
            where=where,
            fix="Add a @cert-authority line for it to your known_hosts.",
        )
    if guard.shown is None:
        return HostKeyChangedError(
            f"its host key is refused: {error.reason}",
            where=where,
            fix="A key is revoked only for a reason: ask whoever runs the host.",
        )
    return HostKeyChangedError(
        f"its host key has changed: it shows {guard.shown.get_fingerprint()}, "
        f"known is {', '.join(places)}",
        where=where,
        fix="Someone may be in between. If the device was set up anew, remove that line by hand "
        f"(`ssh-keygen -R '{verifier.listed}'`), then run `edgebench setup`.",
    )
