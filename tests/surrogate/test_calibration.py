"""Calibrations: what is exact, what is guarded, and what is said of a strange device."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import spearmanr

from edgebench.surrogate import scale_shift, stack
from edgebench.surrogate.calibration import At, calibrate, fit_metric, outliers
from tests.surrogate import devices

rng = np.random.default_rng(0)


def test_a_line_is_found_and_shrunk():
    prediction = np.linspace(10, 100, 40)
    line = scale_shift.fit(prediction, 2.0 * prediction + 5.0, lowest=10.0)
    assert line(prediction) == pytest.approx(2.0 * prediction + 5.0, rel=0.02)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.floats(0.1, 1e4), st.floats(0.1, 1e4)), min_size=1, max_size=12))
def test_whatever_the_samples_are_the_line_rises_and_stays_positive(pairs):
    prediction, y = np.array(pairs).T
    lowest = 0.1
    line = scale_shift.fit(prediction, y, lowest)
    level = np.exp(np.mean(np.log(y) - np.log(prediction)))
    assert level / scale_shift.SLOPE_LIMIT <= line.alpha * (1 + 1e-9)
    assert line.alpha <= level * scale_shift.SLOPE_LIMIT * (1 + 1e-9)
    assert line(np.array([lowest]))[0] > 0


def test_an_outlier_does_not_turn_the_line():
    prediction = np.array([10.0, 20.0, 30.0, 40.0, 50.0])
    y = prediction.copy()
    y[0] = 500.0
    assert scale_shift.fit(prediction, y, 10.0).alpha > 0


def family_at(n=400, sources=4, seed=1):
    """Source predictors that are linear in five features, and a mixture of them as truth."""
    own = np.random.default_rng(seed)
    x = own.uniform(0, 1, (n, 5))
    slopes = own.uniform(0.2, 2.0, (sources, 5))
    logs = np.log(1 + x @ slopes.T)
    z = (x - x.mean(0)) / x.std(0)
    scales = {space: stack.learn_scale(logs, z, space) for space in stack.SPACES}
    return At(logs, z, np.exp(logs.mean(1)), scales, 1.0)


def test_the_stack_changes_ranks_where_the_samples_support_it():
    at = family_at()
    y = 7.0 * (0.9 * np.exp(at.logs[:, 2]) - 0.4 * np.exp(at.logs[:, 0]) + 1.0)
    chosen, others = np.arange(15), np.arange(15, 400)
    line = fit_metric(at.rows(chosen), y[chosen], ("scale-shift",))
    free = fit_metric(at.rows(chosen), y[chosen])
    assert free.method == "stack"
    before = spearmanr(at.rows(others).predict(line), y[others]).statistic
    after = spearmanr(at.rows(others).predict(free), y[others]).statistic
    assert after > before + 0.02
    assert after > 0.98


def test_where_a_line_explains_everything_the_stack_does_no_harm():
    at = family_at()
    y = 3.0 * at.mean
    fitted = fit_metric(at.rows(np.arange(10)), y[:10])
    assert np.median(np.abs(at.predict(fitted) / y - 1)) < 0.02


def test_a_stack_of_no_information_stays_at_the_sources_mean():
    at = family_at()
    y = np.full(4, 5.0)  # the same row four times says the level alone
    same = at.rows(np.zeros(4, dtype=int))
    fitted = stack.fit(same.logs, same.z, y, at.scales)
    mean = np.exp(at.logs - at.scales["linear"].level).mean(1)
    ranks = spearmanr(stack.predict(fitted, at.logs, at.z, at.scales), mean).statistic
    assert ranks > 0.98


def test_the_unit_of_the_measurements_does_not_matter():
    at = family_at()
    y = 3.0 * np.exp(at.logs[:8, 1])
    in_ms = stack.fit(at.logs[:8], at.z[:8], y, at.scales)
    in_us = stack.fit(at.logs[:8], at.z[:8], 1e3 * y, at.scales)
    assert stack.predict(in_us, at.logs, at.z, at.scales) == pytest.approx(
        1e3 * stack.predict(in_ms, at.logs, at.z, at.scales)
    )


def test_one_disturbed_run_is_set_aside_and_two_of_five_are_the_device():
    prediction = np.array([10.0, 20.0, 30.0, 40.0, 50.0])
    y = 2 * prediction * np.array([1.01, 0.99, 1.02, 1.0, 12.0])
    assert outliers(prediction, y).tolist() == [False, False, False, False, True]
    assert not outliers(prediction[1:], y[1:]).any()  # four samples decide nothing
    y[0] *= 12
    assert not outliers(prediction, y).any()


def test_torch_and_numpy_compute_the_same_stack(fitted):
    from edgebench.surrogate.model import Added

    surrogate = fitted.surrogate
    samples = devices.table("new-board", 12, 50, devices.NEW)
    rows = devices.statistics(30, 51)
    at = At.of(surrogate, "latency_ms", samples.x)
    made = stack.fit(at.logs, at.z, samples.y[:, 1], at.scales)
    assert 0 < made.linear.share < 1
    surrogate.with_device("held", {name: Added(made) for name in surrogate.metrics})
    with torch.no_grad():
        ours = surrogate(torch.tensor(rows, dtype=torch.float32), "held")[:, 1]
    there = At.of(surrogate, "latency_ms", rows)
    expected = stack.predict(made, there.logs, there.z, there.scales)
    assert ours.numpy() == pytest.approx(expected, rel=1e-3)
    del surrogate.added["held"]


def test_a_device_of_the_family_has_intervals_and_no_warning(fitted):
    samples = devices.table("new-board", 10, 31, devices.NEW)
    found = calibrate(fitted.surrogate, samples, fitted.leave_out, range_=fitted.range_)
    assert "device-unlike-training" not in found.warnings
    assert set(found.half_width) == {"energy_j", "latency_ms", "power_w"}
    assert all(0 < width < 1 for width in found.half_width.values())


def test_a_device_that_does_the_opposite_is_said_to_be_unlike_all_others(fitted):
    samples = devices.table("strange", 10, 31, devices.STRANGE)
    assert (samples.y > 0).all()
    found = calibrate(fitted.surrogate, samples, fitted.leave_out, range_=fitted.range_)
    assert "device-unlike-training" in found.warnings


def test_two_samples_give_a_scale_and_say_so(fitted):
    samples = devices.table("new-board", 2, 31, devices.NEW)
    found = calibrate(fitted.surrogate, samples, fitted.leave_out)
    assert {"too-few-samples", "no-interval"} <= set(found.warnings)
    assert all(metric.method == "scale-shift" for metric in found.metrics.values())


def test_samples_outside_the_training_range_are_named(fitted):
    samples = devices.table("new-board", 6, 31, devices.NEW)
    samples.x[0, 0] = 4096
    found = calibrate(fitted.surrogate, samples, fitted.leave_out, range_=fitted.range_)
    assert "features-outside-training" in found.warnings


def test_a_metric_that_was_not_sampled_is_absent(fitted):
    samples = devices.table("new-board", 6, 31, devices.NEW)
    samples.y[:, 0] = np.nan
    found = calibrate(fitted.surrogate, samples, fitted.leave_out)
    assert set(found.metrics) == {"latency_ms", "power_w"}
