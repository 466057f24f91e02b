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
