"""Accuracy, size and many hypotheses: exact arithmetic."""

from __future__ import annotations

from math import log

import numpy as np
import pytest

from edgebench.errors import InputError
from edgebench.gate.counts import accuracy_drop, size_log_ratio
from edgebench.gate.family import holm
from edgebench.gate.findings import compare_accuracy, right_answers
from edgebench.gate.sequential import Decision, Rule
from edgebench.recording import Accuracy

TERMS = {"limit": 0.02, "alpha": 0.01, "miss": 0.01}


def answers(right: list[int]) -> Accuracy:
    bits = np.array(right, dtype=bool)
    return Accuracy(
        correct=int(bits.sum()), n=bits.size, duration_ns=1, right=np.packbits(bits).tobytes().hex()
    )


def test_holm_on_a_textbook_example():
    assert holm([0.01, 0.04, 0.03, 0.005], 0.05) == [True, False, False, True]
    assert holm([], 0.05) == []
    with pytest.raises(ValueError, match="p-value"):
        holm([float("nan")], 0.05)


def test_holm_keeps_the_family_wise_error():
    random = np.random.default_rng(0)
    alarms = sum(any(holm(list(random.random(20)), 0.05)) for _ in range(2000))
    assert alarms / 2000 <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / 2000)


def test_equal_answers_pass_once_there_are_enough_of_them():
    assert accuracy_drop(0, 0, 1000, **TERMS).decision is Decision.PASS
    few = accuracy_drop(0, 0, 50, **TERMS)
    assert few.decision is Decision.UNDECIDED
    assert few.more_examples
    assert accuracy_drop(0, 0, 50 + few.more_examples, **TERMS).decision is Decision.PASS


def test_a_clear_drop_is_a_regression():
    found = accuracy_drop(60, 5, 500, **TERMS)
    assert found.decision is Decision.REGRESSION
    assert found.value == pytest.approx(0.11)
    assert found.lo < 0.11 < found.hi
    assert found.p_value < 1e-9


def test_the_interval_of_a_drop_holds_the_truth():
    random = np.random.default_rng(3)
    n, worse, better = 400, 0.05, 0.02
    held = 0
    for _ in range(300):
        b, c, _ = random.multinomial(n, [worse, better, 1 - worse - better])
        found = accuracy_drop(int(b), int(c), n, **TERMS)
        held += found.lo <= worse - better <= found.hi
    assert held >= 285


@pytest.mark.parametrize("counts", [(0, 0, 0), (-1, 0, 10), (11, 0, 10), (6, 6, 10)])
def test_counts_that_can_not_be_are_refused(counts):
    with pytest.raises(ValueError, match=r"examples"):
        accuracy_drop(*counts, **TERMS)


def test_answers_are_compared_example_by_example():
    old, new = answers([1, 1, 1, 0] * 100), answers([1, 1, 0, 1] * 100)
    found = compare_accuracy(old, new, Rule(0.03), 0.02)
    assert found.value == 0  # 100 worse and 100 better
    assert found.hi > 0.05  # the totals alone would be equal
    assert list(right_answers(answers([1, 0, 1]))) == [True, False, True]


def test_without_single_answers_the_totals_are_compared_more_widely():
    old, new = answers([1] * 390 + [0] * 10), answers([1] * 390 + [0] * 10)
    bare = [a.model_copy(update={"right": None}) for a in (old, new)]
    paired, unpaired = (compare_accuracy(*s, Rule(0.03), 0.02) for s in ((old, new), bare))
    assert paired.hi - paired.lo < unpaired.hi - unpaired.lo
    assert unpaired.lo < 0 < unpaired.hi


def test_different_examples_and_broken_answers_are_refused():
    with pytest.raises(InputError, match="labelled examples"):
        compare_accuracy(answers([1, 1]), answers([1]), Rule(0.03), 0.02)
    with pytest.raises(InputError, match="do not fit"):
        right_answers(answers([1, 1]).model_copy(update={"correct": 1}))


def test_sizes_are_exact():
    assert size_log_ratio(100, 200) == pytest.approx(log(2))
    with pytest.raises(ValueError, match="size"):
        size_log_ratio(0, 1)
