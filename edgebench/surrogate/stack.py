"""The rank-changing calibration: a Bayesian ridge over source predictors and features.

A new device's latency (or energy, or power), relative to a level g, is taken to be

    f(s) = b + μ(s) + w₀·μ(s) + Σ_d w_d·p_d(s) + Σ_j v_j·z_j(s),      y/g = f(s) + ε

where μ is the mean over source devices of r_d, source d's prediction relative to its own level; p
are the principal components of (r_d - μ)/√D, each divided by its spread to the power of 0.15, so
that near-copies of a device don't outvote it; z are the standardised features; b is flat, and the
weights are normal around 0 with variances λ₀², λ², (γ·c_j·sd μ)², c_j being how much feature j
moves the sources. ε is normal with (σ·sd μ)². With all weights zero this is the sources' mean: what
k samples don't support is not claimed.

The variances are not chosen: the posterior mean is averaged over a grid of them, weighed by each
one's marginal likelihood given the samples (Bayesian model averaging, Hoeting et al. 1999; the flat
b is integrated out as in restricted maximum likelihood, Patterson and Thompson 1971). The same is
done for f = log(y/g), and the two spaces are weighed against each other likewise, the Jacobian
included. It is all closed-form: k by k matrices, milliseconds.

NumPy here; ``prepared.py`` evaluates the result in torch, so that gradients flow to s.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Space = Literal["linear", "log"]
SPACES: tuple[Space, ...] = ("linear", "log")

#: The grid of prior spreads: of the mean's weight, the sources', the features', and of the noise.
#: Of a handful of such grids this had the smallest median error where each training device of
#: HELP's split was left out in turn (docs/surrogate.md has how little they differ).
GRID = np.array(
    list(itertools.product((0.5,), (0.7, 1.4, 2.8), (0.05, 0.2, 0.8), (0.05, 0.1, 0.2, 0.4, 0.8)))
)

#: Power of a principal component's own spread that stays in its column: 1 leaves it as it is, 0
#: makes all alike. Chosen as the grid was.
POWER = 0.85

#: Below this many samples the weights would be the prior's alone.
MIN_SAMPLES = 3

#: A linear-space prediction stays above about this share of the level.
FLOOR = 0.02


@dataclass(frozen=True)
class Scale:
    """What makes columns of a space comparable; computed once from the training rows.

    Attributes:
        level: [D] each source's level (linear: log of its mean; log: mean of its logs).
        spread: standard deviation of the sources' mean over the training rows.
        mix: [D, D] from (r - μ) to the columns p.
        feature_weight: [F] c, with Σ c² = 1.
    """

    level: Array
    spread: float
    mix: Array
    feature_weight: Array


@dataclass(frozen=True)
class Part:
    """The stack in one space: predictions are b + basis · theta, theta [1 + D + F]."""

    share: float
    intercept: float
    theta: Array


@dataclass(frozen=True)
class Stack:
    """A fitted stack of one metric: both spaces, and the level g in the metric's unit."""

    level: float
    linear: Part
    log: Part


def learn_scale(log_sources: Array, z: Array, space: Space) -> Scale:
    """From source predictions [N, D] (logarithms) and standardised features [N, F]."""
    if space == "linear":
        level = np.log(np.mean(np.exp(log_sources - log_sources.mean(0)), axis=0))
        level = level + log_sources.mean(0)
    else:
        level = log_sources.mean(0)
    relative = relate(log_sources, level, space)
    spread = max(float(relative.mean(1).std()), 1e-6)
    centred = z - z.mean(0)
    gram = centred.T @ centred + 0.01 * len(z) * np.eye(z.shape[1])
    slopes = np.linalg.solve(gram, centred.T @ (relative - relative.mean(0)))
    weight = np.sqrt((slopes**2).mean(1))
    norm = float(np.linalg.norm(weight))
    flat = np.full(z.shape[1], 1 / np.sqrt(z.shape[1]))
    feature_weight = weight / norm if norm > 0 else flat
    return Scale(level, spread, _components(relative), feature_weight)


