"""The energy and power figures of one artifact: from meters' readings to a row and its reasons.

The first meter that delivers fills the row: a trace that was attached later before those of the
profile, in the profile's order; of one meter a counter before power samples. Another source of the
same scope is a cross-check. Scopes are never mixed, and nothing is ever added up.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from edgebench.reasons import Code, Reason, reason
from edgebench.recording import MeterChannel, MeterRecord, Recording
from edgebench.results.encoding import Loaded
from edgebench.stats import Estimate

if TYPE_CHECKING:
    from edgebench.energy import Agreement, EnergyFigures, Source, Stretch, Window

Row = dict[str, Any]


@dataclass(frozen=True)
class Candidate:
    """A channel with its readings: [n] times (ns, the device's clock) and values (W or J)."""

    meter: MeterRecord
    channel: MeterChannel
    t_ns: npt.NDArray[np.int64]
    value: npt.NDArray[np.float64]
    #: What the device can draw at all, by its profile (W).
    plausible_w: tuple[float, float] | None = None

    @property
    def source(self) -> Source:
        bound_ns = self.meter.alignment.bound_ns if self.meter.alignment else 0
        return source_of(self.channel, clock_bound_s=bound_ns / 1e9, plausible_w=self.plausible_w)

    @property
    def label(self) -> str:
        return f"{self.channel.source}: {self.channel.name}"


@dataclass(frozen=True)
class Measured:
    """What the rows of one artifact say, and why."""

    energy: Row = field(default_factory=dict)
    power: Row = field(default_factory=dict)
    reasons: tuple[Reason, ...] = ()


def energy_of(loaded: Loaded, index: int, tokens_per_call: int | None = None) -> Measured:
    """The energy and power of one artifact of a recording.

    Args:
        tokens_per_call: tokens of a decoder's call, for the energy a token; None where it has none.
    """
    recording = loaded.recording
    candidates = list(_candidates(loaded))
    failures = [meter.failure for meter in recording.meters if meter.failure is not None]
    if not candidates:
        texts = [failure.message for failure in failures]
        if not texts:
            texts = [recording.power_absent or "its meters delivered no readings"]
        return _absent("; ".join(dict.fromkeys(texts)), failures=bool(failures))
    from edgebench.energy import EnergyError, measure

    windows, idle = windows_of(loaded, index)
    if not windows:
        return _absent("no energy window of this artifact was finished", failures=True)
    found: list[tuple[Candidate, EnergyFigures]] = []
    refused: list[str] = []
    for candidate in candidates:
        try:
            figures = measure(candidate.source, candidate.t_ns, candidate.value, windows, idle)
        except EnergyError as error:
            refused.append(f"{candidate.label}: {error.message}")
        else:
            found.append((candidate, figures))
    if not found:
        return _absent("; ".join(refused), failures=True)
    return _rows(recording, found, refused, tokens_per_call)


def energy_in_launch(loaded: Loaded, index: int, launch: int) -> tuple[float | None, str | None]:
    """The energy an inference (J) of one artifact in one launch; or None, and why.

    The first channel that delivers, as in ``energy_of``, so that every launch has the same.
    """
    from edgebench.energy import EnergyError, measure

    candidates = list(_candidates(loaded))
    if not candidates:
        return None, loaded.recording.power_absent or "its meters delivered no readings"
    windows, idle = windows_of(loaded, index)
    here = [window for window in windows if window.launch == launch]
    rests = [stretch for stretch in idle if stretch.launch == launch]
    if not here:
        return None, f"launch {launch + 1} has no energy window of this artifact"
    first = candidates[0]
    try:
        figures = measure(first.source, first.t_ns, first.value, here, rests)
    except EnergyError as error:
        return None, f"{first.label}: {error.message}"
    return figures.per_inference_j.value, None


def source_of(
    channel: MeterChannel,
    clock_bound_s: float = 0.0,
    plausible_w: tuple[float, float] | None = None,
) -> Source:
    """What the arithmetic needs to know of a channel."""
    from edgebench.energy import Source

    return Source(
        quantity=channel.quantity,
        period_s=channel.period_s,
        resolution=channel.resolution,
        gain_error=channel.gain_error,
        offset_error_w=channel.offset_error_w,
        lag_s=channel.lag_s,
        averaging_s=channel.averaging_s,
        duty=channel.duty,
        wrap_j=channel.wrap_j,
        clock_bound_s=clock_bound_s,
        plausible_w=plausible_w,
    )


def windows_of(loaded: Loaded, index: int) -> tuple[list[Window], list[Stretch]]:
    """The energy windows of one artifact, and all idle stretches, of launches that went well.

    A run of one artifact without energy windows has its measured parts: nothing else ran then.
    """
    from edgebench.energy import Stretch, Window
    from edgebench.results.attach import measured_windows

    recording = loaded.recording
    windows, idle = [], []
    for launch in recording.launches:
        if launch.outcome != "ok":
            continue
        windows += [
            Window(each.begin_ns, each.end_ns, each.calls, launch.index)
            for each in launch.energy_windows
            if each.artifact == index
        ]
        idle += [Stretch(begin, end, launch.index) for begin, end in launch.idle_ns]
    measured = any(launch.window_ns and launch.outcome == "ok" for launch in recording.launches)
    if not windows and not idle and measured and len(recording.artifacts) == 1:
        windows = measured_windows(loaded)
    return windows, idle


def _candidates(loaded: Loaded) -> Iterator[Candidate]:
    """Channels with readings, in the order in which they may fill a row."""
    limits = loaded.recording.device.profile.get("limits") or {}
    bounds = limits.get("power_w")
    plausible_w = (float(bounds[0]), float(bounds[1])) if bounds else None
    for attached in loaded.attached:
        yield from _channels(0, attached.meter, attached.readings, plausible_w)
    for number, meter in enumerate(loaded.recording.meters):
        yield from _channels(number, meter, loaded.readings, plausible_w)


#: Scopes in which a device's own limits of power hold: a rail has less, a wall socket more.
_WHOLE = ("board", "module", "gpu", "battery")


def _channels(
    number: int, meter: MeterRecord, readings: Any, plausible_w: tuple[float, float] | None
) -> Iterator[Candidate]:
    order = sorted(
        range(len(meter.channels)), key=lambda i: (meter.channels[i].quantity != "energy", i)
    )
    for i in order:
        here = (readings["meter"] == number) & (readings["channel"] == i)
        if np.any(here):
            channel = meter.channels[i]
            yield Candidate(
                meter,
                channel,
                readings["t_ns"][here],
                readings["value"][here],
                plausible_w if channel.scope in _WHOLE else None,
            )


def _absent(why: str, *, failures: bool) -> Measured:
    found = (reason(Code.NO_ENERGY, why=why.rstrip(".")),) if failures else ()
    return Measured({"reason": why}, {"reason": why}, found)


def _rows(
    recording: Recording,
    found: list[tuple[Candidate, EnergyFigures]],
    refused: list[str],
    tokens_per_call: int | None,
) -> Measured:
    first, figures = found[0]
    channel = first.channel
    alignment = first.meter.alignment
    common: Row = {
        "scope": channel.scope,
        "source": first.label,
        "source_period_ms": channel.period_s * 1e3,
        "source_gain_error": channel.gain_error,
        "source_offset_error_w": channel.offset_error_w,
        "clock_bound_ms": alignment.bound_ns / 1e6 if alignment else None,
        "energy_windows": figures.windows,
        "energy_launches": figures.launches,
    }
    energy: Row = {
        **common,
        **_estimate("energy_per_inference_j", figures.per_inference_j),
        **_estimate(
            "energy_per_inference_idle_subtracted_j", figures.per_inference_idle_subtracted_j
        ),
        **_estimate("idle_power_w", figures.idle_power_w),
    }
    if tokens_per_call:
        energy |= _estimate("energy_per_token_j", figures.per_inference_j, tokens_per_call)
    peak = next(
        (f for c, f in found if c.channel.scope == channel.scope and f.peak_power_w is not None),
        figures,
    )
    power: Row = {
        **common,
        **_estimate("power_average_w", figures.average_power_w),
        **_estimate("power_peak_w", peak.peak_power_w),
        "power_peak_sampling_period_ms": (
            peak.peak_period_s * 1e3 if peak.peak_period_s is not None else None
        ),
        **_estimate("power_idle_w", figures.idle_power_w),
    }
    reasons = [_note(problem.text) for problem in figures.problems]
    reasons += [_note(f"left out: {text}") for text in refused]
    energy |= _checked(found, reasons)
    _judge_width(recording, figures, reasons)
    if first.meter.failure is not None:
        reasons.append(_note(first.meter.failure.message))
    return Measured(energy, power, tuple(reasons))


def _checked(found: list[tuple[Candidate, EnergyFigures]], reasons: list[Reason]) -> Row:
    """The row's figure against another source of the same scope, where there is one."""
    from edgebench.energy import cross_check

    first, figures = found[0]
    for other, theirs in found[1:]:
        if other.channel.scope != first.channel.scope:
            continue
        check = cross_check(figures, first.source, theirs, other.source)
        if not check.agree:
            reasons.append(_disagreement(check, first.label, other.label))
        return {
            "cross_check_source": other.label,
            **_estimate("cross_check_ratio", check.ratio),
        }
    return {}


def _note(what: str) -> Reason:
    return reason(Code.ENERGY_NOTE, what=what.rstrip("."))


def _disagreement(check: Agreement, first: str, second: str) -> Reason:
    """Beyond both data sheets it voids the figure; where one is silent, it is told."""
    estimate = check.ratio
    ratio = f"{estimate.value:.3g} ({estimate.lo:.3g} to {estimate.hi:.3g})"
    if check.suspect_factor is not None:
        ratio += f", so that a unit of one of them seems to be off by {check.suspect_factor:g}"
    elif not check.accuracy_known:
        return _note(f"{first} over {second} is {ratio}, and not both publish an accuracy")
    return reason(Code.SOURCES_DISAGREE, first=first, second=second, ratio=ratio)


def _judge_width(recording: Recording, figures: EnergyFigures, reasons: list[Reason]) -> None:
    rule = recording.protocol.energy
    estimate = figures.per_inference_j
    relative = estimate.half_width / estimate.value
    if rule is not None and relative > rule.relative_half_width:
        reasons.append(
            reason(
                Code.ENERGY_WIDE,
                half=f"{100 * relative:.2g}",
                asked=f"{100 * rule.relative_half_width:.2g}",
            )
        )


def _estimate(name: str, estimate: Estimate | None, unit: float = 1.0) -> Row:
    if estimate is None:
        return {}
    return {
        name: estimate.value / unit,
        f"{name}_lo": estimate.lo / unit,
        f"{name}_hi": estimate.hi / unit,
    }
