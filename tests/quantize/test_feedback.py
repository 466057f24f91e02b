"""Error feedback: outputs matter, weights do not."""

import numpy as np
import pytest

from edgebench.errors import InputError
from edgebench.quantize.calibration import Moments
from edgebench.quantize.feedback import fit_with_feedback, output_error
from edgebench.quantize.fit import dequantize, fit


def correlated(k, n=4000, seed=0):
    """Inputs as layers have them: a few strong directions, and a mean."""
    rng = np.random.default_rng(seed)
    mixing = rng.normal(size=(k, k)) * (np.arange(1, k + 1) ** -0.7)[:, None]
    return (rng.normal(size=(n, k)) @ mixing + rng.normal(size=k)).astype(np.float32)


def moments(x, y=None):
    y = x if y is None else y
    x, y = x.astype(np.float64), y.astype(np.float64)
    return Moments(x.T @ x / len(x), y.T @ x / len(x))


def weights(n, k, seed=1):
    return np.random.default_rng(seed).normal(size=(n, k)).astype(np.float32)


@pytest.mark.parametrize("bits", [3, 4])
@pytest.mark.parametrize(("k", "block"), [(128, 32), (100, 64), (97, 128)])
def test_outputs_are_closer_than_with_plain_rounding_on_inputs_it_has_not_seen(bits, k, block):
    x, w = correlated(k), weights(48, k)
    seen, unseen = moments(x[:3000]), moments(x[3000:]).quantised
    feedback = fit_with_feedback(w, seen, block, bits=bits)
    plain = fit(w, block, bits=bits)
    assert output_error(w, *feedback, block, unseen) < 0.5 * output_error(w, *plain, block, unseen)


def test_codes_and_scales_have_the_shapes_and_ranges_of_the_plain_fit():
    codes, scales = fit_with_feedback(weights(7, 100), moments(correlated(100)), 32, bits=3)
    assert codes.shape == (7, 100) and codes.dtype == np.int8
    assert scales.shape == (7, 4) and scales.dtype == np.float16
    assert codes.min() == -4 and codes.max() == 3


def test_uncorrelated_inputs_leave_nothing_to_feed_back():
    """With H a multiple of one, no column can make up for another: plain rounding's codes."""
    w = weights(16, 64)
    even = Moments(np.eye(64), np.eye(64))
    codes, scales = fit_with_feedback(w, even, 32, bits=3)
    plain_codes, plain_scales = fit(w, 32)
    assert np.array_equal(codes, plain_codes)
    assert np.array_equal(scales, plain_scales)


def test_a_shift_of_the_inputs_by_earlier_layers_is_partly_made_up_for():
    """Inputs arrive scaled by 0.8: the outputs meant for the exact ones come closer."""
    y, w = correlated(64), weights(32, 64)
    x = 0.8 * y
    aware = dequantize(*fit_with_feedback(w, moments(x, y), 32, bits=4), 32)
    blind = dequantize(*fit_with_feedback(w, moments(x), 32, bits=4), 32)
    wanted = y @ w.T
    assert ((x @ aware.T - wanted) ** 2).sum() < 0.6 * ((x @ blind.T - wanted) ** 2).sum()


def test_inputs_that_are_always_zero_are_survived():
    x = correlated(64)
    x[:, 10:20] = 0
    codes, scales = fit_with_feedback(weights(8, 64), moments(x), 32, bits=3)
    assert np.isfinite(scales).all()
    codes, scales = fit_with_feedback(weights(8, 64), moments(0 * x), 32, bits=3)
    assert np.isfinite(scales).all() and codes.any()


def test_activations_that_are_not_finite_are_refused():
    x = correlated(64)
    x[3, 5] = np.inf
    with np.errstate(invalid="ignore"):
        broken = moments(x)
    with pytest.raises(InputError, match="NaN or infinite"):
        fit_with_feedback(weights(8, 64), broken, 32, bits=3)


def test_weights_beyond_fp16_scales_are_told_by_an_infinite_scale():
    _, scales = fit_with_feedback(1e6 * weights(4, 64), moments(correlated(64)), 32, bits=3)
    assert np.isinf(scales).any()
