"""Our own road and optimum's give the same outputs, and ours runs on transformers 4.57 and 5."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
from pathlib import Path

import pytest

from edgebench.errors import UsageError
from edgebench.export import ExportRequest, export
from tests.fixtures_export import REPOSITORY


def second_environment() -> Path:
    """The Python that has optimum; without one the test is skipped, and fails in CI."""
    named = os.environ.get("EDGEBENCH_OPTIMUM_PYTHON")
    python = Path(named) if named else REPOSITORY / ".venv-optimum" / "bin" / "python"
    if not python.exists():
        reason = f"no optimum environment at {python} (make setup-optimum)"
        (pytest.fail if os.environ.get("CI") else pytest.skip)(reason)
    return python


@pytest.mark.timeout(600)
def test_both_roads_and_both_transformers_give_the_same_outputs(minilm_artifacts):
    command = [second_environment(), "-m", "tests.export.check_roads"]
    done = subprocess.run(
        [*map(str, command), str(minilm_artifacts["fp32"].path)],
        capture_output=True,
        text=True,
        check=False,
        cwd=REPOSITORY,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads(done.stdout.splitlines()[-1])
    assert set(report["results"]) == {"minilm-merged", "tiny-merged", "tiny-unmerged"}
    assert report["same"]
    assert report["versions"]["transformers"].startswith("4.57")


@pytest.mark.skipif(
    importlib.util.find_spec("optimum") is not None, reason="optimum is installed here"
)
def test_without_optimum_the_second_road_says_what_to_install(tmp_path):
    request = ExportRequest(base="nothing", out=tmp_path / "out", via="optimum")
    with pytest.raises(UsageError, match=r"constraints-optimum\.txt") as caught:
        export(request)
    assert "edgebench[optimum]" in str(caught.value)
    assert not (tmp_path / "out").exists()
