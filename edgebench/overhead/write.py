"""overhead.json and overhead.csv: the last comparison, beside the tables."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

from edgebench.overhead.run import Overhead
from edgebench.results.atomic import replace_files


def write(overhead: Overhead, directory: Path) -> tuple[Path, Path]:
    """Replace both files.

    Raises:
        StorageError: the directory can't be written.
    """
    document = json.dumps(overhead.document(), indent=2, allow_nan=False) + "\n"
    rows = overhead.rows()
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]) if rows else [], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    contents = {"overhead.json": document.encode(), "overhead.csv": text.getvalue().encode()}
    replace_files(directory, contents)
    return directory / "overhead.json", directory / "overhead.csv"
