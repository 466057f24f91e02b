"""The native kernels on an arm64 device: installed over SSH, tried there, named in the row."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import onnx
import pytest

from edgebench import provision
from edgebench.errors import DeviceError
from edgebench.measure import run
from edgebench.quantize import quantize
from edgebench.results.tables import build
from tests.native import building
from tests.tiny import tiny_model

from .bench import ON_STANDIN, StandInBench, until_idle
from .standin import StandIn
from .test_path import bench, connect  # noqa: F401 - a fixture


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The companion wheel for aarch64, cross-built as `make kernels` does it."""
    building.needs("cmake", "aarch64-linux-gnu-g++")
    out = tmp_path_factory.mktemp("kernels")
    script = building.SOURCE / "make_wheels.py"
    command = [sys.executable, script, "--arch", "aarch64", "--out", out, "--no-isolation"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    (made,) = out.glob("*.whl")
    assert made.name.endswith("_aarch64.whl")
    return made


def three_bits(bench: StandInBench) -> object:  # noqa: F811
    """An artifact whose products are MatMul3Bit, in a file with its bodies."""
    source, target = bench.path / "exact.onnx", bench.path / "three.onnx"
    onnx.save(tiny_model(width=96, layers=2), source)
    quantize(source, target, "int3", calibration=None)
    return bench.artifact("three", scheme="int3", model=onnx.load(target))


def test_kernels_are_installed_over_ssh_and_the_row_names_the_one_that_ran(
    standin_root: Path,
    bench: StandInBench,  # noqa: F811
    wheel: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("EDGEBENCH_NATIVE", raising=False)
    with StandIn("pi4", onnxruntime=True) as pi:
        connect(pi, monkeypatch)
        device = bench.stand_in("bench", pi)
        with pytest.raises(DeviceError, match="it is for x86_64, the device is aarch64"):
            provision.setup(device, kernels_from=building.library())
        assert not (pi.home() / ".edgebench/native").exists()
        done = bench.run("setup", "--device", "bench", "--kernels-from", wheel)
        assert done.returncode == 0, done.stderr
        # A Cortex-A72 has no dot product of bytes.
        assert "native kernels 0.1.0 (sent, tried there): neon." in done.stdout
        doctor = bench.run("doctor", "--device", "bench")
        assert " ok    native few-bit kernels 0.1.0: neon" in doctor.stdout
        recording = run(device, [three_bits(bench)], bench.store, ON_STANDIN)
        (row,) = build([bench.store.load(recording.id)], include_emulated=True).latency.to_dict(
            "records"
        )
        assert row["native_kernel"] == "neon 0.1.0"
        assert row["compute_bits"] == 3
        until_idle(pi)
