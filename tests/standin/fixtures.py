"""pytest fixtures for tests that need a device, and the rule for when they skip.

In a test suite's conftest.py: ``from standin.fixtures import standin, standin_root``, with the
prefix that the package has there. A stand-in starts in half a second, so each test gets its own.

They skip where a stand-in cannot run, saying why. On a machine that must run them (root on Debian,
with CI set in the environment) they first run install.sh, and fail rather than skip.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from .rootfs import HERE, arm64_wheels, build_root
from .standin import StandIn

TOOLS = ("mmdebstrap", "unshare", "nsenter", "mount", "ip", "ss", "tc", "ssh", "ssh-keygen")
BINFMT = Path("/proc/sys/fs/binfmt_misc/qemu-aarch64")
MEND = "run tests/standin/install.sh as root"


def _is_root_on_debian() -> bool:
    release = Path("/etc/os-release")
    return (
        sys.platform == "linux"
        and os.geteuid() == 0
        and release.exists()
        and "ID=debian" in release.read_text().splitlines()
    )


def _required() -> bool:
    return bool(os.environ.get("CI")) and _is_root_on_debian()


def skip_reason() -> str | None:
    """Why no stand-in can run on this machine, in a sentence; None where one can."""
    if not _is_root_on_debian():
        return "the stand-in device needs root on Debian (it mounts and makes namespaces)"
    missing = [tool for tool in TOOLS if shutil.which(tool) is None]
    if missing:
        return f"the stand-in device needs {', '.join(missing)}: {MEND}"
    if not BINFMT.exists() or not BINFMT.read_text().startswith("enabled"):
        return f"this machine does not run arm64 programs (no binfmt entry): {MEND}"
    if not Path("/dev/fuse").exists():
        return "the stand-in device needs FUSE, and this machine has no /dev/fuse"
    if importlib.util.find_spec("mfusepy") is None:
        return "the stand-in device needs the Python package mfusepy: pip install mfusepy"
    spaces = ["unshare", "--mount", "--net", "--pid", "--fork", "--uts", "--ipc", "--time", "true"]
    if subprocess.run(spaces, capture_output=True, check=False).returncode != 0:
        return "this machine does not let root make namespaces (an unprivileged container?)"
    return None


@pytest.fixture(scope="session")
def standin_root() -> Path:
    """The arm64 root that stand-ins start from, built (1 min) if this machine has none yet."""
    if _required():
        subprocess.run([str(HERE / "install.sh")], check=True)
    reason = skip_reason()
    if reason is not None:
        if _required():
            raise RuntimeError(f"this must not be skipped in CI, but {reason}")
        pytest.skip(reason)
    return build_root()


@pytest.fixture
def standin(standin_root: Path) -> Iterator[StandIn]:
    """A Raspberry Pi 4, new for each test."""
    with StandIn("pi4") as device:
        yield device


@pytest.fixture(scope="module")
def shared_standin(standin_root: Path) -> Iterator[StandIn]:
    """A Raspberry Pi 4 for all tests of a module that leave it as they found it."""
    with StandIn("pi4") as device:
        yield device


@pytest.fixture(scope="session")
def standin_wheels(standin_root: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The arm64 wheels of ONNX Runtime and its needs."""
    return arm64_wheels(tmp_path_factory.mktemp("arm64-wheels"))
