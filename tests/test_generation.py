"""Perplexity and the agreement of greedy tokens."""

from __future__ import annotations

from math import e, exp, inf, log

import numpy as np
import pytest

from edgebench.generation import agreement, first_difference, leading, perplexity
from edgebench.recording import Greedy


def test_a_model_that_guesses_among_v_tokens_has_perplexity_v():
    found = perplexity([4 * log(32), 9 * log(32)], [4, 9])
    assert found.value == pytest.approx(32)
    assert found.lo == pytest.approx(32)
    assert found.hi == pytest.approx(32)
    assert found.n == 13


def test_texts_weigh_by_their_tokens_and_one_text_bounds_nothing():
    assert perplexity([10.0, 0.0], [10, 90]).value == pytest.approx(exp(0.1))
    alone = perplexity([3.0], [3])
    assert (alone.value, alone.hi) == (pytest.approx(e), inf)
    assert alone.lo == 1


def test_without_tokens_or_a_finite_likelihood_there_is_none():
    assert perplexity([], []) is None
    assert perplexity([inf, 1.0], [3, 3]) is None
    assert perplexity([np.nan], [3]) is None


def test_its_interval_holds_the_truth_as_often_as_it_says():
    random = np.random.default_rng(0)
    held = 0
    for _ in range(400):
        tokens = random.integers(50, 150, size=20)
        level = random.normal(3, 0.3, size=20)  # a text's own difficulty
        found = perplexity(level * tokens, tokens)
        held += found.lo <= exp(3) <= found.hi
    assert held >= 390  # 99 % of 400 is 396; the binomial's 0.1 % quantile is 390


def test_agreement_counts_up_to_the_first_other_token():
    greedy = Greedy(prompt_len=4, tokens=[[1, 2, 9, 4], [5, 6]], expected=[[1, 2, 3, 4], [5, 6]])
    assert agreement(greedy) == 4 / 6
    assert first_difference(greedy) == "token 3 of 4 after prompt 1 is 9, not 3"
    same = Greedy(prompt_len=4, tokens=[[1, 2]], expected=[[1, 2]])
    assert agreement(same) == 1
    assert first_difference(same) is None
    assert agreement(Greedy(prompt_len=4, tokens=[], expected=[])) is None
    assert leading([], [1]) == 0
