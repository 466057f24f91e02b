"""The wanted columns of a CSV file as text: where its table begins, and in which units.

What can be read off the file is found (delimiter, header, a unit that a column's name or a row
below the header states). Every refusal names the line and the column.
"""

from __future__ import annotations

import csv
import difflib
import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from edgebench.errors import InputError

if TYPE_CHECKING:
    import pandas as pd

Role = Literal["time", "power", "current", "voltage", "energy"]
ROLES: tuple[Role, ...] = ("time", "power", "current", "voltage", "energy")

#: Units that a column may be in -> what one of them is in s, W, A, V or J.
UNITS: Mapping[Role, Mapping[str, float]] = {
    "time": {"s": 1.0, "ms": 1e-3, "us": 1e-6, "ns": 1e-9},
    "power": {"W": 1.0, "mW": 1e-3, "uW": 1e-6, "kW": 1e3},
    "current": {"A": 1.0, "mA": 1e-3, "uA": 1e-6},
    "voltage": {"V": 1.0, "mV": 1e-3},
    "energy": {"J": 1.0, "mJ": 1e-3, "kJ": 1e3, "Wh": 3600.0, "mWh": 3.6, "kWh": 3.6e6},
}
BASE: Mapping[Role, str] = {
    "time": "s",
    "power": "W",
    "current": "A",
    "voltage": "V",
    "energy": "J",
}
DELIMITERS = (",", ";", "\t", "|")

#: A header stands in the first lines of a file, if anywhere.
_HEADER_LINES = 200
#: What instruments write where they have no reading. Anything else that is no number is refused:
#: "OL" is an overload, and that is not the same as nothing.
_MISSING = ("", "nan", "na", "n/a", "null", "none")


@dataclass(frozen=True)
class TraceOptions:
    """How a CSV file is to be read, where it does not say so itself.

    Attributes:
        units: role -> unit. For ``time`` also "iso", or a strptime format with "%".
        timezone: IANA name, for times without an offset of their own.
        decimal: "." or ",".
        delimiter: one character; None: the one that gives the wanted columns.
    """

    units: Mapping[Role, str] = field(default_factory=dict)
    timezone: str | None = None
    decimal: str = "."
    delimiter: str | None = None


def _plain(name: str) -> str:
    """A column's name as compared: no quotes, no leading comment sign, one space at most."""
    return " ".join(name.strip().lstrip("#").strip().strip('"').split())


def _split(line: str, delimiter: str) -> list[str]:
    return next(csv.reader([line], delimiter=delimiter), [])


def one_of(wanted: str, names: Sequence[str]) -> str:
    """Names that there are, with the closest one first where there is one."""
    lower = {name.lower(): name for name in names}
    near = difflib.get_close_matches(wanted.lower(), lower, n=1, cutoff=0.5)
    if not near:
        near = [name for name in lower if wanted.lower() in name or name in wanted.lower()][:1]
    guess = f"Did you mean {lower[near[0]]!r}? " if near else ""
    return f"{guess}There {'is' if len(names) == 1 else 'are'}: {', '.join(names)}."


