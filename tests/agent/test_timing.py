"""The timing loop, its turns, warm-up and stop rule: on a clock that only the calls move."""

from __future__ import annotations

import gc
import itertools
import math
from collections import Counter

import numpy as np
import pytest

from edgebench.agent import agent
from edgebench.percentiles import order_statistic_ranks
from edgebench.recording import PHASES, SAMPLE_COLUMNS

MS = 1_000_000


class Time:
    """A clock that stands still unless a call takes some of it."""

    def __init__(self) -> None:
        self.now = 0

    def __call__(self) -> int:
        return self.now


class Scripted(agent.Runtime):
    """A runtime whose n-th call takes what a script says."""

    def __init__(self, time: Time, script) -> None:
        self.script = iter(script)
        self.time = time
        self.bindings = []
        self.call = self.step

    def step(self, binding) -> None:
        self.bindings.append(binding)
        self.time.now += next(self.script)


@pytest.fixture
def time(monkeypatch) -> Time:
    found = Time()
    monkeypatch.setattr(agent, "clock", found)
    return found


def lane(time: Time, script, index: int = 0, bindings=(None,)) -> agent.Lane:
    return agent.Lane(index, Scripted(time, script), list(bindings))


def rows(samples: agent.Samples) -> list[dict[str, int]]:
    return [dict(zip(agent.COLUMNS, map(int, row), strict=True)) for row in samples.table()]


def stop_rule(**changes):
    rule = {
        "min_count": 1,
        "min_duration_s": 0.0,
        "max_duration_s": 1e6,
        "relative_half_width": 10.0,
    }
    return {**rule, **changes}


def measure(lanes, *, calls=8, seed=0, **stop):
    samples = agent.Samples()
    protocol = {"stop": stop_rule(**stop), "calls_per_turn": calls}
    rng = agent.random.Random(seed)
    why = agent.measure_rounds(lanes, samples, protocol, rng, lambda elapsed: None)
    return why, samples


def test_the_columns_are_those_of_a_recording_without_the_launch():
    assert tuple(SAMPLE_COLUMNS) == ("launch", *agent.COLUMNS)
    phases = [PHASES.index(name) for name in ("warmup", "settle", "measure")]
    assert phases == [agent.WARMUP, agent.SETTLE, agent.MEASURE]


def test_a_call_is_stamped_when_it_starts_and_lasts_as_long_as_it_takes(time):
    time.now = 500
    starts, durations = np.zeros(4, np.int64), np.zeros(4, np.int64)
    runtime = Scripted(time, [10, 20, 30, 40])
    agent.time_calls(runtime.call, ["a", "b", "c"], 2, 4, starts, durations)
    assert starts.tolist() == [500, 510, 530, 560]
    assert durations.tolist() == [10, 20, 30, 40]
    assert runtime.bindings == ["c", "a", "b", "c"]


def test_a_turn_settles_with_its_first_call_and_counts_the_others(time):
    samples = agent.Samples()
    one = lane(time, itertools.count(1), index=3)
    one.turn(samples, 7, 4, agent.SETTLE, agent.MEASURE)
    assert [row["phase"] for row in rows(samples)] == [agent.SETTLE] + [agent.MEASURE] * 3
    assert {row["artifact"] for row in rows(samples)} == {3}
    assert {row["turn"] for row in rows(samples)} == {7}
    assert one.measured == 3
    assert samples.measured(3).tolist() == [2, 3, 4]
    assert samples.measured(0).size == 0


def test_inputs_go_on_where_the_last_turn_stopped(time):
    samples = agent.Samples()
    one = lane(time, itertools.repeat(1), bindings="abcde")
    for turn in range(3):
        one.turn(samples, turn, 4, agent.SETTLE, agent.MEASURE)
    assert "".join(one.runtime.bindings) == "abcdeabcdeab"


def test_growing_keeps_every_sample(time):
    samples = agent.Samples(capacity=2)
    one = lane(time, itertools.count(1))
    for turn in range(50):
        one.turn(samples, turn, 3, agent.SETTLE, agent.MEASURE)
    table = samples.table()
    assert table.shape == (150, len(agent.COLUMNS))
    assert table.dtype == np.int64
    assert table[:, 4].tolist() == list(range(1, 151))
    assert table[:, 1].tolist() == [turn for turn in range(50) for _ in range(3)]


