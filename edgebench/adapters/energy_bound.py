"""HEST's bound on energy, E_max, from what directions really cost on a device.

Artifacts with different numbers of int8 and fp16 directions are measured on one device. Their
energy a call is fitted by least squares,

    E = c_0 + c_int8 n_int8 + c_fp16 n_fp16     in joules,

and E_max of a choice of directions is the upper end of its prediction interval (Student's t with
m - 3 degrees of freedom; Draper and Smith, Applied Regression Analysis, 1998, chapter 3). Where
energy was not measured there is no bound: no unit is ever made up in its place.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgebench.errors import InputError

#: Three coefficients, and at least two residuals to judge them by.
_LEAST = 5


@dataclass(frozen=True)
class MeasuredDirections:
    """One measured artifact: its directions, and its energy a call (None: not measured)."""

    n_int8: int
    n_fp16: int
    energy_j: float | None


@dataclass(frozen=True)
class DirectionCosts:
    """Joules of a call without directions, and of each direction, with the ends of intervals.

    Attributes:
        cost_j: c_0, c_int8, c_fp16.
        lo_j, hi_j: their confidence intervals.
        coverage: of the intervals and of the bound.
    """

    cost_j: tuple[float, float, float]
    lo_j: tuple[float, float, float]
    hi_j: tuple[float, float, float]
    coverage: float
    _variance: float
    _inverse: NDArray[np.float64]
    _t: float

    def bound_j(self, n_int8: int, n_fp16: int) -> float:
        """E_max: the upper end of the prediction interval of a call with these directions."""
        x = np.array([1.0, n_int8, n_fp16])
        spread = self._t * np.sqrt(self._variance * (1 + x @ self._inverse @ x))
        return float(x @ np.array(self.cost_j) + spread)


def fit_direction_costs(
    measured: Sequence[MeasuredDirections], *, coverage: float = 0.95
) -> DirectionCosts:
    """Fit what a direction costs.

    Raises:
        InputError: energy was not measured, or the artifacts can't tell the costs apart.
    """
    from scipy import stats

    empty = sum(row.energy_j is None or not np.isfinite(row.energy_j) for row in measured)
    if empty:
        raise InputError(
            f"{empty} of {len(measured)} artifacts have no measured energy, so there is no bound",
            fix="Measure them on a device with a power source, or attach a meter's trace.",
        )
    x = np.array([[1.0, row.n_int8, row.n_fp16] for row in measured])
    if len(measured) < _LEAST or np.linalg.matrix_rank(x) < 3:
        raise InputError(
            f"{len(measured)} artifacts with these directions can't tell their costs apart",
            fix=f"Measure at least {_LEAST}, with different numbers of each kind.",
        )
    y = np.array([row.energy_j for row in measured], dtype=np.float64)
    cost, *_ = np.linalg.lstsq(x, y, rcond=None)
    freedom = len(measured) - 3
    variance = float(((y - x @ cost) ** 2).sum() / freedom)
    inverse = np.linalg.inv(x.T @ x)
    t = float(stats.t.ppf((1 + coverage) / 2, freedom))
    half = t * np.sqrt(variance * np.diag(inverse))
    return DirectionCosts(
        _three(cost), _three(cost - half), _three(cost + half), coverage, variance, inverse, t
    )


def _three(values: NDArray[np.float64]) -> tuple[float, float, float]:
    return float(values[0]), float(values[1]), float(values[2])
