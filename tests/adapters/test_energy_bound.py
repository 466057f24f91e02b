"""What directions cost, from measured energy."""

from __future__ import annotations

import numpy as np
import pytest

from edgebench.adapters.energy_bound import MeasuredDirections, fit_direction_costs
from edgebench.errors import InputError

TRUE = np.array([0.5, 0.001, 0.003])
COUNTS = [(0, 0), (16, 0), (0, 16), (16, 16), (32, 0), (0, 32), (32, 32), (64, 16)]


def measured(seed: int, noise: float = 0.002) -> list[MeasuredDirections]:
    random = np.random.default_rng(seed)
    return [
        MeasuredDirections(a, b, float(TRUE @ [1, a, b] + random.normal(0, noise)))
        for a, b in COUNTS
    ]


def test_exact_energies_give_the_exact_costs():
    found = fit_direction_costs(measured(0, noise=0))
    assert found.cost_j == pytest.approx(tuple(TRUE), rel=1e-9)
    assert found.bound_j(10, 20) == pytest.approx(0.5 + 0.01 + 0.06, rel=1e-6)


def test_intervals_hold_the_true_cost_and_the_bound_new_calls_as_often_as_they_say():
    held, below, n = 0, 0, 400
    random = np.random.default_rng(7)
    for seed in range(n):
        found = fit_direction_costs(measured(seed))
        held += found.lo_j[2] <= TRUE[2] <= found.hi_j[2]
        below += float(TRUE @ [1, 8, 24] + random.normal(0, 0.002)) <= found.bound_j(8, 24)
    # 95 % two-sided, 97.5 % one-sided; four standard errors of a share of 400.
    assert abs(held / n - 0.95) < 0.044
    assert abs(below / n - 0.975) < 0.032


def test_without_measured_energy_there_is_no_bound():
    rows = [*measured(0), MeasuredDirections(4, 4, None)]
    with pytest.raises(InputError, match="1 of 9 artifacts have no measured energy"):
        fit_direction_costs(rows)


@pytest.mark.parametrize("counts", [[(0, 0), (1, 1)], [(i, i) for i in range(8)]])
def test_artifacts_that_can_not_tell_costs_apart_are_refused(counts):
    rows = [MeasuredDirections(a, b, 1.0 + a) for a, b in counts]
    with pytest.raises(InputError, match="can't tell their costs apart"):
        fit_direction_costs(rows)