def test_every_round_holds_each_artifact_once_and_each_comes_first_equally_often(time):
    lanes = [lane(time, itertools.repeat(1), index=i) for i in range(3)]
    _, samples = measure(lanes, calls=2, min_count=600)
    settled = [row for row in rows(samples) if row["phase"] == agent.SETTLE]
    rounds = [[row["artifact"] for row in settled if row["turn"] == turn] for turn in range(600)]
    assert all(sorted(each) == [0, 1, 2] for each in rounds)
    # 200 of 600 each, standard deviation 11.5: five of them.
    assert all(abs(n - 200) < 58 for n in Counter(each[0] for each in rounds).values())
    assert len({tuple(each) for each in rounds}) == 6


@pytest.fixture
def scripted_runtime(monkeypatch, time):
    """``work_launch`` in this process, with a runtime that needs no model."""

    class Made(Scripted):
        def __init__(self, model, options) -> None:
            super().__init__(time, itertools.repeat(MS))

    monkeypatch.setitem(agent.RUNTIMES, "scripted", Made)
    yield
    gc.enable()


def launch(tmp_path, seed, number):
    entries = [{"name": name, "runtime": "scripted"} for name in "abc"]
    protocol = {
        "seed": seed,
        "runtime": {"kind": "scripted"},
        "warmup": {"window": 4, "tolerance": 0.05, "max_s": 1.0},
        "calls_per_turn": 4,
        "stop": stop_rule(min_count=60),
    }
    samples = tmp_path / "samples.npy"
    task = {
        "kind": "launch",
        "launch": number,
        "lanes": [0, 2],
        "artifacts": entries,
        "samples": str(samples),
    }
    result = agent.work_launch(task, protocol, lambda event: None)
    return result, np.load(samples)


def test_the_order_follows_from_seed_and_launch(tmp_path, scripted_runtime):
    tables = {key: launch(tmp_path, *key)[1][:, :3].tolist() for key in [(1, 0), (1, 1), (2, 0)]}
    assert launch(tmp_path, 1, 0)[1][:, :3].tolist() == tables[1, 0]
    assert tables[1, 0] != tables[1, 1]
    assert tables[1, 0] != tables[2, 0]


def test_an_artifact_that_is_left_out_has_no_load_time_and_no_warm_up(tmp_path, scripted_runtime):
    result, table = launch(tmp_path, 0, 0)
    assert [ns is None for ns in result["load_ns"]] == [False, True, False]
    assert [w is None for w in result["warmup"]] == [False, True, False]
    assert set(table[:, 0].tolist()) == {0, 2}


def test_the_window_holds_the_measured_part_alone(tmp_path, scripted_runtime):
    result, table = launch(tmp_path, 0, 0)
    first, last = result["window_ns"]
    inside = (table[:, 3] >= first) & (table[:, 3] + table[:, 4] <= last)
    assert inside.tolist() == (table[:, 2] != agent.WARMUP).tolist()


# -- warm-up

RULE = {"window": 6, "tolerance": 0.05, "max_s": 1.0}


def test_a_steady_model_is_warm_after_two_windows(time):
    found = agent.warm_up(lane(time, itertools.repeat(MS)), agent.Samples(), RULE)
    assert found == {"calls": 12, "duration_ns": 12 * MS, "steady": True}


def test_warm_up_lasts_as_long_as_the_model_gets_faster(time):
    # 40 calls, each 3 % faster than the one before (17 % a window), then steady.
    script = (round(10 * MS * 0.97 ** min(i, 40)) for i in itertools.count())
    samples = agent.Samples()
    found = agent.warm_up(lane(time, script), samples, RULE)
    assert found["steady"]
    assert 42 <= found["calls"] <= 60
    assert {row["phase"] for row in rows(samples)} == {agent.WARMUP}
    assert {row["turn"] for row in rows(samples)} == {-1}


def test_one_slow_call_does_not_count_as_unsteady(time):
    script = itertools.chain([50 * MS], itertools.repeat(MS, 8), [30 * MS], itertools.repeat(MS))
    assert agent.warm_up(lane(time, script), agent.Samples(), RULE)["calls"] == 12


