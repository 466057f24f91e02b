"""The kernels alone, by the C++ test program: every one equals the scalar one bit for bit."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.native import building

CROSS = "aarch64-linux-gnu-g++"


def run(command, **variables):
    done = subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, **variables}, timeout=200
    )
    assert done.returncode == 0, done.stdout + done.stderr
    checks = re.search(r"^(\d+) checks, 0 failures$", done.stdout, re.MULTILINE)
    assert checks, done.stdout
    assert int(checks[1]) > 100_000
    return done.stdout


def ran(output):
    listed = re.search(r"^kernels: (.*)$", output, re.MULTILINE)[1]
    return set(re.sub(r"\S+\(not run here\)", "", listed).split())


@pytest.mark.parametrize("seed", ["1", "2", "3"])
def test_every_kernel_of_this_processor_equals_the_scalar_one(seed):
    output = run([building.build("kernel_test") / "kernel_test", seed, "80"])
    assert "scalar" in ran(output)


def test_no_kernel_reads_or_writes_outside_its_arrays_or_overflows():
    folder = building.build("kernel_test", "-DEDGEBENCH_SANITIZE=ON")
    run([folder / "kernel_test"])


def test_the_vnni_kernels_compute_the_same_with_every_instruction_emulated():
    """SIMDe's portable functions stand for the instructions; no processor with VNNI is needed."""
    if not Path("/usr/include/simde/x86/avx512.h").exists():
        pytest.skip("SIMDe is not installed (Debian: libsimde-dev)")
    if os.uname().machine != "x86_64":
        pytest.skip("the VNNI kernels are built on x86-64 only")
    output = run([building.build("kernel_test", "-DEDGEBENCH_SIMDE=ON") / "kernel_test"])
    assert {"avx512vnni", "avxvnni"} <= ran(output)


@pytest.mark.parametrize(
    ("processor", "expected"),
    [
        ("cortex-a72", {"neon", "scalar"}),
        ("cortex-a76", {"neon", "neon-dotprod", "scalar"}),
        ("max", {"neon", "neon-dotprod", "neon-i8mm", "scalar"}),
    ],
)
def test_every_kernel_of_an_emulated_arm_processor_equals_the_scalar_one(processor, expected):
    # Debian's qemu-user has the first, its qemu-user-static the second.
    qemu = next(filter(shutil.which, ("qemu-aarch64", "qemu-aarch64-static")), "qemu-aarch64")
    building.needs(CROSS, qemu)
    folder = building.build(
        "kernel_test",
        "-DCMAKE_SYSTEM_NAME=Linux",
        "-DCMAKE_SYSTEM_PROCESSOR=aarch64",
        f"-DCMAKE_CXX_COMPILER={CROSS}",
    )
    emulated = [qemu, "-L", "/usr/aarch64-linux-gnu", folder / "kernel_test"]
    assert ran(run(emulated, QEMU_CPU=processor)) == expected
