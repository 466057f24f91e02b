"""A run's meters: which there are, what they can deliver, and what a run must do for them."""

from __future__ import annotations

import asyncio
import json
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from edgebench.device import Device
from edgebench.errors import DeviceError, ProfileError
from edgebench.measure.bundle import bundle_files, provide_bundle
from edgebench.measure.host_meters import sampler_command
from edgebench.measure.options import RunOptions
from edgebench.measure.session import Session
from edgebench.meters.base import HOST_KINDS, MeterError, make_meter
from edgebench.recording import EnergyRule, MeterChannel

#: A window is never shorter, so that what begins and ends it weighs little (seconds).
MIN_WINDOW_S = 2.0
#: Longest window that a run makes by itself: a source that needs more can't resolve an inference.
MAX_WINDOW_S = 60.0
#: Rest before an idle stretch or a window: clocks and voltages settle (seconds), besides the lag.
SETTLE_S = 0.5
#: Rounds a launch where nobody can look at the readings while it runs (a meter on the host).
BLIND_ROUNDS = 4
MIN_ROUNDS = 3


@dataclass(frozen=True)
class MeterPlan:
    """The meters of a run.

    Attributes:
        device: their tables, in the profile's order, of those that the device reads.
        host: likewise of those that this host reads.
        found: what each of them said when it was opened, device first: ``channels`` or ``error``.
        rule: how energy windows are made; None where there are none.
    """

    device: list[dict[str, Any]]
    host: list[dict[str, Any]]
    found: list[dict[str, Any]]
    rule: EnergyRule | None


def meter_tables(device: Device) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The profile's meters as tables: those on the device, and those on the host.

    Raises:
        ProfileError: a kind or a key that does not exist.
    """
    tables: tuple[list[dict[str, Any]], list[dict[str, Any]]] = ([], [])
    for meter in device.meters:
        table = {"kind": meter.kind, "scope": meter.scope, **meter.options}
        try:
            make_meter(table)
        except MeterError as error:
            raise ProfileError(
                error.message,
                where=str(device.path),
                fix=error.fix or "docs/meters has a page for each kind.",
            ) from error
        tables[meter.kind in HOST_KINDS].append(table)
    return tables


async def plan_meters(session: Session, options: RunOptions) -> MeterPlan:
    """Open the profile's meters once, and decide how long an energy window has to be.

    A meter that can't be opened does not stop a run: its reason goes into the recording.

    Raises:
        ProfileError: the profile names a meter that does not exist.
    """
    here, host = meter_tables(session.device)
    if options.energy == "off":
        return MeterPlan([], [], [], None)
    found = await open_on_device(session, here)
    found += await asyncio.to_thread(open_on_host, host)
    # The first that delivers fills the row; the others check it where its windows suffice them.
    first: dict[str, Any] = next((entry for entry in found if entry.get("channels")), {})
    channels = [
        (MeterChannel.model_validate(channel), float(first["poll_s"]))
        for channel in first.get("channels", [])
    ]
    watched = any("channels" in entry for entry in found[: len(here)])
    rule = energy_rule(options, channels, watched) if channels or options.energy == "on" else None
    return MeterPlan(here, host, found, rule)


def energy_rule(
    options: RunOptions, channels: Sequence[tuple[MeterChannel, float]], watched: bool
) -> EnergyRule:
    """Windows that the quickest of a meter's channels resolves, and rests that outlast every lag.

    Args:
        channels: of the meter that will fill the row, each with the seconds between two reads.
        watched: the device reads at least one itself, so that the launch can look at it.
    """
    from edgebench.energy import shortest_window_s
    from edgebench.results.energy_rows import source_of

    needed = [
        shortest_window_s(source_of(channel), spacing_s=poll_s) for channel, poll_s in channels
    ]
    lag_s = max((channel.lag_s for channel, _ in channels), default=0.0)
    least = max(MIN_WINDOW_S, min(needed, default=0.0))
    window_s = options.energy_window_s or min(least, MAX_WINDOW_S)
    return EnergyRule(
        window_s=window_s,
        idle_s=window_s,
        settle_s=SETTLE_S + lag_s,
        min_rounds=MIN_ROUNDS if watched else BLIND_ROUNDS,
        relative_half_width=options.energy_precision,
        max_duration_s=options.energy_max_duration_s,
    )


async def open_on_device(session: Session, specs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What each of these meters says when the device opens it once."""
    if not specs:
        return []
    files = bundle_files({spec["kind"] for spec in specs})
    bundle = await provide_bundle(session, files)
    reply = await session.client.request("meters", bundle=bundle, specs=specs)
    found: list[dict[str, Any]] = reply["meters"]
    return found


def open_on_host(specs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The same for meters of this host."""
    return _sampler(["open"], json.dumps(specs)) if specs else []


def probe_host() -> list[dict[str, Any]]:
    """Which meters of the host's kinds are here, and why the others are not."""
    return _sampler(["probe", *HOST_KINDS])


def _sampler(role: list[str], stdin: str = "") -> list[dict[str, Any]]:
    try:
        done = subprocess.run(
            sampler_command(*role),
            input=stdin,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise DeviceError(
            "a meter of this host did not answer within 60 s",
            where="this host",
            fix="Unplug it and plug it in again, or take it out of the profile.",
        ) from error
    if done.returncode:
        lines = done.stderr.strip().splitlines()
        raise DeviceError(
            f"the meters' process failed: {lines[-1] if lines else done.returncode}",
            where="this host",
        )
    found: list[dict[str, Any]] = json.loads(done.stdout.splitlines()[-1])
    return found
