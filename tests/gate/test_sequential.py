"""The sequential test: what it promises, on simulated blocks with fixed seeds."""

from __future__ import annotations

from dataclasses import replace
from math import exp, inf, log

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgebench.gate.replay import false_alarms, real_checks, smallest_slowdown
from edgebench.gate.sequential import (
    Decision,
    Rule,
    decide,
    decide_many,
    hodges_lehmann,
    interval,
    log_wealth,
    spreads,
)

RULE = Rule(0.03, max_blocks=40)
REPLAYS = 1000


def noise(kind: str, seed: int = 1, blocks: int = 40, sd: float = 0.006) -> np.ndarray:
    """[REPLAYS, blocks] log-ratios of a model against itself: any noise, with a fair sign."""
    random = np.random.default_rng(seed)
    shape = (REPLAYS, blocks)
    size = {
        "normal": lambda: random.normal(0, sd, shape),
        "heavy": lambda: sd * random.standard_t(1.2, shape),
        "two modes": lambda: 5 * sd * (random.random(shape) < 0.2) + random.normal(0, sd, shape),
        # The sizes drift and remember each other; only the signs are fair.
        "autocorrelated": lambda: sd * np.exp(np.cumsum(random.normal(0, 0.3, shape), axis=1)),
    }[kind]()
    return size * random.choice([-1, 1], shape)


KINDS = ("normal", "heavy", "two modes", "autocorrelated")


@pytest.mark.parametrize("kind", KINDS)
def test_at_the_edge_of_its_null_it_alarms_no_more_than_alpha(kind):
    rule = Rule(0.03, alpha=0.05, max_blocks=40)
    codes, _ = decide_many(noise(kind) + rule.lower, rule)
    assert np.mean(codes == 2) <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / REPLAYS)


@pytest.mark.parametrize("kind", KINDS)
def test_a_slowdown_of_the_limit_passes_no_more_often_than_miss(kind):
    rule = Rule(0.03, miss=0.05, max_blocks=40)
    codes, _ = decide_many(noise(kind) + rule.upper, rule)
    assert np.mean(codes == 1) <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / REPLAYS)


def test_the_wealth_of_a_fair_bet_stays_one_on_average():
    x = noise("normal", sd=0.003)[:, :6]
    wealth = np.exp(log_wealth(x, 0.0, 0.0005, +1))[:, -1]
    assert wealth.mean() == pytest.approx(1.0, abs=4 * wealth.std() / np.sqrt(REPLAYS))


@pytest.mark.parametrize("slowdown", [0.03, 0.1])
def test_it_finds_the_slowdown_that_it_promises_to_find(slowdown):
    rule = replace(RULE, hypotheses=40)
    codes, blocks = decide_many(noise("normal") + np.log1p(slowdown), rule)
    assert np.mean(codes == 2) >= 0.95
    assert blocks.mean() < 20


def test_unchanged_code_passes_as_soon_as_it_can():
    codes, blocks = decide_many(noise("normal", sd=0.003), RULE)
    assert np.all(codes == 1)
    assert np.median(blocks) == RULE.least_blocks


@pytest.mark.parametrize("truth", [0.0, 0.02, 0.3])
def test_the_interval_holds_the_truth_at_every_look(truth):
    x = noise("heavy")[:60, :25] + truth
    missed = 0
    for one in x:
        bounds = [interval(one[:n], RULE) for n in (8, 12, 18, 25)]
        missed += any(not lo <= exp(truth) <= hi for lo, hi in bounds)
    assert missed <= 8  # 5 % of 60, and three standard deviations


def test_too_few_blocks_bound_nothing():
    assert interval(np.zeros(3), RULE) == (0.0, inf)
    found = decide([0.0] * 3, RULE)
    assert found.decision is Decision.UNDECIDED
    assert found.more_blocks == RULE.least_blocks - 3


def test_evidence_is_what_the_blocks_say():
    found = decide(np.full(20, log(1.1)), RULE)
    assert found.decision is Decision.REGRESSION
    assert found.decided_after == RULE.least_blocks
    assert found.ratio == pytest.approx(1.1)
    assert 1.05 < found.lo < 1.1 < found.hi < 1.15
    assert found.p_value < 1e-4


def test_between_half_the_limit_and_the_limit_it_does_not_know_how_much_longer():
    x = np.tile([RULE.lower - 0.02, RULE.upper + 0.02], 10)
    found = decide(x, RULE)
    assert found.decision is Decision.UNDECIDED
    assert found.more_blocks is None or found.more_blocks > 20


def test_one_outlier_decides_nothing():
    quiet = noise("normal", sd=0.003)[0]
    for outlier in (-3.0, 3.0):
        x = quiet.copy()
        x[5] = outlier
        assert decide(x, RULE).decision is Decision.PASS


@given(st.lists(st.floats(-1, 1), min_size=1, max_size=20), st.floats(-0.2, 0.2))
@settings(max_examples=50, deadline=None)
def test_wealth_falls_as_the_boundary_rises(values, boundary):
    x = np.array(values)
    lower = log_wealth(x, boundary, 0.015, +1)
    higher = log_wealth(x, boundary + 0.01, 0.015, +1)
    assert np.all(higher <= lower + 1e-9)


def test_a_spread_looks_at_earlier_blocks_only():
    x = noise("normal")[0]
    changed = x.copy()
    changed[20:] = 9.0
    assert np.array_equal(spreads(x)[:21], spreads(changed)[:21])


@pytest.mark.parametrize("bad", [[], [0.1, float("nan")], [float("inf")], [[0.1], [0.2]]])
def test_what_is_no_sequence_of_numbers_is_refused(bad):
    with pytest.raises(ValueError, match="block"):
        decide(bad, RULE)


@pytest.mark.parametrize(
    "bad", [{"limit": 0.0}, {"alpha": 1.0}, {"miss": -1.0}, {"hypotheses": 0}, {"max_blocks": 0}]
)
def test_a_rule_that_can_not_be_is_refused(bad):
    with pytest.raises(ValueError, match=r"between 0 and 1|at least one"):
        Rule(**{"limit": 0.03, **bad})


def test_more_hypotheses_need_more_evidence():
    assert Rule(0.03, hypotheses=40).to_fail > Rule(0.03).to_fail
    assert Rule(0.03).least_blocks == 8


def test_hodges_and_lehmann_take_the_median_of_all_means():
    assert hodges_lehmann(np.array([0.0, 1.0, 5.0])) == 1.75


def test_replays_of_blocks_tell_alarms_and_the_smallest_slowdown():
    x = noise("normal", sd=0.004)[0]
    random = np.random.default_rng(0)
    assert false_alarms(x, RULE, 500, random) == 0
    assert false_alarms(x + 0.05, RULE, 500, random) > 450
    small = smallest_slowdown(x, RULE, 300, random)
    large = smallest_slowdown(10 * x, RULE, 300, random)
    assert small is not None
    assert small <= 0.02
    assert large is None or large > small
    assert real_checks(x, RULE) == (5, 0)
    assert real_checks(np.full(30, 0.2), RULE) == (3, 3)
    with pytest.raises(ValueError, match="no blocks"):
        false_alarms(np.zeros(0), RULE, 1, random)
