"""The comparison's arithmetic."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from edgebench.export.agreement import of_tokens
from edgebench.export.parity import compare

logits = arrays.arrays(
    np.float32, (3, 4), elements=st.floats(-50, 50, width=32, allow_subnormal=False)
)


def parity(expected, actual, **changes):
    options = {"reference": "r", "logits": True, "tolerance": None, **changes}
    return compare([np.asarray(expected)], [np.asarray(actual)], **options)


@given(logits)
def test_an_output_agrees_with_itself(p):
    result = parity(p, p)
    assert (result.max_abs_error, result.mean_abs_error, result.kl_mean) == (0, 0, 0)
    assert result.cosine_min == result.cosine_mean == 1
    assert result.top1_agreement == 1


@given(logits, logits)
def test_divergence_is_never_negative_and_cosine_is_a_cosine(p, q):
    result = parity(p, q)
    assert result.kl_mean >= 0
    assert -1 <= result.cosine_min <= result.cosine_mean <= 1
    assert result.mean_abs_error <= result.max_abs_error


@given(logits, st.floats(-5, 5))
def test_a_shift_of_all_logits_is_no_divergence(p, shift):
    assert parity(p, p + np.float32(shift)).kl_mean < 1e-9


def test_the_divergence_is_that_of_the_definition():
    p, q = np.array([0.5, 0.25, 0.25]), np.array([0.25, 0.5, 0.25])
    result = parity(np.log(p)[None], np.log(q)[None])
    assert result.kl_mean == pytest.approx(0.25 * np.log(2), rel=1e-3)
    assert result.top1_agreement == 0


def test_features_have_no_divergence():
    result = parity(np.ones((2, 5, 3)), np.ones((2, 5, 3)), logits=False)
    assert (result.kl_mean, result.top1_agreement, result.n) == (None, None, 2)


def test_outputs_of_different_shapes_are_not_compared():
    with pytest.raises(ValueError, match="shapes"):
        parity(np.ones((2, 3)), np.ones((2, 4)))


def test_n_counts_rows_over_all_feeds():
    p = [np.ones((2, 3)), np.ones((5, 3))]
    assert compare(p, p, reference="r", logits=True, tolerance=1e-4).n == 7


def test_padding_is_not_compared():
    """Nobody reads what stands there, and there PyTorch and a graph differ most."""
    mask = np.array([[1, 1, 0], [1, 0, 0]])
    hidden = np.arange(12, dtype=np.float32).reshape(2, 3, 2)
    (kept,) = of_tokens([hidden], [{"attention_mask": mask}])
    assert kept.tolist() == [[0, 1], [2, 3], [6, 7]]


def test_answers_a_text_are_all_compared():
    answers = np.ones((2, 3), np.float32)
    (kept,) = of_tokens([answers], [{"attention_mask": np.zeros((2, 3))}])
    assert kept is answers
