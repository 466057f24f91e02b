"""A sysfs of its own for each test, and a way to open a meter in it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from edgebench.meters.base import Meter, MeterError, make_meter
from tests.meters.sysfs_trees import Tree

Make = Callable[..., Meter]


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    """An empty sysfs."""
    return Tree(tmp_path / "sys")


@pytest.fixture
def make(tree: Tree) -> Iterator[Make]:
    """Makes meters that read the test's sysfs; all of them are closed."""
    meters: list[Meter] = []

    def one(kind: str, **table: Any) -> Meter:
        meters.append(make_meter({"kind": kind, **tree.option, **table}))
        return meters[-1]

    yield one
    for meter in meters:
        meter.close()


@pytest.fixture
def refused(make: Make) -> Callable[..., MeterError]:
    """Opens a meter that can't be opened, and gives the reason."""

    def error(kind: str, **table: Any) -> MeterError:
        with pytest.raises(MeterError) as caught:
            make(kind, **table).open()
        return caught.value

    return error
