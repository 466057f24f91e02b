"""Faults that take a whole machine: a reboot, a full disk, a wrong clock, other users, memory."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from edgebench.errors import DeviceError
from edgebench.measure import resume, run
from edgebench.transport import ssh_link
from edgebench.transport.ssh_link import CONFIG_VARIABLE
from edgebench.verdict import Code, judge
from tests.agent.test_runs import hungry_model
from tests.faults.far import once
from tests.standin.bench import ON_STANDIN, StandInBench, until_idle
from tests.standin.standin import StandIn


@pytest.fixture(scope="module")
def pi(standin_root: Path) -> Iterator[StandIn]:
    """One Pi 4 with ONNX Runtime for all tests here, each of which leaves it as it found it."""
    with StandIn("pi4", onnxruntime=True) as device:
        yield device


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[StandInBench]:
    monkeypatch.setattr(ssh_link, "KEEPALIVE_INTERVAL_S", 0.5)
    found = StandInBench(tmp_path)
    yield found
    found.close()


@pytest.fixture(autouse=True)
def reached(pi: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(CONFIG_VARIABLE, str(pi.ssh_config_path))


def settled(pi: StandIn, bench: StandInBench) -> None:
    """Nothing runs or is spooled there, its lock is free, and the store is whole."""
    until_idle(pi)
    assert not list((pi.home() / ".edgebench/runs").iterdir())
    free = pi.run(["flock", "--nonblock", "/tmp/edgebench-device.lock", "true"])
    assert free.returncode == 0
    loaded, broken = bench.store.load_all()
    assert broken == ()
    assert len(loaded) == len({each.recording.id for each in loaded})
    assert resume(bench.stand_in("bench", pi), bench.store) == []


def test_a_reboot_keeps_the_launches_that_were_done(pi: StandIn, bench: StandInBench) -> None:
    device = bench.stand_in("bench", pi)
    spooled: list[list[int]] = []

    def power_cut() -> None:
        (spool,) = (pi.home() / ".edgebench/runs").iterdir()
        spooled.extend(np.load(spool / "launch-000.npy").tolist())
        pi.reboot()

    options = replace(ON_STANDIN, launches=2)
    report = once("launch", power_cut, launch=1)
    recording = run(device, [bench.artifact()], bench.store, options, report=report)
    assert "reconnecting" in {event["event"] for event in report.events}
    assert recording.status == "lost"
    assert [launch.outcome for launch in recording.launches] == ["ok"]
    loaded = bench.store.load(recording.id)
    assert loaded.samples["start_ns"].tolist() == [row[3] for row in spooled] != []
    found = judge(loaded.recording, loaded.samples, loaded.state, 0)
    assert Code.CUT_SHORT in found.codes
    settled(pi, bench)


def test_a_full_disk_is_said_whether_it_fills_before_or_while_it_measures(
    pi: StandIn, bench: StandInBench
) -> None:
    device = bench.stand_in("bench", pi)
    run_dir = pi.home() / ".edgebench/runs"
    try:
        # Before: the agent may have to be sent too, and fits; the artifact does not.
        pi.fill_disk(leave_bytes=400_000)
        with pytest.raises(DeviceError, match="the device's disk is full") as caught:
            run(device, [bench.artifact("big", width=400, layers=2)], bench.store, ON_STANDIN)
        assert "Free some space there" in caught.value.fix
        assert caught.value.exit_code == 4
        pi.free_disk()
        # While: the reserve is what lets it say so.
        report = once("progress", pi.fill_disk)
        options = replace(ON_STANDIN, min_duration_s=8.0, max_duration_s=30.0)
        with pytest.raises(DeviceError, match="disk filled up during the run") as caught:
            run(device, [bench.artifact("small")], bench.store, options, report=report)
        assert caught.value.exit_code == 4
        assert bench.store.list() == ()
        assert not list(run_dir.iterdir())
    finally:
        pi.free_disk()
    settled(pi, bench)


def test_a_clock_that_is_stepped_is_recorded_and_harms_no_duration(
    pi: StandIn, bench: StandInBench
) -> None:
    device = bench.stand_in("bench", pi)
    pi.step_clock(3600)
    try:
        report = once("progress", lambda: pi.step_clock(-7200))
        options = replace(ON_STANDIN, min_duration_s=2.0)
        recording = run(device, [bench.artifact()], bench.store, options, report=report)
        doctor = bench.run("doctor", "--device", "bench")
    finally:
        pi.step_clock(3600)
    assert recording.clock.wall_offset_ns is not None
    assert abs(recording.clock.wall_offset_ns / 1e9 - 3600) < 2
    assert "warn  its clock is 3600 s behind this machine's" in doctor.stdout
    loaded = bench.store.load(recording.id)
    assert loaded.samples["duration_ns"].min() > 0
    assert loaded.samples["duration_ns"].max() < 10e9
    assert np.all(np.diff(loaded.samples["start_ns"]) > 0)
    found = judge(loaded.recording, loaded.samples, loaded.state, 0)
    assert Code.CLOCK_BACKWARDS not in found.codes
    (launch,) = recording.launches
    assert 0 < launch.ended_ns - launch.started_ns < 60e9
    settled(pi, bench)


def test_one_measurement_at_a_time_whoever_asks(
    pi: StandIn, bench: StandInBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    theirs = pi.add_client("lab")  # another account, with a key and a home of its own
    config = pi.ssh_config_path.with_name("both")
    config.write_text(pi.ssh_config_path.read_text() + theirs.config_path.read_text())
    monkeypatch.setenv(CONFIG_VARIABLE, str(config))
    artifact = bench.artifact()
    device = bench.stand_in("bench", pi)
    path = bench.path / "devices/lab.toml"
    path.write_text(f'extends = "bench"\ntransport = {{ host = "{theirs.alias}", user = "lab" }}\n')
    said = []

    def somebody_else() -> None:
        done = bench.run(
            *("run", "--device", "lab", "--no-wait", "--json", artifact),
            *("--results", bench.path / "theirs"),
        )
        said.append((done.returncode, json.loads(done.stdout)))

    options = replace(ON_STANDIN, min_duration_s=15.0, max_duration_s=60.0)
    run(device, [artifact], bench.store, options, report=once("launch", somebody_else))
    ((code, document),) = said
    assert code == 4
    error = (document.get("error") or document["errors"][0])["what"]
    assert error.startswith("another measurement holds the device: ")
    settled(pi, bench)


def test_a_worker_that_the_kernel_kills_for_memory_is_an_outcome(
    standin_root: Path, bench: StandInBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    with StandIn("pi4", onnxruntime=True, memory_limit_bytes=700 << 20) as small:
        monkeypatch.setenv(CONFIG_VARIABLE, str(small.ssh_config_path))
        device = bench.stand_in("bench", small)
        artifact = bench.artifact("hungry", model=hungry_model(gigabytes=2))
        recording = run(device, [artifact], bench.store, ON_STANDIN)
        (solo,) = recording.solo
        assert (solo.outcome, solo.error) == ("out-of-memory", "the kernel killed it for memory")
        assert recording.launches == []
        loaded = bench.store.load(recording.id)
        assert Code.OUT_OF_MEMORY in judge(loaded.recording, loaded.samples, loaded.state, 0).codes
        assert small.ssh(["true"]).returncode == 0
        settled(small, bench)
