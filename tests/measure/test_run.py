"""A whole run on this machine, from the artifact to the stored recording, and what can go wrong."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from edgebench.errors import DeviceError
from edgebench.measure import resume, run
from edgebench.recording import PHASES, SAMPLE_COLUMNS
from edgebench.results.tables import build
from edgebench.verdict import Code, Status, judge
from tests.agent.agents import processes, wait_until
from tests.agent.test_disk_full import fill
from tests.agent.test_runs import hungry_model, unsupported_model
from tests.measure.bench import QUICK, Bench, kill

root_only = pytest.mark.skipif(os.getuid() != 0, reason="mounting a small disk needs root")


def verdict(loaded, index=0):
    return judge(loaded.recording, loaded.samples, loaded.state, index)


def test_two_artifacts_take_turns_and_are_stored_whole(bench: Bench):
    artifacts = [bench.artifact("a"), bench.artifact("b", width=64, layers=4)]
    options = replace(QUICK, launches=2, percentile=90, accuracy="all", precision=0.2)
    events = []
    recording = run(bench.device(), artifacts, bench.store, options, report=events.append)
    assert recording.status == "done"
    assert [solo.outcome for solo in recording.solo] == ["ok", "ok"]
    assert [solo.accuracy.correct for solo in recording.solo] == [36, 36]
    assert all(s.peak_rss_bytes > s.baseline_rss_bytes > 10**7 for s in recording.solo)
    assert [launch.outcome for launch in recording.launches] == ["ok", "ok"]
    assert all(ns > 0 for launch in recording.launches for ns in launch.load_ns)
    loaded = bench.store.load(recording.id)
    measured = loaded.samples["phase"] == PHASES.index("measure")
    for artifact in (0, 1):
        mine = measured & (loaded.samples["artifact"] == artifact)
        assert mine.sum() >= 64
        assert set(loaded.samples["launch"][mine].tolist()) == {0, 1}
    assert np.all(loaded.samples["duration_ns"] > 0)
    assert {line["when"] for line in loaded.state} == {"before", "during", "after"}
    assert {event["event"] for event in events} >= {"started", "solo", "launch", "stored"}
    assert all(event["device"] == "bench" for event in events)
    assert bench.spools() == []
    assert resume(bench.device(), bench.store) == []


def test_accuracy_is_taken_over_from_the_recording_that_measured_it(bench: Bench):
    artifact = bench.artifact()
    every = replace(QUICK, accuracy="all")
    first, second, third = (
        run(bench.device(), [artifact], bench.store, options)
        for options in (every, every, replace(every, reuse_accuracy=False))
    )
    measured, taken, again = (recording.solo[0].accuracy for recording in (first, second, third))
    assert measured.recording is None
    assert taken == measured.model_copy(update={"recording": first.id})
    assert again.recording is None
    assert again.duration_ns != measured.duration_ns
    assert [again.correct, again.n] == [measured.correct, measured.n] == [36, 40]


def test_foreign_load_on_the_measured_cpu_is_measured_and_makes_the_row_invalid(bench: Bench):
    (cpu,) = sorted(os.sched_getaffinity(0))[-1:]
    device = bench.device(f'runtime = {{ threads = 1, affinity = "{cpu}" }}')
    script = f"import os\nos.sched_setaffinity(0, {{{cpu}}})\nprint(1, flush=True)\nwhile 1: pass"
    busy = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE)
    busy.stdout.read(1)
    try:
        options = replace(QUICK, min_duration_s=1.0)
        recording = run(device, [bench.artifact()], bench.store, options)
    finally:
        kill(busy)
    (launch,) = recording.launches
    # Two processes on one CPU share it; the scheduler gives each about a half.
    assert 0.25 < launch.foreign_cpu_fraction < 0.95
    found = verdict(bench.store.load(recording.id))
    assert found.status is Status.INVALID
    assert Code.FOREIGN_LOAD in found.codes
    row = build([bench.store.load(recording.id)]).latency.iloc[0]
    assert row["verdict"] == "INVALID"
    assert "foreign-load" in row["reasons"]


def test_a_model_that_needs_too_much_memory_is_stored_as_an_invalid_row(bench: Bench):
    hungry = bench.artifact("hungry", model=hungry_model())
    device = bench.device("limits = { memory_mb = 900 }")
    recording = run(device, [hungry, bench.artifact("small")], bench.store, QUICK)
    outcomes = {solo.artifact: solo.outcome for solo in recording.solo}
    assert outcomes == {0: "out-of-memory", 1: "ok"}
    loaded = bench.store.load(recording.id)
    assert verdict(loaded, 0).status is Status.INVALID
    assert verdict(loaded, 0).codes[0] == Code.OUT_OF_MEMORY
    rows = build([loaded]).latency
    # What was not measured is empty, never 0.
    for column in ("latency_p50_ms", "load_time_ms", "accuracy", "throughput_per_s"):
        assert rows[column].isna().tolist()[0], column
    assert rows["n"].tolist()[0] == 0
    assert rows["n"].tolist()[1] > 0


def test_a_model_that_the_runtime_refuses_is_stored_with_its_words(bench: Bench):
    recording = run(
        bench.device(),
        [bench.artifact("bad", model=unsupported_model())],
        bench.store,
        QUICK,
    )
    (solo,) = recording.solo
    assert solo.outcome == "error"
    assert "Frobnicate" in solo.error
    assert recording.launches == []
    found = verdict(bench.store.load(recording.id))
    assert found.status is Status.INVALID
    assert {Code.WORKER_ERROR, Code.NOTHING_MEASURED} <= set(found.codes)


# -- picked up


def cut_off(bench: Bench) -> None:
    """A run whose host is killed in the middle of it."""
    host = bench.start(
        *("run", "--device", "bench", bench.artifact("a")),
        *("--launches", "2", "--percentile", "50", "--accuracy", "none"),
    )
    bench.wait_for_event("launch")
    kill(host)


def copy_of(bench: Bench, spool: Path) -> Path:
    return Path(shutil.copytree(spool, bench.path / "copy"))


def samples_of(spool: Path) -> list[list[int]]:
    """launch, artifact, turn, phase, start, duration of every call in a spool."""
    found = []
    for entry in json.loads((spool / "result.json").read_text())["samples"]:
        table = np.load(spool / entry["file"])
        found += [[entry["launch"], *map(int, row)] for row in table]
    return found


def stored_samples(loaded) -> list[list[int]]:
    return np.stack([loaded.samples[name] for name in SAMPLE_COLUMNS], axis=1).tolist()


def test_a_run_whose_host_was_killed_is_picked_up_whole_and_once(bench: Bench):
    cut_off(bench)
    wait_until(lambda: not processes("serve", bench.root), "the agent ends with its host")
    assert bench.store.list() == ()
    copy = copy_of(bench, bench.wait_for_end())
    (recording,) = resume(bench.device(), bench.store)
    assert recording.id == json.loads((copy / "plan.json").read_text())["id"]
    assert recording.status == "done"
    loaded = bench.store.load(recording.id)
    assert stored_samples(loaded) == samples_of(copy) != []
    assert len(loaded.state) == len((copy / "state.jsonl").read_text().splitlines())
    assert bench.spools() == []
    assert resume(bench.device(), bench.store) == []
    assert bench.store.list() == (recording.id,)


def test_a_run_that_still_goes_on_is_waited_for(bench: Bench):
    cut_off(bench)
    events = []
    (recording,) = resume(bench.device(), bench.store, report=events.append)
    assert [launch.outcome for launch in recording.launches] == ["ok", "ok"]
    assert "resuming" in {event["event"] for event in events}
    assert "launch" in {event["event"] for event in events}


def test_the_next_run_picks_up_what_was_left(bench: Bench):
    cut_off(bench)
    bench.wait_for_end()
    recording = run(bench.device(), [bench.artifact("c")], bench.store, QUICK)
    assert len(bench.store.list()) == 2
    assert recording.id == bench.store.list()[1]
    assert bench.spools() == []


def test_a_recording_that_is_stored_already_is_only_forgotten_there(bench: Bench):
    cut_off(bench)
    spool = bench.wait_for_end()
    copy = copy_of(bench, spool)
    (recording,) = resume(bench.device(), bench.store)
    stored = bench.store.root / recording.id
    before = {file.name: file.read_bytes() for file in stored.iterdir()}
    shutil.copytree(copy, spool)  # as if the host had died between storing and forgetting
    resume(bench.device(), bench.store)
    assert bench.spools() == []
    assert {file.name: file.read_bytes() for file in stored.iterdir()} == before
    assert bench.store.list() == (recording.id,)


def test_a_run_that_lost_its_supervisor_keeps_its_finished_launches(bench: Bench):
    cut_off(bench)
    bench.wait_for_event("launch", count=2)
    (supervisor,) = processes("supervise", bench.root)
    os.kill(supervisor, signal.SIGKILL)
    wait_until(lambda: not processes("work", bench.root), "the worker ends with it")
    (recording,) = resume(bench.device(), bench.store)
    assert recording.status == "lost"
    assert [launch.outcome for launch in recording.launches] == ["ok"]
    found = verdict(bench.store.load(recording.id))
    assert Code.CUT_SHORT in found.codes
    assert found.status is not Status.VALID


def test_a_run_that_died_before_it_measured_is_removed(bench: Bench):
    cut_off(bench)
    (supervisor,) = processes("supervise", bench.root)
    os.kill(supervisor, signal.SIGKILL)
    wait_until(lambda: not processes("work", bench.root), "the worker ends with it")
    (spool,) = bench.spools()
    (spool / "partial.json").unlink()
    events = []
    assert resume(bench.device(), bench.store, report=events.append) == []
    assert "lost" in {event["event"] for event in events}
    assert bench.spools() == []
    assert bench.store.list() == ()


# -- a full disk on the device


@root_only
def test_a_device_whose_disk_fills_up_gives_one_sentence_and_no_recording(bench: Bench):
    bench.root.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "x", bench.root], check=True)
    try:
        device = bench.device()
        options = replace(QUICK, launches=3, min_duration_s=1.0, max_duration_s=1.0)

        def full(event) -> None:
            if event["event"] == "launch":
                fill(bench.root)

        with pytest.raises(DeviceError, match=r"disk filled up during the run: .*No space") as told:
            run(device, [bench.artifact()], bench.store, options, report=full)
        assert told.value.exit_code == 4
        assert "bench" in told.value.where
        assert bench.spools() == []
        assert bench.store.list() == ()
        with pytest.raises(DeviceError, match="the device's disk is full: 0 MiB free"):
            run(device, [bench.artifact("b")], bench.store, options)
        (bench.root / "filler").unlink()
        assert run(device, [bench.artifact("c")], bench.store, QUICK).status == "done"
    finally:
        subprocess.run(["umount", "-l", bench.root], check=True)
