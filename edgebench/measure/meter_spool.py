"""From the spools of the meters' processes to a recording's meters and readings."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgebench.measure.host_meters import Spooled, read_spool, to_device_clock
from edgebench.meters.base import MeterError
from edgebench.recording import Alignment, Clock, MeterFailure, MeterRecord

if TYPE_CHECKING:
    import numpy.typing as npt

#: Columns of recording.READING_COLUMNS.
Readings = dict[str, "npt.NDArray[Any]"]


def collect_meters(
    plan: dict[str, Any], spool: Path, host_spool: Path, clock_after: Clock
) -> tuple[list[MeterRecord], Readings | None]:
    """The meters of a run, device first, and their readings on the device's clock.

    A meter that failed has its reason and what it read until then. None where there is no meter.
    """
    carry = plan["carry"]
    device, host = plan.get("meters") or [], carry.get("host_meters") or []
    if not device and not host:
        return [], None
    found = carry["meters_found"]
    clock = Clock.model_validate(carry["clock"])
    meters, readings = [], _empty()
    for spec, opened, (entry, mine) in _each(device, found, read_spool(spool)):
        meters.append(_record(spec, "device", opened, entry, None))
        readings = _joined(readings, mine, len(meters) - 1)
    spooled = read_spool(host_spool)
    # A host that was booted since has another monotonic clock.
    after = clock_after if spooled.this_boot else None
    between = None
    if after is not None and spooled.started_ns is not None:
        between = (spooled.started_ns, time.perf_counter_ns())
    for spec, opened, (entry, mine) in _each(host, found[len(device) :], spooled):
        try:
            mine["t_ns"], alignment = to_device_clock(mine["t_ns"], clock, after, between)
        except MeterError as error:
            failed = {**entry, "failure": {**error.document(), "t_ns": None}}
            meters.append(_record(spec, "host", opened, failed, None))
            continue
        meters.append(_record(spec, "host", opened, entry, alignment))
        readings = _joined(readings, mine, len(meters) - 1)
    return meters, readings


def _each(
    specs: list[dict[str, Any]], found: list[dict[str, Any]], spooled: Spooled
) -> Iterator[tuple[dict[str, Any], dict[str, Any], tuple[dict[str, Any], Readings]]]:
    """Each meter's table, what it said when the run was planned, and its part of the spool."""
    for number, (spec, opened) in enumerate(zip(specs, found, strict=False)):
        here = spooled.readings["meter"] == number
        mine = {name: column[here] for name, column in spooled.readings.items()}
        yield spec, opened, (spooled.meters.get(number, {}), mine)


def _record(
    spec: dict[str, Any],
    runs_on: Any,
    opened: dict[str, Any],
    entry: dict[str, Any],
    alignment: Alignment | None,
) -> MeterRecord:
    failure = entry.get("failure")
    if failure is None and "channels" not in entry:
        # Its process never got so far: what it said before the run is why, or nothing is known.
        failure = opened.get("error") or {
            "code": "io",
            "message": f"the {spec['kind']} meter was not read: its process did not start",
        }
    return MeterRecord(
        kind=spec["kind"],
        spec=spec,
        runs_on=runs_on,
        channels=entry.get("channels", []),
        poll_s=entry.get("poll_s"),
        failure=MeterFailure.model_validate(failure) if failure else None,
        alignment=alignment,
    )


def _empty() -> Readings:
    import numpy as np

    from edgebench.recording import READING_COLUMNS

    return {name: np.zeros(0, dtype=kind) for name, kind in READING_COLUMNS.items()}


def _joined(readings: Readings, mine: Readings, number: int) -> Readings:
    import numpy as np

    mine = {**mine, "meter": np.full(len(mine["t_ns"]), number, dtype=np.int16)}
    return {name: np.concatenate([readings[name], mine[name]]) for name in readings}
