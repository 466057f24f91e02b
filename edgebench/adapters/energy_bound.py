"""HEST's bound on energy, E_max, from what directions really cost on a device.

Artifacts with different numbers of int8 and fp16 directions are measured on one device
(``edgebench directions``). Their energy a call is fitted by least squares,

    E = c_0 + c_int8 n_int8 + c_fp16 n_fp16     in joules,

and E_max of a choice of directions is the upper end of its prediction interval (Student's t with
m - 3 degrees of freedom; Draper and Smith, Applied Regression Analysis, 1998, chapter 3). Where
energy was not measured there is no bound: no unit is ever made up in its place.

A training script reads the costs from direction-costs.json with ``read_direction_costs``, and adds
``cost_j[1] * p_int8.sum() + cost_j[2] * p_fp16.sum()`` to its loss, or keeps it below E_max.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgebench.errors import InputError

SCHEMA = "edgebench.direction-costs/1"

#: Three coefficients, and at least two residuals to judge them by.
_LEAST = 5

Three = tuple[float, float, float]


@dataclass(frozen=True)
class MeasuredDirections:
    """One measured artifact: its directions, and its energy a call (None: not measured)."""

    n_int8: int
    n_fp16: int
    energy_j: float | None


@dataclass(frozen=True)
class LinearCosts:
    """c_0, c_int8 and c_fp16 of some quantity a call, with the ends of confidence intervals.

    Attributes:
        coverage: of the intervals and of the bound.
        variance: of the residuals; inverse: (X' X)^-1; t: Student's quantile.
    """

    cost: Three
    lo: Three
    hi: Three
    coverage: float
    variance: float
    inverse: tuple[Three, Three, Three]
    t: float

    def predict(self, n_int8: int, n_fp16: int) -> float:
        """What is expected of a call with these directions."""
        return float(np.array([1.0, n_int8, n_fp16]) @ np.array(self.cost))

    def bound(self, n_int8: int, n_fp16: int) -> float:
        """The upper end of the prediction interval of a call with these directions."""
        x = np.array([1.0, n_int8, n_fp16])
        spread = self.t * np.sqrt(self.variance * (1 + x @ np.array(self.inverse) @ x))
        return self.predict(n_int8, n_fp16) + float(spread)

    def document(self) -> dict[str, Any]:
        """As direction-costs.json has it (docs/formats.md)."""
        return {
            **{name: dict(zip(_KINDS, getattr(self, name), strict=True)) for name in _ENDS},
            "coverage": self.coverage,
            "variance": self.variance,
            "inverse": [list(row) for row in self.inverse],
            "t": self.t,
        }


_ENDS, _KINDS = ("cost", "lo", "hi"), ("base", "int8", "fp16")


@dataclass(frozen=True)
class DirectionCosts(LinearCosts):
    """The same in joules."""

    @property
    def cost_j(self) -> Three:
        return self.cost

    @property
    def lo_j(self) -> Three:
        return self.lo

    @property
    def hi_j(self) -> Three:
        return self.hi

    def bound_j(self, n_int8: int, n_fp16: int) -> float:
        """E_max: the upper end of the prediction interval of a call with these directions."""
        return self.bound(n_int8, n_fp16)


def fit_direction_costs(
    measured: Sequence[MeasuredDirections], *, coverage: float = 0.95
) -> DirectionCosts:
    """Fit what a direction costs.

    Raises:
        InputError: energy was not measured, or the artifacts can't tell the costs apart.
    """
    energies = [row.energy_j for row in measured]
    known = [value for value in energies if value is not None and np.isfinite(value)]
    empty = len(measured) - len(known)
    if empty:
        raise InputError(
            f"{empty} of {len(measured)} artifacts have no measured energy, so there is no bound",
            fix="Measure them on a device with a power source, or attach a meter's trace.",
        )
    fitted = fit_linear_costs([(r.n_int8, r.n_fp16) for r in measured], known, coverage=coverage)
    return DirectionCosts(**vars(fitted))


def fit_linear_costs(
    counts: Sequence[tuple[int, int]], values: Sequence[float], *, coverage: float = 0.95
) -> LinearCosts:
    """Fit any quantity a call to numbers of int8 and fp16 directions.

    Raises:
        InputError: these numbers can't tell the costs apart.
    """
    from scipy import stats

    x = np.array([[1.0, *pair] for pair in counts])
    if len(counts) < _LEAST or np.linalg.matrix_rank(x) < 3:
        raise InputError(
            f"{len(counts)} artifacts with these directions can't tell their costs apart",
            fix=f"Measure at least {_LEAST}, with different numbers of each kind.",
        )
    y = np.array(values, dtype=np.float64)
    cost, *_ = np.linalg.lstsq(x, y, rcond=None)
    freedom = len(counts) - 3
    variance = float(((y - x @ cost) ** 2).sum() / freedom)
    inverse = np.linalg.inv(x.T @ x)
    t = float(stats.t.ppf((1 + coverage) / 2, freedom))
    half = t * np.sqrt(variance * np.diag(inverse))
    rows = (_three(inverse[0]), _three(inverse[1]), _three(inverse[2]))
    ends = _three(cost), _three(cost - half), _three(cost + half)
    return LinearCosts(*ends, coverage, variance, rows, t)


def read_direction_costs(path: Path) -> DirectionCosts:
    """The joules of a direction-costs.json.

    Raises:
        InputError: the file can't be read, or energy was not measured (it says why).
    """
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(document, dict) or document.get("schema") != SCHEMA:
            raise ValueError
        energy = document["energy"]
        if energy is None:
            raise InputError(
                f"there is no bound in joules: {document['energy_reason']}",
                where=str(path),
                fix="Measure on a device with a power source: edgebench directions.",
            )
        return _from(energy)
    except FileNotFoundError as error:
        raise InputError(
            "there are no direction costs here",
            where=str(path),
            fix="Write them with edgebench directions.",
        ) from error
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(
            "the file holds no direction costs",
            where=str(path),
            fix="Write it again with edgebench directions.",
        ) from error


def _from(energy: Mapping[str, Any]) -> DirectionCosts:
    ends = [_three(np.array([energy[name][kind] for kind in _KINDS])) for name in _ENDS]
    first, second, third = (_three(np.array(row)) for row in energy["inverse"])
    return DirectionCosts(
        ends[0],
        ends[1],
        ends[2],
        float(energy["coverage"]),
        float(energy["variance"]),
        (first, second, third),
        float(energy["t"]),
    )


def _three(values: NDArray[np.float64]) -> Three:
    one, two, three = (float(value) for value in values)
    return one, two, three
