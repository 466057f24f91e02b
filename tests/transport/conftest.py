"""Real OpenSSH servers on loopback, each with its own configuration, host key and port.

Nothing of the machine's own SSH set-up is read or changed: clients see only a configuration that
the test writes (EDGEBENCH_SSH_CONFIG), servers only their own directory.
"""

from __future__ import annotations

import asyncio
import getpass
import inspect
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import asyncssh
import pytest

from edgebench.device_spec import SshSpec
from edgebench.transport.local import LocalTransport
from edgebench.transport.ssh import SshTransport
from edgebench.transport.ssh_link import CONFIG_VARIABLE

SFTP_SERVER = "/usr/lib/openssh/sftp-server"


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """Tests may be coroutines; each gets a loop of its own."""
    if not inspect.iscoroutinefunction(pyfuncitem.obj):
        return None
    names = inspect.signature(pyfuncitem.obj).parameters
    asyncio.run(pyfuncitem.obj(**{name: pyfuncitem.funcargs[name] for name in names}))
    return True


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Sshd:
    """One server; ``home`` is where its SFTP begins."""

    def __init__(self, directory: Path, program: str, authorized: str) -> None:
        self.directory = directory
        self.program = program
        self.home = directory / "home"
        self.port = free_port()
        self.extra: list[str] = []
        self._process: subprocess.Popen[bytes] | None = None
        self.home.mkdir(parents=True)
        (directory / "authorized_keys").write_text(authorized)
        self.new_host_key()

    def new_host_key(self) -> None:
        key = asyncssh.generate_private_key("ssh-ed25519")
        file = self.directory / "host_key"
        file.unlink(missing_ok=True)
        file.touch(mode=0o600)
        file.write_bytes(key.export_private_key("openssh"))
        self.public = " ".join(key.export_public_key().decode().split()[:2])
        self.fingerprint = key.get_fingerprint()

    def start(self) -> None:
        config = self.directory / "sshd_config"
        lines = [
            f"Port {self.port}",
            "ListenAddress 127.0.0.1",
            f"HostKey {self.directory}/host_key",
            f"PidFile {self.directory}/sshd.pid",
            f"AuthorizedKeysFile {self.directory}/authorized_keys",
            "UsePAM no",
            "StrictModes no",
            "PasswordAuthentication no",
            "KbdInteractiveAuthentication no",
            "PermitRootLogin prohibit-password",
            "PermitUserEnvironment no",
            "MaxStartups 200",
            "MaxSessions 50",
            f"Subsystem sftp {SFTP_SERVER} -d {self.home}",
            # Else the shell reads the real user's start-up files, which may be slow or take locks.
            f"SetEnv HOME={self.home}",
            *self.extra,
        ]
        config.write_text("\n".join(lines) + "\n")
        log = (self.directory / "log").open("ab")
        self._process = subprocess.Popen(
            [self.program, "-D", "-e", "-f", str(config)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )
        log.close()
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", self.port)) == 0:
                    return
            assert self._process.poll() is None, (self.directory / "log").read_text()
            time.sleep(0.02)
        raise AssertionError("sshd did not start")

    def processes(self) -> list[int]:
        """The server and everything below it, the sessions' commands included."""
        if self._process is None:
            return []
        children: dict[int, list[int]] = {}
        for entry in Path("/proc").glob("[0-9]*"):
            try:
                # After the command's closing bracket: state, then the parent's number.
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            except (OSError, ValueError, IndexError):
                continue
            children.setdefault(parent, []).append(int(entry.name))
        found = [self._process.pid]
        for pid in found:
            found.extend(children.get(pid, []))
        return found

    def signal(self, number: signal.Signals) -> None:
        # Parents first: a command that dies before its server would be reported by it.
        for pid in self.processes():
            try:
                os.kill(pid, number)
            except ProcessLookupError:
                continue

    def kill(self) -> None:
        """As if the power went: server, sessions and commands at once."""
        self.signal(signal.SIGKILL)
        if self._process is not None:
            self._process.wait()
            self._process = None


class Lab:
    """The client's side: a key, a known_hosts file, an ssh configuration, and the servers."""

    def __init__(self, directory: Path, program: str) -> None:
        self.directory = directory
        self.program = program
        self.servers: list[Sshd] = []
        self.known_hosts = directory / "known_hosts"
        self.config = directory / "config"
        self.key = directory / "id_ed25519"
        self.private = asyncssh.generate_private_key("ssh-ed25519")
        self.key.write_bytes(self.private.export_private_key("openssh"))
        self.key.chmod(0o600)
        self.configure("")

    def configure(self, text: str) -> None:
        """Write the client's configuration: what the test says, then what all hosts share."""
        self.config.write_text(
            f"{text}\nHost *\n  UserKnownHostsFile {self.known_hosts}\n"
            f"  GlobalKnownHostsFile {self.directory}/none\n"
            f"  IdentityFile {self.key}\n  IdentityAgent none\n"
        )

    def server(self, *extra: str, known: bool = True) -> Sshd:
        authorized = self.private.export_public_key().decode()
        place = self.directory / f"server-{len(self.servers)}"
        place.mkdir()
        server = Sshd(place, self.program, authorized)
        server.extra = list(extra)
        server.start()
        self.servers.append(server)
        if known:
            self.know(server)
        return server

    def know(self, server: Sshd, name: str | None = None) -> None:
        with self.known_hosts.open("a") as file:
            file.write(f"{name or f'[127.0.0.1]:{server.port}'} {server.public}\n")

    def transport(self, server: Sshd | None = None, **changes: Any) -> SshTransport:
        table: dict[str, Any] = {"kind": "ssh", "user": getpass.getuser(), **changes}
        if server is not None:
            table = {"host": "127.0.0.1", "port": server.port, **table}
        return SshTransport(SshSpec.model_validate(table), "pi4")


@pytest.fixture(scope="session")
def sshd_program() -> str:
    """Path of sshd; installed here where that can be done, since CI must not skip these."""
    program = shutil.which("sshd") or "/usr/sbin/sshd"
    if not Path(program).exists() and os.geteuid() == 0 and shutil.which("apt-get"):
        subprocess.run(["apt-get", "update", "-qq"], check=True)
        subprocess.run(
            ["apt-get", "install", "-y", "-qq", "--no-install-recommends", "openssh-server"],
            check=True,
            env={**os.environ, "DEBIAN_FRONTEND": "noninteractive"},
        )
    if not Path(program).exists():
        pytest.skip("no OpenSSH server here, and no root on Debian to install one")
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
    return program


@pytest.fixture
def lab(tmp_path: Path, sshd_program: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Lab]:
    made = Lab(tmp_path, sshd_program)
    monkeypatch.setenv(CONFIG_VARIABLE, str(made.config))
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
    yield made
    for server in made.servers:
        server.signal(signal.SIGCONT)
        server.kill()


@pytest.fixture(params=["local", "ssh"])
def transport(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> LocalTransport | SshTransport:
    """Both transports, for what must hold of each. ``~`` is not the real home."""
    if request.param == "local":
        home = tmp_path / "home"
        home.mkdir()
        monkeypatch.setenv("HOME", str(home))
        return LocalTransport()
    made: Lab = request.getfixturevalue("lab")
    return made.transport(made.server())
