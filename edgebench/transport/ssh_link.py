"""Opening SSH connections: configuration, jump hosts, host keys, and what to say where it fails.

Every hop is opened here, one after the other, and not by asyncssh from a ProxyJump string: so each
has its host key verified by the same rules, keeps itself alive, and is named when it is the one
that fails. asyncssh reads ``UserKnownHostsFile none`` as "verify nothing"; here it means that no
key is known.
"""

from __future__ import annotations

import asyncio
import os
import weakref
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import asyncssh

from edgebench.device_spec import SshSpec
from edgebench.transport.base import (
    HostKeyUnknownError,
    LoginRefusedError,
    UnreachableError,
)
from edgebench.transport.known_hosts import HostKey, KnownHosts
from edgebench.transport.ssh_verify import Guard, UnknownHostKey, Verifier, told

#: A pulled cable is noticed when this many answers, this far apart (seconds), have not come: 16 s.
KEEPALIVE_INTERVAL_S = 4.0
KEEPALIVE_COUNT = 3
#: More hops than anybody has: a circle of ProxyJump.
MAX_HOPS = 8
#: Handshakes at once from this process: more only makes each slower, up to the login grace of sshd.
CONNECT_SLOTS = 32
#: Overrides ~/.ssh/config, for tests and for racks with a configuration of their own.
CONFIG_VARIABLE = "EDGEBENCH_SSH_CONFIG"


@dataclass
class Link:
    """Open connections to a device, the last of them to the device itself."""

    hops: list[asyncssh.SSHClientConnection] = field(default_factory=list)

    @property
    def connection(self) -> asyncssh.SSHClientConnection:
        return self.hops[-1]

    async def close(self) -> None:
        """Close all, the farthest first."""
        for hop in reversed(self.hops):
            hop.close()
            try:
                # Over a dead link the farewell is never answered.
                await asyncio.wait_for(hop.wait_closed(), 2.0)
            except TimeoutError:
                hop.abort()
        self.hops.clear()


@dataclass(frozen=True)
class _Target:
    """One hop as the profile, or a ProxyJump, names it."""

    host: str
    user: str | None = None
    port: int | None = None
    identity_file: str | None = None
    jump: str | None = None


_SLOTS: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, asyncio.Semaphore] = (
    weakref.WeakKeyDictionary()
)


def _slots() -> asyncio.Semaphore:
    return _SLOTS.setdefault(asyncio.get_running_loop(), asyncio.Semaphore(CONNECT_SLOTS))


async def open_link(spec: SshSpec, device: str) -> Link:
    """Connect to the device of a profile, over its jump hosts.

    Raises:
        HostKeyUnknownError: a host on the way has a key that was never accepted.
        HostKeyChangedError: it has another key than was accepted, or a revoked one.
        LoginRefusedError: no key of ours is accepted.
        UnreachableError: no answer, or not SSH.
    """
    try:
        return await _open(spec)
    except UnknownHostKey as unknown:
        key = unknown.key
        raise HostKeyUnknownError(
            f"the host key of {key.host} is not known: {key.algorithm} {key.fingerprint}",
            where=device,
            fix="Compare the fingerprint, then accept it with "
            f"`edgebench setup --device {device}`.",
        ) from None


async def first_unknown_key(spec: SshSpec) -> HostKey | None:
    """The first key on the way to a device that nobody has accepted yet, or None.

    Without a login to the host that shows it. A *changed* key is an error here too.

    Raises:
        HostKeyChangedError, LoginRefusedError, UnreachableError: as for ``open_link``; a refused
            login of the device itself is no error, since its key is known by then.
    """
    try:
        link = await _open(spec)
    except UnknownHostKey as unknown:
        return unknown.key
    except LoginRefusedError as error:
        if error.where == _label(spec.user, spec.host, spec.port):
            return None
        raise
    await link.close()
    return None


async def _open(spec: SshSpec) -> Link:
    target = _Target(spec.host, spec.user, spec.port, spec.identity_file, spec.proxy_jump)
    link = Link()
    try:
        async with _slots(), asyncio.timeout(spec.connect_timeout_s):
            await _extend(link, target, config=_config())
    except TimeoutError as error:
        await link.close()
        raise UnreachableError(
            f"no answer within {spec.connect_timeout_s:g} s",
            where=_label(spec.user, spec.host, spec.port),
            fix="Check that it is on and on the network, and `connect_timeout_s` in its profile.",
        ) from error
    except BaseException:  # cancelled too: half a chain of hops must not stay open
        await link.close()
        raise
    return link


