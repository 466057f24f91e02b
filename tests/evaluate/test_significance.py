"""The tests of significance: right where they speak, silent with a reason where they can't."""

from __future__ import annotations

import numpy as np
import pytest

from edgebench.errors import UsageError
from edgebench.evaluate.observations import Observation
from edgebench.evaluate.significance import compare, holm


def seeds(values: list[float]) -> list[Observation]:
    return [Observation("m", v, seed=str(i)) for i, v in enumerate(values)]


def loose(values: list[float]) -> list[Observation]:
    return [Observation("m", v) for v in values]


def test_pairs_are_compared_as_pairs() -> None:
    noise = [float(v) for v in np.random.default_rng(1).normal(0, 10, 8)]
    found = compare("m", "a", seeds([v + 1 for v in noise]), "b", seeds(noise))
    assert found.test == "paired permutation"
    # All eight differences have one sign: 2 of 2^8 sign flips are as extreme.
    assert found.p == pytest.approx(2 / 2**8)
    assert found.difference == pytest.approx(1.0)


def test_five_pairs_are_too_few() -> None:
    found = compare("m", "a", seeds([1, 2, 3, 4, 5]), "b", seeds([2, 3, 4, 5, 6]))
    assert found.p is None
    assert "fewer than 6" in found.reason


def test_unpaired_values_get_mann_whitney() -> None:
    found = compare("m", "a", loose([1, 2, 3, 4]), "b", loose([5, 6, 7, 8]))
    assert found.test == "Mann-Whitney U"
    assert found.p == pytest.approx(2 / 70)


def test_ties_are_counted_by_permutation() -> None:
    found = compare("m", "a", loose([1, 1, 2, 2, 1]), "b", loose([5, 6, 5, 6, 6]))
    assert found.p == pytest.approx(2 / 252, rel=0.3)


def test_three_against_three_are_too_few() -> None:
    found = compare("m", "a", loose([1, 2, 3]), "b", loose([7, 8, 9]))
    assert found.p is None
    assert "so few" in found.reason


def test_a_run_is_never_compared_with_itself() -> None:
    values = seeds([1, 2, 3, 4, 5, 6])
    with pytest.raises(UsageError, match="itself"):
        compare("m", "a", values, "a", values)
    with pytest.raises(UsageError, match="itself"):
        compare("m", "a", values, "b", values)


def test_false_alarms_keep_their_rate() -> None:
    rng = np.random.default_rng(7)
    alarms = 0
    for _ in range(400):
        a, b = rng.standard_t(3, 8), rng.standard_t(3, 8)
        p = compare("m", "a", seeds(list(a)), "b", seeds(list(b)), resamples=20).p
        assert p is not None
        alarms += p < 0.05
    assert alarms / 400 < 0.09


def test_holm_multiplies_the_smallest_most() -> None:
    one = [compare("m", "a", loose([1, 2, 3, 4]), "b", loose([5, 6, 7, 8 + i])) for i in range(2)]
    adjusted = holm([*one, compare("m", "a", loose([1]), "b", loose([2]))])
    assert [c.p_holm for c in adjusted] == [pytest.approx(4 / 70), pytest.approx(4 / 70), None]
