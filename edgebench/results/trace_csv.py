"""A meter's trace from a CSV file: readings with their moments, or a sentence that says why not.

    trace = read_trace(Path("meter.csv"), parse_columns("time=TIME,power=POWER"), TraceOptions())

Every instrument writes another dialect: header lines before the table, semicolons and decimal
commas, a row of units, local time, counts of milliseconds. What can be read off the file is (its
delimiter, its header's place, a unit that a column's name states); nothing that changes a figure is
guessed. A cell that is no number, a time that may mean two moments, or a unit that contradicts the
file ends the reading, by line and column.

Units of what comes back: seconds (Unix time, or the trace's own), W for power, J for energy.
"""

from __future__ import annotations

import difflib
import hashlib
import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from zoneinfo import ZoneInfo

import numpy as np
import numpy.typing as npt

from edgebench.errors import InputError, UsageError

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
_BASE: Mapping[Role, str] = {
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
#: Numbers of seconds above this are Unix time (September 2001); below the other they count from
#: the trace's own beginning (three years). What lies between is neither.
_UNIX_FROM_S, _RELATIVE_BELOW_S = 1e9, 1e8
_UNIX_BELOW_S = 4.1e9  # the year 2099
_OWN_OFFSET = r"(?:[Zz]|[+-]\d{2}:?\d{2})$"
#: A date, and perhaps a time: what the ISO 8601 parser may see ("2026" alone would be one, too).
_ISO = (
    r"^\s*\d{4}-\d{2}-\d{2}(?:[T ]\d{2}:\d{2}(?::\d{2}(?:\.\d+)?)?)?"
    r"\s*(?:[Zz]|[+-]\d{2}:?\d{2})?\s*$"
)


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


@dataclass(frozen=True)
class Trace:
    """What a file holds.

    Attributes:
        path, sha256, size_bytes: the file.
        columns: role -> name of the column, as in the file.
        units: role -> the unit that it was read in.
        delimiter, header_line: as found (lines count from 1; 0: the file has no header).
        absolute: ``t_s`` is Unix time; otherwise it counts from a moment that nobody knows.
        quantity: "power" or "energy".
        t_s, value: [n] seconds, strictly increasing, and W or J.
        missing, repeated: rows without a reading, and rows that say again what the last one said.
        tick_s: all moments are multiples of this power of ten (a clock that shows whole seconds).
    """

    path: Path
    sha256: str
    size_bytes: int
    columns: dict[str, str]
    units: dict[str, str]
    delimiter: str
    header_line: int
    absolute: bool
    quantity: Literal["power", "energy"]
    t_s: npt.NDArray[np.float64]
    value: npt.NDArray[np.float64]
    missing: int
    repeated: int
    tick_s: float

    @property
    def period_s(self) -> float:
        """The median time between two readings."""
        return float(np.median(np.diff(self.t_s)))

    @property
    def resolution(self) -> float:
        """The smallest step between two different values, in W or J."""
        steps = np.diff(np.unique(self.value))
        # Conversion leaves differences in the last bits of a float; they are no steps.
        steps = steps[steps > 1e-12 * float(np.max(np.abs(self.value)))]
        return float(steps.min()) if steps.size else 0.0


def parse_columns(text: str) -> dict[Role, str]:
    """``time=TIME,power=POWER`` as role -> column; a name may hold commas and equals signs.

    Raises:
        UsageError: not of that form, or columns that make no power or energy.
    """
    parts = re.split(rf"(?:^|,)\s*({'|'.join(ROLES)})\s*=", text)
    names = dict(zip(parts[1::2], (part.strip() for part in parts[2::2]), strict=True))
    fix = 'For example --columns "time=TIME,power=POWER", or "time=t,current=I,voltage=U".'
    if parts[0].strip() or not names or not all(names.values()):
        raise UsageError(
            f"{text!r} does not name columns by what they hold", where="--columns", fix=fix
        )
    if len(names) * 2 + 1 != len(parts):
        raise UsageError("a kind of column is named twice", where="--columns", fix=fix)
    values = set(names) - {"time"}
    if "time" not in names or values not in ({"power"}, {"energy"}, {"current", "voltage"}):
        raise UsageError(
            f"columns {', '.join(names)} don't make a trace",
            where="--columns",
            fix="Name time, and one of: power; energy (a counter); current and voltage. " + fix,
        )
    return {role: names[role] for role in ROLES if role in names}


def read_trace(path: Path, columns: Mapping[Role, str], options: TraceOptions) -> Trace:
    """Read a trace.

    Args:
        columns: as from ``parse_columns``. ``#3`` is the third column of a file without a header.

    Raises:
        UsageError: an option that can't be.
        InputError: the file can't be read as such a trace; says line and column.
    """
    _check_options(options)
    data = _read(path)
    text = _decode(data, path).replace("\r\n", "\n").replace("\r", "\n")
    table = _Table.find(text, columns, options, path)
    units = {role: table.unit(role, options.units.get(role)) for role in columns}
    units["time"], t_s, absolute = _times(table, units["time"], options)
    values = {
        role: table.numbers(role) * UNITS[role][units[role]] for role in columns if role != "time"
    }
    quantity: Literal["power", "energy"] = "energy" if "energy" in values else "power"
    value = values["current"] * values["voltage"] if "current" in values else values[quantity]
    there = ~np.isnan(value)
    t_s, value, lines = t_s[there], value[there], table.lines[there]
    kept = _in_order(t_s, value, lines, table)
    t_s, value, lines = t_s[kept], value[kept], lines[kept]
    if t_s.size < 2:
        raise InputError(
            f"the trace has {t_s.size} reading{'s' * (t_s.size != 1)}",
            where=str(path),
            fix="Export the whole trace: a reading every second at least, over the whole run.",
        )
    _check_values(t_s, value, lines, quantity, table)
    return Trace(
        path=path,
        sha256=hashlib.sha256(data).hexdigest(),
        size_bytes=len(data),
        columns={role: table.names[role] for role in columns},
        units={role: units[role] for role in columns},
        delimiter=table.delimiter,
        header_line=table.header_line,
        absolute=absolute,
        quantity=quantity,
        t_s=t_s,
        value=value,
        missing=int(np.sum(~there)),
        repeated=int(np.sum(~kept)),
        tick_s=_tick(t_s),
    )


def _check_options(options: TraceOptions) -> None:
    if options.decimal not in (".", ","):
        raise UsageError(
            f"the decimal sign is . or , and not {options.decimal!r}", where="--decimal"
        )
    if options.delimiter is not None and len(options.delimiter) != 1:
        raise UsageError("a delimiter is one character", where="--delimiter")
    if options.delimiter == options.decimal == ",":
        raise UsageError("a comma can't be both delimiter and decimal sign", where="--delimiter")
    for role, unit in options.units.items():
        known = [*UNITS[role], *(["iso"] if role == "time" else [])]
        if _canonical(role, unit) is None and not (
            role == "time" and (unit == "iso" or "%" in unit)
        ):
            raise UsageError(
                f"{unit!r} is no unit of {role}", where=f"--{role}-unit", fix=_one_of(unit, known)
            )


def _read(path: Path) -> bytes:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InputError(
            f"the trace can't be read: {(error.strerror or str(error)).lower()}",
            where=str(path),
            fix="Check the path after --trace.",
        ) from error
    if not data.strip(b"\0 \t\r\n\xef\xbb\xbf"):
        raise InputError(
            "the trace is empty", where=str(path), fix="Export it from the meter again."
        )
    return data


def _decode(data: bytes, path: Path) -> str:
    """UTF-8 with or without its mark, UTF-16 with it, or what Windows programs write (cp1252)."""
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        return data.decode("utf-16", errors="replace")
    if b"\0" in data[:4096]:
        raise InputError("the trace is no text", where=str(path), fix="Export it as CSV.")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        return data.decode("cp1252", errors="replace")


def _plain(name: str) -> str:
    """A column's name as compared: no quotes, no leading comment sign, one space at most."""
    return " ".join(name.strip().lstrip("#").strip().strip('"').split())


def _split(line: str, delimiter: str) -> list[str]:
    import csv

    return next(csv.reader([line], delimiter=delimiter), [])


def _one_of(wanted: str, names: Sequence[str]) -> str:
    """Names that there are, with the closest one first where there is one."""
    lower = {name.lower(): name for name in names}
    near = difflib.get_close_matches(wanted.lower(), lower, n=1, cutoff=0.5)
    if not near:
        near = [name for name in lower if wanted.lower() in name or name in wanted.lower()][:1]
    guess = f"Did you mean {lower[near[0]]!r}? " if near else ""
    return f"{guess}There {'is' if len(names) == 1 else 'are'}: {', '.join(names)}."


@dataclass(frozen=True)
class _Table:
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
    ) -> _Table:
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
    ) -> _Table:
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
            return stated or ("" if role == "time" else _BASE[role])
        unit = _canonical(role, given) or given
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
            self._refuse(role, doubtful & ~missing, "has a point though the decimal sign is ,")
            plain = text.str.replace(",", ".", regex=False)
        values = pd.to_numeric(plain, errors="coerce").to_numpy(dtype=np.float64, copy=True)
        bad = ~missing & ~np.isfinite(values)
        if np.any(bad):
            cell = str(text.iloc[int(np.argmax(bad))])
            comma = re.fullmatch(r"[+-]?\d+,\d+(?:[eE][+-]?\d+)?", cell)
            self._refuse(
                role,
                bad,
                "is no number",
                "If it has decimal commas, say --decimal ,"
                if comma
                else "Mend or remove that row; an overload is a reading that is not there.",
            )
        values[missing] = np.nan
        return np.asarray(values)

    def _refuse(self, role: Role, bad: npt.NDArray[np.bool_], what: str, fix: str = "") -> None:
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
    import csv

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
        fix=_one_of(missing, [cell for cell in header if cell])
        + " Without a header, name columns by number: time=#1,power=#2.",
    )


