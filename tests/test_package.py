"""The wheel: it builds, and installed alone in an empty environment it finds what it ships."""

from __future__ import annotations

import json
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("dist")
    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(out)],
        cwd=REPOSITORY,
        check=True,
        capture_output=True,
    )
    (built,) = out.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment with nothing but the wheel and what it asks for: no torch, no checkout."""
    home = tmp_path_factory.mktemp("environment")
    venv.create(home, with_pip=True)
    constraints = REPOSITORY / "constraints.txt"
    subprocess.run(
        [home / "bin/pip", "install", "--quiet", "--no-compile", "-c", constraints, wheel],
        cwd=home,
        check=True,
    )
    return home


def call(installed: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [installed / "bin/edgebench", *arguments],
        cwd=installed,
        env={"PATH": "/usr/bin:/bin", "HOME": str(installed)},
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_wheel_carries_devices_exporters_and_the_licence(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert "edgebench/_builtin/devices/pi4.toml" in names
    assert "edgebench/_builtin/exporters/peft_lora.py" in names
    assert "edgebench/agent/agent.py" in names
    assert any(name.endswith("licenses/LICENSE") for name in names)
    assert not [name for name in names if name.startswith(("tests/", "results/", "examples/"))]


def test_an_installed_wheel_lists_its_devices(installed: Path) -> None:
    done = call(installed, "devices", "--json")
    assert done.returncode == 0, done.stderr
    found = {device["id"]: device for device in json.loads(done.stdout)}
    assert {"local", "pi4", "jetson-orin-nx"} <= found.keys()
    assert all(device["builtin"] and not device["error"] for device in found.values())


def test_an_installed_wheel_looks_this_machine_over(installed: Path) -> None:
    done = call(installed, "doctor", "--json")
    assert done.returncode in (0, 1), done.stderr
    assert json.loads(done.stdout)["versions"]["onnxruntime"]


def test_exporting_without_its_libraries_says_what_to_install(installed: Path) -> None:
    adapter = REPOSITORY / "examples/minilm-bbc"
    done = call(installed, "export", str(adapter), "--base", str(installed))
    assert done.returncode in (2, 3), done.stderr
    assert done.stderr.count("error:") == 1
    assert "Traceback" not in done.stderr
