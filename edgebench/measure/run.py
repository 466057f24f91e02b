"""One run from the command to the stored recording::

    connect - identity - lock - send artifacts - start - follow ... ended - collect - store - forget

A run is known to the device by its recording's id. Its spool stays there until the recording is
on this host's disk, so whatever is cut off in between can be picked up, once.
"""

from __future__ import annotations

import asyncio
import platform
import tempfile
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import edgebench
from edgebench.agent.agent import PROTOCOL
from edgebench.artifact import Artifact, sha256_file
from edgebench.device import Device
from edgebench.errors import DeviceBusyError, DeviceError, Interrupted, StorageError, UsageError
from edgebench.measure.client import Ended
from edgebench.measure.collect import assemble, fetch, recording_of
from edgebench.measure.options import RunOptions, build_protocol
from edgebench.measure.session import AGENT_PATH, Session, open_session, owner
from edgebench.recording import SCHEMA, ArtifactEntry, Recording
from edgebench.results.store import Store
from edgebench.results.ulid import new_ulid
from edgebench.workspace import ensure_dir

#: Called with each event of a run: the agent's own, and {"event": "waiting" | "sending" | ...}.
Reporter = Callable[[dict[str, Any]], None]

#: How often a busy device is asked again (seconds).
BUSY_POLL_S = 2.0


def run(
    device: Device,
    artifacts: Sequence[Artifact],
    store: Store,
    options: RunOptions | None = None,
    *,
    wait: bool = True,
    report: Reporter | None = None,
) -> Recording:
    """Measure artifacts on a device and store the recording.

    Args:
        artifacts: at least one; they take turns in the same workers.
        wait: wait for a device that is in use; otherwise DeviceBusyError.
        report: called with every event while it goes on.

    Raises:
        DeviceError, InputError, StorageError: see edgebench.errors.
        Interrupted: Ctrl-C. A local run is ended and leaves nothing.
    """
    if not artifacts:
        raise UsageError("there is nothing to measure", fix="Name at least one artifact.")
    chosen = options or RunOptions()
    chosen.check()
    check_writable(store.root)
    try:
        return asyncio.run(_run(device, artifacts, store, chosen, wait, report or _silent))
    except KeyboardInterrupt as error:
        raise Interrupted(
            "interrupted; the measurement was ended and nothing of it is kept", where=device.id
        ) from error


async def _run(
    device: Device,
    artifacts: Sequence[Artifact],
    store: Store,
    options: RunOptions,
    wait: bool,
    report: Reporter,
) -> Recording:
    async with open_session(device) as session:
        session.check_identity()
        protocol = build_protocol(options, device, session.placement(options.threads), artifacts)
        run_id = new_ulid()
        plan = {
            "id": run_id,
            "agent_protocol": PROTOCOL,
            "agent_digest": f"sha256:{sha256_file(AGENT_PATH)}",
            "owner": owner(),
            "protocol": protocol.model_dump(mode="json"),
            "artifacts": [_worker_entry(artifact, session.local) for artifact in artifacts],
            "carry": {
                "schema": SCHEMA,
                "created_at": datetime.now(UTC).isoformat(timespec="seconds"),
                "edgebench_version": edgebench.__version__,
                "device": (await session.record(protocol.runtime)).model_dump(mode="json"),
                "artifacts": [_entry(artifact) for artifact in artifacts],
                "clock": (await session.client.clock()).model_dump(mode="json"),
                "host": {"system": platform.system(), "machine": platform.machine()},
                "power_absent": _power_absent(device),
            },
        }
        await _start(session, plan, wait, report)
        try:
            await _follow(session, run_id, report)
        except (asyncio.CancelledError, KeyboardInterrupt):
            await _abandon(session, run_id)
            raise
        return await _collect(session, run_id, store, report)


