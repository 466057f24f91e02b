"""A device over SSH for each test, and patience that is short enough for tests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.far import Far, measure
from tests.standin.fixtures import standin_root
from tests.transport.conftest import Lab, lab, sshd_program

__all__ = ["lab", "sshd_program", "standin_root"]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "RECONNECT_POLL_S", 0.1)
    monkeypatch.setattr(measure, "BUSY_POLL_S", 0.1)


@pytest.fixture
def far(tmp_path: Path, lab: Lab) -> Iterator[Far]:
    workspace = tmp_path / "workspace"
    workspace.mkdir()
    found = Far(workspace, server=lab.server())
    with found.copying():
        yield found
    found.close()
