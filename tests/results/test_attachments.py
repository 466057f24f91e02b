"""Attaching a meter's trace: found in time, stored once, and never more than it says."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgebench.energy import Window, measure
from edgebench.errors import InputError, RecordingError, StorageError, UsageError
from edgebench.recording import READING_COLUMNS, Clock
from edgebench.results.attach import Terms, attach, measured_windows, stretches
from edgebench.results.attachments import Attachments, Stored
from edgebench.results.attachments import read as read_attachment
from edgebench.results.encoding import Loaded
from edgebench.results.energy_rows import source_of, windows_of
from edgebench.results.store import Store
from edgebench.results.trace_csv import TraceOptions, parse_columns, read_trace
from tests.results.energy_recordings import BEGIN_UNIX_NS, World

#: Windows that a meter of ten readings a second can resolve.
WORLD = World(window_s=4.0, idle_s=3.0)


class Bench:
    """A results directory with one recording, and a meter's file."""

    def __init__(self, directory: Path, world: World, **changes: Any) -> None:
        self.world = world
        self.store = Store(directory / "runs")
        self.attachments = Attachments.beside(self.store.root)
        self.path = directory / "meter.csv"
        recording, samples, state, readings = world.recording(**changes)
        self.store.write(recording, samples, state, readings)
        self.loaded: Loaded = self.store.load(recording.id)

    def attach(self, t: Any, value: Any, *, column: str = "power", **terms: Any) -> Stored:
        rows = "\n".join(f"{a:.6f},{b:.6f}" for a, b in zip(t, value, strict=True))
        self.path.write_text(f"TIME,VALUE\n{rows}\n")
        options = TraceOptions()
        trace = read_trace(self.path, parse_columns(f"time=TIME,{column}=VALUE"), options)
        said = Terms(**{"scope": "board", "name": "WT310", **terms})
        return attach(self.loaded, self.attachments, trace, options, said)

    def refusal(self, t: Any, value: Any, **terms: Any) -> str:
        with pytest.raises(InputError) as caught:
            self.attach(t, value, **terms)
        assert not self.attachments.root.exists()
        return str(caught.value)


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path, WORLD)


def error_s(stored: Stored, true_ns: int) -> float:
    """How far the found offset is from the truth, less the half of a reading's averaging."""
    assert stored.meter.alignment is not None
    return (stored.meter.alignment.offset_ns - true_ns) / 1e9


def bound_s(stored: Stored) -> float:
    assert stored.meter.alignment is not None
    return stored.meter.alignment.bound_ns / 1e9


def joules(loaded: Loaded, stored: Stored, artifact: int) -> Any:
    windows, idle = windows_of(loaded, artifact)
    channel = stored.meter.channels[0]
    r = stored.readings
    source = source_of(channel, bound_s(stored))
    return measure(source, r["t_ns"], r["value"], windows, idle).per_inference_j


# ------------------------------------------------------------------------------------ placing


@pytest.mark.parametrize("ahead_s", [0.0, 1.3, -42.7, 250.0])
def test_the_clock_of_a_meter_is_found_by_the_load_and_its_joules_are_right(bench, ahead_s):
    # The trace is longer than the run on both sides, so that it covers it wherever it is moved.
    t, watts = WORLD.trace(begin_s=-320, end_s=WORLD.end_s + 320)
    stored = bench.attach(WORLD.unix(t, ahead_s=ahead_s), watts, gain_error=0.001)
    truth = BEGIN_UNIX_NS + round(ahead_s * 1e9)
    assert abs(error_s(stored, truth)) <= bound_s(stored) < 0.1
    for artifact in (0, 1):
        found = joules(bench.loaded, stored, artifact)
        assert found.lo <= WORLD.energy_j(artifact) <= found.hi
        assert found.value == pytest.approx(WORLD.energy_j(artifact), rel=0.002)
    assert stored.document.uncovered == []
    assert stored.meter.runs_on == "imported"


def test_time_since_the_trace_began_is_placed_by_the_pattern_alone(bench):
    t, watts = WORLD.trace()
    stored = bench.attach(t - t[0], watts)
    assert abs(error_s(stored, round(-t[0] * 1e9))) <= bound_s(stored) < 0.1
    assert "load pattern alone" in stored.meter.alignment.method


