"""When a row is VALID, and every reason for which it is not."""

from __future__ import annotations

import re

import numpy as np
import pytest

from edgebench import reasons
from edgebench.percentiles import min_samples
from edgebench.recording import StopRule, Warmup
from edgebench.verdict import Code, Severity, Status, Thresholds, judge
from tests.results.make import (
    SECOND,
    make_launch,
    make_protocol,
    make_recording,
    make_samples,
    make_state,
)


@pytest.fixture(scope="module")
def samples():
    return make_samples(median_ms=(40.0, 20.0))


def verdict(samples, *, artifact=0, state=None, launches=5, **changes):
    recording = make_recording(("fp32", "int8"), launches=launches, **changes)
    return judge(recording, samples, make_state() if state is None else state, artifact)


def launches_with(index: int, **changes):
    return [make_launch(i, 2, **(changes if i == index else {})) for i in range(5)]


def test_a_healthy_run_is_valid_with_only_the_unasked_percentile_noted(samples):
    result = verdict(samples)
    assert result.status is Status.VALID
    assert result.codes == ("withheld",)
    assert "p99.9" in result.reasons[0].seen
    assert result.decisive == ()


def test_an_artifact_that_is_not_there_is_an_error(samples):
    with pytest.raises(IndexError):
        verdict(samples, artifact=2)


def test_invalid_outweighs_undecided_and_comes_first(samples):
    result = verdict(
        samples,
        launches=5,
        state=[{**line, "throttled": 0x4} for line in make_state()],
        protocol=make_protocol(percentiles=[50.0, 99.9]),
    )
    assert result.status is Status.INVALID
    assert result.codes[:2] == ("throttled", "p999-samples")


# --- workers ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("outcome", "code"),
    [
        ("out-of-memory", "out-of-memory"),
        ("killed", "killed"),
        ("crashed", "crashed"),
        ("error", "worker-error"),
    ],
)
def test_a_launch_that_failed_makes_every_row_invalid(samples, outcome, code):
    failed = [
        make_launch(i, 2, **({"outcome": outcome, "error": "boom"} if i == 3 else {}))
        for i in range(5)
    ]
    recording = make_recording(("fp32", "int8")).model_copy(update={"launches": failed})
    for artifact in (0, 1):
        result = judge(recording, samples, make_state(), artifact)
        assert result.status is Status.INVALID
        assert {code, "launches-failed"} <= set(result.codes)
        assert "launch 4" in result.reasons[0].seen


def test_an_artifact_that_fails_alone_is_invalid_and_the_others_are_not(samples):
    recording = make_recording(("fp32", "int8"))
    solo = [recording.solo[0].model_copy(update={"outcome": "out-of-memory"}), recording.solo[1]]
    recording = recording.model_copy(update={"solo": solo})
    assert judge(recording, samples, make_state(), 0).codes[0] == "out-of-memory"
    assert judge(recording, samples, make_state(), 1).status is Status.VALID


def test_no_counted_call_is_invalid(samples):
    empty = {name: column[:0] for name, column in samples.items()}
    result = verdict(empty)
    assert result.status is Status.INVALID
    assert "nothing-measured" in result.codes


@pytest.mark.parametrize(
    ("status", "code"),
    [("deadline", "deadline"), ("cancelled", "cancelled"), ("lost", "cut-short")],
)
def test_a_run_that_ended_early_is_undecided(samples, status, code):
    result = verdict(samples, status=status)
    assert result.status is Status.UNDECIDED
    assert code in result.codes


def test_an_emulated_device_is_invalid(samples):
    device = make_recording().device.model_copy(update={"emulated": True})
    assert verdict(samples, device=device).codes[0] == "emulated"


# --- counts -------------------------------------------------------------------------------------


def test_p99_is_undecided_below_662_samples_and_says_how_many_are_missing():
    recording = make_recording(("fp32", "int8"), launches=5)
    short = make_samples(median_ms=(40.0, 20.0), rounds=33)  # 5 x 33 x 4 = 660 counted calls
    result = judge(recording, short, make_state(), 0)
    assert result.status is Status.UNDECIDED
    assert result.decisive[0].code is Code.P99_SAMPLES
    assert result.decisive[0].seen == "p99 needs 2 more samples (660 of 662)"


def test_a_percentile_that_nobody_asked_for_is_a_note_only():
    protocol = make_protocol(percentiles=[50.0])
    short = make_samples(median_ms=(40.0, 20.0), rounds=33)
    recording = make_recording(("fp32", "int8"), protocol=protocol)
    result = judge(recording, short, make_state(), 0)
    assert result.status is Status.VALID
    assert "p99 (needs 2 more)" in result.reasons[0].seen


