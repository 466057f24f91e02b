"""The plan of a run: the one document that the device and whoever collects the run need."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import edgebench
from edgebench.agent.agent import PROTOCOL
from edgebench.artifact import NO_ADAPTER, Artifact, SwapAdapter, sha256_file
from edgebench.device import Device
from edgebench.errors import UsageError
from edgebench.measure.bundle import bundle_files, provide_bundle
from edgebench.measure.deploy import AGENT_PATH
from edgebench.measure.meters import plan_meters
from edgebench.measure.options import RunOptions, build_protocol
from edgebench.measure.session import Session, owner
from edgebench.recording import SCHEMA, Accuracy, ArtifactEntry, DeviceRecord, Protocol
from edgebench.results.store import Store

#: Configuration entries of the runtime's session that a scheme asks for, in its manifest's details.
_SESSION_OPTIONS = ("session_options", "session_options_x86_without_vnni")


#: Weights of fewer bits stand in ops of our own domain.
_NATIVE_BELOW_BITS = 8

#: Adapters whose update is an op of our own domain, whatever the weights' bits.
_NATIVE_ADAPTERS = ("himalaya",)


async def build_plan(
    session: Session,
    run_id: str,
    artifacts: Sequence[Artifact],
    store: Store,
    options: RunOptions,
) -> dict[str, Any]:
    """The plan document of docs/agent-protocol.md.

    Raises:
        InputError, DeviceError: artifacts and device don't fit what is asked for.
    """
    device_profile = session.device
    placement = session.placement(options.threads)
    meters = await plan_meters(session, options)
    protocol = build_protocol(options, device_profile, placement, artifacts, meters.rule)
    kinds = {spec["kind"] for spec in meters.device}
    files = bundle_files(kinds, protocol.runtime["kind"], decoders=protocol.decoding is not None)
    bundle = await provide_bundle(session, files)
    device = await session.record(protocol.runtime)
    clock = await session.client.clock()
    active = _active_adapters(artifacts, options)
    entries = [
        _worker_entry(artifact, session.local, adapter)
        for artifact, adapter in zip(artifacts, active, strict=True)
    ]
    known = (
        _known_accuracy(artifacts, active, store, device, protocol)
        if options.reuse_accuracy
        else {}
    )
    for index in known:
        entries[index]["evaluation"] = None
    return {
        "id": run_id,
        "agent_protocol": PROTOCOL,
        "agent_digest": f"sha256:{sha256_file(AGENT_PATH)}",
        "owner": owner(),
        "store": store_name(store),
        "protocol": protocol.model_dump(mode="json"),
        "artifacts": entries,
        "meters": meters.device,
        "bundle": bundle,
        # What the agent only keeps for whoever collects the run.
        "carry": {
            "schema": SCHEMA,
            "created_at": datetime.now(UTC).isoformat(timespec="seconds"),
            "edgebench_version": edgebench.__version__,
            "device": device.model_dump(mode="json"),
            "artifacts": [
                _entry(artifact, adapter)
                for artifact, adapter in zip(artifacts, active, strict=True)
            ],
            "clock": clock.model_dump(mode="json"),
            "known_accuracy": {index: value.model_dump() for index, value in known.items()},
            "host": {"system": platform.system(), "machine": platform.machine()},
            "power_absent": _power_absent(device_profile, options),
            "host_meters": meters.host,
            "meters_found": meters.found,
        },
    }


def _active_adapters(
    artifacts: Sequence[Artifact], options: RunOptions
) -> list[SwapAdapter | str | None]:
    """By artifact: the adapter that is to be active, "none" for a swappable base alone, or None
    for what is not swappable.

    Raises:
        UsageError: an adapter was named, and nothing here is swappable.
        ArtifactError: there is none of this name.
    """
    swappable = [artifact for artifact in artifacts if artifact.manifest.adapters]
    if options.adapter is not None and not swappable:
        raise UsageError(
            "none of these artifacts takes adapters",
            where="--adapter",
            fix="Leave it out, or export with --lowering swappable.",
        )
    return [
        (artifact.swap_adapter(options.adapter) or NO_ADAPTER)
        if artifact.manifest.adapters
        else None
        for artifact in artifacts
    ]


def _name(adapter: SwapAdapter | str | None) -> str | None:
    return adapter.name if isinstance(adapter, SwapAdapter) else adapter


def _known_accuracy(
    artifacts: Sequence[Artifact],
    active: Sequence[SwapAdapter | str | None],
    store: Store,
    device: DeviceRecord,
    protocol: Protocol,
) -> dict[int, Accuracy]:
    """By artifact: its accuracy on this very device, where the store has it already."""
    if protocol.accuracy != "all":
        return {}
    wanted = {artifact.digest: index for index, artifact in enumerate(artifacts)}
    found: dict[int, Accuracy] = {}
    for recording in store.documents():
        if len(found) == len(wanted):
            break
        if (
            recording.device.fingerprint_digest != device.fingerprint_digest
            or recording.protocol.batch != protocol.batch
            or recording.protocol.accuracy != "all"
        ):
            continue
        for solo in recording.solo:
            index = wanted.get(recording.artifacts[solo.artifact].digest)
            if index is None or _name(active[index]) != (
                recording.artifacts[solo.artifact].active_adapter
            ):
                continue
            if solo.accuracy is not None:
                source = solo.accuracy.recording or recording.id
                found.setdefault(index, solo.accuracy.model_copy(update={"recording": source}))
    return found


def store_name(store: Store) -> str:
    """Which results directory a run was begun for, told apart across hosts."""
    return f"{platform.node()}:{store.root.resolve()}"


def spool_bytes(plan: dict[str, Any]) -> int:
    """Disk that the run may take: 40 bytes a call and 8 a token with room to grow, 20 a meter's
    reading."""
    protocol = plan["protocol"]
    calls = protocol["stop"]["min_count"] * len(plan["artifacts"]) * protocol["launches"]
    tokens = int((protocol["decoding"] or {"new_tokens": 0})["new_tokens"])
    needed = 4_000_000 + (80 + 16 * tokens) * int(calls)
    if protocol["energy"] and plan["meters"]:
        polls = sum(
            max(len(entry.get("channels", [])), 1) / max(entry.get("poll_s", 0.1), 1e-4)
            for entry in plan["carry"]["meters_found"]
        )
        launch_s = protocol["energy"]["max_duration_s"] + 2 * protocol["stop"]["max_duration_s"]
        needed += int(20 * polls * launch_s * protocol["launches"])
    return needed


def _entry(artifact: Artifact, active: SwapAdapter | str | None) -> dict[str, Any]:
    return ArtifactEntry(
        name=artifact.name,
        digest=artifact.digest,
        size_bytes=artifact.size_bytes,
        manifest=artifact.manifest.model_dump(mode="json", by_alias=True),
        active_adapter=_name(active),
    ).model_dump(mode="json")


def _worker_entry(
    artifact: Artifact, local: bool, active: SwapAdapter | str | None
) -> dict[str, Any]:
    """What the worker needs of an artifact."""
    manifest = artifact.manifest
    # Labels are numbered as the first adapter numbers them.
    labelled = not isinstance(active, SwapAdapter) or active.labels == manifest.labels
    details = manifest.quantization.details
    return {
        "name": artifact.name,
        "digest": artifact.digest,
        "path": str(artifact.path.resolve()) if local else None,
        "files": {name: file.model_dump() for name, file in manifest.files.items()},
        "model": manifest.model,
        "inputs": manifest.data.inputs,
        "evaluation": manifest.data.evaluation if labelled else None,
        # Ops of our own domain, for which a device may have kernels.
        "native": manifest.quantization.storage_bits < _NATIVE_BELOW_BITS
        or (manifest.adapter is not None and manifest.adapter.kind in _NATIVE_ADAPTERS),
        **(
            {
                "adapters": {adapter.name: adapter.file for adapter in manifest.adapters},
                "active_adapter": active.name if isinstance(active, SwapAdapter) else None,
            }
            if manifest.adapters
            else {}
        ),
        "decoder": manifest.decoder.model_dump(mode="json") if manifest.decoder else None,
        "label": f"{artifact.name} {manifest.quantization.scheme}",
        **{key: dict(details[key]) for key in _SESSION_OPTIONS if key in details},
    }


def _power_absent(device: Device, options: RunOptions) -> str | None:
    if options.energy == "off":
        return "energy was not asked for (--energy off)"
    return None if device.meters else "no power source on this device"
