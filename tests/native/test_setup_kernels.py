"""``edgebench setup --kernels``: a library that fits is installed and used; any other never is."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from edgebench import kernels, provision
from edgebench.agent import agent
from edgebench.errors import DeviceError, InputError
from edgebench.measure import run
from edgebench.results.tables import build
from tests.measure.bench import QUICK, Bench
from tests.measure.conftest import bench  # noqa: F401 - a fixture
from tests.native import building
from tests.native.test_lookup import compiled, foreign

PI = {"arch": "aarch64", "system": "Linux", "libc": "glibc 2.36", "hostname": "pi"}

CRASHING = """
#include <cstdlib>
__attribute__((constructor)) static void crash() { abort(); }
"""
ANOTHER_ABI = """
extern "C" const char* edgebench_native_version() { return "9.0"; }
extern "C" int edgebench_native_abi() { return 99; }
extern "C" const char* edgebench_native_kernel() { return "avx2"; }
"""
NO_OPS = """
extern "C" const char* edgebench_native_version() { return "0.1.0"; }
extern "C" int edgebench_native_abi() { return 1; }
extern "C" const char* edgebench_native_kernel() { return "avx2"; }
"""


@pytest.fixture(autouse=True)
def _no_library_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("EDGEBENCH_NATIVE", "EDGEBENCH_NATIVE_KERNEL", agent.NATIVE_INSTALLED):
        monkeypatch.delenv(name, raising=False)


def library(**changes: object) -> kernels.Library:
    values = {"machine": "aarch64", "glibc": (2, 17), "libstdcxx": (3, 4, 21), **changes}
    return kernels.Library("here", b"", **values)  # type: ignore[arg-type]


def test_the_elf_file_says_for_what_it_was_built() -> None:
    found = kernels.read_library(building.library().read_bytes(), "here")
    assert found.machine == platform.machine()
    assert (2, 2) < found.glibc <= (2, 17)
    assert found.libstdcxx == (3, 4, 21)  # GCC 5's: docs/native.md


@pytest.mark.parametrize(
    ("identity", "changes", "reason"),
    [
        ({}, {}, ""),
        ({"arch": "x86_64"}, {}, "it is for aarch64, the device is x86_64"),
        ({"libc": "glibc 2.16"}, {}, "it needs glibc 2.17, the device has 2.16"),
        ({"libc": "musl"}, {}, "it needs glibc, the device has musl"),
        ({"libc": None}, {}, "it needs glibc, the device has another C library"),
        ({"system": "Darwin"}, {}, "it is for Linux, the device runs Darwin"),
        ({"libc": "glibc 2.9"}, {"glibc": (2, 10)}, "it needs glibc 2.10, the device has 2.9"),
    ],
)
def test_what_the_file_tells_against_it_is_known_before_it_is_sent(
    identity: dict[str, str], changes: dict[str, object], reason: str
) -> None:
    assert kernels.misfit(library(**changes), {**PI, **identity}) == reason


def test_a_wheel_for_the_device_is_taken_and_others_are_named(tmp_path: Path) -> None:
    def wheel(name: str, data: bytes) -> None:
        with zipfile.ZipFile(tmp_path / f"edgebench_native-0.1.0-py3-none-{name}.whl", "w") as file:
            file.writestr(f"edgebench_native/{kernels.FILE}", data)

    here = {**PI, "arch": platform.machine()}
    (tmp_path / "other").mkdir()
    wheel("other", foreign(tmp_path / "other").read_bytes())
    with pytest.raises(DeviceError, match=r"no library .* fits .*other\.whl: it is for"):
        kernels.choose(here, tmp_path, [])
    wheel("ours", building.library().read_bytes())
    chosen = kernels.choose(here, None, [tmp_path / "nowhere", tmp_path])
    assert chosen.origin.endswith("-ours.whl")
    with pytest.raises(DeviceError, match="make kernels"):
        kernels.choose({**here, "arch": "riscv64"}, None, [tmp_path])


@pytest.mark.parametrize(
    "content", [b"", b"PK\x03\x04 no wheel", b"\x7fELF", b"\x7fELF" + bytes(200)]
)
@pytest.mark.parametrize("name", ["a.whl", "a.so"])
def test_what_is_no_library_is_bad_input(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=name):
        kernels.choose(PI, tmp_path / name, [])


def test_an_empty_directory_is_bad_input(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no wheel of edgebench-native"):
        kernels.choose(PI, tmp_path, [])


def test_it_is_installed_tried_and_used_and_a_bad_one_does_not_replace_it(
    bench: Bench,  # noqa: F811
    tmp_path: Path,
) -> None:
    device = bench.device()
    built = building.library()
    done = bench.call("setup", "--device", "bench", "--kernels-from", str(built))
    assert done.returncode == 0, done.stderr
    kernel = agent.native_library(str(built))["kernel"]
    assert f"native kernels 0.1.0 (sent, tried there): {kernel}." in done.stdout
    active = bench.root / "native" / "active"
    digest = active.readlink()
    again = provision.setup(device, kernels_from=built)
    assert again.kernels is not None
    assert not again.kernels.sent

    for number, (text, reason) in enumerate(
        {
            CRASHING: "ended the process that tried it",
            ANOTHER_ABI: "it has ABI 99",
            "int something() { return 1; }": "not a library of edgebench's kernels",
            NO_OPS: "can't use it",
        }.items()
    ):
        (tmp_path / str(number)).mkdir()
        bad = compiled(tmp_path / str(number), text)
        with pytest.raises(DeviceError, match=reason) as caught:
            provision.setup(device, kernels_from=bad)
        assert caught.value.exit_code == 4
        assert active.readlink() == digest
        assert {path.name for path in active.parent.iterdir()} == {"active", str(digest)}

    doctor = bench.call("doctor", "--device", "bench")
    assert f" ok    native few-bit kernels 0.1.0: {kernel}" in doctor.stdout
    recording = run(device, [bench.artifact("tiny", scheme="int3")], bench.store, QUICK)
    (row,) = build([bench.store.load(recording.id)]).latency.to_dict("records")
    assert row["native_kernel"] == f"{kernel} 0.1.0"


@pytest.mark.parametrize("broken", ["foreign", "crashing"])
def test_a_library_that_does_not_fit_is_a_warning_in_the_row_and_the_run_goes_on(
    bench: Bench,  # noqa: F811
    tmp_path: Path,
    broken: str,
) -> None:
    """As where a card was moved from one board to another: the body serves."""
    path = foreign(tmp_path) if broken == "foreign" else compiled(tmp_path, CRASHING)
    active = bench.root / "native" / "active"
    active.mkdir(parents=True)
    (active / kernels.FILE).write_bytes(path.read_bytes())
    doctor = bench.call("doctor", "--device", "bench")
    assert "warn  " in doctor.stdout
    reason = "can't be loaded" if broken == "foreign" else "ends the process that loads it"
    assert reason in doctor.stdout
    recording = run(bench.device(), [bench.artifact("tiny", scheme="int3")], bench.store, QUICK)
    (row,) = build([bench.store.load(recording.id)]).latency.to_dict("records")
    assert not isinstance(row["native_kernel"], str)
    assert "native-unused" in row["reasons"]
    assert row["latency_p50_ms"] > 0


def test_doctor_says_how_to_get_them(bench: Bench) -> None:  # noqa: F811
    done = bench.call("doctor", "--device", "bench")
    assert "edgebench setup --device bench --kernels" in done.stdout


def test_wheels_are_built_and_tagged_for_the_oldest_system_that_has_what_they_ask_for(
    tmp_path: Path,
) -> None:
    building.needs("cmake", os.environ.get("CXX", "c++"))
    script = building.SOURCE / "make_wheels.py"
    command = [sys.executable, script, "--out", tmp_path, "--no-isolation"]
    arch = platform.machine()
    done = subprocess.run([*command, "--arch", arch], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    (wheel,) = tmp_path.glob("*.whl")
    assert wheel.name == f"edgebench_native-0.1.0-py3-none-manylinux_2_24_{arch}.whl"
    assert kernels.choose({**PI, "arch": arch}, tmp_path, []).machine == arch