def _config() -> list[str] | tuple[()]:
    path = os.environ.get(CONFIG_VARIABLE)
    if not path:
        return ()
    if not Path(path).is_file():
        raise UnreachableError(
            "there is no such ssh configuration",
            where=path,
            fix=f"Correct or unset {CONFIG_VARIABLE}.",
        )
    return [path]


async def _extend(
    link: Link, target: _Target, *, config: list[str] | tuple[()], depth: int = 0
) -> None:
    """Open one more hop, and before it the hops that lead there if it is the first."""
    if max(len(link.hops), depth) >= MAX_HOPS:
        raise UnreachableError(
            "jump hosts that lead to each other in a circle",
            where=target.host,
            fix="Correct ProxyJump in ~/.ssh/config.",
        )
    arguments: dict[str, Any] = {
        "username": target.user if target.user is not None else (),
        "port": target.port if target.port is not None else (),
        "keepalive_interval": KEEPALIVE_INTERVAL_S,
        "keepalive_count_max": KEEPALIVE_COUNT,
        "password_auth": False,
        "kbdint_auth": False,
        # A key that needs a passphrase may be held by an agent.
        "ignore_encrypted": True,
    }
    where = _label(target.user, target.host, target.port)
    with told(where):
        # Only to read the configuration; the keys are loaded once, for the connection itself.
        options = await asyncssh.SSHClientConnectionOptions.construct(
            host=target.host, config=config, client_keys=None, **arguments
        )
    jump = target.jump or (options.tunnel if isinstance(options.tunnel, str) else None)
    if not link.hops and jump:
        for hop in jump.split(","):
            await _extend(link, _hop(hop.strip()), config=config, depth=depth + 1)
    verifier = Verifier(
        known=_known_hosts(options, target.host),
        name=options.host_key_alias or options.host,
        port=options.port,
        alias=options.host_key_alias is not None,
    )
    # Within asyncssh's call a broken file could only break the connection, not explain itself.
    verifier.known.lookup(verifier.name, "", None)
    guard = Guard()
    tunnel = link.hops[-1] if link.hops else None
    with told(where, guard, verifier):
        connection = await asyncssh.connect(
            target.host,
            options=options,
            config=None,
            client_keys=_keys(options, target.identity_file, where),
            known_hosts=verifier,
            tunnel=tunnel,
            client_factory=lambda: guard,
        )
    link.hops.append(connection)


def _keys(
    options: asyncssh.SSHClientConnectionOptions, identity_file: str | None, where: str
) -> Any:
    """The private keys to try; () leaves it to the default ones.

    As ssh does, an IdentityFile of the configuration that does not exist is passed over. One that
    the profile names must be there.
    """
    if identity_file is not None:
        path = Path(identity_file).expanduser()
        if not path.is_file():
            raise LoginRefusedError(
                f"there is no private key {path}", where=where, fix="Correct `identity_file`."
            )
        return [str(path)]
    named = cast("list[str]", options.config.get("IdentityFile", []))
    return [name for name in named if Path(name).expanduser().is_file()] or ()


def _hop(text: str) -> _Target:
    user, _, rest = text.removeprefix("ssh://").rpartition("@")
    host, _, port = rest.partition(":") if rest.count(":") == 1 else (rest, "", "")
    if port and not port.isdecimal():
        raise UnreachableError(
            f"{text!r} is no jump host",
            fix='Write it as "user@host:port" in ProxyJump or `proxy_jump`.',
        )
    return _Target(host, user or None, int(port) if port else None)


def _label(user: str | None, host: str, port: int | None) -> str:
    return (f"{user}@" if user else "") + host + (f":{port}" if port else "")


def _known_hosts(options: asyncssh.SSHClientConnectionOptions, host: str) -> KnownHosts:
    def paths(key: str, default: list[str]) -> list[Path]:
        names = cast("list[str]", options.config.get(key, default))
        tokens = {"%d": str(Path.home()), "%h": options.host, "%n": host, "%r": options.username}
        for token, value in tokens.items():
            names = [name.replace(token, value) for name in names]
        return [Path(name).expanduser() for name in names]

    own = paths("UserKnownHostsFile", ["~/.ssh/known_hosts", "~/.ssh/known_hosts2"])
    shared = paths("GlobalKnownHostsFile", ["/etc/ssh/ssh_known_hosts"])
    write_to = own[0] if own else Path(os.devnull)
    return KnownHosts(files=(*own, *shared), write_to=write_to)
