"""``edgebench meters``: which power sources there are, and why the others are not."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import typer

from edgebench.cli.options import DeviceName, Json

if TYPE_CHECKING:
    from rich.text import Text

    from edgebench.meters_listing import Found, Line

#: What a scope means, for people.
SCOPES = {
    "wall": "before the power supply",
    "board": "all that the device draws",
    "module": "the compute module",
    "soc": "the chip",
    "rail": "one supply rail, not the whole",
    "package": "the CPU package",
    "gpu": "the GPU board",
    "battery": "the battery",
}


def register(app: typer.Typer) -> None:
    app.command("meters")(meters)


def meters(device: DeviceName = "local", as_json: Json = False) -> None:
    """List the power sources that a device and this host really have, each read once.

    Those that are not there say why, and what would mend it.
    """
    import edgebench.api
    from edgebench.cli.output import console, progress, say_json

    with progress() as update:
        update(f"{device}  asking every kind of meter")
        found = edgebench.api.list_meters(device)
    if as_json:
        say_json([_document(each) for each in found])
        return
    from rich.padding import Padding
    from rich.text import Text

    output = console()

    def say(depth: int, text: Text) -> None:
        # Padding indents wrapped lines, too; without a terminal nothing wraps, nor is anything cut.
        output.print(
            Padding(text, (0, 0, 0, depth)) if output.is_terminal else Text(" " * depth) + text
        )

    there = [each for each in found if each.there]
    if there:
        say(0, Text(f"{device}: there", style="bold"))
        for each in there:
            _say_source(each, say)
    groups = _alike([each for each in found if not each.there])
    if groups:
        say(0, Text(f"{device}: not there", style="bold"))
        for group in groups:
            _say_absent(group, say)
    say(0, Text(_summary(found)))


def _alike(found: list[Found]) -> list[list[Found]]:
    """Those that are absent for one reason together."""
    groups: dict[tuple[str, str, str], list[Found]] = {}
    for each in found:
        groups.setdefault((each.runs_on, each.why, each.fix), []).append(each)
    return list(groups.values())


def _say_absent(group: list[Found], say: Callable[[int, Text], None]) -> None:
    from rich.text import Text

    first = group[0]
    kinds = ", ".join(dict.fromkeys(each.kind for each in group))
    mended = first.code in ("permission", "driver-missing") or any(e.in_profile for e in group)
    used = " (in the profile)" if any(each.in_profile for each in group) else ""
    say(
        2, Text.assemble((kinds, "yellow" if mended else ""), f"{_where(first)}{used}: {first.why}")
    )
    if first.fix:
        say(6, Text(first.fix, style="dim"))


def _say_source(found: Found, say: Callable[[int, Text], None]) -> None:
    from rich.text import Text

    used = " (in the profile)" if found.in_profile else ""
    say(2, Text.assemble((found.kind, "green"), f"{_where(found)}{used}"))
    for line in found.lines:
        say(6, Text.assemble((line.channel.name, "bold"), f": {_reading(line)}"))
        say(10, Text(_properties(line), style="dim"))
    if not found.in_profile:
        say(6, Text(f"in a profile: {_table(found.spec)}", style="dim"))


def _where(found: Found) -> str:
    return "" if found.runs_on == "device" else ", read by this host"


def _reading(line: Line) -> str:
    channel = line.channel
    said = "no reading yet" if line.first is None else f"{line.first:.4g} {line.unit}"
    kind = "energy counter" if channel.quantity == "energy" else "power"
    meaning = SCOPES.get(channel.scope)
    return f"{said}, {kind}, {channel.scope}" + (f" ({meaning})" if meaning else "")


def _properties(line: Line) -> str:
    channel = line.channel
    said = [channel.source, f"new every {_time(channel.period_s)}"]
    if channel.resolution:
        said.append(f"steps of {_step(channel.resolution, line.unit)}")
    if channel.lag_s:
        said.append(f"up to {_time(channel.lag_s)} old")
    if channel.duty < 1:
        said.append(f"looks {channel.duty:.0%} of the time")
    bounds = []
    if channel.gain_error is not None:
        bounds.append(f"{channel.gain_error * 100:.3g} %")
    if channel.offset_error_w:
        bounds.append(_step(channel.offset_error_w, "W"))
    accuracy = f"± {' ± '.join(bounds)}" if bounds else "accuracy unknown"
    return "; ".join([*said, f"{accuracy} ({channel.accuracy_source})"])


def _time(seconds: float) -> str:
    return f"{seconds:.3g} s" if seconds >= 1 else f"{seconds * 1e3:.3g} ms"


def _step(value: float, unit: str) -> str:
    for factor, prefix in ((1.0, ""), (1e-3, "m"), (1e-6, "u")):
        if value >= factor * 0.1:
            return f"{value / factor:.3g} {prefix}{unit}"
    return f"{value:.3g} {unit}"


def _table(spec: dict[str, Any]) -> str:
    """A profile's table on one line."""
    keys = [f"{key} = {json.dumps(value)}" for key, value in spec.items() if value is not None]
    return f"meters = [{{ {', '.join(keys)} }}]"


def _document(found: Found) -> dict[str, Any]:
    """A source for machines."""
    document = asdict(found)
    document["lines"] = [
        {**line.channel.model_dump(mode="json"), "first_reading": line.first, "unit": line.unit}
        for line in found.lines
    ]
    document["channels"] = document.pop("lines")
    document["there"] = found.there
    return document


def _summary(found: list[Found]) -> str:
    there = sum(each.there for each in found)
    kinds = len({each.kind for each in found if not each.there})
    text = f"{there} source{'s'[: there != 1]} there, {kinds} kind{'s'[: kinds != 1]} not."
    if not there:
        text += " Any other meter: `edgebench energy attach` takes its CSV."
    return text
