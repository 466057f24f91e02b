"""One connection to one device: transport, agent, and the checks that come before any run."""

from __future__ import annotations

import getpass
import hashlib
import platform
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgebench.artifact import canonical_json
from edgebench.device import Device, LocalSpec, Placement, SshSpec
from edgebench.errors import DeviceError
from edgebench.measure.client import AgentClient
from edgebench.measure.deploy import AGENT_PATH, start_remote_agent
from edgebench.recording import DeviceRecord
from edgebench.transport.base import Transport
from edgebench.transport.local import LocalTransport

#: The packages whose versions decide the speed of each runtime.
_DECIDING = {
    "onnxruntime": ("python", "numpy", "onnxruntime", "onnxruntime-gpu"),
    "torch": ("python", "numpy", "torch", "transformers", "peft"),
}


@dataclass(frozen=True)
class Session:
    """A device with its agent running: what ``hello`` said, and the client to say more."""

    device: Device
    transport: Transport
    client: AgentClient
    hello: dict[str, Any]

    @property
    def identity(self) -> dict[str, Any]:
        found: dict[str, Any] = self.hello["identity"]
        return found

    @property
    def versions(self) -> dict[str, str]:
        found: dict[str, str] = self.hello["versions"]
        return found

    @property
    def local(self) -> bool:
        return isinstance(self.device.transport, LocalSpec)

    def check_identity(self) -> None:
        """Refuse a box that is not what the profile expects.

        Raises:
            DeviceError: with what it is, what was expected, and what to do.
        """
        found = {key: self.identity.get(key) for key in ("model", "arch", "system", "gpu")}
        found["cpu"] = self.identity.get("cpu_model")
        wrong = self.device.expects.mismatches(**found)
        if wrong:
            raise DeviceError(
                f"{self.device.id} is not the device of its profile: {'; '.join(wrong)}",
                where=str(self.device.path),
                fix="Measure it under another profile, or correct this one.",
            )

    async def check_runtime(self) -> None:
        """Refuse a device without ONNX Runtime before anything is sent there.

        Only where no package of that name is listed is it looked for by importing it, since that
        takes a second on a small device.

        Raises:
            DeviceError: it does not import there.
        """
        if self.device.runtime.kind == "torch":
            missing = [name for name in ("torch", "transformers") if name not in self.versions]
            if missing:
                raise DeviceError(
                    f"{' and '.join(missing)} are not installed there"
                    if len(missing) > 1
                    else f"{missing[0]} is not installed there",
                    where=self.device.id,
                    fix="Install PyTorch for its hardware (https://pytorch.org/get-started) and "
                    "transformers, or name an interpreter that has them as runtime.python.",
                )
            return
        if self.versions.keys() & {"onnxruntime", "onnxruntime-gpu"}:
            return
        offered = await self.client.request("provider")
        if "missing" in offered:
            raise DeviceError(
                f"ONNX Runtime does not import there: {offered['missing']}",
                where=self.device.id,
                fix=f"Install it with `edgebench setup --device {self.device.id}`.",
            )

    def placement(self, threads: int | None = None) -> Placement:
        """Threads and CPUs there.

        Args:
            threads: overrides the profile's number.

        Raises:
            DeviceError: the device has not the CPUs that the profile names.
        """
        spec = self.device.runtime
        if threads is not None:
            spec = spec.model_copy(update={"threads": threads})
        try:
            return spec.place(self.identity["cpus"])
        except ValueError as error:
            raise DeviceError(
                f"the profile's runtime does not fit the device: {error}",
                where=str(self.device.path),
                fix="Correct threads or affinity in its runtime table.",
            ) from error

    async def record(self, runtime: dict[str, Any]) -> DeviceRecord:
        """The device as this run finds it, with the fingerprint that makes rows comparable."""
        state = (await self.client.request("state", cpus=runtime["cpus"]))["state"]
        known = self.identity
        fingerprint = {
            "model": known["model"],
            "arch": known["arch"],
            "cpu_model": known["cpu_model"],
            "gpu": known["gpu"],
            "cpus": len(known["cpus"]),
            # Kernels keep back a little of it, differently at each boot.
            "memory_gib": round((known["memory_total_bytes"] or 0) / 2**30, 1),
            "kernel": known["kernel"],
            "os": known["os"],
            "libc": known["libc"],
            "emulator": known["emulator"],
            "versions": {
                name: version
                for name, version in self.versions.items()
                if name in _DECIDING.get(runtime["kind"], _DECIDING["onnxruntime"])
            },
            "runtime": runtime,
            "governor": sorted(set((state["governor"] or {}).values())),
            "frequency_max_khz": sorted(set((state["frequency_max_khz"] or {}).values())),
        }
        digest = hashlib.sha256(canonical_json(fingerprint)).hexdigest()
        return DeviceRecord(
            name=self.device.id,
            profile=self.device.profile_document(),
            fingerprint=fingerprint,
            fingerprint_digest=f"sha256:{digest}",
            emulated=known["emulator"] is not None,
        )


def owner() -> str:
    """Who is asking, for the message that another user of the device sees."""
    return f"{getpass.getuser()}@{platform.node()}"


def local_agent_command(device: Device) -> list[str]:
    """The agent of this machine: the package's own file, under this interpreter."""
    python = device.runtime.python or sys.executable
    return [
        str(Path(python).expanduser()),
        str(AGENT_PATH),
        "serve",
        "--root",
        device.agent.root,
        "--lock",
        device.agent.lock,
    ]


@asynccontextmanager
async def open_session(device: Device) -> AsyncIterator[Session]:
    """Connect to a device, start its agent and say hello; closes both at the end.

    Raises:
        ProfileError: the profile refuses to be run.
        DeviceError: unreachable, or no agent starts there.
    """
    device.require_usable()
    async with transport_for(device) as transport:
        client = await _start_agent(transport, device)
        try:
            yield Session(device, transport, client, await client.request("hello"))
        finally:
            await client.close()


async def _start_agent(transport: Transport, device: Device) -> AgentClient:
    if not isinstance(device.transport, LocalSpec):
        return await start_remote_agent(transport, device)
    client = AgentClient(await transport.open(local_agent_command(device)), device.id)
    try:
        await client.start()
    except BaseException:
        await client.close()
        raise
    return client


def transport_for(device: Device) -> Transport:
    """The transport that the profile names.

    Raises:
        DeviceError: this version has none of that kind.
    """
    if isinstance(device.transport, LocalSpec):
        return LocalTransport()
    if isinstance(device.transport, SshSpec):
        from edgebench.transport.ssh import SshTransport

        return SshTransport(device.transport, device.id)
    raise DeviceError(
        f"this version can't reach devices by {device.transport.kind} yet",
        where=str(device.path),
        fix="Run edgebench on the device itself, as --device local.",
    )