@dataclass(frozen=True)
class Table:
    """The wanted columns of the file as text, with the line of each row."""

    path: Path
    delimiter: str
    decimal: str
    header_line: int
    names: Mapping[Role, str]
    stated: Mapping[Role, str]
    cells: Mapping[Role, pd.Series]
    lines: npt.NDArray[np.int64]

    @classmethod
    def find(
        cls, text: str, columns: Mapping[Role, str], options: TraceOptions, path: Path
    ) -> Table:
        head = text[: 1 << 20].split("\n")[:_HEADER_LINES]
        delimiters = (options.delimiter,) if options.delimiter else DELIMITERS
        numbered = [re.fullmatch(r"#(\d+)", name) for name in columns.values()]
        if all(numbered):
            delimiter = options.delimiter or max(delimiters, key=lambda d: len(_split(head[0], d)))
            places = {r: [int(n[1:]) - 1] for r, n in columns.items()}
            return cls._read(text, 0, delimiter, [], places, columns, options, path)
        for number, line in enumerate(head, start=1):
            for delimiter in delimiters:
                header = [_plain(name) for name in _split(line, delimiter)]
                found = {role: _places(name, header) for role, name in columns.items()}
                if all(found.values()):
                    return cls._read(text, number, delimiter, header, found, columns, options, path)
        raise _no_column(head, columns, delimiters, path)

    @classmethod
    def _read(
        cls,
        text: str,
        header_line: int,
        delimiter: str,
        header: list[str],
        places: Mapping[Role, list[int]],
        columns: Mapping[Role, str],
        options: TraceOptions,
        path: Path,
    ) -> Table:
        import pandas as pd

        body = text.split("\n", header_line)[header_line:] if header_line else [text]
        start = body[0][: 1 << 16].split("\n") if body else []
        first = next((line for line in start if line.strip()), None)
        if first is None:
            raise InputError(
                "the trace has a header and no rows",
                where=str(path),
                fix="Export it from the meter again.",
            )
        fields = _split(first, delimiter)
        if header and len(fields) > len(header) and any(fields[len(header) :]):
            raise InputError(
                f"the first row has {len(fields)} cells and the header {len(header)}",
                where=f"{path}, line {header_line + 1}",
                fix="Numbers with decimal commas need another delimiter, or quotes: export it with "
                "semicolons."
                if delimiter == ","
                else "Export it with another delimiter.",
            )
        wanted = sorted({place for group in places.values() for place in group})
        if wanted[-1] >= len(fields):
            raise InputError(
                f"there is no column {wanted[-1] + 1}: the first row has {len(fields)} cells",
                where=f"{path}, line {header_line + 1}",
                fix="Check --columns and --delimiter.",
            )
        _check_widths(body[0], delimiter, max(len(fields), len(header)), header_line, path)
        try:
            frame = pd.read_csv(
                io.StringIO(body[0]),
                sep=delimiter,
                header=None,
                names=range(max(len(fields), len(header))),
                usecols=wanted,
                dtype=str,
                keep_default_na=False,
                skip_blank_lines=False,
                skipinitialspace=True,
                index_col=False,
            )
        except (pd.errors.ParserError, pd.errors.EmptyDataError, ValueError) as error:
            raise InputError(
                f"the table can't be read: {_parser_text(str(error), header_line)}",
                where=str(path),
                fix="Check --delimiter, and look at that line.",
            ) from error
        numbers = np.arange(len(frame)) + header_line + 1
        blank = (frame.fillna("").apply(lambda column: column.str.strip()) == "").all(axis=1)
        frame, numbers = frame[~blank], numbers[~blank.to_numpy()]
        cells = {
            role: _joined([frame[place].fillna("").str.strip() for place in group])
            for role, group in places.items()
        }
        names = {
            role: " + ".join(header[place] for place in group) if header else columns[role]
            for role, group in places.items()
        }
        stated = {role: unit for role in cells if (unit := _stated(role, names[role])) is not None}
        below = {role: _unit_cell(role, cells[role]) for role in cells}
        if len(numbers) and all(unit is not None for unit in below.values()):
            stated |= {role: unit for role, unit in below.items() if unit}
            cells = {role: column.iloc[1:] for role, column in cells.items()}
            numbers = numbers[1:]
        return cls(path, delimiter, options.decimal, header_line, names, stated, cells, numbers)

    def unit(self, role: Role, given: str | None) -> str:
        """The unit of a column: as given, or as the file states it, and never against the file."""
        stated = self.stated.get(role)
        if given is None:
            return stated or ("" if role == "time" else BASE[role])
        unit = canonical(role, given) or given
        if stated is not None and unit != stated:
            raise InputError(
                f"column {self.names[role]!r} says that it is in {stated}, "
                f"and --{role}-unit says {unit}",
                where=str(self.path),
                fix=f"Leave --{role}-unit out, or mend the file's header.",
            )
        return unit

    def numbers(self, role: Role) -> npt.NDArray[np.float64]:
        """A column's numbers, NaN where a cell is empty.

        Raises:
            InputError: a cell holds something else; says line and column.
        """
        import pandas as pd

        text = self.cells[role]
        missing = text.str.lower().isin(_MISSING).to_numpy(dtype=bool)
        plain = text
        if self.decimal == ",":
            # "1.234" may be a thousand or a thousandth: only one decimal sign is taken.
            doubtful = text.str.contains(".", regex=False).to_numpy(dtype=bool)
            self.refuse(role, doubtful & ~missing, "has a point though the decimal sign is ,")
            plain = text.str.replace(",", ".", regex=False)
        values = pd.to_numeric(plain, errors="coerce").to_numpy(dtype=np.float64, copy=True)
        bad = ~missing & ~np.isfinite(values)
        if np.any(bad):
            cell = str(text.iloc[int(np.argmax(bad))])
            comma = re.fullmatch(r"[+-]?\d+,\d+(?:[eE][+-]?\d+)?", cell)
            self.refuse(
                role,
                bad,
                "is no number",
                "If it has decimal commas, say --decimal ,"
                if comma
                else "Mend or remove that row; an overload is a reading that is not there.",
            )
        values[missing] = np.nan
        return np.asarray(values)

    def refuse(self, role: Role, bad: npt.NDArray[np.bool_], what: str, fix: str = "") -> None:
        """Raise InputError for the first row that is bad, if one is: ``'<its cell>' <what>``."""
        if np.any(bad):
            at = int(np.argmax(bad))
            raise self.error(
                role, self.lines[at], f"{str(self.cells[role].iloc[at])!r} {what}", fix
            )

    def error(self, role: Role, line: Any, what: str, fix: str = "") -> InputError:
        """An error that names line and column."""
        where = f"{self.path}, line {line}, column {self.names[role]}"
        return InputError(what, where=where, fix=fix)


