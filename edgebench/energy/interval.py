"""The interval: a random part and bounds that all windows share (JCGM 101:2008)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import exp, inf, isfinite, pi, sqrt

import numpy as np

from edgebench.energy.source import Source
from edgebench.energy.trace import BATCHES, Floats, Ints, Spans, Trace, energy_between
from edgebench.stats import Estimate

CONFIDENCE = 0.95
_DRAWS = 2048
_DIMENSIONS = 6
_T, _GAIN, _OFFSET, _STEP, _IDLE_STEP, _DRIFT = range(_DIMENSIONS)


@lru_cache(maxsize=1)
def _uniform() -> Floats:
    """[2 n, d] points that fill (0, 1)^d evenly and symmetrically: the same in every run.

    The additive recurrence n a mod 1 with a_j = g^-j, g the root of g^(d+1) = g + 1 (a Kronecker
    sequence; M. Roberts, "The unreasonable effectiveness of quasirandom sequences", 2018), and its
    mirror image, so that symmetric contributions give a symmetric interval.
    """
    g = 1.0
    for _ in range(64):
        g = (1 + g) ** (1 / (_DIMENSIONS + 1))
    step = g ** -np.arange(1.0, _DIMENSIONS + 1)
    half = (0.5 + np.arange(1, _DRAWS + 1)[:, None] * step) % 1.0
    points: Floats = np.concatenate([half, 1 - half])
    return points


@lru_cache(maxsize=256)
def _t_draws(degrees: float) -> Floats:
    from scipy.special import ndtri, stdtrit

    u = _uniform()[:, _T]
    draws: Floats = ndtri(u) if degrees == inf else stdtrit(degrees, u)
    return draws


@dataclass(frozen=True)
class RandomPart:
    """The random part of a figure: its value, standard uncertainty and degrees of freedom."""

    value: float
    u: float
    degrees: float


def combined(
    part: RandomPart,
    source: Source,
    confidence: float,
    n: int,
    launches: int,
    *,
    offset: float = 0.0,
    step: float = 0.0,
    idle_step: float = 0.0,
    drift: float = 0.0,
) -> Estimate:
    """The value with the interval of (M + u t - offsets) / (1 + g).

    JCGM 101:2008: scaled and shifted t for an observed mean (6.4.9), rectangular for a bound
    (6.4.2), and the probabilistically symmetric interval of the output's draws (7.7).

    Args:
        offset, step, idle_step, drift: bounds of additive errors, in the figure's unit.
    """
    if not isfinite(part.u):
        return Estimate(part.value, -inf, inf, n, launches)
    u = 2 * _uniform() - 1
    draws = np.full(len(u), part.value)
    if part.u > 0:
        draws = draws + part.u * _t_draws(part.degrees)
    for column, bound in (
        (_OFFSET, offset),
        (_STEP, step),
        (_IDLE_STEP, idle_step),
        (_DRIFT, drift),
    ):
        if bound > 0:
            draws = draws - bound * u[:, column]
    if source.gain_error:
        draws = draws / (1 + source.gain_error * u[:, _GAIN])
    lo, hi = np.quantile(draws, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Estimate(part.value, min(float(lo), part.value), max(float(hi), part.value), n, launches)


def per_launch(amount: Floats, over: Floats, launch: Ints) -> Floats:
    """Sum of amounts over sum of what they are a share of, a launch."""
    _, which = np.unique(launch, return_inverse=True)
    ratio: Floats = np.bincount(which, amount) / np.bincount(which, over)
    return ratio


def over_launches(values: Floats) -> RandomPart:
    """Mean of one figure a launch: u = s / sqrt(L), L - 1 degrees of freedom."""
    if values.size < 2:
        return RandomPart(float(values.mean()), inf, 1)
    return RandomPart(
        float(values.mean()), float(values.std(ddof=1)) / sqrt(values.size), values.size - 1
    )


def random_part(
    amount: Floats, over: Floats, launch: Ints, own: tuple[float, float], scale: float
) -> RandomPart:
    """The random part: over launches; over windows where there is one launch; else a window's own.

    Args:
        own: standard uncertainty (W) and degrees of freedom of one window's mean power.
        scale: the figure's unit a watt.
    """
    values = per_launch(amount, over, launch)
    mean = float(values.mean())
    if values.size < 2:
        values = amount / over
    if values.size < 2:
        return RandomPart(mean, own[0] * scale, own[1])
    return RandomPart(mean, float(values.std(ddof=1)) / sqrt(values.size), values.size - 1)


def own_uncertainty(trace: Trace, spans: Spans) -> tuple[float, float]:
    """What one span knows of its mean power by itself (W), with degrees of freedom."""
    if len(spans) > 1:
        return inf, 1.0  # not needed: their scatter says more
    begin, end = float(spans.inner_begin[0]), float(spans.inner_end[0])
    found = energy_between(trace, begin, end)
    step = found.u_resolution_j if trace.power is None else 0.0
    parts = [(found.u_edge_j, inf), (found.u_sampling_j, BATCHES - 1.0), (step, inf)]
    u = sqrt(sum(each**2 for each, _ in parts)) / (end - begin)
    return u, welch_satterthwaite(parts)


def welch_satterthwaite(parts: Sequence[tuple[float, float]]) -> float:
    """Effective degrees of freedom of a sum: (sum u^2)^2 / sum(u^4 / v), JCGM 100:2008, G.4.1.

    Args:
        parts: standard uncertainty and degrees of freedom of each (inf: exactly known).
    """
    below = sum(u**4 / degrees for u, degrees in parts if degrees != inf)
    total = sum(u**2 for u, _ in parts)
    return inf if below == 0 else total**2 / below


def step_bound(source: Source, samples: Floats) -> float:
    """Bound (W) of what rounding does to a mean of power readings.

    Half a step for a constant load. Noise of standard deviation s that is rounded with it averages
    the error out by exp(-2 pi^2 (s/step)^2), the characteristic function of the noise at the
    quantiser's frequency (B. Widrow and I. Kollár, Quantization Noise, 2008).
    """
    step = source.resolution
    if source.quantity != "power" or step <= 0:
        return 0.0
    spread = float(samples.std()) if samples.size else 0.0
    return step / 2 * exp(-2 * (pi * spread / step) ** 2)