def _parser_text(text: str, header_line: int) -> str:
    """pandas' own words, with the line counted from the file's beginning."""
    text = text.removeprefix("Error tokenizing data. ").removeprefix("C error: ").strip()
    return re.sub(r"line (\d+)", lambda m: f"line {int(m[1]) + header_line}", text)


def _canonical(role: Role, unit: str) -> str | None:
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
        return _canonical(role, found[1] or found[2])
    tail = name.rsplit("_", 1)[-1] if "_" in name else ""
    lower = {unit.lower(): unit for unit in UNITS[role]}
    return lower.get(tail.lower())


def _unit_cell(role: Role, cells: pd.Series) -> str | None:
    """The unit in the first row where that is a row of units; "" for an empty cell there."""
    if not len(cells):
        return None
    text = str(cells.iloc[0]).strip()
    return "" if not text else _canonical(role, text.strip("[]() "))


def _times(
    table: _Table, unit: str, options: TraceOptions
) -> tuple[str, npt.NDArray[np.float64], bool]:
    """The unit that was taken, seconds, and whether they are Unix time."""
    cells = table.cells["time"]
    if not len(cells):
        raise InputError("the trace has no rows", where=str(table.path))
    table._refuse("time", (cells == "").to_numpy(dtype=bool), "is no time")
    if not unit:
        first = str(cells.iloc[0])
        unit = "s" if re.fullmatch(r"[+-]?[\d.,]+([eE][+-]?\d+)?", first) else "iso"
    if unit == "iso" or "%" in unit:
        return unit, _wall_times(table, cells, unit, options), True
    seconds = table.numbers("time")
    table._refuse("time", np.isnan(seconds), "is no time")
    seconds *= UNITS["time"][unit]
    middle = float(np.median(seconds))
    if middle < _RELATIVE_BELOW_S:
        return unit, seconds, False
    if _UNIX_FROM_S <= middle < _UNIX_BELOW_S:
        return unit, seconds, True
    likely = [
        other
        for other, factor in UNITS["time"].items()
        if _UNIX_FROM_S <= middle / UNITS["time"][unit] * factor < _UNIX_BELOW_S
    ]
    raise table.error(
        "time",
        table.lines[0],
        f"{cells.iloc[0]!s} {unit} is neither Unix time nor a time since the trace began",
        f"It looks like Unix time in {likely[0]}: say --time-unit {likely[0]}."
        if likely
        else "Say its unit with --time-unit.",
    )