def _check_widths(body: str, delimiter: str, width: int, header_line: int, path: Path) -> None:
    """Refuse a row with more cells than the table has columns: its cells are not what they seem."""
    lines = body.split("\n")
    # Reading each row properly takes ten times as long, and is needed where cells are quoted.
    cells = csv.reader(lines, delimiter=delimiter) if '"' in body else None
    counts = map(len, cells) if cells else (line.count(delimiter) + 1 for line in lines)
    for number, count in enumerate(counts, start=header_line + 1):
        if (
            count > width
            and lines[number - header_line - 1].rstrip(delimiter + " ").count(delimiter) >= width
        ):
            raise InputError(
                f"the row has {count} cells and the table {width} columns",
                where=f"{path}, line {number}",
                fix="Are there decimal commas? Export it with semicolons, and say --decimal ,"
                if delimiter == ","
                else "Look at that line.",
            )


def _places(name: str, header: Sequence[str]) -> list[int]:
    """Where a column stands; ``Date+Time`` is two columns, unless one is called so."""
    wanted = _plain(name)
    if wanted in header:
        return [header.index(wanted)]
    parts = [_plain(part) for part in name.split("+")]
    if len(parts) > 1 and all(part in header for part in parts):
        return [header.index(part) for part in parts]
    return []


def _joined(parts: list[pd.Series]) -> pd.Series:
    whole = parts[0]
    for part in parts[1:]:
        whole = whole + " " + part
    return whole


def _no_column(
    head: Sequence[str],
    columns: Mapping[Role, str],
    delimiters: Sequence[str],
    path: Path,
) -> InputError:
    """Which column is missing, and which there are: those of the likeliest header line."""

    def split(line: str) -> list[str]:
        cells = max((_split(line, d) for d in delimiters), key=len)
        return [_plain(cell) for cell in cells]

    rows = [row for row in map(split, head) if any(row)]
    wanted = [_plain(name) for name in columns.values()]

    def likely(row: Sequence[str]) -> tuple[int, int]:
        words = sum(bool(re.search("[A-Za-zµ]", cell)) for cell in row)
        return sum(name in row for name in wanted), words

    header = max(rows, key=likely)
    missing = next((name for name in wanted if name not in header), wanted[0])
    return InputError(
        f"the trace has no column {missing!r}",
        where=str(path),
        fix=one_of(missing, [cell for cell in header if cell])
        + " Without a header, name columns by number: time=#1,power=#2.",
    )


def _parser_text(text: str, header_line: int) -> str:
    """pandas' own words, with the line counted from the file's beginning."""
    text = text.removeprefix("Error tokenizing data. ").removeprefix("C error: ").strip()
    return re.sub(r"line (\d+)", lambda m: f"line {int(m[1]) + header_line}", text)


def canonical(role: Role, unit: str) -> str | None:
    """A unit as it is written here (µ and u are the same), or None."""
    plain = unit.strip().replace("µ", "u").replace("μ", "u")
    if plain in UNITS[role]:
        return plain
    words = {"sec": "s", "seconds": "s", "msec": "ms", "milliseconds": "ms", "watt": "W"}
    words |= {"watts": "W", "volt": "V", "volts": "V", "ampere": "A", "amps": "A", "joule": "J"}
    words |= {"joules": "J", "milliwatts": "mW"}
    found = words.get(plain.lower())
    return found if found in UNITS[role] else None


def _stated(role: Role, name: str) -> str | None:
    """The unit that a column's name states: ``Power (mW)``, ``P [W]``, ``I/mA``, ``power_mw``."""
    found = re.search(r"[\[(]\s*([^\[\]()]+?)\s*[\])]\s*$|[/]\s*(\S+)\s*$", name)
    if found:
        return canonical(role, found[1] or found[2])
    tail = name.rsplit("_", 1)[-1] if "_" in name else ""
    lower = {unit.lower(): unit for unit in UNITS[role]}
    return lower.get(tail.lower())


def _unit_cell(role: Role, cells: pd.Series) -> str | None:
    """The unit in the first row where that is a row of units; "" for an empty cell there."""
    if not len(cells):
        return None
    text = str(cells.iloc[0]).strip()
    return "" if not text else canonical(role, text.strip("[]() "))
