"""Finding the library, and refusing one that does not fit, with a reason and no crash."""

import importlib.util
import subprocess
import sys

import onnxruntime
import pytest

from edgebench.agent import agent
from edgebench.measure import run
from edgebench.results.tables import build
from tests.measure.bench import QUICK
from tests.measure.conftest import bench  # noqa: F401 - a fixture
from tests.native import building

FILE = "libedgebench_ops.so"

EM_AARCH64, EM_X86_64 = 183, 62
"""e_machine, bytes 18 and 19 of an ELF file (elf.h)."""


def foreign(tmp_path):
    """The library with its header saying that it is for another processor."""
    data = bytearray(building.library().read_bytes())
    here = int.from_bytes(data[18:20], "little")
    assert here in {EM_AARCH64, EM_X86_64}
    data[18:20] = (EM_X86_64 if here == EM_AARCH64 else EM_AARCH64).to_bytes(2, "little")
    path = tmp_path / FILE
    path.write_bytes(data)
    return path


def compiled(tmp_path, text):
    building.needs("c++")
    source, path = tmp_path / "other.cpp", tmp_path / FILE
    source.write_text(text)
    subprocess.run(["c++", "-shared", "-fPIC", "-o", path, source], check=True)
    return path


def test_without_a_package_or_a_name_there_is_nothing_and_no_warning(monkeypatch):
    monkeypatch.delenv("EDGEBENCH_NATIVE", raising=False)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert agent.native_kernels() == {}


def test_the_companion_package_is_found_and_agrees_on_the_abi(monkeypatch, tmp_path):
    package = tmp_path / "edgebench_native"
    package.mkdir()
    source = building.SOURCE / "edgebench_native" / "__init__.py"
    (package / "__init__.py").write_bytes(source.read_bytes())
    (package / FILE).write_bytes(building.library().read_bytes())
    monkeypatch.delenv("EDGEBENCH_NATIVE", raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    found = agent.native_kernels()
    assert found["path"] == str(package / FILE)
    told = subprocess.run(
        [
            sys.executable,
            "-c",
            "import edgebench_native as e; d = e.describe(); print(d['abi'], e.ABI, d['kernel'])",
        ],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    assert told == [str(agent.NATIVE_ABI), str(agent.NATIVE_ABI), found["kernel"]]


def test_a_named_library_that_is_missing_is_a_warning(monkeypatch, tmp_path):
    monkeypatch.setenv("EDGEBENCH_NATIVE", str(tmp_path / "none.so"))
    assert "can't be loaded" in agent.native_kernels()["warning"]


def test_a_library_for_another_architecture_is_a_warning_and_an_error_of_the_runtime(tmp_path):
    path = foreign(tmp_path)
    assert "can't be loaded on this device" in agent.native_library(str(path))["warning"]
    with pytest.raises(Exception, match=r"(?i)fail"):
        onnxruntime.SessionOptions().register_custom_ops_library(str(path))


def test_a_file_that_is_no_library_is_a_warning(tmp_path):
    path = tmp_path / FILE
    path.write_bytes(b"\x7fELF and no more")
    assert "can't be loaded" in agent.native_library(str(path))["warning"]


def test_another_library_is_a_warning(tmp_path):
    path = compiled(tmp_path, 'extern "C" int something() { return 1; }')
    found = agent.native_library(str(path))
    assert "is not a library of edgebench's kernels" in found["warning"]


def test_a_library_of_another_abi_is_a_warning(tmp_path):
    path = compiled(
        tmp_path,
        'extern "C" const char* edgebench_native_version() { return "9.0"; }\n'
        'extern "C" int edgebench_native_abi() { return 99; }\n'
        'extern "C" const char* edgebench_native_kernel() { return "avx2"; }\n',
    )
    assert "ABI 99" in agent.native_library(str(path))["warning"]


def test_a_row_names_the_kernel_that_ran(bench, monkeypatch):  # noqa: F811
    """From the environment through agent, supervisor and worker to the table."""
    artifact = bench.artifact("tiny", scheme="int3")
    monkeypatch.setenv("EDGEBENCH_NATIVE", str(building.library()))
    recording = run(bench.device(), [artifact], bench.store, QUICK)
    monkeypatch.setenv("EDGEBENCH_NATIVE", "/no/such/library.so")
    without = run(bench.device(), [artifact], bench.store, QUICK)
    tables = build([bench.store.load(each.id) for each in (recording, without)])
    first, second = tables.latency.to_dict("records")
    kernel = agent.native_library(str(building.library()))["kernel"]
    assert first["native_kernel"].split()[0] == kernel
    assert first["compute_bits"] == 3
    assert "native-unused" not in first["reasons"]
    assert second["native_kernel"] is None or second["native_kernel"] != second["native_kernel"]
    assert "native-unused" in second["reasons"]