def test_an_energy_counter_is_placed_and_measured_too(bench):
    t, _ = WORLD.trace(begin_s=-30)
    counter = WORLD.energy_until(t) - WORLD.energy_until(t[:1])
    stored = bench.attach(WORLD.unix(t), counter, column="energy")
    assert stored.meter.channels[0].quantity == "energy"
    found = joules(bench.loaded, stored, 0)
    assert found.value == pytest.approx(WORLD.energy_j(0), rel=1e-3)


def test_a_fast_meter_is_placed_more_closely_than_a_slow_one(bench):
    fast_t, fast_w = WORLD.trace(period_s=0.005)
    slow_t, slow_w = WORLD.trace(period_s=0.5)
    fast = bench.attach(WORLD.unix(fast_t), fast_w)
    slow = bench.attach(WORLD.unix(slow_t), slow_w)
    assert bound_s(fast) < 0.04 < bound_s(slow)
    assert abs(error_s(fast, BEGIN_UNIX_NS)) <= bound_s(fast)
    assert abs(error_s(slow, BEGIN_UNIX_NS)) <= bound_s(slow)


def test_drift_between_the_clocks_is_in_the_bound(bench):
    t, watts = WORLD.trace()
    drift = 200e-6
    stored = bench.attach(WORLD.unix(t * (1 + drift)), watts)
    first, last = (WORLD.unix(np.array([at * (1 + drift)]))[0] - at for at in (5.0, WORLD.end_s))
    for offset in (first, last):
        off = abs(stored.meter.alignment.offset_ns / 1e9 - offset)
        assert off <= bound_s(stored)
    still = bench.attach(WORLD.unix(t), watts)
    assert bound_s(stored) > bound_s(still) + 0.03


def test_a_given_offset_is_taken_with_its_bound_and_the_clocks_tick(bench):
    t, watts = WORLD.trace()
    stored = bench.attach(WORLD.unix(t, ahead_s=2.0), watts, offset_s=2.0, offset_bound_s=0.02)
    assert error_s(stored, BEGIN_UNIX_NS + 2 * 10**9) == 0
    # Times are multiples of 0.1 s: a time that is cut to that may be early by so much.
    assert bound_s(stored) >= 0.02 + 0.1


def test_only_readings_near_the_run_are_kept(bench):
    t, watts = WORLD.trace(begin_s=-3000, end_s=WORLD.end_s + 3000, period_s=0.2)
    stored = bench.attach(WORLD.unix(t), watts)
    span = np.ptp(stored.readings["t_ns"]) / 1e9
    assert stored.document.trace.readings == t.size
    assert WORLD.end_s < span < WORLD.end_s + 100


# ------------------------------------------------------------------------------------ refusals


def test_a_trace_of_another_hour_says_that_the_zone_is_wrong(bench):
    t, watts = WORLD.trace()
    said = bench.refusal(WORLD.unix(t, ahead_s=7200), watts)
    assert "after the run ended" in said
    assert "about +2 h: is --timezone right?" in said


def test_a_trace_of_another_day_does_not_meet_the_run(bench):
    t, watts = WORLD.trace()
    said = bench.refusal(WORLD.unix(t, ahead_s=-86_400 * 3.01), watts)
    assert "before the run begins" in said
    assert "3 days" in said


def test_a_trace_of_something_else_is_not_taken(bench):
    t, _ = WORLD.trace()
    noise = 30 + np.random.default_rng(1).normal(0, 5, t.size)
    assert "the load pattern is not in the trace" in bench.refusal(WORLD.unix(t), noise)


def test_a_trace_shorter_than_the_run_says_what_it_does_not_see(bench):
    t, watts = WORLD.trace(end_s=250.0)
    stored = bench.attach(WORLD.unix(t), watts)
    missing = stored.document.uncovered
    late = [each for each in stretches(bench.loaded.recording) if each.end_ns > 250e9]
    assert len(missing) == len(late)
    assert {each.launch for each in missing} == {2, 3, 4}
    whole = [each for each in missing if each.launch == 4]
    assert all(each.missing_ns == each.end_ns - each.begin_ns for each in whole)
    # What it does see gives the right figure.
    found = joules(bench.loaded, stored, 0)
    assert found.lo <= WORLD.energy_j(0) <= found.hi


def test_a_relative_trace_shorter_than_the_run_can_not_be_placed(bench):
    t, watts = WORLD.trace(end_s=250.0)
    said = bench.refusal(t - t[0], watts)
    assert "nothing says which part it saw" in said
    assert "4.5 min and the run 7" in said


