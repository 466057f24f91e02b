"""Runs with a meter: from the sensor's files to joules in the tables."""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from edgebench.doctor import examine
from edgebench.errors import ProfileError
from edgebench.measure import RunOptions, meters, run
from edgebench.recording import PHASES
from edgebench.results.tables import build
from tests.measure.bench import QUICK, REPOSITORY, Bench
from tests.measure.power_world import BUSY_W, REST_W, PowerWorld
from tests.meters import fake_nvml

#: Two launches with windows as short as a 10 ms sensor allows.
METERED = replace(QUICK, launches=2, energy_window_s=0.5, energy_precision=0.3)


@pytest.fixture(autouse=True)
def short_rests(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(meters, "SETTLE_S", 0.1)


@pytest.fixture
def world(bench: Bench) -> Iterator[PowerWorld]:
    world = PowerWorld(bench.path / "sys", bench.root)
    yield world
    world.close()


def meter(world: PowerWorld, more: str = "") -> str:
    return (
        f'[[meters]]\nkind = "hwmon"\nscope = "board"\nchip = "ina226"\nsysfs = "{world.sysfs}"\n'
        f"shunt_tolerance_percent = 1\n{more}\n"
    )


def measured(bench: Bench, more: str, options: RunOptions = METERED, artifacts: int = 1):
    names = ["a", "b"][:artifacts]
    chosen = [bench.artifact(name, width=64, layers=4) for name in names]
    recording = run(bench.device(more), chosen, bench.store, options)
    return bench.store.load(recording.id)


def test_a_meter_fills_the_row(bench: Bench, world: PowerWorld):
    loaded = measured(bench, meter(world), artifacts=2)
    recording = loaded.recording
    assert recording.power_absent is None
    (found,) = recording.meters
    assert found.failure is None
    assert found.channels[0].scope == "board"
    assert len(loaded.readings["t_ns"]) > 100
    for launch in recording.launches:
        assert {window.artifact for window in launch.energy_windows} == {0, 1}
        assert all(w.end_ns - w.begin_ns >= 5e8 and w.calls > 10 for w in launch.energy_windows)
        assert len(launch.idle_ns) >= 2
        assert launch.energy_stopped_by == "enough"
    energy_calls = loaded.samples["phase"] == PHASES.index("energy")
    windows = [w for launch in recording.launches for w in launch.energy_windows]
    assert energy_calls.sum() == sum(window.calls for window in windows)
    tables = build([loaded])
    for index in (0, 1):
        energy, power = tables.energy.iloc[index], tables.power.iloc[index]
        mine = [window for window in windows if window.artifact == index]
        a_call_s = np.mean([(w.end_ns - w.begin_ns) / 1e9 / w.calls for w in mine])
        # The sensor says 8 W while it works, but for moments that the kernel gave to others.
        assert power["power_average_w"] == pytest.approx(BUSY_W, rel=0.1)
        assert power["power_peak_w"] == pytest.approx(BUSY_W, rel=0.02)
        assert energy["idle_power_w"] == pytest.approx(REST_W, rel=0.2)
        joules = energy["energy_per_inference_j"]
        assert joules == pytest.approx(BUSY_W * a_call_s, rel=0.15)
        assert energy["energy_per_inference_j_lo"] < joules < energy["energy_per_inference_j_hi"]
        over_idle = energy["energy_per_inference_idle_subtracted_j"]
        assert over_idle == pytest.approx((BUSY_W - REST_W) * a_call_s, rel=0.2)
        assert energy["scope"] == "board"
        assert "ina226" in energy["source"]


def test_a_sensor_that_is_not_there_leaves_a_reason_and_the_latency(bench: Bench, world):
    shutil.rmtree(world.hwmon)
    loaded = measured(bench, meter(world), replace(METERED, launches=1))
    assert loaded.recording.meters[0].failure.code == "no-device"
    assert loaded.recording.protocol.energy is None
    tables = build([loaded])
    assert np.isnan(tables.energy["energy_per_inference_j"].astype(float)[0])
    assert "hwmon" in tables.energy["reason"][0]
    assert "no-energy" in tables.energy["reasons"][0]
    assert "no-energy" not in tables.latency["reasons"][0]
    assert tables.latency["latency_p50_ms"][0] > 0


def test_a_sensor_that_vanishes_in_the_run_is_named(bench: Bench, world: PowerWorld):
    def pull(event):
        if event["event"] == "energy":
            # What an unbound driver's open file answers: nothing.
            for name in ("power1_input", "curr1_input", "in1_input"):
                (world.hwmon / name).write_bytes(b"")
            world.close()
            for name in ("power1_input", "curr1_input", "in1_input"):
                (world.hwmon / name).write_bytes(b"")

    recording = run(
        bench.device(meter(world)), [bench.artifact()], bench.store, METERED, report=pull
    )
    loaded = bench.store.load(recording.id)
    failure = loaded.recording.meters[0].failure
    assert failure is not None
    assert failure.t_ns is not None
    (row,) = build([loaded]).energy.to_dict("records")
    assert np.isnan(row["energy_per_inference_j"])
    assert row["reason"]


def test_a_unit_that_is_off_by_a_thousand_is_no_figure(bench: Bench, world: PowerWorld):
    limits = "limits = { power_w = [1000, 9000] }\n"  # this device's 8 W would be 8 kW
    loaded = measured(bench, limits + meter(world), replace(METERED, launches=1))
    (row,) = build([loaded]).energy.to_dict("records")
    assert np.isnan(row["energy_per_inference_j"])
    assert "1000" in row["reason"]
    assert "no-energy" in row["reasons"]


def test_windows_without_a_meter_wait_for_a_trace(bench: Bench):
    options = replace(METERED, launches=1, energy="on")
    recording = measured(bench, "", options).recording
    assert recording.meters == []
    assert len(recording.launches[0].energy_windows) == 4
    assert recording.power_absent == "no power source on this device"


def test_no_windows_where_energy_is_off(bench: Bench, world: PowerWorld):
    loaded = measured(bench, meter(world), replace(METERED, launches=1, energy="off"))
    assert loaded.recording.launches[0].energy_windows == []
    assert loaded.recording.meters == []
    assert "not asked for" in build([loaded]).energy["reason"][0]


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ('[[meters]]\nkind = "ina999"\nscope = "board"', "no meter of kind 'ina999'"),
        ('[[meters]]\nkind = "hwmon"\nchips = "ina226"\nscope = "board"', "no key 'chips'"),
        ('[[meters]]\nkind = "hwmon"\nchip = "ina226"', "what a hwmon meter sees"),
    ],
)
def test_a_wrong_table_is_refused_before_anything_is_measured(bench: Bench, table: str, said: str):
    with pytest.raises(ProfileError, match=said) as caught:
        run(bench.device(table), [bench.artifact()], bench.store, METERED)
    assert str(bench.path / "devices/bench.toml") in str(caught.value)
    bench.nothing_is_left()


