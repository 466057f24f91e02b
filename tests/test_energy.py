"""Energy: exact arithmetic on known loads, a test a fault, and intervals against the truth."""

from __future__ import annotations

import importlib
import re
from dataclasses import replace
from math import inf, isclose, sqrt

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgebench import energy
from edgebench.energy import (
    ClockReading,
    EnergyError,
    EnergyFigures,
    Source,
    Stretch,
    Window,
    interval,
    measure,
)
from tests.benchmarks.conftest import BENCHMARKS

assert BENCHMARKS.is_dir()  # and its conftest has made the scripts there importable
world = importlib.import_module("energy_world")
coverage = importlib.import_module("energy_coverage")

SECOND = 1_000_000_000
COUNTER = Source("energy", 0.1, resolution=0.001, gain_error=0.01, offset_error_w=0.0)
POWER = Source("power", 0.1, resolution=0.001, gain_error=0.01, offset_error_w=0.1, averaging_s=0.1)
SHAPE = world.Shape(launches=4, rounds=2, window_s=6.0, idle_s=3.0, rest_s=1.0)
DEVICE = world.Device(load_w=50.0, idle_w=20.0, call_s=0.02)
#: A device without any randomness of its own.
STILL = replace(
    DEVICE, launch_power=0.0, launch_time=0.0, launch_idle=0.0, window_power=0.0, ripple=0.0
)


def simulated(source=COUNTER, device=DEVICE, shape=SHAPE, seed=0, **errors):
    errors = {"jitter": 0.1, **errors}
    sensor = world.Sensor(source, **errors)
    return world.simulate(device, shape, sensor, np.random.default_rng(seed))


def code(call) -> str:
    with pytest.raises(EnergyError) as caught:
        call()
    assert caught.value.message
    return caught.value.code


def codes(figures: EnergyFigures) -> set[str]:
    assert all(problem.text.endswith(".") for problem in figures.problems)
    return {problem.code for problem in figures.problems}


def during(run, launch: int) -> np.ndarray:
    """Which readings fall into a launch's windows."""
    found = np.zeros(run.t_ns.size, dtype=bool)
    for window in run.windows:
        if window.launch == launch:
            found |= (run.t_ns >= window.begin_ns) & (run.t_ns <= window.end_ns)
    return found


# --- known loads ----------------------------------------------------------------------------------


@pytest.mark.parametrize("source", [COUNTER, POWER], ids=["counter", "power"])
def test_a_device_without_scatter_is_measured_to_the_resolution(source):
    found = simulated(source, STILL, jitter=0.0).measure()
    assert found.per_inference_j.value == pytest.approx(STILL.per_inference_j, rel=1e-3)
    assert found.average_power_w.value == pytest.approx(50, rel=1e-3)
    assert found.idle_power_w.value == pytest.approx(20, rel=1e-3)
    subtracted = found.per_inference_idle_subtracted_j
    assert subtracted.value == pytest.approx(STILL.subtracted_j, rel=1e-3)
    assert found.peak_power_w.value == pytest.approx(50, rel=0.01)
    assert (found.windows, found.launches) == (8, 4)
    assert found.problems == ()


def test_with_nothing_else_the_interval_is_the_gains_rectangle():
    source = replace(POWER, offset_error_w=0.0, resolution=0.0, gain_error=0.1)
    figure = simulated(source, STILL, jitter=0.0).measure().per_inference_j
    # 95 % of an even spread between 1 / 1.1 and 1 / 0.9, by its quantiles
    assert figure.lo / figure.value == pytest.approx(1 / 1.095, rel=1e-3)
    assert figure.hi / figure.value == pytest.approx(1 / 0.905, rel=1e-3)


def test_with_nothing_else_the_interval_is_students_over_the_launches():
    from scipy.stats import t

    source = replace(COUNTER, gain_error=0.0, offset_error_w=0.0)
    found = simulated(source).measure()
    launches = np.array([joules for _, joules in found.per_launch_j])
    half = t.ppf(0.975, 3) * launches.std(ddof=1) / 2
    figure = found.per_inference_j
    assert figure.value == pytest.approx(launches.mean())
    assert figure.hi - figure.value == pytest.approx(half, rel=0.02)
    assert figure.value - figure.lo == pytest.approx(half, rel=0.02)
    assert figure.launches == 4
    assert figure.n == sum(window.calls for window in simulated(source).windows)


def test_the_offset_cancels_in_idle_subtracted_energy_and_not_in_the_total():
    true = simulated(POWER, jitter=0.0).measure()
    run = simulated(POWER, jitter=0.0, offset_w=7.0)
    off = replace(run, source=replace(POWER, offset_error_w=8.0)).measure()
    assert off.average_power_w.value - true.average_power_w.value == pytest.approx(7, abs=0.01)
    mine, theirs = (f.per_inference_idle_subtracted_j for f in (off, true))
    assert mine.value == pytest.approx(theirs.value, rel=1e-3)
    assert mine.half_width == pytest.approx(theirs.half_width, rel=0.01)
    assert off.per_inference_j.half_width > 4 * true.per_inference_j.half_width


