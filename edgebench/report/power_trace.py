"""A run's power over time: windows, idle stretches and inferences as they were, on one clock.

Above, the whole run; below, one energy window and what surrounds it. A counter is drawn as its
differences from one update to the next (``edgebench.report.readings``).

Needs matplotlib (``pip install 'edgebench[report]'``), which is imported when something is drawn.
"""

from __future__ import annotations

import io
import re
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgebench.artifact import Manifest
from edgebench.errors import InputError
from edgebench.recording import PHASES, Recording
from edgebench.report.readings import Floats, Trace, broken_at_holes, envelope, traces, zero_ns
from edgebench.results.atomic import replace_files
from edgebench.results.encoding import Loaded
from edgebench.results.rows import artifact_label

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from edgebench.stats import Estimate

#: Colours that people with any colour vision tell apart, and that differ in lightness: M. Okabe and
#: K. Ito, "Color Universal Design" (2008). Black is the trace's, yellow is too light for lines.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00")
HATCHES = ("", "///", "...", "xxx")
TRACE = "#222222"
IDLE = "#8A8A8A"
#: Columns that a panel can show: readings denser than that are drawn as their lowest and highest.
_COLUMNS = 1600
#: Calls shorter than so many columns are drawn as bars: ticks would run together.
_TICK_COLUMNS = 3
_SIZE_INCHES = (10.0, 7.2)
_DPI = 150


def draw(loaded: Loaded, directory: Path, *, channel: str | None = None) -> list[Path]:
    """Draw the power of a run: ``power-<channel>.png`` and ``.pdf`` for each channel.

    Args:
        loaded: a recording with its attachments.
        directory: made where it is missing; figures of the same name are replaced.
        channel: only the channel of that name.

    Raises:
        InputError: no readings, no such channel, or matplotlib is missing.
        StorageError: the figures can't be written.
    """
    _require_matplotlib()
    found = list(traces(loaded))
    if not found:
        raise InputError(
            f"the run has no readings to draw: {_why_none(loaded.recording)}",
            where=loaded.id,
            fix="`edgebench meters` lists what could measure it; `edgebench energy attach` brings "
            "the trace of any other meter.",
        )
    names = [trace.channel.name for trace in found]
    if channel is not None:
        found = [trace for trace in found if trace.channel.name == channel]
        if not found:
            raise InputError(
                f"the run has no readings of a channel {channel!r}",
                where=loaded.id,
                fix=f"It has: {', '.join(dict.fromkeys(names))}.",
            )
    files: dict[str, bytes] = {}
    for trace in found:
        stem = _stem(trace.channel.name, files)
        for kind, data in _rendered(figure(loaded, trace)).items():
            files[f"{stem}.{kind}"] = data
    replace_files(directory, files)
    return [directory / name for name in files]


def _require_matplotlib() -> None:
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise InputError(
            "drawing needs matplotlib, which is not installed",
            fix="pip install 'edgebench[report]' (on this machine; devices need none of it).",
        ) from error


def _why_none(recording: Recording) -> str:
    said = [meter.failure.message for meter in recording.meters if meter.failure is not None]
    return "; ".join(dict.fromkeys(said)) or recording.power_absent or "its meters delivered none"


def _stem(name: str, taken: Mapping[str, bytes]) -> str:
    """A file's name for a channel, that no other channel has."""
    plain = re.sub(r"[^A-Za-z0-9]+", "-", name).strip("-").lower() or "channel"
    stem, number = f"power-{plain}", 2
    while f"{stem}.png" in taken:
        stem, number = f"power-{plain}-{number}", number + 1
    return stem


def _rendered(drawn: Figure) -> dict[str, bytes]:
    """The same bytes for the same figure: no date, no version in the files."""
    import matplotlib

    found = {}
    with matplotlib.rc_context({"pdf.fonttype": 42}):
        for kind, metadata in (
            ("png", {"Software": None}),
            ("pdf", {"CreationDate": None, "Producer": None, "Creator": None}),
        ):
            sink = io.BytesIO()
            drawn.savefig(sink, format=kind, dpi=_DPI, metadata=metadata)
            found[kind] = sink.getvalue()
    return found


