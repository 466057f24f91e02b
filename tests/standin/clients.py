"""The ssh side of a stand-in: keys, known_hosts and a ready ssh config for each client."""

from __future__ import annotations

import base64
import hashlib
import os
import shlex
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from .machine import command

ALGORITHM = "ed25519"


@dataclass(frozen=True)
class Client:
    """One person or laptop that may log in: `user` on the stand-in, with a key of its own."""

    alias: str
    user: str
    host: str
    port: int
    key_path: Path
    known_hosts_path: Path
    config_path: Path

    def ssh_argv(self, argv: Sequence[str], options: Sequence[str] = ()) -> list[str]:
        """The OpenSSH command that runs `argv` on the stand-in, each word arriving as it is."""
        return ["ssh", "-F", str(self.config_path), *options, self.alias, shlex.join(argv)]

    def ssh(
        self, argv: Sequence[str], *, input: str | None = None, timeout_s: float = 60.0
    ) -> subprocess.CompletedProcess[str]:
        """Run `argv` over the real OpenSSH client and wait for it."""
        return subprocess.run(
            self.ssh_argv(argv),
            input=input,
            stdin=subprocess.DEVNULL if input is None else None,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )

    def start(self, argv: Sequence[str]) -> subprocess.Popen[str]:
        """Start `argv` over the real OpenSSH client and leave it running, with pipes to it."""
        return subprocess.Popen(
            self.ssh_argv(argv),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )


def said(done: subprocess.CompletedProcess[str]) -> str:
    """What a command printed, stripped; AssertionError with its complaint where it failed."""
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def make_key(path: Path) -> str:
    """Make a key pair at `path` and return the public half, as one line without a comment."""
    for old in (path, path.with_suffix(".pub")):
        old.unlink(missing_ok=True)
    command(["ssh-keygen", "-q", "-t", ALGORITHM, "-N", "", "-C", "", "-f", str(path)])
    return " ".join(path.with_suffix(".pub").read_text().split()[:2])


def fingerprint(public_key: str) -> str:
    """SHA256 fingerprint of a public key line, as ssh-keygen -l prints it."""
    digest = hashlib.sha256(base64.b64decode(public_key.split()[1])).digest()
    return "SHA256:" + base64.b64encode(digest).decode().rstrip("=")


def make_client(
    home: Path, *, alias: str, user: str, host: str, port: int, host_key: str
) -> Client:
    """Make a client's files in the new folder `home`."""
    home.mkdir(parents=True)
    client = Client(
        alias, user, host, port, home / "id_ed25519", home / "known_hosts", home / "ssh_config"
    )
    make_key(client.key_path)
    name = host if port == 22 else f"[{host}]:{port}"
    client.known_hosts_path.write_text(f"{name} {host_key}\n")
    client.config_path.write_text(
        f"Host {alias}\n"
        f"    HostName {host}\n    Port {port}\n    User {user}\n"
        f"    IdentityFile {client.key_path}\n    IdentitiesOnly yes\n"
        f"    UserKnownHostsFile {client.known_hosts_path}\n    GlobalKnownHostsFile /dev/null\n"
        "    StrictHostKeyChecking yes\n    BatchMode yes\n"
    )
    client.config_path.chmod(0o600)
    return client


def authorise(home: Path, client: Client, uid: int) -> None:
    """Make the account's home where it is missing, and let the client's key in."""
    folder = home / ".ssh"
    if not home.is_dir():
        skeleton = home.parent.parent / "etc/skel"
        home.mkdir(mode=0o755)
        for file in skeleton.iterdir():
            shutil.copyfile(file, home / file.name)
    folder.mkdir(mode=0o700, exist_ok=True)
    with (folder / "authorized_keys").open("a") as keys:
        keys.write(client.key_path.with_suffix(".pub").read_text())
    for path in [home, folder, *home.iterdir(), *folder.iterdir()]:
        os.chown(path, uid, uid)