def test_a_lag_and_a_clock_that_is_off_do_not_move_the_figure():
    source = replace(COUNTER, lag_s=0.3, clock_bound_s=0.4)
    for lag, clock in ((0.0, 0.0), (0.3, 0.4), (0.3, -0.4), (0.0, 0.4)):
        shape = replace(SHAPE, window_s=8.0)
        found = simulated(source, STILL, shape, jitter=0.0, lag_s=lag, clock_s=clock).measure()
        assert found.per_inference_j.value == pytest.approx(STILL.per_inference_j, rel=2e-3)


def test_peak_power_names_the_time_that_it_is_a_mean_over():
    ripple = replace(STILL, call_s=1.0, ripple=0.4, high=0.3)
    found = simulated(POWER, ripple).measure()
    assert found.peak_power_w.value == pytest.approx(70, rel=0.01)
    assert found.peak_period_s == 0.1
    slow = replace(POWER, period_s=1.0, averaging_s=1.0)
    shape = replace(SHAPE, window_s=60.0, idle_s=20.0, rest_s=3.0)
    found = simulated(slow, replace(ripple, call_s=0.5), shape).measure()
    assert found.peak_power_w.value == pytest.approx(50, rel=0.01)
    assert found.peak_period_s == 1.0


def test_a_counters_peak_is_taken_over_ten_of_its_steps():
    found = simulated(COUNTER, STILL).measure()
    assert found.peak_period_s == pytest.approx(1.0, rel=0.05)
    assert found.peak_power_w.lo <= 50 <= found.peak_power_w.hi


def test_more_launches_and_a_lower_confidence_narrow_the_interval():
    few = simulated(shape=replace(SHAPE, launches=3)).measure().per_inference_j
    many = simulated(shape=replace(SHAPE, launches=12)).measure().per_inference_j
    assert many.half_width < few.half_width
    run = simulated()
    assert run.measure(0.68).per_inference_j.half_width < run.measure().per_inference_j.half_width


def test_the_same_readings_give_the_same_figures_to_the_last_bit():
    run = simulated()
    assert run.measure() == run.measure()
    interval._uniform.cache_clear()
    interval._t_draws.cache_clear()
    assert run.measure() == simulated().measure()


def test_polling_faster_than_the_sensor_moves_changes_nothing_much():
    updates = simulated(jitter=0.0).measure().per_inference_j
    polled = simulated(jitter=0.0, poll_s=0.013).measure().per_inference_j
    assert polled.value == pytest.approx(updates.value, rel=2e-3)


# --- one launch, one window -----------------------------------------------------------------------


def test_one_launch_speaks_of_itself_alone():
    found = simulated(shape=replace(SHAPE, launches=1, rounds=4)).measure()
    assert "one-launch" in codes(found)
    assert found.per_inference_j.within_launch_only
    assert 0 < found.per_inference_j.half_width < inf


def test_one_window_has_the_sensors_own_uncertainty():
    found = simulated(shape=replace(SHAPE, launches=1, rounds=1)).measure()
    assert 0 < found.per_inference_j.half_width < 0.1 * found.per_inference_j.value
    subtracted = found.per_inference_idle_subtracted_j
    assert 0 < subtracted.half_width < inf


def test_one_window_of_a_sensor_that_looks_rarely_is_less_certain():
    device = replace(DEVICE, call_s=0.37, ripple=0.6)
    shape = replace(SHAPE, launches=1, rounds=1)
    whole = replace(POWER, gain_error=0.0, offset_error_w=0.0, resolution=0.0)
    part = replace(whole, duty=0.25, averaging_s=0.025)
    widths = [
        simulated(source, device, shape).measure().average_power_w.half_width
        for source in (whole, part)
    ]
    assert widths[1] > 1.5 * widths[0]
    assert "seen-in-part" in codes(simulated(part, device, shape).measure())


# --- window_energy, unwrap, shortest_window_s -----------------------------------------------------


def test_energy_of_a_linear_power_is_the_trapezoid_exactly():
    t = np.array([0, 1, 1.5, 4, 10]) * SECOND
    found = energy.window_energy(
        Source("power", 1.0, averaging_s=0.0), t, t / 1e9, SECOND // 2, 3 * SECOND
    )
    assert found.energy_j == pytest.approx((9 - 0.25) / 2)


def test_a_counters_difference_is_interpolated_at_the_edges():
    t = np.arange(20) * SECOND
    found = energy.window_energy(
        Source("energy", 1.0), t, np.arange(20) * 5.0, int(2.25 * SECOND), int(7.75 * SECOND)
    )
    assert found.energy_j == pytest.approx(5 * 5.5)
    assert found.u_j == pytest.approx(
        sqrt(found.u_edge_j**2 + found.u_sampling_j**2 + found.u_resolution_j**2)
    )
    assert found.u_edge_j == pytest.approx(sqrt(2) * 5 / sqrt(12))