async def _start(session: Session, plan: dict[str, Any], wait: bool, report: Reporter) -> None:
    while True:
        try:
            await session.client.request("start", plan=plan, disk_bytes=_spool_bytes(plan))
        except DeviceBusyError as error:
            if not wait:
                raise DeviceBusyError(
                    error.what, where=error.where, fix="Run again later, or without --no-wait."
                ) from error
            report({"event": "waiting", "why": error.what})
            await asyncio.sleep(BUSY_POLL_S)
            continue
        report({"event": "started", "plan": plan})
        return


async def _follow(session: Session, run_id: str, report: Reporter) -> None:
    async for event in session.client.follow(run_id):
        if isinstance(event, Ended):
            return
        report(event)


async def _abandon(session: Session, run_id: str) -> None:
    """End a local run and remove what it spooled, within a few seconds."""
    await session.client.request("cancel", run=run_id)
    for _ in range(100):
        try:
            await session.client.request("forget", run=run_id)
            return
        except DeviceError:
            await asyncio.sleep(0.1)


async def _collect(session: Session, run_id: str, store: Store, report: Reporter) -> Recording:
    report({"event": "collecting"})
    with tempfile.TemporaryDirectory(prefix="edgebench-") as directory:
        spool = Path(directory)
        result = await fetch(session, run_id, spool)
        document, samples, state = assemble(spool, result)
    recording = recording_of(document)
    path = store.write(recording, samples, state)
    await session.client.request("forget", run=run_id)
    report({"event": "stored", "path": str(path)})
    return store.load(run_id).recording


def resume(device: Device, store: Store, *, report: Reporter | None = None) -> list[Recording]:
    """Pick up every run of this device that nobody has collected, waiting for those under way."""
    return asyncio.run(_resume(device, store, report or _silent))


async def _resume(device: Device, store: Store, report: Reporter) -> list[Recording]:
    found: list[Recording] = []
    async with open_session(device) as session:
        for entry in (await session.client.request("runs"))["runs"]:
            report({"event": "resuming", "run": entry["run"], "names": entry["names"]})
            if entry["status"] == "running":
                await _follow(session, entry["run"], report)
            found.append(await _collect(session, entry["run"], store, report))
    return found


def check_writable(directory: Path) -> None:
    """Find out before the measurement, not after it, that its result can't be stored.

    Raises:
        StorageError: the directory can't be made or written.
    """
    ensure_dir(directory)
    try:
        with tempfile.TemporaryDirectory(dir=directory, prefix=".tmp-check-"):
            pass
    except OSError as error:
        raise StorageError(
            f"the results directory can't be written: {error.strerror}",
            where=str(directory),
            fix="Give one that you may write to with --results.",
        ) from error


def _silent(event: dict[str, Any]) -> None:
    return None


def _entry(artifact: Artifact) -> dict[str, Any]:
    return ArtifactEntry(
        name=artifact.name,
        digest=artifact.digest,
        size_bytes=artifact.size_bytes,
        manifest=artifact.manifest.model_dump(mode="json", by_alias=True),
    ).model_dump(mode="json")


def _worker_entry(artifact: Artifact, local: bool) -> dict[str, Any]:
    """What the worker needs of an artifact."""
    manifest = artifact.manifest
    return {
        "name": artifact.name,
        "digest": artifact.digest,
        "path": str(artifact.path.resolve()) if local else None,
        "files": {name: file.model_dump() for name, file in manifest.files.items()},
        "model": manifest.model,
        "inputs": manifest.data.inputs,
        "evaluation": manifest.data.evaluation,
        "session_options": dict(manifest.quantization.details.get("session_options", {})),
    }


def _spool_bytes(plan: dict[str, Any]) -> int:
    """Disk that the run's samples and state may take: 40 bytes a call, with room to grow."""
    protocol = plan["protocol"]
    calls = protocol["stop"]["min_count"] * len(plan["artifacts"]) * protocol["launches"]
    return 4_000_000 + 80 * int(calls)


def _power_absent(device: Device) -> str | None:
    if not device.meters:
        return "no power source on this device"
    kinds = ", ".join(meter.kind for meter in device.meters)
    return f"this version of edgebench has no driver for the meter {kinds}"
