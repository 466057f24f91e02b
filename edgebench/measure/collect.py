"""From what a device spooled to a Recording: fetch, check, assemble."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgebench.errors import DeviceError
from edgebench.measure.meter_spool import Readings, collect_meters
from edgebench.measure.session import Session
from edgebench.recording import TOKEN_COLUMNS, Clock, Launch, Recording, Solo

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Columns = dict[str, npt.NDArray[np.int64]]

#: The agent's columns (agent.COLUMNS); samples.parquet has ``launch`` before them.
_COLUMNS = ("artifact", "turn", "phase", "start_ns", "duration_ns")


async def fetch(session: Session, run: str, target: Path) -> dict[str, Any]:
    """Copy an ended run's spool into ``target`` and return its result document.

    Raises:
        DeviceError: a file arrived broken, the run died before it had measured anything, or the
            device's disk filled up, so that its parts don't make a recording.
    """
    found = await session.client.request("collect", run=run)
    for name, entry in found["files"].items():
        local = target / Path(name).name
        await session.transport.get(f"{found['run_dir']}/{name}", local)
        if hashlib.sha256(local.read_bytes()).hexdigest() != entry["sha256"]:
            raise DeviceError(
                f"{name} of run {run} arrived broken",
                where=session.device.id,
                fix="It is still on the device: run `edgebench resume`.",
            )
    result: dict[str, Any] = json.loads((target / found["result"]).read_text())
    if found["status"] == "lost":
        result["status"] = "lost"
    if result["status"] == "disk-full":
        # Its spool is what fills the disk now.
        await session.client.request("forget", run=run)
        raise DeviceError(
            f"the device's disk filled up during the run: {result['error']}",
            where=session.device.id,
            fix="Free some space there, then run again.",
        )
    return result


@dataclass(frozen=True)
class Assembled:
    """The parts of a recording, as the store takes them."""

    document: dict[str, Any]
    samples: Columns
    state: list[dict[str, Any]]
    readings: Readings | None
    tokens: Columns | None


def assemble(
    spool: Path, result: dict[str, Any], clock_after: Clock, host_spool: Path
) -> Assembled:
    """The recording's parts from a fetched spool.

    Args:
        clock_after: the device's clock now, to tell the clocks' drift.
        host_spool: where the readings of this host's own meters are; it may be missing.
    """
    import numpy as np

    plan = json.loads((spool / "plan.json").read_text())
    carry = plan["carry"]
    parts: list[npt.NDArray[np.int64]] = []
    tokens: list[npt.NDArray[np.int64]] = []
    for entry in result["samples"]:
        table = np.load(spool / entry["file"], allow_pickle=False)
        if "tokens" in entry:
            before = sum(map(len, parts))
            tokens.append(_tokens(np.load(spool / entry["tokens"], allow_pickle=False), before))
        launch = np.full((len(table), 1), entry["launch"], dtype=np.int64)
        parts.append(np.hstack([launch, table]))
    merged = np.vstack(parts) if parts else np.zeros((0, 1 + len(_COLUMNS)), dtype=np.int64)
    samples = {name: merged[:, i] for i, name in enumerate(("launch", *_COLUMNS))}
    with (spool / "state.jsonl").open() as stream:
        # A run that was cut off may have left half a line.
        state = [json.loads(line) for line in stream if line.endswith("\n")]
    meters, readings = collect_meters(plan, spool, host_spool, clock_after)
    document = {
        "schema": carry["schema"],
        "id": plan["id"],
        "created_at": carry["created_at"],
        "edgebench_version": carry["edgebench_version"],
        "device": carry["device"],
        "protocol": plan["protocol"],
        "artifacts": carry["artifacts"],
        "solo": [_checked(Solo, _with_accuracy(entry, carry)) for entry in result["solo"]],
        "launches": _launches(result["launches"]),
        "clock": carry["clock"],
        "clock_after": clock_after.model_dump(mode="json"),
        "meters": [meter.model_dump(mode="json") for meter in meters],
        "versions": result["versions"],
        "agent": result["agent"],
        "status": result["status"],
        "power_absent": carry["power_absent"],
        "host": carry["host"],
        "files": {},
    }
    columns = dict(zip(TOKEN_COLUMNS, np.hstack(tokens), strict=True)) if tokens else None
    return Assembled(document, samples, state, readings, columns)


def _tokens(durations: npt.NDArray[np.int64], before: int) -> npt.NDArray[np.int64]:
    """Columns call, token and duration of a launch's [calls, tokens] (ns), by TOKEN_COLUMNS.

    Args:
        before: calls of the launches before it.
    """
    import numpy as np

    calls, numbers = np.nonzero(durations)
    return np.stack([calls + before, numbers, durations[calls, numbers]])


def _launches(entries: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The launches; generated tokens of the first alone, since every launch gives the same."""
    return [
        _checked(Launch, entry if number == 0 else {**entry, "generated": []})
        for number, entry in enumerate(entries)
    ]


def _with_accuracy(entry: dict[str, Any], carry: dict[str, Any]) -> dict[str, Any]:
    """A solo result with the accuracy that was known before, where it was not measured again."""
    known = carry.get("known_accuracy", {}).get(str(entry["artifact"]))
    if known is None or entry.get("accuracy") is not None or entry["outcome"] != "ok":
        return entry
    return {**entry, "accuracy": known}


def _checked(model: type[Solo] | type[Launch], entry: dict[str, Any]) -> dict[str, Any]:
    return model.model_validate(entry).model_dump(mode="json")


def recording_of(document: dict[str, Any]) -> Recording:
    """Validate an assembled document."""
    return Recording.model_validate(document)