@pytest.mark.parametrize(
    ("code", "percentile"),
    [
        (Code.P50_SAMPLES, 0.5),
        (Code.P90_SAMPLES, 0.9),
        (Code.P95_SAMPLES, 0.95),
        (Code.P99_SAMPLES, 0.99),
        (Code.P999_SAMPLES, 0.999),
    ],
)
def test_the_counts_in_the_texts_are_those_of_the_arithmetic(code, percentile):
    assert f"of {min_samples(percentile)})" in reasons.RULES[code].seen
    assert f"Below {min_samples(percentile)} samples" in reasons.RULES[code].why


def test_one_launch_is_undecided():
    recording = make_recording(("fp32", "int8"), launches=1)
    result = judge(recording, make_samples(1, (40.0, 20.0), rounds=200), make_state(1), 0)
    assert result.status is Status.UNDECIDED
    assert [r.code for r in result.decisive] == [Code.ONE_LAUNCH]


def test_fewer_launches_than_the_protocol_promised_is_undecided():
    recording = make_recording(("fp32", "int8"), launches=5)
    result = judge(recording, make_samples(4, (40.0, 20.0), rounds=50), make_state(4), 0)
    assert [r.code for r in result.decisive] == [Code.FEW_LAUNCHES]
    assert result.decisive[0].seen == "4 of 5 launches have counted calls"


def test_a_warm_up_without_a_steady_state_is_undecided_for_that_artifact_alone(samples):
    unsteady = Warmup(calls=500, duration_ns=10 * SECOND, steady=False)
    steady = Warmup(calls=20, duration_ns=SECOND, steady=True)
    recording = make_recording(("fp32", "int8")).model_copy(
        update={"launches": launches_with(2, warmup=[unsteady, steady])}
    )
    assert judge(recording, samples, make_state(), 0).decisive[0].code is Code.NOT_STEADY
    assert judge(recording, samples, make_state(), 1).status is Status.VALID


def test_time_that_ran_out_matters_only_if_the_stop_rule_was_not_met_by_then(samples):
    stopped = {"launches": launches_with(2, stopped_by="time")}
    recording = make_recording(("fp32", "int8")).model_copy(update=stopped)
    assert judge(recording, samples, make_state(), 0).status is Status.VALID
    strict = StopRule(min_count=1, min_duration_s=1, max_duration_s=60, relative_half_width=1e-4)
    recording = recording.model_copy(
        update={"protocol": make_protocol(stop=strict, percentiles=[50.0])}
    )
    result = judge(recording, samples, make_state(), 0)
    assert [r.code for r in result.decisive] == [Code.STOPPED_BY_TIME]
    assert "asked ± 0.01 %" in result.decisive[0].seen


# --- the machine --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("member", "code"),
    [("foreign_cpu_fraction", Code.FOREIGN_LOAD), ("steal_fraction", Code.STOLEN_TIME)],
)
def test_more_than_five_percent_taken_by_others_in_any_launch_is_invalid(samples, member, code):
    for share, status in ((0.049, Status.VALID), (0.051, Status.INVALID)):
        recording = make_recording(("fp32", "int8")).model_copy(
            update={"launches": launches_with(1, **{member: share})}
        )
        result = judge(recording, samples, make_state(), 0)
        assert result.status is status
    assert result.decisive[0].code is code
    assert "launch 2" in result.decisive[0].seen


def test_a_frequency_that_moves_by_more_than_five_percent_while_measuring_is_invalid(samples):
    state = make_state()
    for line in state:
        if line["when"] == "during" and line["launch"] == 3:
            line["frequency_khz"] = {"0": 1_500_000, "1": 600_000}
    result = verdict(samples, state=state)
    assert result.decisive[0].code is Code.FREQUENCY_CHANGED
    assert "between 1500 and 1800 MHz" in result.decisive[0].seen


def test_an_idle_frequency_between_launches_does_not_matter(samples):
    state = make_state()
    idle = {**state[0], "when": "during", "t_ns": 99 * SECOND, "frequency_khz": {"0": 600_000}}
    assert verdict(samples, state=[*state, idle]).status is Status.VALID


@pytest.mark.parametrize(
    ("flags", "code", "status"),
    [
        ([0x0, 0x0], None, Status.VALID),
        ([0x0, 0x1], Code.UNDER_VOLTAGE, Status.INVALID),
        ([0x0, 0x2], Code.THROTTLED, Status.INVALID),
        ([0x0, 0x4], Code.THROTTLED, Status.INVALID),
        ([0x0, 0x8], Code.THROTTLED, Status.INVALID),
        ([0x0, 0x40000], Code.THROTTLED, Status.INVALID),  # since boot, but new: it was now
        ([0x0, 0x10000], Code.UNDER_VOLTAGE, Status.INVALID),
        ([0x10000, 0x10000], Code.UNDER_VOLTAGE_SINCE_BOOT, Status.INVALID),
        ([0x80000, 0x80000], Code.THROTTLED_SINCE_BOOT, Status.VALID),
    ],
)
def test_raspberry_pi_flags_are_read_bit_by_bit(samples, flags, code, status):
    state = make_state()
    for line in state:
        line["throttled"] = {"before": flags[0], "during": None, "after": flags[1]}[line["when"]]
    result = verdict(samples, state=state)
    assert result.status is status
    assert code is None or code in {r.code for r in result.reasons}


