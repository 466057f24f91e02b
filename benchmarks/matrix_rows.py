"""The rows of ``adapter_matrix.py``: what one is, where they are kept, and the page's tables."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from matrix_backbones import BACKBONES, PUBLISHED

MODULE = re.compile(r"\b\w+(\.\w+)*\.\d+(\.\w+)+")
BEGIN, END = "<!-- matrix:begin -->", "<!-- matrix:end -->"


@dataclass(frozen=True)
class Row:
    """One cell; ``refused`` or ``failed`` instead of figures where there is no artifact.

    ``weights``: "trained", the trained file "as it is" on a random backbone, or "random".
    ``source``: digest of the trained adapter that the row is of, or whose kind it is of.
    """

    family: str
    backbone: str
    lowering: str
    scheme: str
    weights: str
    source: str
    max_error: float | None = None
    cosine: float | None = None
    adapter_bytes: int | None = None
    graph_bytes: int | None = None
    accuracy: float | None = None
    n: int = 0
    refused: str = ""
    failed: str = ""

    @property
    def key(self) -> tuple[str, str, str, str]:
        return self.family, self.backbone, self.lowering, self.scheme


def write_page(file: Path, tables: str) -> None:
    """Put the tables between the page's marks."""
    page = file.read_text()
    head, rest = page.split(BEGIN)
    file.write_text(f"{head}{BEGIN}\n{tables}\n{END}{rest.split(END)[1]}")


def markdown(rows: Iterable[Row]) -> str:
    """Two tables: trained adapters on MiniLM, and all families on random backbones."""
    rows = sorted(rows, key=lambda row: row.family)
    trained = [row for row in rows if row.weights == "trained"]
    others = [row for row in rows if row.weights != "trained"]
    parts = []
    if trained:
        parts += ["**Trained adapters on MiniLM**", "", *_trained(trained), ""]
    if others:
        parts += ["**Random weights: form and parity**", "", *_random(others), ""]
    return "\n".join(parts).rstrip()


def _trained(rows: list[Row]) -> list[str]:
    n = {row.n for row in rows if row.n}
    said = ", ".join(map(str, sorted(n)))
    lines = [
        f"| family | lowering | precision | max error | cosine | adapter kB | artifact MB "
        f"| accuracy %, n = {said} |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        if row.refused or row.failed:
            lines.append(f"| {row.family} | {row.lowering} | {_said(row)} | | | | | |")
            continue
        assert row.max_error is not None and row.adapter_bytes and row.graph_bytes
        accuracy = "" if row.accuracy is None else f"{100 * row.accuracy:.1f}"
        lines.append(
            f"| {row.family} | {row.lowering} | {row.scheme} | {row.max_error:.1e} | "
            f"{row.cosine:.4f} | {row.adapter_bytes / 1e3:.1f} | {row.graph_bytes / 1e6:.1f} | "
            f"{accuracy} |"
        )
    return lines


def _random(rows: list[Row]) -> list[str]:
    """A line a family and lowering, a column a backbone: fp32's max error, other's cosine."""
    order = [*BACKBONES, *PUBLISHED]
    names = [name for name in order if any(row.backbone == name for row in rows)]
    shapes = [f"{n} ({BACKBONES[n].shape})" if n in BACKBONES else n for n in names]
    lines = [f"| family | lowering | {' | '.join(shapes)} |", "|---" * (2 + len(names)) + "|"]
    notes: list[str] = []
    for family in dict.fromkeys(row.family for row in rows):
        own = [row for row in rows if row.family == family]
        lowerings = dict.fromkeys(row.lowering for row in own if row.lowering)
        for lowering in lowerings or ("",):
            there = [
                [r for r in own if r.backbone == n and r.lowering in (lowering, "")] for n in names
            ]
            lines.append(
                f"| {family} | {lowering} | {' | '.join(_cell(c, notes) for c in there)} |"
            )
    notes_said = [f"({number}) {note}." for number, note in enumerate(notes, 1)]
    return [*lines, "", *notes_said] if notes else lines


def _cell(rows: list[Row], notes: list[str]) -> str:
    parts = []
    for row in rows:
        if row.refused or row.failed:
            if _said(row) not in notes:
                notes.append(_said(row))
            parts.append(f"({notes.index(_said(row)) + 1})")
        elif row.scheme == "fp32":
            parts.append(f"{row.max_error:.0e}{'*' if row.weights == 'as it is' else ''}")
        else:
            parts.append(f"{row.scheme} {row.cosine:.3f}")
    return ", ".join(parts)


def _said(row: Row) -> str:
    if row.failed:
        return f"failed: {row.failed}"
    # The first module that it is about has another path on each backbone.
    return f"refused: {MODULE.sub('a module', row.refused)}"


def read_rows(file: Path) -> list[Row]:
    if not file.is_file():
        return []
    return [Row(**json.loads(line)) for line in file.read_text().splitlines()]


def write_rows(file: Path, rows: Iterable[Row]) -> None:
    """Replace the file as a whole, in an order that does not depend on what was run when."""
    from edgebench.results.atomic import replace_files

    lines = [json.dumps(asdict(row)) for row in sorted(rows, key=lambda row: row.key)]
    replace_files(file.parent, {file.name: "".join(f"{line}\n" for line in lines).encode()})
