"""A history: change points, drift, and what it predicts."""

from __future__ import annotations

import numpy as np
import pytest

from edgebench.gate.sequential import Decision
from edgebench.gate.trend import LEAST, change_points, step, trend

TERMS = {"limit": 0.05, "alpha": 0.01, "miss": 0.01}


def series(n: int = 30, sd: float = 0.005, seed: int = 0) -> np.ndarray:
    return 3.0 + np.random.default_rng(seed).normal(0, sd, n)


def test_a_level_shift_is_found_where_it_is():
    x = series()
    x[18:] += 0.1
    assert change_points(x) == [18]
    found = trend(x)
    assert found.start == 18
    assert found.changes[0][0] == 18
    assert found.changes[0][1] == pytest.approx(np.exp(0.1), rel=0.01)


def test_noise_has_no_change_points_as_a_rule():
    found = sum(bool(change_points(series(seed=seed))) for seed in range(200))
    assert found <= 20


def test_what_came_before_a_change_is_not_the_baseline():
    x = series()
    x[15:] += 0.1
    assert step(x, 3.1, **TERMS).decision is Decision.PASS
    assert step(x, 3.0 + 0.2, **TERMS).decision is Decision.REGRESSION


def test_a_drift_is_followed():
    x = series() + 0.004 * np.arange(30)
    found = trend(x)
    assert found.slope == pytest.approx(0.004, rel=0.3) or found.start > 0
    assert step(x, 3.0 + 0.004 * 30, **TERMS).decision is not Decision.REGRESSION


def test_unchanged_entries_rarely_alarm_and_never_beyond_alpha():
    alarms = passes = 0
    for seed in range(300):
        x = series(21, seed=seed)
        cuts = change_points(x[:20])
        if cuts and 20 - cuts[-1] < LEAST:
            continue  # a caller says "needs more recordings"
        found = step(x[:20], float(x[20]), **TERMS).decision
        alarms += found is Decision.REGRESSION
        passes += found is Decision.PASS
    assert alarms <= 9
    assert passes >= 250


def test_a_wide_history_says_that_it_can_not_tell():
    found = step(series(8, sd=0.05), 3.02, **TERMS)
    assert found.decision is Decision.UNDECIDED
    assert found.more_recordings is None


def test_few_entries_decide_nothing():
    with pytest.raises(ValueError, match=f"{LEAST} are needed"):
        trend(series(LEAST - 1))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_no_number_is_refused(bad):
    with pytest.raises(ValueError, match="not a number"):
        step([3.0] * 8, bad, **TERMS)
    with pytest.raises(ValueError, match="not a number"):
        trend([3.0] * 7 + [bad])


def test_a_history_without_any_scatter_is_no_division_by_zero():
    assert step([3.0] * 8, 3.0, **TERMS).decision is Decision.PASS
    assert step([3.0] * 8, 3.2, **TERMS).decision is Decision.REGRESSION