def test_a_device_above_its_profiles_limit_is_invalid(samples):
    result = verdict(samples, state=make_state(temperature_c={"cpu": 75.5}))
    assert result.decisive[0].code is Code.TOO_HOT
    assert verdict(samples, state=make_state(temperature_c={"cpu": 74.5})).status is Status.VALID


def test_a_device_that_warms_while_measuring_is_undecided(samples):
    state = make_state()
    for number, line in enumerate(state):
        line["temperature_c"] = {"cpu": 45.0 + 0.5 * number, "board": 40.0}
    result = verdict(samples, state=state)
    assert result.decisive[0].code is Code.TEMPERATURE_DRIFT
    assert result.decisive[0].seen.startswith("cpu warmed from")


def test_pages_read_back_from_swap_while_measuring_are_invalid(samples):
    state = make_state()
    for number, line in enumerate(state):
        line["swap_in_pages"] = 7 + 10 * number
    assert verdict(samples, state=state).decisive[0].code is Code.SWAPPING
    # Between launches other things may be paged in.
    for line in state:
        line["swap_in_pages"] = 1000 * (line["launch"] or 0)
    assert verdict(samples, state=state).status is Status.VALID


def test_major_faults_in_one_call_of_a_hundred_are_invalid(samples):
    calls = int(np.count_nonzero(samples["phase"] == 2))
    limit = int(Thresholds.MAJOR_FAULTS_PER_CALL * calls)
    for faults, status in ((limit, Status.VALID), (limit + 1, Status.INVALID)):
        recording = make_recording(("fp32", "int8")).model_copy(
            update={"launches": launches_with(0, major_faults=faults)}
        )
        assert judge(recording, samples, make_state(), 0).status is status


def test_a_clock_that_goes_back_is_invalid(samples):
    broken = {name: column.copy() for name, column in samples.items()}
    broken["start_ns"][100] -= SECOND
    assert verdict(broken).decisive[0].code is Code.CLOCK_BACKWARDS
    broken = {name: column.copy() for name, column in samples.items()}
    broken["duration_ns"][100] = 0
    assert verdict(broken).decisive[0].code is Code.CLOCK_BACKWARDS


def test_a_governor_other_than_performance_is_a_note(samples):
    result = verdict(samples, state=make_state(governor={"0": "ondemand"}))
    assert result.status is Status.VALID
    assert any(r.code is Code.GOVERNOR and "ondemand" in r.seen for r in result.reasons)


def test_accuracy_that_was_not_measured_is_a_note(samples):
    recording = make_recording(("fp32", "int8"))
    solo = [each.model_copy(update={"accuracy": None}) for each in recording.solo]
    result = judge(recording.model_copy(update={"solo": solo}), samples, make_state(), 0)
    assert result.status is Status.VALID
    assert "accuracy-unmeasured" in result.codes


def test_what_the_device_cannot_tell_is_named_and_never_passed_over(samples):
    blind = [make_launch(i, 2, foreign_cpu_fraction=None, steal_fraction=None) for i in range(5)]
    recording = make_recording(("fp32", "int8")).model_copy(update={"launches": blind})
    for state in ([], [{"t_ns": 6 * SECOND, "when": "during"}], make_state(temperature_c=None)):
        result = judge(recording, samples, state, 0)
        assert result.status is Status.VALID
        (unknown,) = [r for r in result.reasons if r.code is Code.STATE_UNKNOWN]
        assert "foreign load, stolen time" in unknown.seen
        assert "temperature" in unknown.seen


# --- the list -----------------------------------------------------------------------------------


def test_every_code_has_a_rule_and_every_rule_says_what_why_and_what_next():
    assert list(reasons.RULES) == list(Code)
    for code, rule in reasons.RULES.items():
        assert re.fullmatch(r"[a-z0-9-]+", code)
        assert rule.seen, code
        assert not rule.seen.endswith("."), code
        assert rule.why.endswith("."), code
        assert rule.fix.endswith("."), code


def test_codes_are_listed_with_the_gravest_first():
    order = [list(Severity).index(rule.severity) for rule in reasons.RULES.values()]
    assert order == sorted(order)
