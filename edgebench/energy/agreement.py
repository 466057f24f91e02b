"""Whether two sources on one device say the same."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf, isfinite, sqrt

import numpy as np

from edgebench.energy.figures import EnergyFigures
from edgebench.energy.interval import CONFIDENCE, RandomPart, combined, over_launches
from edgebench.energy.source import EnergyError, Source
from edgebench.stats import Estimate


@dataclass(frozen=True, slots=True)
class Agreement:
    """Whether two sources on one device, of one scope, say the same: ratio a / b.

    ``agree``: the interval holds 1. ``suspect_factor``: the power of 1000 by which a seems off
    against b, or None. ``accuracy_known``: both publish an accuracy; where not, the interval lacks
    it, and sources that differ by it don't agree.
    """

    ratio: Estimate
    agree: bool
    suspect_factor: float | None
    accuracy_known: bool


def cross_check(
    a: EnergyFigures,
    source_a: Source,
    b: EnergyFigures,
    source_b: Source,
    confidence: float = CONFIDENCE,
) -> Agreement:
    """Whether two sources of one scope agree: the ratio a / b of the energy a call.

    Both saw the same launches, so launch effects cancel in each launch's ratio; the random part is
    Student's t over those. Gains and offsets are the sources' own.
    """
    theirs = dict(b.per_launch_j)
    ratios = np.array([mine / theirs[n] for n, mine in a.per_launch_j if theirs.get(n)])
    if not ratios.size:
        raise EnergyError("no-readings", "the two sources have no launch in common")
    part = over_launches(ratios)
    if not isfinite(part.u):  # one launch: by the sources' own intervals, taken for independent
        u = sqrt(
            sum((e.half_width / e.value / 2) ** 2 for e in (a.per_inference_j, b.per_inference_j))
        )
        part = RandomPart(part.value, part.value * u, inf)
    offset_a, offset_b = (
        part.value * (source.offset_error_w or 0.0) / figures.average_power_w.value
        for source, figures in ((source_a, a), (source_b, b))
    )
    gain_b = part.value * (source_b.gain_error or 0.0)
    ratio = combined(
        part,
        source_a,
        confidence,
        ratios.size,
        ratios.size,
        offset=offset_a,
        step=offset_b,
        drift=gain_b,
    )
    suspect = None
    for factor in (1e3, 1e-3, 1e6, 1e-6):
        if 0.5 <= part.value / factor <= 2:
            suspect = factor
    known = all(
        bound is not None
        for source in (source_a, source_b)
        for bound in (source.gain_error, source.offset_error_w)
    )
    return Agreement(ratio, suspect is None and ratio.lo <= 1 <= ratio.hi, suspect, known)