def test_a_trace_that_sees_no_window_whole_is_refused_with_what_is_missing(bench):
    t, watts = WORLD.trace(end_s=9.0)
    said = bench.refusal(WORLD.unix(t), watts, offset_s=0.0, offset_bound_s=0.05)
    assert "lacks" in said or "ends" in said


def test_gaps_are_named_and_their_windows_left_out(bench):
    t, watts = WORLD.trace()
    window = bench.loaded.recording.launches[1].energy_windows[0]
    middle = (window.begin_ns + window.end_ns) / 2e9
    keep = np.abs(t - middle) > 0.8
    stored = bench.attach(WORLD.unix(t)[keep], watts[keep])
    (lost,) = stored.document.uncovered
    assert (lost.kind, lost.launch, lost.artifact) == ("window", 1, window.artifact)
    assert lost.missing_ns == pytest.approx(1.7e9, abs=0.2e9)
    found = joules(bench.loaded, stored, window.artifact)
    assert found.value == pytest.approx(WORLD.energy_j(window.artifact), rel=1e-3)


@pytest.mark.parametrize("jump_s", [1.7, 20.0])
def test_a_meter_s_clock_that_was_set_during_the_run(bench, jump_s):
    t, watts = WORLD.trace()
    said = bench.refusal(WORLD.unix(t) + np.where(t > 160, jump_s, 0.0), watts)
    assert "clock was set while it logged" in said or "is not in the trace" in said


def test_the_host_s_clock_that_was_set_makes_a_given_offset_void_and_the_pattern_finds_it(tmp_path):
    after = Clock(offset_ns=BEGIN_UNIX_NS + 5 * 10**9, bound_ns=100_000, method="made up")
    bench = Bench(tmp_path, dataclasses.replace(WORLD, clock_after=after))
    t, watts = WORLD.trace()
    said = bench.refusal(WORLD.unix(t), watts, offset_s=0.0, offset_bound_s=0.05)
    assert "one was set" in said
    stored = bench.attach(WORLD.unix(t), watts)
    assert abs(error_s(stored, BEGIN_UNIX_NS)) <= bound_s(stored)


@pytest.mark.parametrize("factor", [1e3, 1e-6])
def test_a_unit_that_is_off(bench, factor):
    t, watts = WORLD.trace()
    said = bench.refusal(WORLD.unix(t), watts * factor, scope="module")
    assert "the device would have drawn" in said
    assert "--power-unit" in said
    stored = bench.attach(WORLD.unix(t), watts * factor, scope="module", force=True)
    assert stored.path.is_dir()


def test_volts_times_amperes_at_the_wall(tmp_path, bench):
    bench.path.write_text("t,I,U\n0,1,230\n1,2,230\n2,1,230\n")
    trace = read_trace(bench.path, parse_columns("time=t,current=I,voltage=U"), TraceOptions())
    with pytest.raises(UsageError, match="no power at the wall"):
        attach(bench.loaded, bench.attachments, trace, TraceOptions(), Terms("wall", "x"))


@pytest.mark.parametrize(
    ("terms", "match"),
    [
        ({"offset_s": 1.0}, "belong together"),
        ({"offset_bound_s": 1.0}, "belong together"),
        ({"offset_s": 1.0, "offset_bound_s": -1.0}, "at least 0"),
    ],
)
def test_terms_that_contradict_each_other(bench, terms, match):
    t, watts = WORLD.trace()
    with pytest.raises(UsageError, match=match):
        bench.attach(WORLD.unix(t), watts, **terms)


def test_an_offset_can_not_place_a_relative_time(bench):
    t, watts = WORLD.trace()
    with pytest.raises(UsageError, match="no offset can place it"):
        bench.attach(t - t[0], watts, offset_s=0.0, offset_bound_s=1.0)


# ---------------------------------------------------------------------- runs without energy windows


def test_several_artifacts_without_windows_can_not_be_told_apart(tmp_path):
    world = dataclasses.replace(WORLD, energy_windows=False)
    bench = Bench(tmp_path, world)
    t, watts = world.trace()
    said = bench.refusal(world.unix(t), watts)
    assert "can't tell one's energy from another's" in said
    assert "edgebench run --energy on" in said