def _components(relative: Array) -> Array:
    """The matrix [D, D] that turns deviations from the mean into principal components."""
    n_sources = relative.shape[1]
    deviation = (relative - relative.mean(1, keepdims=True)) / np.sqrt(n_sources)
    _, spread, turned = np.linalg.svd(deviation - deviation.mean(0), full_matrices=False)
    if spread[0] < 1e-12:  # one source, or all alike
        return np.zeros((n_sources, n_sources))
    there = spread > 1e-6 * spread[0]
    weight = np.where(there, np.where(there, spread, 1.0) ** (POWER - 1), 0.0)
    weight *= np.sqrt((spread**2).sum() / ((spread * weight) ** 2).sum())
    return np.asarray(turned.T * weight / np.sqrt(n_sources))


def relate(log_sources: Array, level: Array, space: Space) -> Array:
    """Source predictions relative to their levels: near 1 (linear) or near 0 (log)."""
    relative = log_sources - level
    return np.exp(relative) if space == "linear" else relative


def basis(log_sources: Array, z: Array, scale: Scale, space: Space) -> tuple[Array, Array]:
    """μ [N] and the columns [N, 1 + D + F] that weights are put on."""
    relative = relate(log_sources, scale.level, space)
    mean = relative.mean(1)
    centre = 1.0 if space == "linear" else 0.0
    columns = np.concatenate(
        [
            (mean - centre)[:, None],
            (relative - mean[:, None]) @ scale.mix,
            z * (scale.feature_weight * scale.spread),
        ],
        axis=1,
    )
    return mean, columns


def fit(log_sources: Array, z: Array, y: Array, scales: dict[Space, Scale]) -> Stack:
    """Fit to k samples.

    Args:
        log_sources: [k, D] logarithms of the sources' predictions at the samples.
        z: [k, F] standardised features. y: [k] measurements, in the metric's unit.
    """
    mean_linear, _ = basis(log_sources, z, scales["linear"], "linear")
    log_level = float(np.mean(np.log(y) - np.log(np.maximum(mean_linear, 1e-9))))
    log_y = np.log(y) - log_level
    fits = []
    for space in SPACES:
        mean, columns = basis(log_sources, z, scales[space], space)
        target = np.exp(log_y) if space == "linear" else log_y
        evidence, intercept, theta = _posterior(columns, target - mean, z.shape[1], scales[space])
        if space == "log":
            evidence = evidence - log_y.sum()
        fits.append((evidence, intercept, theta))
    top = max(float(evidence.max()) for evidence, _, _ in fits)
    weights = [np.exp(evidence - top) for evidence, _, _ in fits]
    total = sum(float(w.sum()) for w in weights)
    parts = []
    for w, (_, intercept, theta) in zip(weights, fits, strict=True):
        share = float(w.sum()) / total
        own = w / w.sum() if share > 0 else np.full(len(w), 1 / len(w))
        parts.append(Part(share, float(own @ intercept), own @ theta))
    return Stack(float(np.exp(log_level)), *parts)


def _posterior(
    columns: Array, residual: Array, n_features: int, scale: Scale
) -> tuple[Array, Array, Array]:
    """For each row of the grid: log evidence [H], intercept [H], weights [H, 1 + D + F]."""
    k, width = columns.shape
    group = np.repeat([0, 1, 2], [1, width - 1 - n_features, n_features])
    variance = GRID[:, group] ** 2
    noise = (GRID[:, 3] * scale.spread) ** 2
    kernel = (columns * variance[:, None, :]) @ columns.T
    kernel += noise[:, None, None] * np.eye(k)
    inverse = np.linalg.inv(kernel)
    ones = inverse.sum(axis=1)
    total = ones.sum(axis=1)
    intercept = (ones @ residual) / total
    left = residual[None] - intercept[:, None]
    alpha = (inverse @ left[:, :, None])[:, :, 0]
    evidence = -0.5 * (np.linalg.slogdet(kernel)[1] + np.log(total) + (left * alpha).sum(axis=1))
    return evidence, intercept, (alpha @ columns) * variance


def predict(stack: Stack, log_sources: Array, z: Array, scales: dict[Space, Scale]) -> Array:
    """Predictions [N] in the metric's unit; always positive."""
    values: dict[Space, Array] = {}
    parts: dict[Space, Part] = {"linear": stack.linear, "log": stack.log}
    for space, part in parts.items():
        mean, columns = basis(log_sources, z, scales[space], space)
        values[space] = mean + part.intercept + columns @ part.theta
    linear = FLOOR * np.logaddexp(0.0, values["linear"] / FLOOR)
    mixed = stack.linear.share * linear + stack.log.share * np.exp(values["log"])
    return np.asarray(stack.level * mixed)
