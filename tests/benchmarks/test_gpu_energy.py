"""``gpu_energy.py`` without a GPU: the whole script over a fake NVML, and what it says without."""

from __future__ import annotations

import csv
import importlib.util
import json
import os
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import fake_gpu
import gpu_energy
import pytest
from gpu_workloads import CYCLE_S, Workload

from edgebench.energy import EnergyFigures
from edgebench.export import ExportRequest, export
from edgebench.stats import Estimate
from tests.benchmarks.conftest import BENCHMARKS
from tests.export import tiny
from tests.fixtures_export import require

ROOT = BENCHMARKS.parent
RESULTS = ROOT / "results" / "gpu-energy"

pytestmark = pytest.mark.filterwarnings("ignore")


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    paths = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
    return subprocess.run(
        [sys.executable, str(BENCHMARKS / "gpu_energy.py"), *arguments],
        env={**os.environ, "PYTHONPATH": paths, **environment},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture(scope="module")
def tables(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str, int]:
    """Where a quick run over the fake wrote, what it printed, and its exit code."""
    require("torch", "transformers", "peft", "onnxscript")
    directory = tmp_path_factory.mktemp("gpu")
    base = tiny.write_bert(directory / "base", layers=1)
    export(
        ExportRequest(
            out=directory / "artifacts",
            adapter=tiny.write_adapter(base, directory / "adapter"),
            base=str(base),
            seq_len=16,
            format="torch",
            quants=("fp32", "fp16"),
            name="minilm-bbc",
        )
    )
    done = run(
        "--quick",
        "--fake-nvml",
        *("--out", str(directory / "out")),
        EDGEBENCH_BENCHMARK_ARTIFACTS=str(directory / "artifacts"),
    )
    assert done.returncode in (0, 1), done.stderr
    return directory / "out", done.stdout, done.returncode


def read(tables: tuple[Path, str, int]) -> list[dict[str, str]]:
    with (tables[0] / "a-fake-gpu.csv").open(newline="") as stream:
        return list(csv.DictReader(stream))


def test_it_ends_with_a_line_a_figure(tables):
    _, out, code = tables
    closing = out.rpartition("\n\n")[2].splitlines()
    assert [line.partition(":")[0] for line in closing] == [
        "edgebench / counter's difference",
        "known shares whose interval holds the linear expectation",
        "edgebench / polled power",
    ]
    assert all(line.endswith((" ok", " SHORT")) for line in closing)
    assert code == any(line.endswith(" SHORT") for line in closing)
    assert "zeus: not run: the GPU is a fake one" in out


def test_every_workload_has_a_row_by_counter_and_by_power(tables):
    found = {
        (row["workload"], row["precision"], row["call"], row["source"]) for row in read(tables)
    }
    assert len(found) == len(read(tables)) == 2 * (4 + 2 + 2)
    assert {row["runtime"] for row in read(tables)} == {"torch"}
    assert all(not row["refused"] and not row["zeus_j"] for row in read(tables))


def test_the_figures_are_those_of_the_fake_gpu(tables):
    by = {(row["workload"], row["source"]): row for row in read(tables)}
    full = by["matmul 100 %", "NVML energy counter"]
    assert float(full["j"]) == pytest.approx(fake_gpu.LOADED_W * CYCLE_S, rel=0.05)
    assert float(full["j_lo"]) < float(full["j"]) < float(full["j_hi"])
    assert float(full["idle_w"]) == pytest.approx(fake_gpu.IDLE_W, rel=0.01)
    assert float(full["counter_difference_j"]) == pytest.approx(float(full["j"]), rel=0.15)
    assert float(full["polled_power_j"]) == pytest.approx(float(full["j"]), rel=0.15)
    assert float(full["expected_j"]) == pytest.approx(float(full["j"]))
    for row in read(tables):
        if row["workload"].startswith(("MiniLM", "decoder")):
            assert float(row["average_w"]) == pytest.approx(fake_gpu.LOADED_W, rel=0.05)


def test_the_page_beside_the_table_says_that_there_was_no_gpu(tables):
    page = (tables[0] / "a-fake-gpu.md").read_text()
    assert "**No GPU: these figures are of a made-up one and say nothing.**" in page
    assert f"{gpu_energy.QUICK_ROUNDS} rounds" in page


@pytest.mark.parametrize(
    ("arguments", "written"),
    [
        ([], RESULTS),
        (["--quick"], None),
        (["--fake-nvml"], None),
        (["--fake-nvml", "--out", "there"], Path("there")),
    ],
)
def test_only_a_real_whole_run_goes_to_results(monkeypatch, arguments, written):
    asked: list[Any] = []

    def instead(fake: bool, out: Path | None, quick: bool) -> list[Any]:
        asked.append((fake, out, quick))
        return [gpu_energy.within("a figure", 1.0, 0.05)]

    monkeypatch.setattr(gpu_energy, "run", instead)
    assert gpu_energy.main(arguments) == 0
    assert asked == [("--fake-nvml" in arguments, written, "--quick" in arguments)]


def test_without_a_gpu_it_says_so_in_one_line_and_measures_nothing():
    if Path("/proc/driver/nvidia/gpus").is_dir():
        pytest.skip("there is a GPU here")
    before = sorted(RESULTS.glob("*"))
    done = run()
    assert done.returncode == 2
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1
    assert "nothing was measured, for there is no NVIDIA GPU to be read here" in done.stderr
    assert sorted(RESULTS.glob("*")) == before


def test_without_zeus_it_says_how_to_have_it():
    monitor, about = gpu_energy.zeus_monitor(fake=False)
    if importlib.util.find_spec("zeus") is None:
        assert monitor is None
        assert about == "not installed: pip install zeus==0.16.0"


def test_the_load_is_what_the_last_change_says(tmp_path):
    path = tmp_path / "load"
    path.write_bytes(b"")
    load = fake_gpu.Load(path)
    assert load.watts(50) == fake_gpu.IDLE_W
    path.write_bytes(struct.pack("<qd", 100, 300.0) + struct.pack("<qd", 200, 70.0) + b"half")
    assert [load.watts(t) for t in (99, 100, 199, 200)] == [fake_gpu.IDLE_W, 300, 300, 70]


def workload(share: float, joules: float, lo: float, hi: float, counter_j: float) -> Workload:
    """One that was measured, idle being 50 W."""
    made = Workload("matmul", "torch", "fp16", "cycle", lambda seconds: 1, share=share)
    made.windows = [gpu_energy.Window(0, 10**9, 10, 0)]
    made.counter_j = [counter_j]
    idle = Estimate(50.0, 50.0, 50.0, 1, 2)
    figure = Estimate(joules, lo, hi, 10, 2)
    made.figures["energy"] = EnergyFigures(figure, None, idle, figure, None, None, 1, 2, ())
    return made


def test_the_verdict_compares_each_known_load_and_holds_intervals_to_the_line():
    full_j, idle_j = 40.0, 50.0 * CYCLE_S
    half_j = (full_j + idle_j) / 2
    full = workload(1.0, full_j, 39, 41, 10 * full_j)
    good = workload(0.5, half_j, half_j - 1, half_j + 1, 10 * half_j)
    assert gpu_energy.expected_j(good, [good, full]) == pytest.approx(half_j)
    assert all(figure.met for figure in gpu_energy.closing([good, full], None))
    off = workload(0.5, half_j + 9, half_j + 8, half_j + 10, 10 * half_j)
    worse = workload(1.0, full_j, 39, 41, 10 * full_j * 0.8)
    counter, held = gpu_energy.closing([off, worse], None)
    assert not counter.met
    assert not held.met
    assert "0 %" in held.text


def test_no_known_load_is_a_refusal_with_its_reason():
    failed = workload(1.0, 1, 1, 1, 1)
    failed.figures, failed.refused = {}, {"energy": "the counter stood still"}
    with pytest.raises(gpu_energy.Refusal, match="the counter stood still"):
        gpu_energy.closing([failed], None)


def test_a_table_has_an_empty_cell_where_there_is_no_figure(tmp_path):
    failed = workload(1.0, 1, 1, 1, 1)
    failed.figures, failed.refused = {}, {"power": "too short"}
    found = gpu_energy.rows([failed], [failed])
    gpu_energy.write(found, tmp_path, "made", "NVIDIA H200")
    (row,) = csv.DictReader((tmp_path / "nvidia-h200.csv").open(newline=""))
    assert row["j"] == row["idle_w"] == row["zeus_j"] == ""
    assert row["refused"] == "too short"
    assert json.dumps(row)
