"""Idle power, and energy with idle power subtracted."""

from __future__ import annotations

from collections.abc import Sequence
from math import sqrt

import numpy as np

from edgebench.energy.faults import spans_covered
from edgebench.energy.interval import (
    combined,
    own_uncertainty,
    per_launch,
    random_part,
    step_bound,
    welch_satterthwaite,
)
from edgebench.energy.source import Problem, Stretch, guard_s
from edgebench.energy.trace import Floats, Spans, Trace
from edgebench.stats import Estimate

#: An idle stretch needs so many periods between its guards.
FEWEST_IDLE_PERIODS = 5


def idle_spans(
    trace: Trace, idle: Sequence[Stretch], zero_ns: int, launches: set[int]
) -> tuple[Spans, list[Problem]]:
    """The stretches that can be used, and what is to be said of the others."""
    problems: list[Problem] = []
    spans = Spans.of([each for each in idle if each.launch in launches], zero_ns, trace)
    if not len(spans):
        text = "No idle stretch was measured: idle power and idle-subtracted energy are empty."
        return spans, [Problem("idle-missing", text)]
    period = max(trace.source.period_s, spans.spacing)
    needed = 2 * guard_s(trace.source, spans.spacing) + FEWEST_IDLE_PERIODS * period
    long_enough = spans.seconds >= needed * (1 - 1e-6)
    if not long_enough.all():
        text = (
            f"{int((~long_enough).sum())} of {len(spans)} idle stretches are shorter than "
            f"{needed:.3g} s, which this source needs; they are left out."
        )
        problems.append(Problem("idle-too-short", text))
        spans = spans.only(long_enough)
    covered = spans_covered(trace, spans)
    if not covered.all():
        text = f"The source has holes over {int((~covered).sum())} idle stretches."
        problems.append(Problem("gaps", text))
        spans = spans.only(covered)
    if not len(spans):
        text = "No idle stretch can be used: idle power and idle-subtracted energy are empty."
        problems.append(Problem("idle-missing", text))
    return spans, problems


def idle_figures(
    trace: Trace,
    used: Spans,
    power: Floats,
    resting: Spans,
    step: float,
    confidence: float,
) -> tuple[Estimate, Estimate | None, list[Problem]]:
    """Idle power and idle-subtracted energy a call.

    A window's idle power is interpolated between the stretches before and after it. What it does
    between them is not seen: half of the mean difference is a bound of an error that all launches
    share. Gain is common to load and idle; the offset cancels.
    """
    source = trace.source
    problems: list[Problem] = []
    idle_w = resting.power(trace)
    idle_step = step_bound(source, resting.samples(trace))
    idle_launches = np.unique(resting.launch).size
    ones = np.ones(len(resting))
    own_idle = own_uncertainty(trace, resting)
    idle_power = combined(
        random_part(idle_w, ones, resting.launch, own_idle, 1.0),
        source,
        confidence,
        len(resting),
        idle_launches,
        offset=source.offset_error_w or 0.0,
        step=idle_step,
    )
    base, change = _interpolated(used, resting, idle_w)
    known = np.isfinite(base)
    if not known.any():  # every launch that has idle stretches lost its windows
        return idle_power, None, problems
    if not known.all():
        count = int((~known).sum())
        text = f"{count} windows belong to launches without an idle stretch: not idle-subtracted."
        problems.append(Problem("idle-missing", text))
    mine = used.only(known)
    launches = np.unique(mine.launch).size
    call_s = float(per_launch(mine.seconds, mine.calls, mine.launch).mean())
    own_window = own_uncertainty(trace, mine)
    own = (
        sqrt(own_window[0] ** 2 + own_idle[0] ** 2),
        welch_satterthwaite([own_window, own_idle]) if len(mine) + len(resting) == 2 else 1.0,
    )
    if len(mine) == 1 and len(resting) > 1:
        spread = float(idle_w.std(ddof=1)) / sqrt(idle_w.size)
        parts = [own_window, (spread, idle_w.size - 1.0)]
        own = (sqrt(own_window[0] ** 2 + spread**2), welch_satterthwaite(parts))
    part = random_part(
        (power[known] - base[known]) * mine.seconds, mine.calls, mine.launch, own, call_s
    )
    both = known & np.isfinite(change)
    drift = abs(float(change[both].mean())) / 2 if both.any() else 0.0
    if not both[known].all():
        count = int((~both[known]).sum())
        text = (
            f"{count} of {len(mine)} windows have idle before or after them only: its drift there "
            "is not known."
        )
        problems.append(Problem("idle-one-sided", text))
    subtracted = combined(
        part,
        source,
        confidence,
        int(mine.calls.sum()),
        launches,
        step=step * call_s,
        idle_step=idle_step * call_s,
        drift=drift * call_s,
    )
    if drift * call_s > 0.01 * abs(part.value):
        text = (
            f"Idle power changes by {2 * drift:.3g} W from before a window to after it; the "
            "idle-subtracted interval is wider for it. Let the device come to rest for longer."
        )
        problems.append(Problem("idle-drift", text))
    return idle_power, subtracted, problems


def _interpolated(used: Spans, resting: Spans, idle_w: Floats) -> tuple[Floats, Floats]:
    """Idle power at each window's middle, and its change from before to after (W).

    NaN for both where the launch has no stretch, for the change where one side has none.
    """
    base = np.full(len(used), np.nan)
    change = np.full(len(used), np.nan)
    for number in np.unique(used.launch):
        rest = resting.launch == number
        if not rest.any():
            continue
        order = np.argsort(resting.middle[rest])
        at, watts = resting.middle[rest][order], idle_w[rest][order]
        mine = np.flatnonzero(used.launch == number)
        base[mine] = np.interp(used.middle[mine], at, watts)
        after = np.searchsorted(at, used.middle[mine])
        inside = (after > 0) & (after < at.size)
        change[mine[inside]] = watts[after[inside]] - watts[after[inside] - 1]
    return base, change
