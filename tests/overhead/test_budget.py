"""A budget is kept, broken, or undecided."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgebench.overhead.budget import Answer, Figure, exit_code, judge

SHARES = st.floats(-0.5, 2.0, allow_nan=False)


@pytest.mark.parametrize(
    ("figure", "answer"),
    [
        (Figure(0.05, 0.04, 0.06), Answer.PASS),
        (Figure(0.05, 0.04, 0.07), Answer.PASS),
        (Figure(0.07, 0.05, 0.09), Answer.UNDECIDED),
        (Figure(0.06, 0.05, 0.08), Answer.UNDECIDED),
        (Figure(0.09, 0.071, 0.1), Answer.FAIL),
        (Figure(0.07), Answer.PASS),
        (Figure(0.0701), Answer.FAIL),
        (Figure(reason="no power source"), Answer.UNDECIDED),
    ],
)
def test_seven_percent(figure, answer):
    assert judge(figure, 0.07) is answer


@given(st.tuples(SHARES, SHARES, SHARES).map(sorted), SHARES)
def test_a_budget_within_the_interval_is_never_decided(ends, budget):
    lo, value, hi = ends
    answer = judge(Figure(value, lo, hi), budget)
    if lo <= budget < hi:
        assert answer is Answer.UNDECIDED
    else:
        assert answer is (Answer.PASS if hi <= budget else Answer.FAIL)


def test_the_exit_code_is_the_gravest_answers():
    assert exit_code([]) == 0
    assert exit_code([Answer.PASS, Answer.PASS]) == 0
    assert exit_code([Answer.PASS, Answer.UNDECIDED]) == 2
    assert exit_code([Answer.UNDECIDED, Answer.FAIL, Answer.PASS]) == 1