def figure(loaded: Loaded, trace: Trace) -> Figure:
    """The figure of one channel."""
    from matplotlib.figure import Figure

    recording = loaded.recording
    zoom = _zoom(recording)
    panels = 1 if zoom is None else 2
    drawn = Figure(figsize=_SIZE_INCHES if zoom else (_SIZE_INCHES[0], 4.6), layout="constrained")
    axes = drawn.subplots(
        2 * panels, 1, gridspec_kw={"height_ratios": [9, 1.3] * panels, "hspace": 0.02}
    )
    views = [(_whole(recording, trace), "the whole run")]
    if zoom is not None:
        views.append(zoom)
    for number, (view, title) in enumerate(views):
        power, calls = axes[2 * number], axes[2 * number + 1]
        calls.sharex(power)
        _draw_spans(power, recording, view)
        _draw_power(power, trace, view)
        _draw_levels(power, trace)
        _draw_calls(calls, loaded, view)
        _dress(power, calls, view, title)
    # The legend tells of every artifact and of what the levels are; one is enough for both panels.
    handles = _legend(recording, trace)
    drawn.legend(
        handles=handles,
        loc="outside upper left",
        ncols=1 if len(handles) < 3 else 2,
        frameon=False,
        fontsize=8.5,
        handlelength=1.8,
        columnspacing=2.5,
    )
    drawn.supxlabel(_caption(recording, trace), x=0.01, ha="left", fontsize=7.5, color="#444444")
    return drawn


def _whole(recording: Recording, trace: Trace) -> tuple[float, float]:
    """The run from its first launch to its last, and not what a long trace has beside it."""
    zero = zero_ns(recording)
    end = (max(launch.ended_ns for launch in recording.launches) - zero) / 1e9
    margin = 0.02 * end
    begin, last = float(trace.t_s[0]), float(trace.t_s[-1])
    return max(-margin, min(begin, 0.0)), min(end + margin, max(last, end))


