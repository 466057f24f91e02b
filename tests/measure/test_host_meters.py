"""The host's meters during a run: real meters' processes, real servers, real files."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgebench.measure import host_meters
from edgebench.measure.host_meters import HostSampling, read_spool, to_device_clock
from edgebench.meters.base import MeterError
from edgebench.meters.sampler import EVENTS, READINGS, RECORD
from edgebench.recording import Clock, MeterChannel
from tests.meters.servers.analyser import PtDaemon
from tests.meters.servers.plugs import KasaPlug, ShellyPlug
from tests.meters.servers.profiler import Profiler, samples

MS = 1_000_000
HOUR = 3600 * 10**9


@pytest.fixture
def shelly() -> Iterator[ShellyPlug]:
    plug = ShellyPlug(2)
    yield plug
    plug.close()


@pytest.fixture
def kasa() -> Iterator[KasaPlug]:
    plug = KasaPlug()
    yield plug
    plug.close()


def wait_for(condition: Callable[[], Any]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, "it did not come about"
        time.sleep(0.01)


def values(directory: Path, meter: int) -> list[float]:
    readings = read_spool(directory).readings
    found: list[float] = readings["value"][readings["meter"] == meter].tolist()
    return found


def clock(offset_ns: int, bound_ns: int = MS) -> Clock:
    return Clock(offset_ns=0, bound_ns=bound_ns, method="test", monotonic_offset_ns=offset_ns)


def test_several_meters_are_read_and_what_they_are_is_kept(
    tmp_path: Path, shelly: ShellyPlug, kasa: KasaPlug
) -> None:
    specs = [{"kind": "shelly", "host": shelly.host}, {"kind": "kasa", "host": kasa.host}]
    begin = time.perf_counter_ns()
    sampling = HostSampling(specs, tmp_path)
    sampling.start()
    wait_for(lambda: len(values(tmp_path, 0)) >= 2 and len(values(tmp_path, 1)) >= 1)
    shelly.power_w = 20.0
    wait_for(lambda: 20.0 in values(tmp_path, 0))
    sampling.stop()
    end = time.perf_counter_ns()
    spooled = read_spool(tmp_path)
    assert set(values(tmp_path, 0)) == {12.5, 20.0}
    assert set(values(tmp_path, 1)) == {16.194}
    assert begin <= spooled.readings["t_ns"].min() <= spooled.readings["t_ns"].max() <= end
    assert spooled.started_ns is not None
    assert begin <= spooled.started_ns <= spooled.readings["t_ns"].min()
    assert spooled.this_boot
    for number, kind in enumerate(["Shelly", "Kasa"]):
        [channel] = spooled.meters[number]["channels"]
        assert kind in MeterChannel.model_validate(channel).source
        assert spooled.meters[number]["poll_s"] > 0
        assert "failure" not in spooled.meters[number]


def test_a_stream_and_an_analyser_are_read_side_by_side(tmp_path: Path) -> None:
    pytest.importorskip("serial")
    kit, daemon = Profiler(stream=samples([1000] * 6400)), PtDaemon()
    try:
        specs = [
            {"kind": "ppk2", "port": kit.port, "mode": "ampere", "voltage_mv": 5000},
            {"kind": "ptdaemon", "host": daemon.host},
        ]
        sampling = HostSampling(specs, tmp_path)
        sampling.start()
        wait_for(lambda: daemon.commands.count("RL") >= 1)
        daemon.sample("15:05:14.313", "22.970000")
        wait_for(lambda: len(values(tmp_path, 0)) >= 500 and values(tmp_path, 1))
        sampling.stop()
        assert kit.commands[-1] == b"\x07"
        assert daemon.commands[-1] == "Stop"
    finally:
        kit.close()
        daemon.close()
    assert len(set(values(tmp_path, 0))) == 1
    assert values(tmp_path, 1) == [22.97]
    readings = read_spool(tmp_path).readings
    times = readings["t_ns"][readings["meter"] == 0]
    assert (np.diff(times) > 0).all()


def test_a_meter_that_fails_says_why_and_the_other_goes_on(
    tmp_path: Path, shelly: ShellyPlug, kasa: KasaPlug
) -> None:
    specs = [{"kind": "shelly", "host": shelly.host}, {"kind": "kasa", "host": kasa.host}]
    sampling = HostSampling(specs, tmp_path)
    sampling.start()
    wait_for(lambda: values(tmp_path, 0))
    shelly.on, shelly.power_w = False, 0.0
    wait_for(lambda: "failure" in read_spool(tmp_path).meters.get(0, {}))
    count = len(values(tmp_path, 1))
    wait_for(lambda: len(values(tmp_path, 1)) > count)
    sampling.stop()
    spooled = read_spool(tmp_path)
    assert spooled.meters[0]["failure"]["code"] == "bad-reading"
    assert spooled.meters[0]["failure"]["t_ns"] > 0
    assert 0.0 not in values(tmp_path, 0)
    assert values(tmp_path, 0)  # what it read until then is kept


def test_a_meter_that_is_not_there_never_opens(tmp_path: Path) -> None:
    sampling = HostSampling([{"kind": "ptdaemon", "host": "127.0.0.1:1"}], tmp_path)
    sampling.start()
    wait_for(lambda: read_spool(tmp_path).meters)
    sampling.stop()
    spooled = read_spool(tmp_path)
    assert spooled.meters[0]["failure"]["code"] == "no-device"
    assert "channels" not in spooled.meters[0]
    assert len(spooled.readings["value"]) == 0


def test_stopping_twice_is_harmless(tmp_path: Path, shelly: ShellyPlug) -> None:
    sampling = HostSampling([{"kind": "shelly", "host": shelly.host}], tmp_path)
    sampling.stop()
    sampling.start()
    sampling.stop()
    sampling.stop()


def test_a_meters_process_that_died_is_no_error_at_the_end(
    tmp_path: Path, shelly: ShellyPlug
) -> None:
    sampling = HostSampling([{"kind": "shelly", "host": shelly.host}], tmp_path)
    sampling.start()
    wait_for(lambda: values(tmp_path, 0))
    process = sampling._process
    assert process is not None
    process.kill()
    process.wait()
    sampling.stop()
    assert values(tmp_path, 0)


HOLDER = """
import sys, json, pathlib, signal
from edgebench.measure.host_meters import HostSampling
sampling = HostSampling(json.loads(sys.argv[1]), pathlib.Path(sys.argv[2]))
sampling.start()
print(sampling._process.pid, flush=True)
signal.pause()
"""


def test_readings_outlive_a_host_process_that_is_killed(tmp_path: Path, shelly: ShellyPlug) -> None:
    specs = json.dumps([{"kind": "shelly", "host": shelly.host}])
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, specs, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout is not None
    sampler = int(holder.stdout.readline())
    wait_for(lambda: values(tmp_path, 0))
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    holder.stdout.close()
    # The meters' process ends by itself: nothing keeps on asking the plug.
    wait_for(lambda: b'"closed"' in (tmp_path / EVENTS).read_bytes())
    wait_for(lambda: not _runs(sampler))
    assert set(values(tmp_path, 0)) == {12.5}


def _runs(pid: int) -> bool:
    """It exists and is no zombie that waits for a parent."""
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return False
    return status.rpartition(")")[2].split()[0] != "Z"


def test_half_a_record_and_half_a_line_are_left_out(tmp_path: Path) -> None:
    whole = [RECORD.pack(0, 0, 1000 + k, 2.5 + k) for k in range(3)]
    (tmp_path / READINGS).write_bytes(b"".join(whole) + whole[0][:7])
    line = json.dumps({"event": "open", "meter": 0, "channels": [], "poll_s": 0.1, "t_ns": 5})
    (tmp_path / EVENTS).write_text(line + "\n" + line[:20])
    spooled = read_spool(tmp_path)
    assert spooled.readings["value"].tolist() == [2.5, 3.5, 4.5]
    assert spooled.readings["t_ns"].tolist() == [1000, 1001, 1002]
    assert spooled.meters == {0: {"channels": [], "poll_s": 0.1}}
    assert spooled.started_ns is None


def test_the_first_failure_is_the_reason(tmp_path: Path) -> None:
    lines = [
        {"event": "failed", "meter": 0, "code": code, "message": code, "fix": "", "t_ns": 5}
        for code in ("vanished", "io")
    ]
    (tmp_path / EVENTS).write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert read_spool(tmp_path).meters[0]["failure"]["code"] == "vanished"


def test_no_spool_is_no_readings(tmp_path: Path) -> None:
    spooled = read_spool(tmp_path / "never")
    assert spooled.meters == {}
    assert all(len(column) == 0 for column in spooled.readings.values())


def test_a_line_that_is_no_json_is_not_passed_over(tmp_path: Path) -> None:
    (tmp_path / EVENTS).write_text("{oops\n")
    with pytest.raises(ValueError):
        read_spool(tmp_path)


def test_a_machine_that_was_started_anew_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = {"meters": [], "started_ns": 7, "boot": "another"}
    (tmp_path / host_meters.CONFIG).write_text(json.dumps(config))
    here = tmp_path / "boot_id"
    here.write_text("this\n")
    monkeypatch.setattr(host_meters, "BOOT_ID", here)
    assert not read_spool(tmp_path).this_boot
    here.write_text("another\n")
    assert read_spool(tmp_path).this_boot


def test_without_drift_the_offset_is_subtracted() -> None:
    t_ns = np.array([5, 6, 7]) * 10**9
    found, alignment = to_device_clock(t_ns, clock(2 * 10**9), clock(2 * 10**9))
    assert found.tolist() == [3 * 10**9, 4 * 10**9, 5 * 10**9]
    assert found.dtype == np.int64
    assert alignment.offset_ns == 2 * 10**9
    assert MS <= alignment.bound_ns < MS + 10**4


def test_drift_is_taken_to_be_even_between_the_estimates() -> None:
    # 20 ppm over an hour: 72 ms.
    t_ns = np.array([0, HOUR // 2, HOUR])
    found, _ = to_device_clock(t_ns, clock(0), clock(72 * MS), (0, HOUR))
    assert (t_ns - found).tolist() == [0, 36 * MS, 72 * MS]


def test_a_meter_that_stopped_early_is_not_stretched_over_the_run() -> None:
    t_ns = np.array([0, 10**9])
    found, _ = to_device_clock(t_ns, clock(0), clock(72 * MS), (0, HOUR))
    assert (t_ns - found).tolist() == [0, 20_000]
    with pytest.raises(MeterError):  # without knowing how long the run was, this looks like a step
        to_device_clock(t_ns, clock(0), clock(72 * MS))


@given(
    drift_ppm=st.floats(-400, 400),
    offset_ns=st.integers(-(10**17), 10**17),
    error_ns=st.integers(-MS, MS),
    seconds=st.integers(10, 7200),
)
def test_the_bound_holds_for_any_even_drift(
    drift_ppm: float, offset_ns: int, error_ns: int, seconds: int
) -> None:
    span = seconds * 10**9
    t_ns = np.linspace(0, span, 50).astype(np.int64)
    drifted = np.rint(t_ns * (drift_ppm * 1e-6)).astype(np.int64)
    truth = t_ns - (offset_ns + drifted)
    before = clock(offset_ns + error_ns)
    after = clock(offset_ns - error_ns + int(drifted[-1]))
    found, alignment = to_device_clock(t_ns, before, after, (0, span))
    assert np.abs(found - truth).max() <= alignment.bound_ns + 2


def test_one_estimate_costs_a_wider_bound() -> None:
    t_ns = np.array([0, HOUR])
    found, alignment = to_device_clock(t_ns, clock(0), None, (0, HOUR))
    assert found.tolist() == t_ns.tolist()
    assert alignment.bound_ns == MS + 360 * MS  # 100 ppm of an hour
    assert "not seen" in alignment.method


@pytest.mark.parametrize("moved_ms", [2000, -2000])
def test_a_clock_that_stepped_is_refused(moved_ms: int) -> None:
    t_ns = np.array([0, 600 * 10**9])
    with pytest.raises(MeterError) as caught:
        to_device_clock(t_ns, clock(0), clock(moved_ms * MS), (0, 600 * 10**9))
    assert caught.value.code == "clock-stepped"
    assert "sleep" in caught.value.fix


def test_a_recording_without_the_offset_is_refused() -> None:
    old = Clock(offset_ns=0, bound_ns=1, method="test")
    with pytest.raises(MeterError):
        to_device_clock(np.array([0]), old, None)


def test_no_readings_have_no_moments() -> None:
    found, alignment = to_device_clock(np.zeros(0, dtype=np.int64), clock(5), clock(5))
    assert len(found) == 0
    assert alignment.offset_ns == 5


def test_the_meters_process_is_out_of_reach_of_ctrl_c(tmp_path: Path, shelly: ShellyPlug) -> None:
    sampling = HostSampling([{"kind": "shelly", "host": shelly.host}], tmp_path)
    sampling.start()
    process = sampling._process
    assert process is not None
    assert os.getsid(process.pid) != os.getsid(0)
    sampling.stop()
