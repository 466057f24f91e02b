"""`Device`: a stand-in that boots, answers ssh and can be looked into. `StandIn` adds faults."""

from __future__ import annotations

import os
import signal
import subprocess
import time
import uuid
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

from . import slots
from .cable import Cable
from .clients import Client, authorise, fingerprint, make_client, make_key
from .identity import IDENTITIES, Identity
from .machine import PLAYED_PROC, WAIT_S, Keeper, Machine, Process, until
from .played import Played
from .rootfs import add_user, build_onnxruntime_layer, build_root

MIB = 1 << 20
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
Sftp = Literal["external", "internal", "none"]
SFTP = {
    "external": "Subsystem sftp /usr/lib/openssh/sftp-server\n",
    "internal": "Subsystem sftp internal-sftp\n",
    "none": "",
}


class Device(Played):
    """One device, running from construction until `close`.

    `host`, `port`, `user`, `key_path`, `known_hosts_path` and `ssh_config_path` are those of its
    first client, `client`; `host_public_key` and `host_fingerprint` are the device's own.
    """

    port = 22

    def __init__(
        self,
        model: str | Identity = "pi4",
        *,
        onnxruntime: bool = False,
        home_bytes: int = 1024 * MIB,
        disk_bytes: int = 512 * MIB,
        memory_limit_bytes: int | None = None,
        uptime_s: int = 20,
        sftp: Sftp = "external",
    ) -> None:
        """Start it and wait until sshd listens.

        With `onnxruntime`, its Python already has NumPy and ONNX Runtime, as on a device that was
        set up before. Without, it has neither.
        Sizes are of the filesystem of the homes, of everything else that is written, and of the
        memory of all processes together (which the files they write count towards: those are in
        memory). `uptime_s` is what CLOCK_MONOTONIC reads at each boot. `sftp` is how sshd serves
        it: by a program that runs after the user's start-up files, as Debian does; inside sshd; or
        not at all.
        """
        super().__init__()
        self.identity = IDENTITIES[model] if isinstance(model, str) else model
        self._uptime_s, self._sftp, self._home_bytes = uptime_s, sftp, home_bytes
        self._clock = self.monotonic
        self._machine: Machine | None = None
        self._sshd: subprocess.Popen[bytes] | None = None
        self._clients: list[Client] = []
        self._uids = {"pi": 1000}
        lower = str(build_root())
        if onnxruntime:
            lower = f"{build_onnxruntime_layer()}:{lower}"
        self._undo = ExitStack()
        with ExitStack() as unless_up:
            unless_up.callback(self.close)
            self._slot = slots.take()
            self._undo.callback(self._slot.release)
            self._config = self._make_config(lower, disk_bytes, memory_limit_bytes)
            self._keeper = Keeper(self._config, self._live)
            self._undo.callback(self._keeper.close)
            self._slot.record({"keeper": self._keeper.pid})
            self._cable = Cable(self._slot, self._keeper)
            self.play(self.identity, memory_limit_bytes)
            self.host_public_key = make_key(self._host_key)
            self.client = self.add_client()
            self.power_on()
            unless_up.pop_all()

    def _make_config(
        self, lower: str, disk_bytes: int, memory_limit_bytes: int | None
    ) -> dict[str, object]:
        """What keeper and init are told; their mount points are made here."""
        group = self._slot.cgroup(memory_limit_bytes) if memory_limit_bytes else None
        places = {name: self._slot.home / name for name in ("state", "root", "fuse")}
        for place in places.values():
            place.mkdir()
        return {
            **{name: str(place) for name, place in places.items()},
            "lower": lower,
            "log": str(self._slot.home / "helpers.log"),
            "hostname": "raspberrypi",
            "home_bytes": self._home_bytes,
            "disk_bytes": disk_bytes,
            "played_proc": PLAYED_PROC,
            "cgroup_procs": str(group / "cgroup.procs") if group else "",
        }

    # How to reach it

    @property
    def host(self) -> str:
        """Its address."""
        return self._slot.address

    @property
    def alias(self) -> str:
        """Its name in the ssh config file of the first client."""
        return self.client.alias

    @property
    def user(self) -> str:
        return self.client.user

    @property
    def key_path(self) -> Path:
        return self.client.key_path

    @property
    def known_hosts_path(self) -> Path:
        return self.client.known_hosts_path

    @property
    def ssh_config_path(self) -> Path:
        return self.client.config_path

    @property
    def host_fingerprint(self) -> str:
        """SHA256 fingerprint of the key that sshd shows now."""
        return fingerprint(self.host_public_key)

    def add_client(self, user: str = "pi") -> Client:
        """Another laptop: a key of its own for `user`, whose account is made if missing."""
        number = len(self._clients)
        client = make_client(
            self._slot.home / f"client{number}",
            alias=f"standin-{self._slot.number}" + (f"-{number}" if number else ""),
            user=user,
            host=self.host,
            port=self.port,
            host_key=self.host_public_key,
        )
        if user not in self._uids:
            self._uids[user] = 1000 + len(self._uids)
            add_user(self.root, user, self._uids[user])
        authorise(self.home(user), client, self._uids[user])
        self._clients.append(client)
        return client

    def ssh(
        self, argv: Sequence[str], *, input: str | None = None, timeout_s: float = 60.0
    ) -> subprocess.CompletedProcess[str]:
        """Run `argv` over the real OpenSSH client, as the first client."""
        return self.client.ssh(argv, input=input, timeout_s=timeout_s)

    # What is inside

    @property
    def root(self) -> Path:
        """The device's disk as the test process can open it; the same across reboots."""
        return self._keeper.path(Path(str(self._config["root"])))

    def home(self, user: str = "pi") -> Path:
        """The home of `user` on that disk."""
        return self.root / "home" / user

    def processes(self) -> list[Process]:
        """Every living process of the device but its init, oldest first."""
        return self.machine.processes()

    def run(
        self,
        argv: Sequence[str],
        *,
        user: str = "root",
        env: Mapping[str, str] | None = None,
        input: str | None = None,
        timeout_s: float = 60.0,
    ) -> subprocess.CompletedProcess[str]:
        """Run a program inside directly, not through ssh. It is killed when the time is up."""
        uid = 0 if user == "root" else self._uids[user]
        home = "/root" if uid == 0 else f"/home/{user}"
        with subprocess.Popen(
            self.machine.enter(["/usr/bin/env", *argv], uid),
            env=self._environment() | {"HOME": home} | dict(env or {}),
            stdin=subprocess.DEVNULL if input is None else subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        ) as child:
            try:
                out, err = child.communicate(input, timeout_s)
            except subprocess.TimeoutExpired:
                os.killpg(child.pid, signal.SIGKILL)
                raise
        return subprocess.CompletedProcess(list(argv), child.returncode, out, err)

    def monotonic(self) -> float:
        """The device's CLOCK_MONOTONIC now, in seconds; while off, what it would be."""
        if self._machine is None:
            return float(self._uptime_s)
        return time.monotonic() + self._machine.monotonic_offset_s

    def boottime(self) -> float:
        """The device's CLOCK_BOOTTIME now, in seconds; while off, what it would be."""
        if self._machine is None:
            return float(self._uptime_s)
        return time.clock_gettime(time.CLOCK_BOOTTIME) + self._machine.boottime_offset_s

    def sshd_log(self) -> str:
        """What sshd has said since the stand-in was made."""
        return (self._slot.home / "sshd.log").read_text()

    # Its life

    @property
    def machine(self) -> Machine:
        """The boot that is on now."""
        if self._machine is None or not self._machine.on:
            raise RuntimeError("the stand-in is powered off")
        return self._machine

    def power_on(self) -> None:
        """Boot with a new boot id and CLOCK_MONOTONIC starting over, and start sshd."""
        self.set("/proc/sys/kernel/random/boot_id", str(uuid.uuid4()))
        self._machine = Machine(self._keeper, self._config, self._uptime_s)
        self._slot.record({"keeper": self._keeper.pid, "init": self._machine.init_pid})
        self._cable.plug()
        self.start_sshd()

    def power_off(self, *, clean: bool = False) -> None:
        """Take the power away: every process ends, and nobody at the other end is told.

        With `clean`, connections are closed first, as a shutdown does.
        """
        if not clean:
            self._cable.pull()
        self.machine.power_off()
        if self._sshd is not None:
            self._sshd.wait(WAIT_S)
        # The sockets are of the network namespace, which lives on: else the kernel would go on
        # sending their last words when the link is up again.
        self._cable.forget_connections()

    def start_sshd(self) -> None:
        """Start sshd with the present host key, and wait until it listens."""
        folder = self.root / "etc/ssh"
        (folder / "ssh_host_key").touch(mode=0o600)
        (folder / "ssh_host_key").write_bytes(self._host_key.read_bytes())
        (folder / "sshd_config").write_text(
            f"Port {self.port}\nHostKey /etc/ssh/ssh_host_key\nUsePAM no\nUseDNS no\nPidFile none\n"
            "PasswordAuthentication no\nKbdInteractiveAuthentication no\nPrintMotd no\n"
            # the newer default is costly to emulate: 0.2 s a connection
            "KexAlgorithms curve25519-sha256\n"
            # far above what the tests open at once, so that sshd never turns one away by chance
            "MaxStartups 200\nMaxSessions 200\n"
            f"SetEnv QEMU_CPU={self.identity.qemu_cpu}\n{SFTP[self._sftp]}"
        )
        with (self._slot.home / "sshd.log").open("ab") as log:
            self._sshd = subprocess.Popen(
                self.machine.enter(["/usr/sbin/sshd", "-D", "-e", "-f", "/etc/ssh/sshd_config"]),
                env=self._environment(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        until("sshd listens", self._listens)

    def _listens(self) -> bool:
        if self._sshd is None or self._sshd.poll() is not None:
            raise RuntimeError(f"the stand-in's sshd ended:\n{self.sshd_log()}")
        sockets = Path(f"/proc/{self._keeper.pid}/net/tcp").read_text()
        return f":{self.port:04X} 00000000:0000 0A" in sockets  # 0A: TCP_LISTEN

    @property
    def _host_key(self) -> Path:
        return self._slot.home / "host_key"

    def _environment(self) -> dict[str, str]:
        return {"PATH": PATH, "QEMU_CPU": self.identity.qemu_cpu}

    def close(self) -> None:
        """End it and remove everything of it. Can be called twice."""
        if self._machine is not None:
            self._machine.power_off()
            self._machine = None
        if self._sshd is not None:
            self._sshd.wait(WAIT_S)
        self._undo.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self.close()
