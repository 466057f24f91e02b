"""Getting onto a device what it lacks, by digest: the agent and the artifacts.

Everything is named by its SHA-256 below the agent's root, so a second run sends nothing::

    ~/.edgebench/agents/<sha256>.py      agents, one a version
    ~/.edgebench/cache/<sha256>[.ok]     files of artifacts; .ok once their digest was checked there
    ~/.edgebench/site/active             packages that `edgebench setup` unpacked
    ~/.edgebench/native/active           the library of native kernels that was set up
    ~/.edgebench/runs/<id>/              spools
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from edgebench.agent import agent as agent_module
from edgebench.artifact import Artifact, sha256_file
from edgebench.device import Device
from edgebench.errors import DeviceError, LinkError
from edgebench.measure.client import AgentClient
from edgebench.transport.base import Transport

AGENT_PATH = Path(agent_module.__file__)


async def remote_agent(transport: Transport, device: Device) -> str:
    """Where this version's agent stands on the device."""
    root = await transport.expand(device.agent.root)
    return f"{root.rstrip('/')}/agents/{sha256_file(AGENT_PATH)}.py"


async def remote_python(transport: Transport, device: Device) -> str:
    """The interpreter there; no shell expands a tilde in it."""
    return await transport.expand(device.runtime.python or "python3")


async def start_remote_agent(transport: Transport, device: Device) -> AgentClient:
    """Start the agent there, sending it first where it is missing or does not start.

    The usual case costs one command: the agent is tried, and sent only if it doesn't answer. One
    that a power cut has emptied under its name is mended in the same way.

    Raises:
        DeviceError: no Python there, or the agent does not start.
    """
    path = await remote_agent(transport, device)
    try:
        return await _try_agent(transport, device, path)
    except LinkError:
        raise
    except DeviceError:
        await transport.put(AGENT_PATH, path)
    try:
        return await _try_agent(transport, device, path)
    except LinkError:
        raise
    except DeviceError as error:
        await _explain(transport, device, error)
        raise


async def _try_agent(transport: Transport, device: Device, path: str) -> AgentClient:
    argv = [await remote_python(transport, device), path, "serve"]
    argv += ["--root", device.agent.root, "--lock", device.agent.lock]
    client = AgentClient(await transport.open(argv), device.id)
    try:
        await client.start()
    except BaseException:
        await client.close()
        raise
    return client


async def _explain(transport: Transport, device: Device, error: DeviceError) -> None:
    """Raise the error that says why the agent does not start there."""
    python = await remote_python(transport, device)
    asked = await transport.run(
        [python, "-c", "import sys; print(sys.version_info >= (3, 8), sys.version.split()[0])"]
    )
    said = asked.stdout.decode("utf-8", "replace").split()
    if asked.returncode != 0 or len(said) < 2:
        raise DeviceError(
            f"{python} does not run on the device",
            where=transport.describe(),
            fix="Install Python 3.8 or newer there, or name it as runtime.python in the profile.",
        ) from error
    if said[-2] != "True":
        raise DeviceError(
            f"{python} on the device is {said[-1]}, the agent needs 3.8 or newer",
            where=transport.describe(),
            fix="Install a newer Python there and name it as runtime.python in the profile.",
        ) from error
    raise error


async def send_artifacts(
    transport: Transport,
    client: AgentClient,
    artifacts: Sequence[Artifact],
    report: Callable[[dict[str, Any]], None],
) -> int:
    """Send the files that the device lacks and have their digests checked there.

    Returns:
        Bytes sent; 0 when everything was there.
    """
    wanted = {
        entry.sha256: (artifact, name, entry.bytes)
        for artifact in artifacts
        for name, entry in artifact.manifest.files.items()
    }
    reply = await client.request(
        "missing", files={digest: size for digest, (_, _, size) in wanted.items()}
    )
    missing = reply["missing"]
    total = sum(wanted[digest][2] for digest in missing)
    sent = 0
    for digest in missing:
        artifact, name, size = wanted[digest]

        def moved(done: int, _: int, name: str = artifact.name, before: int = sent) -> None:
            report({"event": "sending", "name": name, "share": (before + done) / max(total, 1)})

        await transport.put(artifact.path / name, f"{reply['cache']}/{digest}", moved)
        await client.request("verify", digest=digest)
        sent += size
    return sent