def _zoom(recording: Recording) -> tuple[tuple[float, float], str] | None:
    """A window in the middle of the run, with as much again on either side."""
    zero = zero_ns(recording)
    windows = [
        (launch, each)
        for launch in recording.launches
        if launch.outcome == "ok"
        for each in launch.energy_windows
    ]
    if not windows:
        return None
    launch, window = windows[len(windows) // 2]
    begin, end = (window.begin_ns - zero) / 1e9, (window.end_ns - zero) / 1e9
    margin = 0.75 * (end - begin)
    name = _label(recording, window.artifact)
    text = (
        f"one window of {name}: {window.calls} calls in {end - begin:.3g} s, launch {launch.index}"
    )
    return (begin - margin, end + margin), text


def _draw_spans(axes: Axes, recording: Recording, view: tuple[float, float]) -> None:
    """Windows in their artifact's colour, idle stretches in grey."""
    zero = zero_ns(recording)
    for launch in recording.launches:
        for begin_ns, end_ns in launch.idle_ns:
            begin, end = (begin_ns - zero) / 1e9, (end_ns - zero) / 1e9
            if _meets(begin, end, view):
                axes.axvspan(begin, end, facecolor=IDLE, alpha=0.22, linewidth=0, zorder=0)
        for each in launch.energy_windows:
            begin, end = (each.begin_ns - zero) / 1e9, (each.end_ns - zero) / 1e9
            if _meets(begin, end, view):
                axes.axvspan(begin, end, zorder=0, **_fill(each.artifact))


def _meets(begin: float, end: float, view: tuple[float, float]) -> bool:
    return end >= view[0] and begin <= view[1]


def _colour(artifact: int) -> str:
    return COLOURS[artifact % len(COLOURS)]


def _fill(artifact: int) -> dict[str, Any]:
    from matplotlib.colors import to_rgba

    hatch = HATCHES[artifact // len(COLOURS) % len(HATCHES)]
    return {
        "facecolor": to_rgba(_colour(artifact), 0.25),
        "edgecolor": to_rgba(_colour(artifact), 0.5 if hatch else 0.0),
        "hatch": hatch or None,
        "linewidth": 0,
    }


def _draw_power(axes: Axes, trace: Trace, view: tuple[float, float]) -> None:
    begin, end = view
    first, last = np.searchsorted(trace.t_s, [begin, end])
    # One reading beyond either edge, so that the line goes on to it.
    here = slice(max(0, int(first) - 1), int(last) + 1)
    t_s, watts = broken_at_holes(trace.t_s[here], trace.watts[here])
    t_s, watts = envelope(t_s, watts, _COLUMNS)
    averaged = trace.channel.quantity == "energy"
    dots = "." if t_s.size <= 150 else None
    axes.plot(
        t_s,
        watts,
        color=TRACE,
        linewidth=0.9,
        drawstyle="steps-pre" if averaged else "default",
        marker=dots,
        markersize=3,
        zorder=3,
    )
    shown = watts[np.isfinite(watts)]
    if shown.size:
        low, high = min(0.0, float(shown.min())), float(shown.max())
        axes.set_ylim(low, high + 0.08 * (high - low) if high > low else 1.0)


def _draw_levels(axes: Axes, trace: Trace) -> None:
    """Average power of each artifact and idle power, as lines with their intervals."""
    known = [each for each in trace.figures if not isinstance(each, str)]
    for artifact, figures in enumerate(trace.figures):
        if not isinstance(figures, str):
            _level(axes, figures.average_power_w, _colour(artifact), "-")
    idle = next((each.idle_power_w for each in known if each.idle_power_w is not None), None)
    if idle is not None:
        _level(axes, idle, IDLE, "--")


def _level(axes: Axes, estimate: Estimate, colour: str, style: str) -> None:
    if np.isfinite(estimate.lo) and np.isfinite(estimate.hi):
        axes.axhspan(estimate.lo, estimate.hi, color=colour, alpha=0.3, linewidth=0, zorder=1)
    axes.axhline(estimate.value, color=colour, linewidth=1.1, linestyle=style, zorder=2)


def _draw_calls(axes: Axes, loaded: Loaded, view: tuple[float, float]) -> None:
    """A lane an artifact: a tick a call, or bars where ticks would run together."""
    samples, zero = loaded.samples, zero_ns(loaded.recording)
    counted = samples["phase"] != PHASES.index("warmup")
    begin = (samples["start_ns"] - zero) / 1e9
    end = begin + samples["duration_ns"] / 1e9
    seen = (end >= view[0]) & (begin <= view[1]) & counted
    column = (view[1] - view[0]) / _COLUMNS
    lanes = len(loaded.recording.artifacts)
    for artifact in range(lanes):
        mine = seen & (samples["artifact"] == artifact)
        if not np.any(mine):
            continue
        low, height = (lanes - 1 - artifact) / lanes, 0.85 / lanes
        colour = _colour(artifact)
        if np.median(end[mine] - begin[mine]) >= _TICK_COLUMNS * column:
            axes.vlines(begin[mine], low, low + height, color=colour, linewidth=0.7)
        else:
            spans = _merged(begin[mine], end[mine], 2 * column)
            spans = [(at, max(length, 2 * column)) for at, length in spans]
            axes.broken_barh(spans, (low, height), facecolor=colour, linewidth=0)
    axes.set_ylim(0, 1)
    axes.set_ylabel("calls", rotation=0, ha="right", va="center", fontsize=8.5)


def _merged(begin: Floats, end: Floats, gap: float) -> list[tuple[float, float]]:
    """(begin, length) of calls, those closer than ``gap`` as one."""
    if not begin.size:
        return []
    order = np.argsort(begin)
    begin, end = begin[order], end[order]
    breaks = np.flatnonzero(begin[1:] - end[:-1] > gap)
    first = begin[np.append(0, breaks + 1)]
    last = end[np.append(breaks, begin.size - 1)]
    return list(zip(first.tolist(), (last - first).tolist(), strict=True))


def _dress(power: Axes, calls: Axes, view: tuple[float, float], title: str) -> None:
    from matplotlib.ticker import MaxNLocator

    power.set_xlim(view)
    power.set_ylabel("power (W)")
    power.set_title(title, loc="left", fontsize=9.5)
    power.tick_params(labelbottom=False, bottom=False)
    power.yaxis.set_major_locator(MaxNLocator(6))
    power.grid(axis="y", color="#DDDDDD", linewidth=0.6)
    power.set_axisbelow(True)
    calls.set_yticks([])
    calls.xaxis.set_major_locator(MaxNLocator(10))
    calls.set_xlabel("seconds since the first launch began", fontsize=8.5)
    for axes in (power, calls):
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
        axes.tick_params(labelsize=8.5)
    calls.spines["left"].set_visible(False)


def _legend(recording: Recording, trace: Trace) -> list[Any]:
    """A patch an artifact with its figures, idle, and the trace itself."""
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    handles: list[Any] = []
    idle: Estimate | None = None
    for artifact, figures in enumerate(trace.figures):
        name = _label(recording, artifact)
        if isinstance(figures, str):
            text = f"{name}: no figure"
        else:
            text = f"{name}: {_figure(figures.average_power_w)}, {figures.windows} windows"
            idle = idle or figures.idle_power_w
        handles.append(Patch(label=text, **_fill(artifact)))
    if any(launch.idle_ns for launch in recording.launches):
        text = "idle" if idle is None else f"idle: {_figure(idle)}"
        handles.append(Patch(facecolor=IDLE, alpha=0.35, linewidth=0, label=text))
    what = "readings" if trace.channel.quantity == "power" else "counter, difference per update"
    handles.append(Line2D([], [], color=TRACE, linewidth=0.9, label=what))
    return handles


def _figure(estimate: Estimate) -> str:
    """A figure and its interval, to two digits of the interval's half-width."""
    half = (estimate.hi - estimate.lo) / 2
    if not np.isfinite(half):
        return f"{estimate.value:.4g} W (no interval)"
    digits = 3 if half <= 0 else min(6, max(0, 1 - int(np.floor(np.log10(half)))))
    return f"{estimate.value:.{digits}f} W [{estimate.lo:.{digits}f}, {estimate.hi:.{digits}f}]"


def _label(recording: Recording, artifact: int) -> str:
    return artifact_label(Manifest.model_validate(recording.artifacts[artifact].manifest))


def _caption(recording: Recording, trace: Trace) -> str:
    """What the meter was and saw, which run this is, and why a figure is missing."""
    channel, alignment = trace.channel, trace.meter.alignment
    if channel.quantity == "energy":
        pace = f"energy counter, new every {_time(channel.period_s)}"
    else:
        pace = f"power, new every {_time(channel.period_s)}"
        if channel.averaging_s:
            pace += f", mean over {_time(channel.averaging_s)}"
    said = [f"{channel.source}: {channel.name}", f"scope: {channel.scope}", pace]
    if alignment is not None:
        said.append(f"clock aligned within {_time(alignment.bound_ns / 1e9)}")
    if not all(isinstance(each, str) for each in trace.figures):
        said.append("brackets and bands: 95 % intervals")
    run = [f"device {recording.device.name}", *(["EMULATED"] if recording.device.emulated else [])]
    run += [f"recording {recording.id}", recording.created_at]
    reasons: dict[str, list[str]] = {}
    for index, why in enumerate(trace.figures):
        if isinstance(why, str):
            reasons.setdefault(why, []).append(_label(recording, index))
    texts = ["; ".join(said) + ".", "; ".join(run) + "."]
    texts += [f"No figure for {', '.join(names)}: {why}." for why, names in reasons.items()]
    return "\n".join(line for text in texts for line in textwrap.wrap(text, 150))


def _time(seconds: float) -> str:
    return f"{seconds:.3g} s" if seconds >= 1 else f"{seconds * 1e3:.3g} ms"