def test_one_artifact_without_windows_has_its_measured_parts(tmp_path):
    world = World(power_w=(6.0,), call_s=(0.04,), energy_windows=False, measure_s=8.0)
    bench = Bench(tmp_path, world)
    t, watts = world.trace()
    stored = bench.attach(world.unix(t), watts)
    assert stored.document.stretches == world.launches
    windows = measured_windows(bench.loaded)
    assert [(w.launch, w.calls) for w in windows] == [(i, 200) for i in range(5)]
    assert isinstance(windows[0], Window)
    r = stored.readings
    source = source_of(stored.meter.channels[0], bound_s(stored))
    found = measure(source, r["t_ns"], r["value"], windows, [])
    assert found.per_inference_j.value == pytest.approx(world.energy_j(0), rel=1e-3)
    assert found.per_inference_idle_subtracted_j is None


# ------------------------------------------------------------------------------------ the store


def test_what_is_stored_is_read_back_and_the_recording_is_untouched(bench):
    before = {path.name: path.read_bytes() for path in bench.loaded.path.iterdir()}
    t, watts = WORLD.trace()
    stored = bench.attach(WORLD.unix(t), watts, gain_error=0.001, offset_error_w=0.01)
    (again,) = bench.attachments.load(bench.loaded.recording)
    assert again.document == stored.document
    for name in READING_COLUMNS:
        assert np.array_equal(again.readings[name], stored.readings[name])
    channel = again.meter.channels[0]
    assert (channel.scope, channel.source, channel.name) == ("board", "WT310", "VALUE")
    assert (channel.gain_error, channel.offset_error_w) == (0.001, 0.01)
    assert channel.period_s == pytest.approx(0.1, rel=1e-6)
    assert again.document.trace.name == "meter.csv"
    assert before == {path.name: path.read_bytes() for path in bench.loaded.path.iterdir()}


def test_a_recording_without_attachments_has_none(bench):
    assert bench.attachments.load(bench.loaded.recording) == ()
    assert bench.attachments.onto(bench.loaded).attached == ()


def test_attaching_again_replaces_and_another_column_does_not(bench):
    t, watts = WORLD.trace()
    first = bench.attach(WORLD.unix(t), watts)
    second = bench.attach(WORLD.unix(t), watts, gain_error=0.01)
    assert first.path.is_dir()
    (only,) = bench.attachments.load(bench.loaded.recording)
    assert only.document.id == second.document.id
    third = bench.attach(WORLD.unix(t), watts * 1.01)
    found = bench.attachments.onto(bench.loaded).attached
    assert [each.document.id for each in found] == [third.document.id, second.document.id]


def test_a_changed_byte_is_found_by_name(bench):
    t, watts = WORLD.trace()
    stored = bench.attach(WORLD.unix(t), watts)
    for name in ("readings.parquet", "attachment.json"):
        path = stored.path / name
        whole = path.read_bytes()
        middle = len(whole) // 2
        path.write_bytes(whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :])
        with pytest.raises(RecordingError, match=name):
            read_attachment(stored.path)
        path.write_bytes(whole[:middle])
        with pytest.raises(RecordingError, match=name):
            read_attachment(stored.path)
        path.write_bytes(whole)
    assert read_attachment(stored.path).document == stored.document


def test_another_schema_is_refused_and_says_which(bench):
    t, watts = WORLD.trace()
    stored = bench.attach(WORLD.unix(t), watts)
    path = stored.path / "attachment.json"
    document = json.loads(path.read_text())
    document["schema"] = "edgebench.attachment/9"
    path.write_text(json.dumps(document))
    with pytest.raises(RecordingError, match=r"edgebench\.attachment/9"):
        bench.attachments.load(bench.loaded.recording)


def test_an_attachment_of_another_content_is_refused(bench):
    t, watts = WORLD.trace()
    bench.attach(WORLD.unix(t), watts)
    other = bench.loaded.recording.model_copy(update={"digest": "sha256:other"})
    with pytest.raises(RecordingError, match="another content"):
        bench.attachments.load(other)


def test_what_a_dead_writer_left_is_neither_seen_nor_kept(bench):
    t, watts = WORLD.trace()
    left = bench.attachments.root / bench.loaded.id / ".tmp-01AAAAAAAAAAAAAAAAAAAAAAAA-00000000"
    left.mkdir(parents=True)
    (left / "attachment.json").write_text("{")
    assert bench.attachments.load(bench.loaded.recording) == ()
    bench.attach(WORLD.unix(t), watts)
    assert not left.exists()
    assert len(bench.attachments.load(bench.loaded.recording)) == 1


def test_a_directory_that_can_not_be_made_is_a_storage_error(bench):
    bench.attachments.root.write_text("a file is here")
    t, watts = WORLD.trace()
    with pytest.raises(StorageError):
        bench.attach(WORLD.unix(t), watts)
