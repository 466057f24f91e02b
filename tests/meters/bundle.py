"""The files of meters as a device has them: a package ``edgebench`` with nothing else in it."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path

from edgebench.meters import base

FOLDER = Path(base.__file__).parent


def meter_bundle(folder: Path, kinds: Iterable[str]) -> Path:
    """Copy what these kinds need below ``folder``; returns what goes into PYTHONPATH."""
    root = folder / "bundle"
    (root / "edgebench/meters").mkdir(parents=True)
    (root / "edgebench/__init__.py").write_text("")
    for module in base.modules_for(list(kinds)):
        shutil.copy(FOLDER / f"{module}.py", root / f"edgebench/meters/{module}.py")
    return root
