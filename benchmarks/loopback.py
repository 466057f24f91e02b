"""A real OpenSSH server on loopback, with keys and configuration of its own.

Nothing of the machine's own SSH set-up is read or changed: the client sees only the configuration
that EDGEBENCH_SSH_CONFIG names, the server only its own directory. The login shell's start-up files
belong to the machine and not to edgebench, so they are kept out (bash reads them over SSH only
where SHLVL says that it is the first shell); ``startup_files_s`` says what they would cost.
"""

from __future__ import annotations

import contextlib
import getpass
import os
import pwd
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from common import Refusal, tool

INSTALL = "Install it with `apt-get install openssh-server`."


@dataclass(frozen=True)
class Loopback:
    """A server that listens, and what a client needs to come in."""

    directory: Path
    port: int
    config: Path

    def profile(self, name: str, lock: str) -> Path:
        """Write a device profile for it: an agent root of its own, and this interpreter there."""
        path = self.directory / f"{name}.toml"
        path.write_text(
            f'extends = "linux-ssh"\nname = "{name}, over loopback"\n\n'
            f'[transport]\nhost = "127.0.0.1"\nport = {self.port}\n'
            f'user = "{getpass.getuser()}"\nconnect_timeout_s = 120.0\n\n'
            f'[runtime]\npython = "{sys.executable}"\n\n'
            f'[agent]\nroot = "{self.directory}/devices/{name}"\nlock = "{lock}"\n'
        )
        return path


@contextlib.contextmanager
def loopback(directory: Path) -> Iterator[Loopback]:
    """Start a server below a directory; it ends, with all its sessions, at the end.

    Raises:
        Refusal: there is no OpenSSH server here, or it does not start.
    """
    import asyncssh

    program = tool("sshd", "/usr/sbin/sshd", "/usr/local/sbin/sshd", install=INSTALL)
    sftp = tool(
        "sftp-server",
        "/usr/lib/openssh/sftp-server",
        "/usr/libexec/sftp-server",
        "/usr/libexec/openssh/sftp-server",
        install=INSTALL,
    )
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
    home = directory / "sshd"
    (home / "devices").mkdir(parents=True)
    keys = {name: asyncssh.generate_private_key("ssh-ed25519") for name in ("host", "client")}
    for name, key in keys.items():
        path = home / f"{name}_key"
        path.touch(mode=0o600)
        path.write_bytes(key.export_private_key("openssh"))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    (home / "authorized_keys").write_bytes(keys["client"].export_public_key())
    (home / "sshd_config").write_text(
        f"Port {port}\nListenAddress 127.0.0.1\nHostKey {home}/host_key\nPidFile none\n"
        f"AuthorizedKeysFile {home}/authorized_keys\nUsePAM no\nStrictModes no\n"
        "PasswordAuthentication no\nKbdInteractiveAuthentication no\n"
        "PermitRootLogin prohibit-password\nMaxStartups 500\nMaxSessions 100\n"
        f"LoginGraceTime 120\nSetEnv SHLVL=1\nSubsystem sftp {sftp}\n"
    )
    public = " ".join(keys["host"].export_public_key().decode().split()[:2])
    (home / "known_hosts").write_text(f"[127.0.0.1]:{port} {public}\n")
    config = home / "config"
    config.write_text(
        f"Host *\n  UserKnownHostsFile {home}/known_hosts\n  GlobalKnownHostsFile {home}/none\n"
        f"  IdentityFile {home}/client_key\n  IdentityAgent none\n"
    )
    with (home / "log").open("wb") as log:
        process = subprocess.Popen(
            [program, "-D", "-e", "-f", str(home / "sshd_config")],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    try:
        _await(process, port, home / "log")
        yield Loopback(home, port, config)
    finally:
        for pid in reversed(_family(process.pid)):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        process.wait()


def startup_files_s() -> float:
    """What a command over SSH waits for this user's shell to read its start-up files, at the least
    (seconds)."""
    shell = pwd.getpwuid(os.getuid()).pw_shell or "/bin/sh"

    def took(level: str) -> float:
        env = {**os.environ, "SSH_CLIENT": "127.0.0.1 1 1", "SHLVL": level}
        begin = time.perf_counter()
        subprocess.run(
            [shell, "-c", "true"],
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            check=False,
        )
        return time.perf_counter() - begin

    return max(0.0, min(took("0") for _ in range(5)) - min(took("1") for _ in range(5)))


def _await(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    until = time.monotonic() + 10
    while process.poll() is None and time.monotonic() < until:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.02)
    said = log.read_text().strip().splitlines() or ["it said nothing"]
    raise Refusal(f"sshd does not start: {said[-1]}")


def _family(root: int) -> list[int]:
    from process import family

    return family(root)
