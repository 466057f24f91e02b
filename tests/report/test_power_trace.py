"""The picture of a run's power: what is drawn is what was read."""

from __future__ import annotations

import builtins
import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgebench.errors import InputError, StorageError
from edgebench.recording import MeterChannel, MeterFailure
from edgebench.report.power_trace import (
    COLOURS,
    TRACE,
    _merged,
    draw,
    figure,
)
from edgebench.report.readings import broken_at_holes, envelope, power_over_time, traces
from edgebench.results.encoding import Attached, Loaded
from edgebench.results.store import Store
from tests.results.energy_recordings import BOARD, COUNTER, World

matplotlib = pytest.importorskip("matplotlib")

WORLD = World(window_s=4.0, idle_s=3.0, launches=2)


def loaded(tmp_path: Path, *channels: MeterChannel, world: World = WORLD, **changes: Any) -> Loaded:
    store = Store(tmp_path / "runs")
    recording, samples, state, readings = world.recording(*channels, **changes)
    store.write(recording, samples, state, readings)
    return store.load(recording.id)


def texts(drawn: Any) -> str:
    from matplotlib.text import Text

    return "\n".join(each.get_text() for each in drawn.findobj(Text))


def drawn_power(drawn: Any) -> tuple[np.ndarray, np.ndarray]:
    """The trace of the first panel."""
    (line,) = [line for line in drawn.axes[0].lines if line.get_color() == TRACE]
    return np.asarray(line.get_xdata()), np.asarray(line.get_ydata())


def test_a_png_and_a_pdf_for_each_channel(tmp_path):
    run = loaded(tmp_path, BOARD, COUNTER)
    paths = draw(run, tmp_path / "figures")
    assert [path.name for path in paths] == [
        "power-vdd-in.png",
        "power-vdd-in.pdf",
        "power-total-energy.png",
        "power-total-energy.pdf",
    ]
    for path in paths:
        head = path.read_bytes()[:5]
        assert head == (b"\x89PNG\r" if path.suffix == ".png" else b"%PDF-")


def test_the_same_run_gives_the_same_bytes(tmp_path):
    run = loaded(tmp_path, BOARD)
    first = [path.read_bytes() for path in draw(run, tmp_path / "a")]
    assert first == [path.read_bytes() for path in draw(run, tmp_path / "b")]


def test_one_channel_can_be_chosen_and_a_wrong_one_says_which_there_are(tmp_path):
    run = loaded(tmp_path, BOARD, COUNTER)
    names = [path.name for path in draw(run, tmp_path / "f", channel="VDD_IN")]
    assert names == ["power-vdd-in.png", "power-vdd-in.pdf"]
    with pytest.raises(InputError, match="It has: VDD_IN, total energy"):
        draw(run, tmp_path / "f", channel="VDD_OUT")


def test_what_is_drawn_is_what_was_read(tmp_path):
    run = loaded(tmp_path, BOARD)
    (trace,) = traces(run)
    drawn = figure(run, trace)
    t_s, watts = drawn_power(drawn)
    first, last = run.recording.launches[0].started_ns, run.recording.launches[-1].ended_ns
    assert t_s[0] <= 0 < (last - first) / 1e9 <= t_s[-1]
    assert watts.max() == pytest.approx(6.0, abs=1e-3)
    assert watts.min() == pytest.approx(2.0, abs=1e-3)
    said = texts(drawn)
    for part in (
        "minilm-bbc-fp32: 6.000 W [5.9",
        "minilm-bbc-int8: 4.000 W [3.9",
        "idle: 2.000 W [1.9",
        "scope: board",
        "simulated sensor: VDD_IN",
        "power, new every 50 ms, mean over 50 ms",
        run.id,
        "seconds since the first launch began",
        "power (W)",
        "calls in 4 s, launch",
    ):
        assert part in said


def test_windows_have_their_artifact_s_colour_and_stand_where_they_were(tmp_path):
    from matplotlib.colors import to_hex
    from matplotlib.patches import Rectangle

    run = loaded(tmp_path, BOARD)
    (trace,) = traces(run)
    axes = figure(run, trace).axes[0]
    spans = [p for p in axes.patches if isinstance(p, Rectangle) and p.get_y() == 0]
    zero = run.recording.launches[0].started_ns
    for artifact in (0, 1):
        mine = sorted(
            p.get_x() for p in spans if to_hex(p.get_facecolor()) == COLOURS[artifact].lower()
        )
        begins = [
            (w.begin_ns - zero) / 1e9
            for launch in run.recording.launches
            for w in launch.energy_windows
            if w.artifact == artifact
        ]
        assert mine == pytest.approx(sorted(begins))


def test_a_counter_is_drawn_as_its_differences(tmp_path):
    run = loaded(tmp_path, COUNTER)
    (trace,) = traces(run)
    drawn = figure(run, trace)
    assert "counter, difference per update" in texts(drawn)
    _, watts = drawn_power(drawn)
    assert watts.max() == pytest.approx(6.0, rel=0.02)


