"""``edgebench energy attach``: from a meter's CSV to the joules of a recorded run."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from edgebench.measure import meters
from edgebench.measure import run as run_session
from tests.measure.bench import QUICK, Bench
from tests.results.energy_recordings import World

WORLD = World(window_s=4.0, idle_s=3.0)
COLUMNS = ("--columns", "time=TIME,power=POWER")


@pytest.fixture
def run(bench: Bench) -> str:
    """The id of a recording that no meter saw."""
    recording, samples, state, readings = WORLD.recording()
    bench.store.write(recording, samples, state, readings)
    return recording.id


def log(bench: Bench, *, ahead_s: float = 0.0, factor: float = 1.0, form: str = "{:.3f}") -> Path:
    """What an instrument beside the device wrote."""
    t, watts = WORLD.trace()
    path = bench.path / "wt310.csv"
    with path.open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(("TIME", "POWER"))
        for at, value in zip(WORLD.unix(t, ahead_s=ahead_s), watts * factor, strict=True):
            writer.writerow((form.format(at), f"{value:.5f}"))
    return path


def test_any_meter_fills_the_tables(bench: Bench, run: str):
    before = json.loads(bench.call("table", run, "--json").stdout)["energy"]
    assert {row["energy_per_inference_j"] for row in before} == {None}
    done = bench.call(
        *("energy", "attach", run, "--trace", log(bench, ahead_s=1.3), *COLUMNS),
        *("--scope", "wall", "--accuracy", "0.2%", "--offset-error", "2mW"),
        *("--name", "Yokogawa WT310"),
    )
    assert done.returncode == 0, done.stderr
    assert "it sees 50 of 50 windows and idle stretches whole" in done.stdout
    assert "its clock is 1.34 s ahead of this host's" in done.stdout
    assert "J/call" in done.stdout
    assert "Yokogawa WT310" in done.stdout
    rows = json.loads(bench.call("table", run, "--json").stdout)["energy"]
    for artifact, row in enumerate(rows):
        truth = WORLD.energy_j(artifact)
        assert row["energy_per_inference_j"] == pytest.approx(truth, rel=0.002)
        assert row["energy_per_inference_j_lo"] < truth < row["energy_per_inference_j_hi"]
        above = row["energy_per_inference_idle_subtracted_j"]
        assert above == pytest.approx(WORLD.energy_above_idle_j(artifact), rel=0.01)
        assert row["idle_power_w"] == pytest.approx(WORLD.idle_w, rel=0.01)
        assert (row["scope"], row["source"]) == ("wall", "Yokogawa WT310: POWER")
    written = (bench.path / "results" / "tables" / "energy.csv").read_text()
    assert written.count("Yokogawa WT310") == 2


def test_a_run_is_named_by_the_beginning_of_its_id_and_json_says_what_was_stored(bench, run):
    path = log(bench)
    done = bench.call(
        "energy", "attach", run[:12], "--trace", path, *COLUMNS, "--scope", "wall", "--json"
    )
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    attachment = document["attachment"]
    assert attachment["recording_id"] == run
    assert attachment["trace"]["name"] == "wt310.csv"
    assert attachment["meter"]["alignment"]["bound_ns"] < 1e8
    assert (Path(document["path"]) / "readings.parquet").is_file()


def test_milliwatts_are_said_or_refused(bench: Bench, run: str):
    path = log(bench, factor=1000)
    words = ("energy", "attach", run, "--trace", path, *COLUMNS, "--scope", "module")
    refused = bench.call(*words)
    assert refused.returncode == 3
    assert "the device would have drawn 4.97e+03 W (module)" in refused.stderr
    assert not (bench.path / "results" / "attachments").exists()
    assert bench.call(*words, "--power-unit", "mW").returncode == 0


def test_a_run_without_windows_says_how_to_make_them(bench: Bench):
    world = World(energy_windows=False)
    recording, samples, state, readings = world.recording()
    bench.store.write(recording, samples, state, readings)
    words = ("energy", "attach", recording.id, "--trace", log(bench), *COLUMNS, "--scope", "wall")
    done = bench.call(*words)
    assert done.returncode == 3
    assert "edgebench run --energy on" in done.stderr


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (("--scope", "roof"), 2, "--scope must be one of wall"),
        (("--scope", "wall", "--offset", "later"), 2, "--offset must be auto or seconds"),
        (("--scope", "wall", "--offset", "1"), 2, "belong together"),
        (("--scope", "wall", "--accuracy", "none"), 2, "--accuracy must be a share"),
        (("--scope", "wall", "--offset-error", "-1W"), 2, "--offset-error must be watts"),
        (("--scope", "wall", "--current-unit", "mA"), 2, "no column of current"),
        (("--scope", "wall", "--power-unit", "horses"), 2, "no unit of power"),
        (("--scope", "wall", "--timezone", "Europe/Berlin", "--decimal", ";"), 2, "decimal sign"),
    ],
)
def test_options_that_can_not_be(bench: Bench, run: str, words, code, said):
    done = bench.call("energy", "attach", run, "--trace", log(bench), *COLUMNS, *words)
    assert done.returncode == code
    assert said in done.stderr
    assert "Traceback" not in done.stderr


def test_a_run_that_is_not_there(bench: Bench):
    path = log(bench)
    done = bench.call("energy", "attach", "01ZZ", "--trace", path, *COLUMNS, "--scope", "wall")
    assert done.returncode == 3
    assert "no recording begins with '01ZZ'" in done.stderr


def test_the_same_attachments_give_the_same_tables_byte_for_byte(bench: Bench, run: str):
    words = ("energy", "attach", run, "--trace", log(bench), *COLUMNS, "--scope", "wall")
    assert bench.call(*words).returncode == 0
    tables = bench.path / "results" / "tables"
    first = {path.name: path.read_bytes() for path in tables.iterdir()}
    assert bench.call("table").returncode == 0
    assert first == {path.name: path.read_bytes() for path in tables.iterdir()}


def test_a_fast_trace_of_an_energy_counter(bench: Bench, run: str):
    t, _ = WORLD.trace(period_s=0.05)
    joules = WORLD.energy_until(t) - WORLD.energy_until(t[:1])
    path = bench.path / "counter.csv"
    rows = np.column_stack([WORLD.unix(t) * 1e3, joules / 3.6])
    np.savetxt(path, rows, delimiter=";", header="ms;E", comments="", fmt="%.4f")
    done = bench.call(
        *("energy", "attach", run, "--trace", path, "--columns", "time=ms,energy=E"),
        *("--time-unit", "ms", "--energy-unit", "mWh", "--scope", "wall"),
    )
    assert done.returncode == 0, done.stderr
    rows = json.loads(bench.call("table", run, "--json").stdout)["energy"]
    assert rows[0]["energy_per_inference_j"] == pytest.approx(WORLD.energy_j(0), rel=1e-3)


def test_a_real_run_is_found_in_the_trace_of_a_meter_that_saw_it(bench: Bench, monkeypatch):
    monkeypatch.setattr(meters, "SETTLE_S", 0.2)
    monkeypatch.setattr(meters, "BLIND_ROUNDS", 2)
    options = replace(QUICK, launches=2, energy="on", energy_window_s=0.8, min_duration_s=0.5)
    artifacts = [bench.artifact("a", width=64, layers=4), bench.artifact("b", width=64, layers=2)]
    recording = run_session(bench.device(), artifacts, bench.store, options)
    assert recording.power_absent is not None
    samples = bench.store.load(recording.id).samples
    # 6 W and 4 W while a model runs, 2 W else, told as means of 20 ms by a clock 3.21 s ahead.
    begin_ns = int(samples["start_ns"].min()) - 10 * 10**9
    end_ns = int(samples["start_ns"].max()) + 10 * 10**9
    knots = np.concatenate([samples["start_ns"], samples["start_ns"] + samples["duration_ns"]])
    above = np.array([4.0, 2.0])[samples["artifact"]]
    steps = np.concatenate([above, -above])
    order = np.argsort(knots, kind="stable")
    at, level = (knots[order] - begin_ns) / 1e9, np.cumsum(steps[order])
    joules = np.concatenate([[0.0], np.cumsum(level[:-1] * np.diff(at))])
    t = np.arange(0, (end_ns - begin_ns) / 1e9, 0.02)
    watts = 2.0 + np.diff(np.interp(t, at, joules)) / 0.02
    unix = (begin_ns + recording.clock.offset_ns) / 1e9 + (t[1:] + t[:-1]) / 2 + 3.21
    path = bench.path / "meter.csv"
    rows = np.column_stack([unix, watts])
    np.savetxt(path, rows, delimiter=",", header="TIME,POWER", comments="", fmt="%.6f")
    words = ("energy", "attach", recording.id, "--trace", path, *COLUMNS, "--scope", "board")
    done = bench.call(*words, "--json")
    assert done.returncode == 0, done.stderr
    alignment = json.loads(done.stdout)["attachment"]["meter"]["alignment"]
    off_ns = alignment["offset_ns"] - recording.clock.offset_ns - 3_210_000_000
    assert abs(off_ns) <= alignment["bound_ns"] < 1e8
    power = json.loads(bench.call("table", recording.id, "--json").stdout)["power"]
    for row, busy in zip(power, (6.0, 4.0), strict=True):
        # The model runs nearly all of the time in a window.
        assert 2.0 + 0.8 * (busy - 2.0) < row["power_average_w"] <= busy + 1e-6
        assert row["power_idle_w"] == pytest.approx(2.0, abs=0.01)
