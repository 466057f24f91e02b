"""Exact hypervolume of a set of points, by BoTorch's box decomposition.

The volume between a reference point (budgets) and what the points dominate: Zitzler & Thiele,
PPSN V (1998). The decomposition is Lacour, Klamroth & Fonseca, Comput. Oper. Res. 79 (2017), as
maintained in BoTorch (MIT). BoTorch and torch are imported when a volume is asked for:
``pip install 'edgebench[pareto]'``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from edgebench.errors import InputError
from edgebench.pareto.front import Objective, as_maximised, front


def hypervolume(
    points: Any,
    objectives: Sequence[Objective],
    *,
    reference: Sequence[float],
    ideal: Sequence[float] | None = None,
) -> float:
    """Volume that a *set* of points dominates above the reference point.

    Args:
        points: [n, m] numbers; a point that is not better than the reference in every objective
            (over a budget) adds nothing.
        objectives: "maximise" or "minimise" for each of the m columns.
        reference: [m] the worst that counts: the budgets.
        ideal: [m] the best there could be; where given, the volume is a share of the box between
            both, without a unit. Else it has the product of the objectives' units.

    Raises:
        InputError: shapes don't fit, a number is not finite, the ideal is not better than the
            reference, or BoTorch is not installed.
    """
    values = as_maximised(points, objectives)
    bottom = as_maximised([list(reference)], objectives, "reference points")[0]
    scale = np.ones(len(bottom))
    if ideal is not None:
        scale = as_maximised([list(ideal)], objectives, "ideal points")[0] - bottom
        if not (scale > 0).all():
            raise InputError("the ideal point is not better than the reference in every objective")
    gains = (values - bottom) / scale
    gains = gains[(gains > 0).all(axis=1)]
    if not len(gains):
        return 0.0
    gains = gains[front(gains, ["maximise"] * gains.shape[1])]
    if gains.shape[1] == 1:
        return float(gains.max())
    return _dominated(np.unique(gains, axis=0))


def _dominated(gains: Any) -> float:
    """Volume between 0 and points that don't dominate each other."""
    try:
        import torch
        from botorch.utils.multi_objective.box_decompositions.dominated import (
            DominatedPartitioning,
        )
    except ImportError as error:
        raise InputError(
            "a hypervolume needs BoTorch, which is not installed",
            fix="pip install 'edgebench[pareto]' (torch first and alone, see the README).",
        ) from error
    reference = torch.zeros(gains.shape[1], dtype=torch.double)
    boxes = DominatedPartitioning(ref_point=reference, Y=torch.as_tensor(gains))
    return float(boxes.compute_hypervolume())
