"""Was the device in a state in which its figures mean something? Checked from what it recorded.

The thresholds are named below, each with where it comes from. A reading that is missing is never
taken for a good one: it is listed in one ``state-unknown`` note.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from edgebench.percentiles import nearest_rank
from edgebench.reasons import Code, Reason, reason
from edgebench.recording import PHASES, Launch, Recording


class Thresholds:
    """Beyond these a row is not what it says it is. Each has its origin beside it."""

    #: Share of the measured CPUs' time that other processes may use. The experiments' claims are
    #: of this size (7 % latency overhead), so more than it would decide them.
    FOREIGN_CPU = 0.05
    #: The same for time that a hypervisor takes.
    STEAL = 0.05
    #: Relative spread of the frequency while measuring: latency is inversely proportional to it.
    FREQUENCY_SPREAD = 0.05
    #: Warming from the first to the last third of the measuring. Our own choice: sensors read to
    #: about 1 °C and swing by a few with each launch; a device still warming up moves by tens.
    TEMPERATURE_DRIFT_C = 10.0
    #: 1 MiB of 4 KiB pages read back from swap, by any process: less is noise of an idle system.
    SWAP_IN_PAGES = 256
    #: A major fault stops a call for a disk access. At 1 % of the calls p99 is made of them.
    MAJOR_FAULTS_PER_CALL = 0.01


#: Bits of `vcgencmd get_throttled` (Raspberry Pi documentation); plus 16: the same since boot.
UNDER_VOLTAGE_BIT = 0
THROTTLE_BITS = {
    UNDER_VOLTAGE_BIT: "under-voltage",
    1: "frequency capped",
    2: "throttled",
    3: "soft temperature limit",
}
SINCE_BOOT = 16

Samples = Mapping[str, npt.NDArray[Any]]
State = Sequence[Mapping[str, Any]]


def check(recording: Recording, samples: Samples, state: State) -> Iterator[Reason]:
    """Every reason that the device's state gives; they hold for all artifacts of the session."""
    during = while_measuring(recording.launches, samples, state)
    yield from _others(recording.launches)
    yield from _memory(recording.launches, samples, during)
    yield from _frequency(during)
    yield from _throttling(state)
    yield from _heat(recording, during)
    yield from _governor(state)
    yield from _unknown(recording.launches, state, during)


def while_measuring(
    launches: Sequence[Launch], samples: Samples, state: State
) -> list[Mapping[str, Any]]:
    """State lines stamped within the measured part of a launch, in time order.

    Left out so: loading, warming up and the pauses between launches, when an idle frequency or a
    page read from disk is as it should be. A launch without ``window_ns`` is taken from its first
    to its last counted call.
    """
    windows = [launch.window_ns or _span(samples, launch.index) for launch in launches]
    inside = [
        line
        for line in state
        if line.get("when") == "during"
        and any(first <= line.get("t_ns", -1) <= last for first, last in windows)
    ]
    return sorted(inside, key=lambda line: int(line["t_ns"]))


def _span(samples: Samples, launch: int) -> tuple[int, int]:
    """From the first to the last counted call of a launch; an empty span if it has none."""
    here = (samples["launch"] == launch) & (samples["phase"] == PHASES.index("measure"))
    if not here.any():
        return 0, -1
    start = samples["start_ns"][here]
    return int(start.min()), int((start + samples["duration_ns"][here]).max())


def _others(launches: Sequence[Launch]) -> Iterator[Reason]:
    """Other processes, and other virtual machines, on the measured CPUs: the worst launch."""
    for code, limit, attribute in (
        (Code.FOREIGN_LOAD, Thresholds.FOREIGN_CPU, "foreign_cpu_fraction"),
        (Code.STOLEN_TIME, Thresholds.STEAL, "steal_fraction"),
    ):
        known = [(getattr(ln, attribute) or 0.0, ln.index + 1) for ln in _good(launches)]
        worst, launch = max(known, default=(0.0, 0))
        if worst > limit:
            yield reason(code, percent=f"{100 * worst:.2g}", launch=launch)


def _memory(launches: Sequence[Launch], samples: Samples, during: State) -> Iterator[Reason]:
    """Calls that waited for memory to come from disk."""
    what = []
    calls = int(np.count_nonzero(samples["phase"] == PHASES.index("measure")))
    faults = sum(ln.major_faults or 0 for ln in _good(launches))
    if faults > Thresholds.MAJOR_FAULTS_PER_CALL * calls:
        what.append(f"{faults} major faults in {calls} calls")
    pages = 0
    for launch in {line.get("launch") for line in during}:
        counts = _readings([ln for ln in during if ln.get("launch") == launch], "swap_in_pages")
        pages += counts[-1] - counts[0] if counts else 0
    if pages > Thresholds.SWAP_IN_PAGES:
        what.append(f"{pages} pages swapped in")
    if what:
        yield reason(Code.SWAPPING, what=", ".join(what))


