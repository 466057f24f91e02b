"""Directories that can't be written, disks that fill up, and what killed exports leave behind."""

from __future__ import annotations

import errno
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from edgebench.artifact import Artifact
from edgebench.errors import StorageError
from edgebench.export import ExportRequest, export, store
from tests.export.conftest import left_in

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture
def small_disk(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Path]:
    """A tmpfs of so many KiB (needs root)."""
    disk = tmp_path / "disk"
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={request.param}k", "none", str(disk)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"can't mount a small tmpfs here: {done.stderr.strip()}")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


# The tiny graph takes 60 KiB: the first disk is full at the graph, the second at a quantised copy.
@pytest.mark.parametrize("small_disk", [32, 120], indirect=True)
def test_a_full_disk_ends_in_one_sentence_and_leaves_nothing(
    small_disk, short_base, short_adapter, tiny_data
):
    request = ExportRequest(
        adapter=short_adapter,
        base=str(short_base),
        data=tiny_data,
        seq_len=24,
        out=small_disk,
        quants=("fp32", "int8"),
    )
    with pytest.raises(StorageError, match="disk is full") as caught:
        export(request)
    assert caught.value.exit_code == 5
    assert str(small_disk) in str(caught.value)
    assert left_in(small_disk) == []


@pytest.mark.parametrize("small_disk", [1024], indirect=True)
def test_a_read_only_directory_is_refused_before_torch_is_needed(
    small_disk, short_base, short_adapter, monkeypatch
):
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    steps: list[str] = []
    with pytest.raises(StorageError, match="can't be written") as caught:
        export(
            ExportRequest(adapter=short_adapter, base=str(short_base), out=small_disk),
            lambda step, _done: steps.append(step),
        )
    assert "--out" in str(caught.value)
    assert steps == ["reading the checkpoints"]


def test_a_file_in_the_directorys_place_is_refused(short_base, short_adapter, tmp_path):
    (tmp_path / "file").write_text("")
    for out in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(StorageError, match="can't be written"):
            export(ExportRequest(adapter=short_adapter, base=str(short_base), out=out))


def test_other_errors_of_the_system_are_not_taken_for_a_full_disk(tmp_path):
    with pytest.raises(OSError, match="too many") as caught, store.storage_errors(tmp_path):
        raise OSError(errno.EMFILE, "too many open files")
    assert not isinstance(caught.value, StorageError)


def test_a_failure_removes_the_hidden_directory(tmp_path):
    with pytest.raises(RuntimeError), store.staging(tmp_path) as temporary:
        (temporary / "half.onnx").write_bytes(b"x")
        assert left_in(tmp_path) == [temporary.name]
        raise RuntimeError
    assert left_in(tmp_path) == []


def test_what_a_killed_export_left_is_swept_but_not_a_living_ones(tmp_path):
    child = subprocess.Popen(["sleep", "0"])
    child.wait()
    with store.staging(tmp_path) as living:
        dead = tmp_path / living.name.replace(f"-{os.getpid()}-", f"-{child.pid}-")
        dead.mkdir()
        with store.staging(tmp_path) as other:
            assert set(left_in(tmp_path)) == {living.name, other.name}


def test_a_damaged_artifact_in_the_way_is_replaced(merged, tmp_path):
    target = tmp_path / merged.path.name
    for _ in range(2):
        built = tmp_path / "built"
        subprocess.run(["cp", "-r", str(merged.path), str(built)], check=True)
        assert store.publish(built, target).digest == merged.digest
        (target / "model.onnx").write_bytes(b"damaged")
    assert not built.exists()


def test_the_same_artifact_in_the_way_stays(merged, tmp_path):
    target = tmp_path / merged.path.name
    for _ in range(2):
        built = tmp_path / "built"
        subprocess.run(["cp", "-r", str(merged.path), str(built)], check=True)
        before = target.stat().st_ino if target.exists() else None
        assert store.publish(built, target).digest == merged.digest
        assert before in (None, target.stat().st_ino)
    assert isinstance(Artifact.load(target), Artifact)
