"""A figure that falls short ends a benchmark with 1; figures are made here, nothing is timed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import common
import dispatch
import energy_coverage
import fleet
import harness
import process
import pytest
import repeatability
import startup


def met(figures: Sequence[common.Figure]) -> list[bool]:
    return [figure.met for figure in figures]


@pytest.mark.parametrize(
    ("figure", "expected"),
    [
        (common.at_most("f", 1.0, 1.0), True),
        (common.at_most("f", 1.01, 1.0), False),
        (common.at_most("f", math.nan, 1.0), False),
        (common.at_least("f", 3.0, 3.0), True),
        (common.at_least("f", 2.99, 3.0), False),
        (common.at_least("f", math.nan, 3.0), False),
        (common.within("f", 0.991, 0.01), True),
        (common.within("f", 0.98, 0.01), False),
        (common.within("f", 1.02, 0.01), False),
        (common.within("f", math.nan, 0.01), False),
    ],
)
def test_a_figure_meets_its_target_or_falls_short(figure: common.Figure, expected: bool) -> None:
    assert figure.met is expected
    assert figure.line.endswith(" ok" if expected else " SHORT")
    assert common.conclude([figure]) == (0 if expected else 1)


def test_one_figure_that_falls_short_is_enough() -> None:
    good, bad = common.at_most("good", 0, 1), common.at_most("bad", 2, 1)
    assert common.conclude([good, bad, good]) == 1


def test_no_figure_at_all_falls_short() -> None:
    assert common.conclude([]) == 1


def test_the_closing_lines_name_figure_and_target(capsys: pytest.CaptureFixture[str]) -> None:
    common.conclude([common.at_most("command to table", 0.8, 1.0, " s", " (quiet)")])
    assert (
        capsys.readouterr().out == "\ncommand to table: 0.800 s (quiet) (target at most 1 s) ok\n"
    )


def test_what_is_missing_is_said_in_a_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    def measure(quick: bool) -> list[common.Figure]:
        raise common.Refusal("there is no sshd here. Install it.")

    assert common.run_benchmark("what it is", measure, []) == 2
    assert capsys.readouterr().err == "error: there is no sshd here. Install it.\n"


def test_a_missing_artifact_is_refused_with_the_command_that_makes_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("EDGEBENCH_BENCHMARK_ARTIFACTS", str(tmp_path))
    with pytest.raises(common.Refusal, match="edgebench export examples/minilm-bbc"):
        common.artifact("int8")


def ratio(value: float) -> harness.Ratio:
    return harness.Ratio(
        ours_ms=value, theirs_ms=1.0, ratio=value, lo=value - 0.01, hi=value + 0.01, pairs=40
    )


def test_harness() -> None:
    fine = {"int8": ratio(1.001), "fp32": ratio(0.999)}
    assert met(harness.figures(fine, 0.1, ratio(1.002), ratio(1.001))) == [True] * 5
    bad = harness.figures({"int8": ratio(1.02)}, 2.0, ratio(0.97), ratio(1.02))
    assert met(bad) == [False] * 4


def test_harness_takes_the_median_over_pairs_without_the_settling_call() -> None:
    import random

    def side(duration: int) -> harness.Side:
        return lambda calls: [10**9] + [duration] * (calls - 1)

    found = harness.compare(side(102), side(100), pairs=20, calls=8, rng=random.Random(0))
    assert found.ratio == pytest.approx(1.02)
    assert found.lo == found.hi == pytest.approx(1.02)


def usage(wall_s: float, measured_s: float) -> process.Usage:
    return process.Usage(wall_s, 500, measured_s, 10**8, 2 * 10**8)


def test_process_compares_the_time_outside_the_measured_iterations_of_one_launch() -> None:
    usages = {
        process.OURS_DEFAULT: [usage(10, 4)],
        process.OURS_ONE: [usage(9, 4)],
        process.PEER_ORT: [usage(20, 6)],
        process.PEER_TORCH: [usage(40, 20)],
    }
    assert [figure.text for figure in process.figures(usages)] == [
        "2.80 times (14.0 s / 5.0 s)",
        "4 times (20.0 s / 5.0 s)",
    ]
    assert met(process.figures(usages)) == [False, True]


def test_process_counts_a_command_and_what_it_starts(tmp_path: Path) -> None:
    import os
    import sys

    child = "b = bytearray(60_000_000); import time; time.sleep(0.5)"
    script = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
    found = process.watched(
        [sys.executable, "-c", script], tmp_path, dict(os.environ), lambda: [0.1, 0.1]
    )
    assert found.iterations == 2
    assert found.outside_s == pytest.approx(found.wall_s - 0.2)
    assert 60e6 < found.largest_bytes < found.sum_bytes


def test_process_says_what_a_command_said_that_failed(tmp_path: Path) -> None:
    with pytest.raises(common.Refusal, match="no such model"):
        process.watched(["sh", "-c", "echo no such model >&2; exit 3"], tmp_path, {}, list)


def intervals(*values: float, half: float) -> list[repeatability.Interval]:
    return [repeatability.Interval(value, value - half, value + half) for value in values]


def test_repeatability() -> None:
    wandering = [10.0 + i / 10 for i in range(10)]
    wide, narrow = intervals(*wandering, half=1.0), intervals(*wandering, half=0.2)
    fine = repeatability.figures([2.50, 2.53], {"fp32": wide, "int8": wide})
    assert met(fine) == [True, True, True]
    short = repeatability.figures([2.50, 2.55], {"fp32": wide, "int8": narrow})
    assert met(short) == [False, True, False]


def test_one_interval_in_ten_may_miss() -> None:
    outlier = [*intervals(*[10.0] * 9, half=0.1), repeatability.Interval(12.0, 11.9, 12.1)]
    assert repeatability.held(outlier) == 9
    assert met(repeatability.figures([1.0] * 10, {"int8": outlier})) == [True, True]


def test_startup() -> None:
    assert met(startup.figures(200.0, [])) == [True, True]
    short = startup.figures(300.0, ["numpy"])
    assert met(short) == [False, False]
    assert "numpy" in short[1].line


def test_dispatch() -> None:
    assert met(dispatch.figures(0.9, 0, 0)) == [True, True, True]
    assert met(dispatch.figures(1.1, 1, 1)) == [False, False, False]


def test_energy_coverage() -> None:
    fine = {"total": [95.0, 91.0, 99.0], "idle-subtracted": [93.0, 90.0]}
    assert met(energy_coverage.figures(fine, 10_000, 0)) == [True] * 7
    short = {"total": [92.9, 89.9, 99.0], "idle-subtracted": [97.1, 95.0]}
    verdicts = met(energy_coverage.figures(short, 10_000, 1))
    assert verdicts == [False, True, False, True, False, True, False]


def test_energy_coverage_counts_a_missing_figure_as_a_miss() -> None:
    count = energy_coverage.Count()
    count.add(None, 1.0)
    assert count.percent == 0


def driven(devices: int, wall_s: float, recordings: int, peak_bytes: int) -> fleet.Drive:
    return fleet.Drive(devices, wall_s, peak_bytes, 1.0, recordings, [])


def test_fleet() -> None:
    one = driven(1, 10.0, 1, 10**8)
    assert met(fleet.figures(one, driven(100, 29.0, 100, 4 * 10**8))) == [True] * 3
    assert met(fleet.figures(one, driven(100, 31.0, 99, 6 * 10**8))) == [False] * 3


def test_the_sleeping_agent_is_ours_with_one_more_runtime(tmp_path: Path) -> None:
    import runpy

    agent = runpy.run_path(str(fleet.sleeping_agent(tmp_path / "agent.py")))
    assert set(agent["RUNTIMES"]) == {"onnxruntime", "null", "sleep"}