def _wall_times(
    table: _Table, cells: pd.Series, unit: str, options: TraceOptions
) -> npt.NDArray[np.float64]:
    import pandas as pd

    if options.decimal == ",":
        cells = cells.str.replace(r",(?=\d+(?:\D|$))", ".", regex=True)
    if unit == "iso":
        wrong = ~cells.str.contains(_ISO, regex=True).to_numpy(dtype=bool)
        table._refuse(
            "time",
            wrong,
            "is neither a number nor an ISO 8601 time",
            'Say its form, as for strptime: --time-unit "%d.%m.%Y %H:%M:%S.%f".',
        )
    own = cells.str.contains(_OWN_OFFSET, regex=True).to_numpy(dtype=bool)
    if unit != "iso":
        own = np.full(len(cells), "%z" in unit)
    if np.any(own) and not np.all(own):
        table._refuse("time", own != own[0], "has another form than the times before it")
    parsed = pd.to_datetime(
        cells, format="ISO8601" if unit == "iso" else unit, utc=bool(own[0]), errors="coerce"
    )
    table._refuse("time", parsed.isna().to_numpy(dtype=bool), f"is no time of the form {unit}")
    if not own[0]:
        parsed = _localised(table, parsed, options.timezone)
    nanoseconds = parsed.dt.tz_convert("UTC").dt.tz_localize(None).astype("datetime64[ns]")
    return np.asarray(nanoseconds.to_numpy().astype(np.int64) / 1e9, dtype=np.float64)


