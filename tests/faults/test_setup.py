"""``edgebench setup`` where something is in its way, with wheels of a few bytes."""

from __future__ import annotations

import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest

from edgebench import provision
from edgebench.errors import DeviceError, LinkError
from edgebench.measure import run
from edgebench.meters.base import meter_class
from edgebench.transport.ssh import SshTransport
from tests.faults.far import Far
from tests.measure.bench import QUICK


@pytest.fixture(autouse=True)
def wheels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """What pip would have fetched: packages that nobody imports."""
    made = []
    for name in ("one", "two"):
        made.append(tmp_path / f"{name}-1-py3-none-any.whl")
        with zipfile.ZipFile(made[-1], "w") as archive:
            archive.writestr(f"{name}/__init__.py", f"name = {name!r}\n")
    monkeypatch.setattr(provision, "fetch_wheels", lambda identity, versions: made)
    return made


def sites(far: Far) -> list[str]:
    return sorted(path.name for path in (far.root / "site").iterdir())


def test_a_runtime_that_is_there_needs_nothing(far: Far) -> None:
    done = provision.setup(far.device())
    assert done.installed == ()
    assert "onnxruntime" in done.versions
    assert not (far.root / "site").exists()


def test_installing_again_mends_what_was_broken_and_sweeps_what_was_left(far: Far) -> None:
    first = provision.setup(far.device(), reinstall=True)
    assert first.installed == ("one-1-py3-none-any.whl", "two-1-py3-none-any.whl")
    module = far.root / "site/active/one/__init__.py"
    module.unlink()
    (far.root / "site/.new/half").mkdir(parents=True)
    (far.root / "site/.link").symlink_to("nowhere")
    provision.setup(far.device(), reinstall=True)
    assert module.read_text() == "name = 'one'\n"
    assert "active" in sites(far)
    assert len(sites(far)) == 2
    assert list((far.root / "wheels").iterdir()) == []
    run(far.device(), [far.artifact()], far.store, QUICK)
    far.settled()


def test_a_cut_while_wheels_are_sent_leaves_the_old_runtime(
    far: Far, monkeypatch: pytest.MonkeyPatch
) -> None:
    provision.setup(far.device(), reinstall=True)
    before = (far.root / "site/active").readlink()
    put, seen = SshTransport.put, []

    async def cut(self: SshTransport, local: Path, remote: str, progress: Any = None) -> None:
        if local.suffix == ".whl" and not seen:
            seen.append(remote)
            far.cut()
        await put(self, local, remote, progress)

    monkeypatch.setattr(SshTransport, "put", cut)
    with pytest.raises(LinkError, match="lost"):
        provision.setup(far.device(), reinstall=True)
    assert seen
    assert (far.root / "site/active").readlink() == before
    provision.setup(far.device(), reinstall=True)
    far.settled()


def test_a_wheel_that_can_not_be_unpacked_changes_nothing(far: Far, wheels: list[Path]) -> None:
    provision.setup(far.device(), reinstall=True)
    before = sites(far)
    wheels[1].write_bytes(b"no wheel")
    with pytest.raises(DeviceError, match="can't be unpacked there") as caught:
        provision.setup(far.device(), reinstall=True)
    assert caught.value.exit_code == 4
    assert sites(far) == before
    assert (far.root / "site/active/two/__init__.py").exists()


def test_a_hostile_root_is_set_up_as_a_directory_of_that_name(far: Far) -> None:
    root = far.path / "$(touch PWNED); touch 'PWNED'\n`touch PWNED`"
    provision.setup(far.device(root=str(root)), reinstall=True)
    assert (root / "site/active/one/__init__.py").is_file()
    assert not list(far.path.rglob("PWNED"))


def test_a_device_without_the_runtime_is_refused_with_the_command_that_mends_it(
    far: Far, tmp_path: Path
) -> None:
    (tmp_path / "onnxruntime.py").write_text("raise ImportError('no such thing here')\n")
    bare = tmp_path / "python"
    # -S: nothing but the standard library, and that.
    bare.write_text(f'#!/bin/sh\nPYTHONPATH={tmp_path} exec {sys.executable} -S "$@"\n')
    bare.chmod(0o755)
    device = far.device(Far.runtime(python=str(bare)))
    with pytest.raises(DeviceError, match="ONNX Runtime does not import there") as caught:
        run(device, [far.artifact()], far.store, QUICK)
    assert caught.value.fix == "Install it with `edgebench setup --device far`."
    assert far.store.list() == ()
    far.settled()


METERS = """
[[meters]]
kind = "ina226"
scope = "board"
bus = 1
address = 0x40
shunt_mohm = 10
[[meters]]
kind = "shelly"
scope = "wall"
host = "192.0.2.1"
"""


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An index of packages on this disk, with the driver that an ina226 is said to need."""
    place = tmp_path / "index"
    place.mkdir()
    driver(place, "far-driver")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(place))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(meter_class("ina226"), "packages", ("far-driver",))
    return place


def driver(place: Path, name: str) -> None:
    """A wheel of pure Python."""
    module = name.replace("-", "_")
    with zipfile.ZipFile(place / f"{module}-1-py3-none-any.whl", "w") as archive:
        archive.writestr(f"{module}.py", f"name = {name!r}\n")
        inside = f"{module}-1.dist-info"
        archive.writestr(f"{inside}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1\n")
        archive.writestr(
            f"{inside}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr(f"{inside}/RECORD", "")


def test_drivers_of_the_devices_meters_are_unpacked_once(far: Far, index: Path) -> None:
    device = far.device(Far.runtime() + METERS)
    assert provision.meter_packages(device) == ("far-driver",)
    assert provision.setup(device).installed == ("far_driver-1-py3-none-any.whl",)
    active = far.root / "site/active"
    assert sorted(path.name for path in active.iterdir()) == [
        "far_driver-1.dist-info",
        "far_driver.py",
    ]
    assert provision.setup(device).installed == ()


def test_a_driver_joins_what_is_unpacked_and_stays_when_the_runtime_is_installed_again(
    far: Far, index: Path
) -> None:
    provision.setup(far.device(), reinstall=True)
    before = (far.root / "site/active").resolve()
    provision.setup(far.device(Far.runtime() + METERS))
    active = far.root / "site/active"
    assert {"one", "two", "far_driver.py"} <= {path.name for path in active.iterdir()}
    assert sorted(path.name for path in before.iterdir()) == ["one", "two"]
    done = provision.setup(far.device(), reinstall=True)
    assert "far_driver-1-py3-none-any.whl" in done.installed
    assert (active / "far_driver.py").exists()


def test_a_driver_that_the_system_has_is_left_alone(
    far: Far, index: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(meter_class("ina226"), "packages", ("numpy",))
    assert provision.setup(far.device(Far.runtime() + METERS)).installed == ()
    assert not (far.root / "site").exists()


def test_a_driver_that_pip_does_not_find_is_named(far: Far, index: Path) -> None:
    for wheel in index.iterdir():
        wheel.unlink()
    with pytest.raises(DeviceError, match="no wheels of far-driver") as caught:
        provision.setup(far.device(Far.runtime() + METERS))
    assert "pip install far-driver" in str(caught.value.fix)
    assert not (far.root / "site").exists()