def test_what_never_settles_is_said_to_be_unsteady_when_its_time_is_up(time):
    script = (MS * (1 + (i // 6) % 2) for i in itertools.count())
    found = agent.warm_up(lane(time, script), agent.Samples(), RULE)
    assert not found["steady"]
    assert 1e9 <= found["duration_ns"] < 1.1e9


# -- stop rule


def test_it_stops_at_the_count_when_the_interval_is_narrow(time):
    lanes = [lane(time, itertools.repeat(MS), index=i) for i in range(2)]
    why, samples = measure(lanes, calls=8, min_count=70)
    assert why == "enough"
    assert [samples.measured(i).size for i in range(2)] == [70, 70]


def test_it_goes_on_for_the_least_duration(time):
    why, samples = measure([lane(time, itertools.repeat(MS))], min_duration_s=1.0)
    assert why == "enough"
    assert 1000 <= len(samples.table()) < 1020


def test_it_stops_when_time_is_up_whatever_it_has(time):
    one = lane(time, itertools.repeat(MS))
    why, samples = measure([one], min_count=10**6, max_duration_s=0.5)
    assert why == "time"
    assert 500 <= len(samples.table()) < 510


def test_it_goes_on_until_the_medians_interval_is_narrow_enough(time):
    rng = np.random.default_rng(0)
    script = (int(value) for value in rng.uniform(MS, 2 * MS, size=100_000))
    why, samples = measure([lane(time, script)], min_count=20, relative_half_width=0.02)
    assert why == "enough"
    # Uniform on [1, 2]: the interval of the median is 1.29/sqrt(n) wide on each side, over 1.5.
    assert 0.5 < samples.measured(0).size / (2.576 / 2 / 1.5 / 0.02) ** 2 < 2
    assert agent.median_relative_half_width(samples.measured(0)) <= 0.02


def test_the_noisiest_artifact_decides(time):
    rng = np.random.default_rng(0)
    noisy = (int(value) for value in rng.uniform(MS, 2 * MS, size=100_000))
    lanes = [lane(time, itertools.repeat(MS)), lane(time, noisy, index=1)]
    _, samples = measure(lanes, min_count=20, relative_half_width=0.05)
    assert samples.measured(0).size == samples.measured(1).size > 100


def test_progress_is_reported_twice_a_second_at_most(time):
    said = []
    protocol = {"stop": stop_rule(min_duration_s=3.0), "calls_per_turn": 4}
    one = lane(time, itertools.repeat(MS))
    agent.measure_rounds([one], agent.Samples(), protocol, agent.random.Random(0), said.append)
    assert len(said) == 5
    assert all(later - earlier > 0.5 for earlier, later in itertools.pairwise(said))


# -- the median's interval


def test_the_ranks_of_the_median_are_the_binomials_within_one():
    for n in [*range(1, 300), 662, 1000, 6636, 100_000]:
        exact, found = order_statistic_ranks(n, 0.5), agent.median_ranks(n)
        if found is None:
            assert None in exact or n == 8, n  # there the approximation is one sample too careful
            continue
        low, high = found
        assert low + high == n - 1
        assert abs(low + 1 - exact[0]) <= 1, n
        assert abs(high + 1 - exact[1]) <= 1, n


def test_the_half_width_is_infinite_without_enough_samples_and_relative_to_the_median():
    assert agent.median_relative_half_width([5] * 7) == math.inf
    assert agent.median_relative_half_width([5] * 100) == 0.0
    low, high = agent.median_ranks(101)
    expected = (high - low) / 2 / 150
    assert agent.median_relative_half_width(range(100, 201)) == pytest.approx(expected)


def test_the_median_of_an_even_number_is_between_the_two_in_the_middle():
    assert agent.median_of([4, 1, 3, 2]) == 2.5
    assert agent.median_of([4, 1, 3]) == 3.0


# -- inputs


def test_batches_are_cut_to_length_and_wrap_round():
    arrays = {"ids": np.arange(12).reshape(3, 4)}
    batches = [feed["ids"].tolist() for feed in agent.feeds(arrays, 2, 2)]
    assert batches == [[[0, 1], [4, 5]]]
    (larger,) = agent.feeds(arrays, 5, 1)
    assert larger["ids"][:, 0].tolist() == [0, 4, 8, 0, 4]
    assert larger["ids"].flags.c_contiguous
