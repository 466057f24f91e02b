"""``results()``: everything below a results directory, for a notebook."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from edgebench.errors import RecordingError
from edgebench.results.encoding import Loaded
from edgebench.results.store import Store
from edgebench.results.tables import Tables, build

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Results:
    """The recordings of a results directory and the tables derived from them.

    ``broken`` names recordings that can't be read; the others are not affected by them. Rows of
    emulated devices are left out unless asked for with ``include_emulated``.
    """

    recordings: tuple[Loaded, ...]
    broken: tuple[RecordingError, ...] = ()
    include_emulated: bool = False

    @cached_property
    def tables(self) -> Tables:
        return build(self.recordings, include_emulated=self.include_emulated)

    @property
    def latency(self) -> pd.DataFrame:
        return self.tables.latency

    @property
    def energy(self) -> pd.DataFrame:
        return self.tables.energy

    @property
    def power(self) -> pd.DataFrame:
        return self.tables.power

    def __repr__(self) -> str:
        broken = f", {len(self.broken)} broken" if self.broken else ""
        return f"Results({len(self.recordings)} recordings{broken})"


def results(path: str | os.PathLike[str] = "results", *, include_emulated: bool = False) -> Results:
    """Read all recordings below ``path/runs``. Nothing is written.

    Raises:
        StorageError: the directory can't be read. (A missing one has no recordings.)
    """
    loaded, broken = Store(Path(path) / "runs").load_all()
    return Results(loaded, broken, include_emulated)