def _frequency(during: State) -> Iterator[Reason]:
    """The fastest measured CPU is the one at work; its frequency must hold still."""
    fastest = [max(each.values()) for each in _readings(during, "frequency_khz")]
    if not fastest:
        return
    # The outer twentieths on both sides are left out: single readings catch the CPU between calls.
    low, high = nearest_rank(fastest, 0.05), nearest_rank(fastest, 0.95)
    spread = (high - low) / high
    if spread > Thresholds.FREQUENCY_SPREAD:
        yield reason(
            Code.FREQUENCY_CHANGED,
            low_mhz=round(low / 1000),
            high_mhz=round(high / 1000),
            percent=f"{100 * spread:.2g}",
        )


def _throttling(state: State) -> Iterator[Reason]:
    """Raspberry Pi's flags: now (bits 0-3) and since boot (bits 16-19).

    A since-boot bit that appears during the run happened in it. One that was set before the run
    hides a repeat; for the supply that is enough to refuse the figures, since a supply that sagged
    once will again, while heat of an earlier run may be gone.
    """
    flags = [int(value) for value in _readings(state, "throttled")]
    if not flags:
        return
    seen = 0
    for value in flags:
        seen |= value
    appeared = (seen & ~flags[0]) >> SINCE_BOOT
    now, ever = seen | appeared, seen >> SINCE_BOOT
    text = hex(seen)
    if now >> UNDER_VOLTAGE_BIT & 1:
        yield reason(Code.UNDER_VOLTAGE, flags=text)
    elif ever >> UNDER_VOLTAGE_BIT & 1:
        yield reason(Code.UNDER_VOLTAGE_SINCE_BOOT, flags=text)
    heat = {bit: name for bit, name in THROTTLE_BITS.items() if bit != UNDER_VOLTAGE_BIT}
    held_now = [name for bit, name in heat.items() if now >> bit & 1]
    held_ever = [name for bit, name in heat.items() if ever >> bit & 1]
    if held_now:
        yield reason(Code.THROTTLED, what=", ".join(held_now), flags=text)
    elif held_ever:
        yield reason(Code.THROTTLED_SINCE_BOOT, what=", ".join(held_ever), flags=text)


def _heat(recording: Recording, during: State) -> Iterator[Reason]:
    """Too hot for the profile, or still warming up."""
    readings = _readings(during, "temperature_c")
    if not readings:
        return
    limit = recording.device.profile.get("limits", {}).get("temperature_c")
    hottest = max(max(each.values()) for each in readings)
    if limit is not None and hottest > limit:
        yield reason(Code.TOO_HOT, temperature_c=f"{hottest:.1f}", limit_c=f"{limit:g}")
    third = len(readings) // 3
    if third == 0:
        return
    drifts = []
    for zone in sorted(readings[0]):
        values = [each[zone] for each in readings if zone in each]
        start, end = float(np.mean(values[:third])), float(np.mean(values[-third:]))
        drifts.append((end - start, zone, start, end))
    drift, zone, start, end = max(drifts)
    if drift > Thresholds.TEMPERATURE_DRIFT_C:
        yield reason(Code.TEMPERATURE_DRIFT, zone=zone, start_c=f"{start:.0f}", end_c=f"{end:.0f}")


def _governor(state: State) -> Iterator[Reason]:
    names = sorted({name for each in _readings(state, "governor") for name in each.values()})
    other = [name for name in names if name != "performance"]
    if other:
        yield reason(Code.GOVERNOR, governor=", ".join(other))


def _unknown(launches: Sequence[Launch], state: State, during: State) -> Iterator[Reason]:
    """What the device did not tell, so that nobody reads silence as health."""
    good = _good(launches)
    told = {
        "foreign load": all(ln.foreign_cpu_fraction is not None for ln in good),
        "stolen time": all(ln.steal_fraction is not None for ln in good),
        "major faults": all(ln.major_faults is not None for ln in good),
        "CPU frequency": bool(_readings(during, "frequency_khz")),
        "frequency governor": bool(_readings(state, "governor")),
        "temperature": bool(_readings(during, "temperature_c")),
        "throttle flags": bool(_readings(state, "throttled")),
        "swap": bool(_readings(during, "swap_in_pages")),
    }
    missing = [name for name, known in told.items() if not known]
    if missing:
        yield reason(Code.STATE_UNKNOWN, what=", ".join(missing))


def _good(launches: Sequence[Launch]) -> list[Launch]:
    return [launch for launch in launches if launch.outcome == "ok"]


def _readings(state: State, member: str) -> list[Any]:
    """A member of all state lines that have it, in time order of the lines."""
    values = [line.get(member) for line in state]
    return [value for value in values if value is not None and value != {}]