def test_the_command_line_shows_joules_and_watts(bench: Bench, world: PowerWorld):
    bench.profile(meter(world))
    done = bench.run(
        *("run", "--device", "bench", bench.artifact("a", width=64, layers=4)),
        *("--launches", "1", "--percentile", "50", "--precision", "90%", "--accuracy", "none"),
        *("--energy-window", "0.5", "--energy-precision", "30%"),
    )
    assert done.returncode == 0, done.stderr
    assert "J/call" in done.stdout
    assert "scope board" in done.stdout
    (row,) = json.loads(bench.call("table", "--json").stdout)["energy"]
    assert row["energy_per_inference_j"] > 0


async def _examine(bench: Bench, more: str) -> list[str]:
    return [finding.what for finding in (await examine(bench.device(more))).findings]


def test_doctor_opens_the_meter(bench: Bench, world: PowerWorld):
    import asyncio

    found = asyncio.run(_examine(bench, meter(world)))
    assert any(text.startswith("meter hwmon, ") and "board" in text for text in found), found
    shutil.rmtree(world.hwmon)
    report = asyncio.run(examine(bench.device(meter(world))))
    (failed,) = [f for f in report.findings if f.what.startswith("meter hwmon")]
    assert failed.level == "FAIL"


def gpu_world() -> fake_nvml.World:
    """A GPU that draws 300 W, give or take 3, whatever runs."""
    gpu = fake_nvml.Gpu(power_w=lambda second: 300 + 3 * math.sin(40 * second))
    return fake_nvml.World([gpu], real_time=True)


def test_nvml_s_counter_fills_the_row_and_its_power_checks_it(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """The driver's library is played; everything from its binding on is what a GPU machine runs."""
    fakes = fake_nvml.as_package(tmp_path / "fakes", f"{__name__}:gpu_world")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(fakes), str(REPOSITORY)]))
    monkeypatch.setattr(meters, "MIN_ROUNDS", 1)
    options = replace(
        METERED, launches=1, energy_window_s=7.0, energy_max_duration_s=1.0, energy_precision=0.5
    )
    loaded = measured(bench, '[[meters]]\nkind = "nvml"\n', options)
    (found,) = loaded.recording.meters
    assert [channel.quantity for channel in found.channels] == ["energy", "power"]
    (row,) = build([loaded]).energy.to_dict("records")
    (window,) = loaded.recording.launches[0].energy_windows
    a_call_s = (window.end_ns - window.begin_ns) / 1e9 / window.calls
    assert row["energy_per_inference_j"] == pytest.approx(300 * a_call_s, rel=0.03), row["reason"]
    assert row["scope"] == "gpu"
    assert "total energy" in row["source"]
    assert "power" in row["cross_check_source"]
    assert row["cross_check_ratio"] == pytest.approx(1, abs=0.05)
    assert "sources-disagree" not in row["reasons"]