def test_a_window_beyond_the_readings_has_no_energy():
    t = np.arange(10) * SECOND
    source = Source("energy", 1.0)
    assert code(lambda: energy.window_energy(source, t, t / 1e9, 0, 20 * SECOND)) == "gap"
    assert code(lambda: energy.window_energy(source, t, t / 1e9, 5, 5)) == "bad-window"


def irregular(seed: int, quantity: str) -> tuple[Source, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    t = np.cumsum(rng.integers(1, SECOND // 5, 200))
    value = rng.uniform(1, 9, 200)
    if quantity == "energy":
        value = np.cumsum(value)
    return Source(quantity, 0.1, averaging_s=0.1, lag_s=0.02), t, value


cuts = st.lists(st.floats(0.1, 0.9), min_size=3, max_size=3, unique=True).map(sorted)
kinds = st.sampled_from(["power", "energy"])
seeds = st.integers(0, 10_000)


@given(seed=seeds, quantity=kinds, cut=cuts)
@settings(max_examples=60, deadline=None)
def test_energies_of_windows_that_touch_add_up(seed, quantity, cut):
    source, t, value = irregular(seed, quantity)
    a, b, c = (int(t[0] + (t[-1] - t[0]) * share) for share in cut)
    if not a < b < c:
        return
    first, second, both = (
        energy.window_energy(source, t, value, *span).energy_j for span in ((a, b), (b, c), (a, c))
    )
    assert first + second == pytest.approx(both, rel=1e-9, abs=1e-9)


@given(seed=seeds, quantity=kinds, factor=st.floats(1e-3, 1e3), cut=cuts)
@settings(max_examples=60, deadline=None)
def test_energy_is_linear_in_gain(seed, quantity, factor, cut):
    source, t, value = irregular(seed, quantity)
    a, c = (int(t[0] + (t[-1] - t[0]) * share) for share in (cut[0], cut[2]))
    once = energy.window_energy(source, t, value, a, c)
    times = energy.window_energy(source, t, value * factor, a, c)
    assert times.energy_j == pytest.approx(factor * once.energy_j, rel=1e-9)
    assert times.u_edge_j == pytest.approx(factor * once.u_edge_j, rel=1e-9)


@given(factor=st.floats(0.01, 100), shift=st.integers(-(10**15), 10**15), quantity=kinds)
@settings(max_examples=25, deadline=None)
def test_figures_scale_with_the_gain_and_do_not_know_the_time(factor, shift, quantity):
    source = replace(COUNTER if quantity == "energy" else POWER, resolution=0.0, offset_error_w=0.0)
    run = simulated(source)
    found = run.measure()
    moved = measure(
        source,
        run.t_ns + shift,
        run.value * factor,
        [replace(w, begin_ns=w.begin_ns + shift, end_ns=w.end_ns + shift) for w in run.windows],
        [replace(s, begin_ns=s.begin_ns + shift, end_ns=s.end_ns + shift) for s in run.idle],
    )
    for name in ("per_inference_j", "per_inference_idle_subtracted_j", "idle_power_w"):
        once, times = getattr(found, name), getattr(moved, name)
        for end in ("value", "lo", "hi"):
            assert getattr(times, end) == pytest.approx(factor * getattr(once, end), rel=1e-6)


@given(wrap=st.floats(400, 3000), seed=st.integers(0, 50))
@settings(max_examples=25, deadline=None)
def test_a_wrap_is_not_seen_in_the_figures(wrap, seed):
    plain = simulated(replace(COUNTER, resolution=0.0), seed=seed)
    wrapped = replace(
        plain, source=replace(plain.source, wrap_j=wrap), value=np.mod(plain.value, wrap)
    )
    assert np.any(np.diff(wrapped.value) < 0)
    mine, theirs = wrapped.measure(), plain.measure()
    assert mine.per_inference_j.value == pytest.approx(theirs.per_inference_j.value, rel=1e-9)
    assert mine.per_inference_j.hi == pytest.approx(theirs.per_inference_j.hi, rel=1e-6)


@given(
    steps=st.lists(st.floats(0, 40), min_size=1, max_size=100),
    start=st.floats(0, 99),
)
def test_unwrapping_gives_back_what_was_counted(steps, start):
    counted = np.concatenate(([start], start + np.cumsum(steps)))
    found = energy.unwrap(np.mod(counted, 100.0), 100.0)
    assert np.allclose(np.diff(found), steps, atol=1e-6)


@given(
    period=st.floats(1e-3, 1), lag=st.floats(0, 1), clock=st.floats(0, 1), more=st.floats(1.01, 9)
)
def test_a_slower_source_and_a_smaller_error_need_a_longer_window(period, lag, clock, more):
    source = Source("energy", period, lag_s=lag, clock_bound_s=clock)
    shortest = energy.shortest_window_s(source)
    assert energy.shortest_window_s(replace(source, period_s=period * more)) > shortest
    assert energy.shortest_window_s(source, 0.02 / more) > shortest
    assert shortest > 2 * energy.guard_s(source)


def test_nvmls_counter_needs_about_four_and_a_half_seconds():
    assert 4 < energy.shortest_window_s(Source("energy", 0.1)) < 5
    with pytest.raises(ValueError, match="positive"):
        energy.shortest_window_s(Source("energy", 0.1), 0.0)


def test_effective_degrees_of_freedom_are_those_of_the_guides_example():
    # JCGM 100:2008, H.1.6: gauge block, u(l_s)=25 (18), u(d)=9.7 (25.6), u(dalpha)=2.9 (50),
    # u(dtheta)=16.6 (2): 16 effective degrees of freedom (rounded down)
    parts = [(25.0, 18.0), (9.7, 25.6), (2.9, 50.0), (16.6, 2.0)]
    assert int(energy.welch_satterthwaite(parts)) == 16
    assert energy.welch_satterthwaite([(1.0, inf)]) == inf


# --- faults: no figure ----------------------------------------------------------------------------


def test_a_window_too_short_for_the_source_is_refused_with_the_length_that_would_do():
    run = simulated(shape=replace(SHAPE, window_s=1.0))
    with pytest.raises(EnergyError) as caught:
        run.measure()
    assert caught.value.code == "window-too-short"
    needed = caught.value.needed_s
    assert f"{needed:.3g} s" in caught.value.message
    longer = simulated(shape=replace(SHAPE, window_s=needed)).measure()
    assert longer.per_inference_j.value == pytest.approx(1.0, rel=0.1)


def test_a_window_too_short_for_the_counters_step_is_refused_with_the_length_that_would_do():
    coarse = replace(COUNTER, resolution=360.0)  # 0.1 Wh, as a smart plug counts
    with pytest.raises(EnergyError) as caught:
        simulated(coarse, shape=replace(SHAPE, window_s=20.0)).measure()
    assert caught.value.code == "window-too-short"
    needed = caught.value.needed_s
    assert 144 < needed < 200  # twenty steps of 7.2 s, and the guards
    shape = replace(SHAPE, window_s=needed, idle_s=needed)
    found = simulated(coarse, shape=shape).measure()
    assert found.per_inference_j.lo <= 1.0 <= found.per_inference_j.hi


def test_a_source_polled_too_rarely_makes_the_window_too_short():
    assert code(lambda: simulated(poll_s=2.0).measure()) == "window-too-short"


def test_no_readings_at_all():
    run = simulated()
    assert (
        code(lambda: replace(run, t_ns=run.t_ns[:0], value=run.value[:0]).measure())
        == "no-readings"
    )
    only_nan = replace(run, value=np.full(run.value.size, np.nan))
    assert code(lambda: only_nan.measure()) == "no-readings"


def test_readings_of_another_hour():
    run = simulated()
    assert code(lambda: replace(run, t_ns=run.t_ns + 3600 * SECOND).measure()) == "no-readings"


def test_no_windows_and_impossible_windows():
    run = simulated()
    assert code(lambda: replace(run, windows=()).measure()) == "bad-window"
    first = run.windows[0]
    for bad in (replace(first, end_ns=first.begin_ns), replace(first, calls=0)):
        assert code(lambda bad=bad: replace(run, windows=(bad,)).measure()) == "bad-window"


def test_a_source_that_vanishes_early_leaves_no_figure():
    run = simulated()
    keep = run.t_ns < run.windows[3].begin_ns
    assert code(lambda: replace(run, t_ns=run.t_ns[keep], value=run.value[keep]).measure()) == "gap"


def test_a_source_that_vanishes_late_costs_the_windows_that_it_missed():
    run = simulated()
    keep = run.t_ns < run.windows[6].begin_ns
    found = replace(run, t_ns=run.t_ns[keep], value=run.value[keep]).measure()
    assert "gaps" in codes(found)
    assert (found.windows, found.launches) == (6, 3)


@pytest.mark.parametrize("source", [COUNTER, POWER], ids=["counter", "power"])
def test_a_hole_across_an_edge_costs_that_window(source):
    run = simulated(source)
    edge = run.windows[2].begin_ns
    keep = np.abs(run.t_ns - edge) > 2 * SECOND
    found = replace(run, t_ns=run.t_ns[keep], value=run.value[keep]).measure()
    assert "gaps" in codes(found)
    assert found.windows == 7


def test_a_counter_counts_through_a_hole_inside_a_window_and_power_does_not():
    for source, windows in ((COUNTER, 8), (POWER, 7)):
        run = simulated(source)
        middle = (run.windows[2].begin_ns + run.windows[2].end_ns) // 2
        keep = np.abs(run.t_ns - middle) > SECOND
        found = replace(run, t_ns=run.t_ns[keep], value=run.value[keep]).measure()
        assert found.windows == windows
        assert ("gaps" in codes(found)) == (windows == 7)


def test_a_counter_that_may_have_wrapped_in_a_hole_is_not_trusted_there():
    outcomes = set()
    for seed in range(8):
        run = simulated(replace(COUNTER, wrap_j=150.0, resolution=0.0), seed=seed)
        middle = (run.windows[2].begin_ns + run.windows[2].end_ns) // 2
        keep = np.abs(run.t_ns - middle) > 1.1 * SECOND  # some 110 J
        try:
            run = replace(run, t_ns=run.t_ns[keep], value=run.value[keep])
            outcomes.add(run.measure().windows)
        except EnergyError as error:
            outcomes.add(error.code)
    assert outcomes == {7, "counter-backwards"}


@pytest.mark.parametrize("source", [COUNTER, POWER], ids=["counter", "power"])
def test_a_source_that_stands_still_from_the_start_is_frozen(source):
    run = simulated(source)
    assert code(lambda: replace(run, value=np.full(run.value.size, 42.0)).measure()) == "frozen"


@pytest.mark.parametrize("source", [COUNTER, POWER], ids=["counter", "power"])
def test_a_source_that_freezes_in_a_window_is_frozen(source):
    run = simulated(source)
    middle = (run.windows[4].begin_ns + run.windows[4].end_ns) // 2
    stuck = int(np.searchsorted(run.t_ns, middle))
    value = run.value.copy()
    value[stuck:] = value[stuck]
    assert code(lambda: replace(run, value=value).measure()) == "frozen"


def test_a_constant_load_seen_by_a_coarse_sensor_is_not_frozen():
    coarse = replace(POWER, resolution=5.0)
    found = simulated(coarse, STILL).measure()
    assert found.per_inference_j.lo <= STILL.per_inference_j <= found.per_inference_j.hi


def test_a_counter_that_was_reset_is_not_unwrapped():
    run = simulated()
    value = run.value.copy()
    value[value.size // 2 :] -= value[value.size // 2]
    assert code(lambda: replace(run, value=value).measure()) == "counter-backwards"
    wraps = replace(run, value=value, source=replace(COUNTER, wrap_j=262_143.0))
    assert code(wraps.measure) == "counter-backwards"


def test_a_counter_above_its_own_wrap_is_refused():
    assert code(lambda: energy.unwrap([90.0, 120.0, 10.0], 100.0)) == "counter-backwards"


def test_a_battery_that_charges_says_nothing():
    run = simulated(POWER)
    assert code(replace(run, value=-run.value).measure) == "negative-power"
    value = np.where(during(run, 2), -run.value, run.value)
    assert code(replace(run, value=value).measure) == "negative-power"


def test_a_little_noise_below_zero_is_no_negative_power():
    run = simulated(POWER)
    value = run.value.copy()
    value[100] = -0.2
    replace(run, value=value).measure()


@pytest.mark.parametrize("factor", [1e3, 1e-3, 1e6, 1e-6])
@pytest.mark.parametrize("source", [COUNTER, POWER], ids=["counter", "power"])
def test_a_unit_that_is_off_is_named(source, factor):
    run = simulated(replace(source, plausible_w=(5.0, 400.0)))
    off = replace(run, value=run.value * factor)
    with pytest.raises(EnergyError, match=re.escape(f"off by {factor:g}")) as caught:
        off.measure()
    assert caught.value.code == "unit-suspect"
    run.measure()


def test_power_that_no_prefix_explains_is_implausible():
    run = simulated(replace(POWER, plausible_w=(500.0, 600.0)))
    assert code(run.measure) == "implausible-power"


def test_readings_out_of_order_are_refused():
    run = simulated()
    assert code(replace(run, t_ns=run.t_ns[::-1]).measure) == "times-backwards"
    stepped = run.t_ns.copy()
    stepped[stepped.size // 2 :] -= 3600 * SECOND  # local time in autumn
    assert code(replace(run, t_ns=stepped).measure) == "times-backwards"


@given(
    seed=seeds,
    quantity=kinds,
    readings=st.integers(0, 400),
    levels=st.integers(1, 20),
    wrap=st.booleans(),
)
@settings(max_examples=150, deadline=None)
def test_garbage_ends_in_a_named_refusal_or_in_finite_figures(
    seed, quantity, readings, levels, wrap
):
    rng = np.random.default_rng(seed)
    t = rng.integers(0, 40 * SECOND, readings)
    if rng.random() < 0.8:
        t.sort()
    value = rng.integers(-levels if rng.random() < 0.2 else 0, levels, readings) * 1.0
    if quantity == "energy" and rng.random() < 0.8:
        value = np.cumsum(np.abs(value))
    value[rng.random(readings) < 0.02] = np.nan
    source = replace(
        COUNTER if quantity == "energy" else POWER,
        period_s=10 ** rng.uniform(-3, 1),
        resolution=rng.integers(0, 3),
        wrap_j=10.0 * levels if wrap else None,
    )
    begins = rng.integers(0, 30 * SECOND, 4)
    windows = [
        Window(int(b), int(b + rng.integers(1, 15 * SECOND)), 9, i % 2)
        for i, b in enumerate(begins)
    ]
    idle = [Stretch(int(b), int(b + 3 * SECOND), int(rng.integers(0, 3))) for b in begins[:3]]
    try:
        found = measure(source, t, value, windows, idle)
    except EnergyError as error:
        assert error.code in (EnergyError.__doc__ or "")
        return
    assert np.isfinite(found.per_inference_j.value)
    assert found.per_inference_j.lo <= found.per_inference_j.value <= found.per_inference_j.hi
    for problem in found.problems:
        assert problem.code in (energy.Problem.__doc__ or "")


# --- faults: the figure stands, and says so -------------------------------------------------------


@pytest.mark.parametrize("source", [COUNTER, POWER], ids=["counter", "power"])
def test_readings_that_are_no_numbers_are_left_out_and_told(source):
    run = simulated(source)
    value = run.value.copy()
    value[::17] = np.nan
    value[5] = np.inf
    found = replace(run, value=value).measure()
    assert "not-numbers" in codes(found)
    assert found.per_inference_j.value == pytest.approx(
        run.measure().per_inference_j.value, rel=5e-3
    )


@pytest.mark.parametrize("source", [COUNTER, POWER], ids=["counter", "power"])
def test_duplicate_times_are_taken_together_and_told(source):
    run = simulated(source)
    found = replace(run, t_ns=np.repeat(run.t_ns, 2), value=np.repeat(run.value, 2)).measure()
    assert "duplicate-times" in codes(found)
    assert found.per_inference_j == run.measure().per_inference_j


def test_an_unpublished_accuracy_is_told():
    for source in (replace(POWER, gain_error=None), replace(POWER, offset_error_w=None)):
        assert "accuracy-unpublished" in codes(simulated(source).measure())
    assert "accuracy-unpublished" not in codes(simulated(POWER).measure())


def test_without_idle_there_is_no_idle_figure_and_it_is_not_zero():
    run = simulated()
    found = replace(run, idle=()).measure()
    assert found.idle_power_w is None
    assert found.per_inference_idle_subtracted_j is None
    assert "idle-missing" in codes(found)
    assert found.per_inference_j == run.measure().per_inference_j


def test_idle_stretches_too_short_for_the_source_are_left_out():
    found = simulated(shape=replace(SHAPE, idle_s=0.5)).measure()
    assert found.idle_power_w is None
    assert {"idle-missing", "idle-too-short"} <= codes(found)


def test_idle_on_one_side_alone_is_told():
    run = simulated()
    firsts = tuple(
        min((s for s in run.idle if s.launch == n), key=lambda s: s.begin_ns) for n in range(4)
    )
    found = replace(run, idle=firsts).measure()
    assert "idle-one-sided" in codes(found)


def test_idle_power_that_drifts_alike_in_all_launches_widens_the_subtracted_figure():
    run = simulated(POWER, STILL)
    value = run.value.copy()
    for launch in range(4):
        stretches = sorted((s for s in run.idle if s.launch == launch), key=lambda s: s.begin_ns)
        for number, stretch in enumerate(stretches):
            inside = (run.t_ns >= stretch.begin_ns) & (run.t_ns <= stretch.end_ns)
            value[inside] += 2.0 * number
    drifting, steady = replace(run, value=value).measure(), run.measure()
    assert "idle-drift" in codes(drifting)
    assert "idle-drift" not in codes(steady)
    assert (
        drifting.per_inference_idle_subtracted_j.half_width
        > steady.per_inference_idle_subtracted_j.half_width + 0.5 * DEVICE.call_s
    )


def test_windows_that_are_not_steady_are_told():
    run = simulated(POWER)
    value = run.value.copy()
    for window in run.windows:
        inside = (run.t_ns >= window.begin_ns) & (run.t_ns <= window.end_ns)
        value[inside] *= np.linspace(0.8, 1.2, int(inside.sum()))
    assert "unsteady" in codes(replace(run, value=value).measure())
    assert "unsteady" not in codes(run.measure())


# --- two sources ----------------------------------------------------------------------------------


def pair(**errors) -> tuple[EnergyFigures, EnergyFigures]:
    """A counter and a power sensor on the same device (the same seed draws the same device)."""
    return simulated(COUNTER).measure(), simulated(POWER, **errors).measure()


def test_two_sources_on_one_device_agree():
    a, b = pair()
    found = energy.cross_check(a, COUNTER, b, POWER)
    assert found.agree
    assert found.accuracy_known
    assert found.suspect_factor is None
    assert found.ratio.value == pytest.approx(1, abs=0.01)
    assert found.ratio.half_width < 0.03  # launch effects cancel: they would be 0.06


def test_two_sources_that_disagree_are_told_apart():
    a, b = pair(gain=0.1)
    found = energy.cross_check(a, COUNTER, b, POWER)
    assert not found.agree
    assert found.ratio.hi < 1
    assert found.suspect_factor is None


@pytest.mark.parametrize("factor", [1e3, 1e-3, 1e6])
def test_two_sources_that_differ_by_a_prefix_name_it(factor):
    a, _ = pair()
    run = simulated(POWER)
    b = replace(run, value=run.value / factor, source=replace(POWER, resolution=0.0)).measure()
    found = energy.cross_check(a, COUNTER, b, POWER)
    assert not found.agree
    assert found.suspect_factor == factor


def test_an_unpublished_accuracy_is_told_of_an_agreement():
    a, b = pair()
    assert not energy.cross_check(a, replace(COUNTER, gain_error=None), b, POWER).accuracy_known


def test_sources_without_a_launch_in_common_are_not_compared():
    a, b = pair()
    b = replace(b, per_launch_j=tuple((n + 100, j) for n, j in b.per_launch_j))
    assert code(lambda: energy.cross_check(a, COUNTER, b, POWER)) == "no-readings"


# --- aligning a foreign trace ---------------------------------------------------------------------


def foreign(offset_s: float, period_s: float = 0.1, noise_w: float = 1.0, seed: int = 0):
    """A meter's own trace of a run, its clock ahead by ``offset_s``, and the loaded intervals."""
    shape = replace(SHAPE, launches=2, rounds=3, window_s=7.3)
    rng = np.random.default_rng(seed)
    source = Source("power", period_s, averaging_s=period_s)
    run = world.simulate(DEVICE, shape, world.Sensor(source, jitter=0.2), rng)
    t = (run.t_ns - world.EPOCH_NS) / 1e9 + offset_s
    watts = run.value + noise_w * rng.standard_normal(t.size)
    loaded = [
        ((w.begin_ns - world.EPOCH_NS) / 1e9, (w.end_ns - world.EPOCH_NS) / 1e9)
        for w in run.windows
    ]
    return t, watts, loaded


@given(
    offset=st.floats(-25, 25),
    period=st.sampled_from([0.01, 0.1, 0.5]),
    noise=st.floats(0, 4),
    seed=st.integers(0, 1000),
)
@settings(max_examples=30, deadline=None)
def test_the_load_pattern_tells_the_offset_within_its_bound(offset, period, noise, seed):
    t, watts, loaded = foreign(offset, period, noise, seed)
    found = energy.align(t, watts, loaded, 30.0)
    averaging = period / 2  # the trace's own delay belongs to its offset
    assert abs(found.offset_s - offset - averaging) <= found.bound_s
    assert found.bound_s < 2 * period + 0.05
    assert found.correlation > 0.8
    assert found.edges == 12


def test_a_trace_without_the_pattern_is_refused():
    t, watts, loaded = foreign(3.0)
    rng = np.random.default_rng(1)
    noise = 30 + rng.standard_normal(t.size)
    assert code(lambda: energy.align(t, noise, loaded, 30.0)) == "pattern-missing"
    flat = np.full(t.size, 30.0)
    assert code(lambda: energy.align(t, flat, loaded, 30.0)) == "pattern-missing"
    assert code(lambda: energy.align(t, watts, loaded, 1.0)) == "pattern-missing"  # it is at 3 s


def test_a_trace_shorter_than_the_run_is_refused():
    t, watts, loaded = foreign(0.0)
    keep = t < loaded[3][0]
    assert code(lambda: energy.align(t[keep], watts[keep], loaded, 5.0)) == "pattern-missing"


def test_a_trace_too_slow_for_the_loads_is_refused():
    t, watts, loaded = foreign(0.0)
    assert code(lambda: energy.align(t[::40], watts[::40], loaded, 5.0)) == "pattern-missing"


def test_a_pattern_that_repeats_itself_is_ambiguous():
    t = np.arange(0, 400, 0.1)
    watts = np.where((t % 10) < 5, 50.0, 20.0)
    loaded = [(200 + 10.0 * i, 205 + 10.0 * i) for i in range(5)]
    assert code(lambda: energy.align(t, watts, loaded, 60.0)) == "pattern-ambiguous"
    assert energy.align(t, watts, loaded, 4.0).offset_s == pytest.approx(0, abs=0.2)


def test_a_trace_that_goes_back_in_time_is_refused():
    t, watts, loaded = foreign(0.0)
    assert code(lambda: energy.align(t[::-1], watts, loaded, 5.0)) == "times-backwards"
    assert code(lambda: energy.align(t[:0], watts[:0], loaded, 5.0)) == "no-readings"
    assert code(lambda: energy.align(t, watts, [(3.0, 1.0)], 5.0)) == "bad-window"


# --- clocks ---------------------------------------------------------------------------------------


@given(
    drift=st.floats(-400e-6, 400e-6),
    took=st.integers(10 * SECOND, 10_000 * SECOND),
    share=st.floats(0, 1),
    errors=st.tuples(st.integers(-1000, 1000), st.integers(-1000, 1000)),
)
def test_a_drifting_clock_is_interpolated_within_its_bound(drift, took, share, errors):
    before = ClockReading(5000 + errors[0], 1000, 0)
    after = ClockReading(5000 + round(drift * took) + errors[1], 1000, took)
    at = int(share * took)
    offset, bound = energy.clock_offset(before, after, at)
    assert abs(offset - 5000 - drift * at) <= bound + 2


def test_a_clock_that_was_stepped_is_refused():
    before, after = ClockReading(0, 10**6, 0), ClockReading(3600 * SECOND, 10**6, 600 * SECOND)
    assert code(lambda: energy.clock_offset(before, after, SECOND)) == "clock-stepped"
    small = ClockReading(SECOND, 10**6, 600 * SECOND)
    assert code(lambda: energy.clock_offset(before, small, SECOND)) == "clock-stepped"


def test_without_a_second_reading_the_bound_grows_with_time():
    before = ClockReading(100, 10, 0)
    assert energy.clock_offset(before, None, 0) == (100, 10)
    assert energy.clock_offset(before, None, 100 * SECOND) == (100, 10 + 50_000_000)
    after = ClockReading(100, 10, 10 * SECOND)
    assert energy.clock_offset(before, after, 30 * SECOND)[1] > 10_000_000


# --- coverage -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def counted():
    return coverage.cover(8, seed=1)


@pytest.mark.parametrize("name", [coverage.TOTAL, coverage.SUBTRACTED])
def test_intervals_hold_the_truth_as_often_as_they_say(counted, name):
    overall = counted.overall(name)
    assert len(overall.held) == 8 * len(world.GRID)
    # 768 runs: three standard deviations of a share of 95 % are 2.4 points
    assert 92.6 <= overall.percent <= 97.4
    assert counted.refused == []


@pytest.mark.parametrize("axis", ["period_s", "duty", "quantity", "accuracy", "launches"])
def test_intervals_hold_the_truth_along_every_axis(counted, axis):
    for value in {getattr(cell, axis) for cell in world.GRID}:
        cells = [cell for cell in world.GRID if getattr(cell, axis) == value]
        mine = coverage.Count.of(counted.cell(cell, coverage.TOTAL) for cell in cells)
        assert mine.percent >= 90, value
        assert mine.width_percent < 10, value


def test_the_worlds_energy_is_that_of_its_power():
    """The closed form against a sum over a fine grid of its derivative."""
    rng = np.random.default_rng(0)
    device = replace(DEVICE, drift_w=2.0, decay_s=0.3, other_w=30.0)
    whole, windows, _ = world.course(device, replace(SHAPE, launches=1), rng)
    assert isclose(whole.energy(np.array([0.0]))[0], 0, abs_tol=1e-9)
    t = np.linspace(0, whole.now, 200_001)
    watts = np.diff(whole.energy(t)) / np.diff(t)
    assert watts.min() > 15
    assert watts.max() < 90
    window = windows[0]
    begin, end = ((ns - world.EPOCH_NS) / 1e9 for ns in (window.begin_ns, window.end_ns))
    inside = watts[(t[:-1] > begin) & (t[1:] < end)]
    assert inside.mean() == pytest.approx(50, rel=0.1)
    assert inside.max() / inside.min() == pytest.approx(1.3 / 0.8, rel=0.05)


def test_a_sensor_that_lies_beyond_its_bounds_is_not_covered():
    """The test itself can fail: errors twice as large as stated are seen as such."""
    held = []
    for number in range(60):
        rng = np.random.default_rng([3, number])
        device, shape, sensor = world.draw(world.Cell(0.1, 1.0, "power", "coarse"), rng)
        sensor = replace(sensor, gain=3 * sensor.source.gain_error)
        found = world.simulate(device, shape, sensor, rng).measure().per_inference_j
        held.append(found.lo <= device.per_inference_j <= found.hi)
    assert np.mean(held) < 0.6


def test_one_launchs_interval_holds_that_launch():
    """Within one launch: the truth is that launch's own mean."""
    held = []
    shape = replace(SHAPE, launches=1, rounds=4)
    device = replace(DEVICE, launch_power=0.0, launch_time=0.0, launch_idle=0.0)
    for number in range(200):
        found = simulated(POWER, device, shape, seed=number).measure().per_inference_j
        held.append(found.lo <= device.per_inference_j <= found.hi)
    assert np.mean(held) >= 0.9


def test_a_window_and_a_stretch_are_what_the_recording_has():
    assert Window(1, 2, 3, 0).calls == 3
    assert Stretch(1, 2, 0).launch == 0