def test_a_counter_that_stands_between_updates_shows_no_zero_power():
    t = np.arange(0, 3, 0.1)
    value = np.floor(t + 1e-9) * 5.0
    at, watts = power_over_time(COUNTER, t, value)
    assert watts == pytest.approx([5.0, 5.0])
    assert at == pytest.approx([1.0, 2.0])


def test_a_wrap_is_undone_and_a_reset_is_unknown():
    t = np.arange(5.0)
    value = np.array([90.0, 95.0, 0.0, 5.0, 10.0])
    wraps = COUNTER.model_copy(update={"wrap_j": 100.0})
    assert power_over_time(wraps, t, value)[1] == pytest.approx([5, 5, 5, 5])
    watts = power_over_time(COUNTER, t, value)[1]
    assert np.isnan(watts).tolist() == [False, True, False, False]


def test_nothing_is_drawn_across_a_hole():
    t = np.array([0.0, 1, 2, 3, 13, 14, 15])
    _, watts = broken_at_holes(t, np.ones(7))
    assert np.isnan(watts).tolist() == [False] * 4 + [True] + [False] * 3


def test_no_peak_is_lost_where_readings_are_dense():
    watts = np.random.default_rng(0).uniform(1, 2, 200_000)
    watts[123_456], watts[77_777] = 9.0, 0.1
    t, kept = envelope(np.arange(200_000.0), watts, 1600)
    assert kept.size < 5000
    assert (kept.max(), kept.min()) == (9.0, 0.1)
    assert np.all(np.diff(t) > 0)


def test_calls_that_touch_are_one_bar():
    spans = _merged(np.array([0.0, 1.0, 5.0]), np.array([0.9, 2.0, 6.0]), 0.2)
    assert spans == [(0.0, 2.0), (5.0, 1.0)]


def test_a_run_without_readings_says_why_and_what_to_do(tmp_path):
    with pytest.raises(InputError, match=r"no power source on this device.*energy attach"):
        draw(loaded(tmp_path), tmp_path / "f")
    assert not (tmp_path / "f").exists()


def test_a_meter_that_failed_says_so(tmp_path):
    failure = MeterFailure(code="permission", message="/dev/i2c-1 can't be opened")
    run = loaded(tmp_path, BOARD, failure=failure)
    none = {name: values[:0] for name, values in run.readings.items()}
    with pytest.raises(InputError, match="/dev/i2c-1 can't be opened"):
        draw(dataclasses.replace(run, readings=none), tmp_path / "f")


def test_a_source_too_slow_for_the_windows_is_drawn_with_the_reason(tmp_path):
    run = loaded(tmp_path, BOARD.model_copy(update={"period_s": 1.0, "averaging_s": 1.0}))
    (trace,) = traces(run)
    said = texts(figure(run, trace))
    assert "minilm-bbc-fp32: no figure" in said
    assert "No figure for minilm-bbc-fp32, minilm-bbc-int8: a window of" in said.replace("\n", " ")


def test_a_run_without_windows_has_one_panel(tmp_path):
    run = loaded(tmp_path, BOARD, world=World(energy_windows=False, launches=2))
    (trace,) = traces(run)
    assert len(figure(run, trace).axes) == 2


def test_an_attached_trace_is_drawn_first(tmp_path):
    run = loaded(tmp_path, BOARD)
    meter = run.recording.meters[0]
    bare = dataclasses.replace(
        loaded(tmp_path / "other"), attached=(Attached(meter, WORLD.readings(BOARD)),)
    )
    (trace,) = traces(bare)
    assert trace.channel.name == "VDD_IN"
    assert "6.000 W" in texts(figure(bare, trace))


def test_many_artifacts_keep_apart(tmp_path):
    world = World(power_w=(6.0, 4.0, 3.3), call_s=(0.04, 0.02, 0.01), window_s=4, launches=2)
    run = loaded(tmp_path, BOARD, world=world)
    (trace,) = traces(run)
    said = texts(figure(run, trace))
    assert all(f"minilm-bbc-{scheme}: " in said for scheme in ("fp32", "int8", "int3"))
    assert len(set(COLOURS)) == len(COLOURS)


def test_without_matplotlib_the_command_to_install_it_is_said(tmp_path, monkeypatch):
    real = builtins.__import__

    def refuse(name: str, *args: Any, **more: Any) -> Any:
        if name.partition(".")[0] == "matplotlib":
            raise ImportError(name)
        return real(name, *args, **more)

    run = loaded(tmp_path, BOARD)
    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(InputError, match=r"pip install 'edgebench\[report\]'"):
        draw(run, tmp_path / "f")


def test_a_directory_that_can_not_be_written(tmp_path):
    run = loaded(tmp_path, BOARD)
    (tmp_path / "f").write_text("a file is here")
    with pytest.raises(StorageError):
        draw(run, tmp_path / "f")


def test_the_command_writes_beside_the_results(bench):
    recording, samples, state, readings = WORLD.recording(BOARD)
    bench.store.write(recording, samples, state, readings)
    done = bench.call("plot", recording.id[:14], "--json")
    assert done.returncode == 0, done.stderr
    paths = json.loads(done.stdout)["figures"]
    directory = bench.path / "results" / "figures" / recording.id
    assert sorted(paths) == sorted(map(str, directory.iterdir()))
