"""A workspace is where the user stands; the built-in devices and exporters come after it."""

from __future__ import annotations

from pathlib import Path

import pytest

import edgebench.workspace as module
from edgebench.errors import EdgebenchError, StorageError
from edgebench.workspace import PARTS, Workspace, builtin_root, ensure_dir


def make(root: Path) -> Path:
    for part in PARTS:
        (root / part).mkdir(parents=True)
    return root


def test_a_workspace_is_found_from_any_directory_below_it(tmp_path: Path) -> None:
    root = make(tmp_path / "lab")
    deep = root / "results" / "runs" / "x"
    deep.mkdir(parents=True)
    for start in (root, root / "devices", deep):
        assert Workspace.find(start) == Workspace(root)


def test_the_nearest_workspace_wins(tmp_path: Path) -> None:
    make(tmp_path / "outer")
    inner = make(tmp_path / "outer" / "inner")
    assert Workspace.find(inner / "devices").root == inner


@pytest.mark.parametrize("missing", PARTS)
def test_two_of_the_three_directories_are_no_workspace(tmp_path: Path, missing: str) -> None:
    root = make(tmp_path / "lab")
    (root / missing).rmdir()
    found = Workspace.find(root)
    assert found == Workspace(root, bare=True)


def test_the_current_directory_is_where_the_search_begins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = make(tmp_path / "lab")
    monkeypatch.chdir(root / "exporters")
    assert Workspace.find().root == root


def test_a_bare_workspace_makes_no_directory_and_has_only_built_in_parts(tmp_path: Path) -> None:
    bare = Workspace.find(tmp_path)
    assert bare.bare
    assert list(tmp_path.iterdir()) == []
    assert bare.results_dir == tmp_path / "results"
    assert bare.device_dirs() == (builtin_root() / "devices",)
    assert bare.exporter_dirs() == (builtin_root() / "exporters",)


def test_a_bare_directory_with_a_devices_folder_does_not_lend_it(tmp_path: Path) -> None:
    (tmp_path / "devices").mkdir()
    assert Workspace.find(tmp_path).device_dirs() == (builtin_root() / "devices",)


def test_the_workspace_comes_before_the_built_in(tmp_path: Path) -> None:
    space = Workspace(make(tmp_path / "lab"))
    assert space.device_dirs() == (space.root / "devices", builtin_root() / "devices")
    assert space.exporter_dirs() == (space.root / "exporters", builtin_root() / "exporters")


def test_workspace_code_can_be_turned_off(tmp_path: Path) -> None:
    space = Workspace(make(tmp_path / "lab"))
    assert space.exporter_dirs(workspace_code=False) == (builtin_root() / "exporters",)


def test_in_a_checkout_the_workspace_is_the_built_in_one_and_is_listed_once() -> None:
    checkout = builtin_root()
    space = Workspace(checkout)
    assert space.device_dirs() == (checkout / "devices",)
    assert space.exporter_dirs(workspace_code=False) == (checkout / "exporters",)


def test_results_lie_where_the_formats_page_says(tmp_path: Path) -> None:
    space = Workspace(tmp_path)
    assert space.runs_dir == tmp_path / "results" / "runs"
    assert space.tables_dir == tmp_path / "results" / "tables"
    assert space.artifacts_dir == tmp_path / "results" / "artifacts"


def test_an_installed_wheel_finds_its_package_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "site-packages" / "edgebench"
    (package / "_builtin" / "devices").mkdir(parents=True)
    (package / "_builtin" / "devices" / "local.toml").touch()
    monkeypatch.setattr(module, "__file__", str(package / "workspace.py"))
    assert builtin_root() == package / "_builtin"


def test_a_foreign_devices_folder_beside_the_package_is_not_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "site-packages" / "edgebench"
    package.mkdir(parents=True)
    (package.parent / "devices").mkdir()
    monkeypatch.setattr(module, "__file__", str(package / "workspace.py"))
    with pytest.raises(EdgebenchError, match="missing from this installation"):
        builtin_root()


def test_a_directory_that_cannot_be_made_is_a_storage_error(tmp_path: Path) -> None:
    assert ensure_dir(tmp_path / "a" / "b").is_dir()
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match="can't make the directory"):
        ensure_dir(tmp_path / "file" / "runs")


def test_a_deleted_current_directory_is_a_storage_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    with pytest.raises(StorageError, match="no longer exists"):
        Workspace.find()