def _localised(table: _Table, parsed: pd.Series, timezone: str | None) -> pd.Series:
    """Local times as moments; those that happen twice or never are refused."""
    if timezone is None:
        raise table.error(
            "time",
            table.lines[0],
            f"{table.cells['time'].iloc[0]!s} is a local time, and nothing says of which place",
            "Say it with --timezone Europe/Berlin (or UTC, if the meter writes that).",
        )
    try:
        zone = ZoneInfo(timezone)
    except (KeyError, ValueError, OSError) as error:
        raise UsageError(
            f"there is no time zone {timezone!r}",
            where="--timezone",
            fix="Give an IANA name, such as Europe/Berlin or UTC.",
        ) from error
    sure = parsed.dt.tz_localize(zone, ambiguous="NaT", nonexistent="shift_forward")
    table._refuse(
        "time",
        sure.isna().to_numpy(dtype=bool),
        f"happens twice in {timezone}: clocks are put back then",
        "Export the trace in UTC or with its offset (+01:00), or cut those rows off.",
    )
    there = parsed.dt.tz_localize(zone, ambiguous="NaT", nonexistent="NaT")
    table._refuse(
        "time",
        there.isna().to_numpy(dtype=bool),
        f"does not exist in {timezone}: clocks are put forward then",
        "Check --timezone.",
    )
    return there


def _in_order(
    t_s: npt.NDArray[np.float64],
    value: npt.NDArray[np.float64],
    lines: npt.NDArray[np.int64],
    table: _Table,
) -> npt.NDArray[np.bool_]:
    """Which rows are kept: all but those that repeat the one before them.

    Raises:
        InputError: time goes back, or one moment has two values.
    """
    steps = np.diff(t_s)
    back = np.flatnonzero(steps < 0)
    if back.size:
        at = int(back[0]) + 1
        raise table.error(
            "time",
            lines[at],
            f"time goes back by {-steps[at - 1]:.6g} s"
            + (f", and {back.size - 1} times more" if back.size > 1 else ""),
            "The rows are not in order, so sort the file by time; or the meter's clock was set "
            "while it logged: then measure again, since nobody knows which part is right."
            if back.size < 3
            else "Sort the file by its time column.",
        )
    same = np.append(False, steps == 0)
    differs = same & np.append(False, np.diff(value) != 0)
    if np.any(differs):
        at = int(np.argmax(differs))
        count = int(np.sum(differs))
        raise table.error(
            "time",
            lines[at],
            "the time is that of the row before, and the value another"
            + (f" ({count} such rows)" if count > 1 else ""),
            "Export more digits of the time, or the meter's count of samples.",
        )
    return ~same


def _check_values(
    t_s: npt.NDArray[np.float64],
    value: npt.NDArray[np.float64],
    lines: npt.NDArray[np.int64],
    quantity: str,
    table: _Table,
) -> None:
    """Refuse what no load can be: power below zero, a counter that goes back, a frozen meter.

    A little noise below zero is a meter's, and is kept: to cut it off would raise the mean.
    """
    role: Role = "energy" if quantity == "energy" else "power"
    if role not in table.names:
        role = "current"
    if quantity == "energy":
        back = np.flatnonzero(np.diff(value) < 0)
        if back.size:
            raise table.error(
                role,
                lines[back[0] + 1],
                "the energy counter goes back",
                "It wrapped or was reset while it logged: attach the part before or after that.",
            )
    else:
        below = value < -0.01 * float(np.max(np.abs(value)))
        if np.median(value) < 0 or np.any(below):
            at = int(np.argmax(below))
            raise table.error(
                role,
                lines[at],
                f"the power is negative ({value[at]:.6g} W)",
                "A battery was charging, or the meter's leads are the wrong way round: a load "
                "can't give power. Measure again with them right.",
            )
    if value.size >= 10 and np.all(value == value[0]):
        raise table.error(
            role,
            lines[0],
            f"all {value.size} readings are {value[0]:.6g} {'J' if quantity == 'energy' else 'W'}",
            "A meter that never changes is frozen, or this is not its reading column.",
        )


def _tick(t_s: npt.NDArray[np.float64]) -> float:
    """The largest power of ten (at most 1 s) of which all moments are multiples; 0 below 1 us."""
    for exponent in range(7):
        tick = 10.0**-exponent
        rest = np.abs(t_s / tick - np.round(t_s / tick))
        if np.all(rest < 1e-3):
            return tick
    return 0.0
