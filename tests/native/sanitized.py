"""A file of tests again, in a process under AddressSanitizer and UBSan."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.native import building

LIBRARY = "EDGEBENCH_TEST_SANITIZED"
"""Set in the process that runs the tests under the sanitizers: the library to test."""


def run_again(file):
    """Run these tests with a library built with the sanitizers; skip where that is this process."""
    if LIBRARY in os.environ:
        pytest.skip("these are the tests under the sanitizers")
    compiler = os.environ.get("CXX", "c++")
    folder = building.build("edgebench_ops", "-DEDGEBENCH_SANITIZE=ON")
    runtimes = [
        subprocess.run(
            [compiler, f"-print-file-name={name}"], capture_output=True, text=True, check=True
        ).stdout.strip()
        for name in ("libasan.so", "libubsan.so", "libstdc++.so.6")
    ]
    if not all(Path(path).is_absolute() for path in runtimes):
        pytest.skip(f"{compiler} has no shared sanitizer libraries")
    environment = {
        **os.environ,
        LIBRARY: str(folder / "libedgebench_ops.so"),
        "LD_PRELOAD": " ".join(runtimes),
        "ASAN_OPTIONS": "detect_leaks=0",  # Python's own
        "UBSAN_OPTIONS": "print_stacktrace=1",
    }
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-qs", "-p", "no:cacheprovider", file],
        env=environment,
        capture_output=True,
        text=True,
        timeout=250,
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    assert " passed" in done.stdout
