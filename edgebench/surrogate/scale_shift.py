"""The calibration of the papers: ψ'(s) = α ψ(s) + β per metric, guarded.

Five samples can give any slope: one outlier, or five samples close together, and the line is wild
(or falls). So:

- The slope is Theil and Sen's (the median of the slopes between pairs), on predictions that have
  been brought to the samples' level first; pairs closer than a tenth of the samples' range don't
  count.
- It is shrunk towards 1 by k / (k + 2): with five samples, two sevenths of the way.
- It stays within [1/3, 3], and where the line would reach zero or below within the range that the
  surrogate was trained on, it is 1: a pure change of scale.

A positive slope keeps the order of all predictions, and so their rank correlation.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

SHRINK = 2.0
SLOPE_LIMIT = 3.0


@dataclass(frozen=True)
class ScaleShift:
    """α, without a unit, and β in the metric's unit."""

    alpha: float
    beta: float

    def __call__(self, prediction: Array) -> Array:
        return self.alpha * prediction + self.beta


def fit(prediction: Array, y: Array, lowest: float) -> ScaleShift:
    """Fit to k samples.

    Args:
        prediction: [k] ψ at the samples, in the metric's unit, positive.
        y: [k] measurements. lowest: the least ψ that must stay positive when calibrated.
    """
    k = len(y)
    level = float(np.exp(np.mean(np.log(y) - np.log(prediction))))
    levelled = level * prediction
    i, j = np.triu_indices(k, 1)
    run = levelled[j] - levelled[i]
    far = np.abs(run) > 0.1 * max(float(np.ptp(levelled)), 1e-9 * level)
    slope = 1.0
    if k > 1 and far.any():
        slope = float(np.median((y[j] - y[i])[far] / run[far]))
    slope = 1.0 + (slope - 1.0) * k / (k + SHRINK)
    slope = float(np.clip(slope, 1 / SLOPE_LIMIT, SLOPE_LIMIT))
    # Relative residuals: a shift that serves the largest sample alone is no use to the others.
    weight = 1 / levelled
    shift = float(np.sum(weight * (y - slope * levelled)) / np.sum(weight))
    if slope * level * lowest + shift <= 0.1 * level * lowest:
        return ScaleShift(level, 0.0)
    return ScaleShift(slope * level, shift)
