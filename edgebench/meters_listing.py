"""``edgebench meters``: the power sources that a device and this host really have.

Every kind that edgebench knows is asked: those that run on a device on that device, by the same
sampler that a run uses, and those that run on the host here. What is there is opened and read once;
what is not says why, and what would mend it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from pydantic import ValidationError

from edgebench.device import Device
from edgebench.errors import DeviceError
from edgebench.measure.bundle import bundle_files, provide_bundle
from edgebench.measure.meters import meter_tables, open_on_device, open_on_host, probe_host
from edgebench.measure.session import open_session
from edgebench.meters.base import HOST_KINDS, KINDS
from edgebench.recording import MeterChannel

_Where: TypeAlias = Literal["device", "host"]
_Entries: TypeAlias = list[dict[str, Any]]


@dataclass(frozen=True)
class Line:
    """One channel of a source. ``first``: what it said when it was read, or None."""

    channel: MeterChannel
    first: float | None

    @property
    def unit(self) -> str:
        return "W" if self.channel.quantity == "power" else "J"


@dataclass(frozen=True)
class Found:
    """A source that is there, or a kind that is not.

    Attributes:
        kind, spec: as in a profile's ``[[meters]]`` table.
        runs_on: where it is read.
        lines: its channels; none where it can't be opened.
        in_profile: the device's profile names it, so that runs use it.
        code, why, fix: why it is not there, and what would mend it.
    """

    kind: str
    spec: dict[str, Any]
    runs_on: _Where
    lines: tuple[Line, ...] = ()
    in_profile: bool = False
    poll_s: float | None = None
    code: str = ""
    why: str = ""
    fix: str = ""

    @property
    def there(self) -> bool:
        return bool(self.lines)


def listing(device: Device) -> list[Found]:
    """The sources of a device and of this host, those that are there first.

    The profile's own meters are opened as it names them; then every kind looks for what else there
    is.

    Raises:
        ProfileError: the profile refuses to be run, or names a meter that does not exist.
        DeviceError: it can't be reached, or a source said something that can't be.
    """
    here, host = meter_tables(device)
    opened, probed = asyncio.run(_ask(device, here))
    entries = _merged("device", opened, probed, device)
    entries += _merged("host", open_on_host(host), probe_host(), device)
    order = list(KINDS)
    return sorted(entries, key=lambda found: (not found.there, order.index(found.kind)))


async def _ask(device: Device, specs: list[dict[str, Any]]) -> tuple[_Entries, _Entries]:
    """What the profile's meters say when they are opened, and what else the device has."""
    kinds = [kind for kind in KINDS if kind not in HOST_KINDS]
    async with open_session(device) as session:
        opened = await open_on_device(session, specs)
        bundle = await provide_bundle(session, bundle_files(kinds))
        reply = await session.client.request("meters", bundle=bundle, kinds=kinds)
        return opened, list(reply["meters"])


def _merged(where: _Where, opened: _Entries, probed: _Entries, device: Device) -> list[Found]:
    """The profile's sources, and those that were found besides."""
    named = [_found(entry, where, device, in_profile=True) for entry in opened]
    kinds = {found.kind for found in named}
    return named + [
        _found(entry, where, device)
        for entry in probed
        if not any(_is_that(entry["spec"], found.spec) for found in named)
        and not ("error" in entry and entry["spec"]["kind"] in kinds)
    ]


def _is_that(spec: dict[str, Any], named: dict[str, Any]) -> bool:
    """Whether a source that was found is one that the profile names: no key contradicts."""
    return spec["kind"] == named["kind"] and all(
        spec.get(key, value) == value for key, value in named.items() if key != "scope"
    )


def _found(
    entry: dict[str, Any], runs_on: _Where, device: Device, *, in_profile: bool = False
) -> Found:
    spec = dict(entry["spec"])
    kind = str(spec["kind"])
    error = entry.get("error")
    if error is not None:
        return Found(
            kind,
            spec,
            runs_on,
            in_profile=in_profile,
            code=error["code"],
            why=error["message"],
            fix=error.get("fix", ""),
        )
    try:
        channels = [MeterChannel.model_validate(channel) for channel in entry["channels"]]
    except ValidationError as wrong:
        first = wrong.errors()[0]
        raise DeviceError(
            f"the {kind} meter describes itself wrongly: {first['loc'][-1]}: {first['msg']}",
            where=device.id if runs_on == "device" else "this host",
        ) from wrong
    return Found(
        kind,
        spec,
        runs_on,
        lines=tuple(_lines(channels, entry.get("readings", []))),
        in_profile=in_profile,
        poll_s=entry.get("poll_s"),
    )


def _lines(channels: list[MeterChannel], readings: list[list[Any]]) -> Iterator[Line]:
    for index, channel in enumerate(channels):
        values = [float(reading[2]) for reading in readings if reading[0] == index]
        yield Line(channel, values[0] if values else None)
