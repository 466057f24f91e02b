"""The points that no other point beats in everything."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from edgebench.errors import InputError

Objective = Literal["maximise", "minimise"]


def as_maximised(
    points: Any, objectives: Sequence[Objective], what: str = "points"
) -> npt.NDArray[np.float64]:
    """Points as an [n, m] array in which more is better in every column.

    Raises:
        InputError: not n points of m finite numbers.
    """
    array = np.asarray(points, dtype=float)
    if array.ndim != 2 or array.shape[1] != len(objectives):
        raise InputError(
            f"the {what} are no table of {len(objectives)} columns",
            fix="Give each point one number for each objective.",
        )
    if not np.isfinite(array).all():
        row = int(np.flatnonzero(~np.isfinite(array).all(axis=1))[0])
        raise InputError(
            f"number {row + 1} of the {what} is not finite",
            fix="Leave out what was not measured: nothing stands in for it.",
        )
    signs = np.array([1.0 if objective == "maximise" else -1.0 for objective in objectives])
    found: npt.NDArray[np.float64] = array * signs
    return found


def front(points: Any, objectives: Sequence[Objective]) -> npt.NDArray[np.bool_]:
    """Which points are on the Pareto front: [n] booleans; equal points are on it together.

    Args:
        points: [n, m] numbers.
        objectives: "maximise" or "minimise" for each of the m columns.

    Raises:
        InputError: see ``as_maximised``.
    """
    values = as_maximised(points, objectives)
    keep = np.ones(len(values), dtype=bool)
    for index, value in enumerate(values):
        if keep[index]:
            beaten = (values <= value).all(axis=1) & (values < value).any(axis=1)
            keep &= ~beaten
    return keep
