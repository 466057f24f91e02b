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

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from edgebench.errors import InputError, UsageError
from edgebench.results.trace_table import (
    ROLES,
    UNITS,
    Role,
    Table,
    TraceOptions,
    canonical,
    one_of,
)
from edgebench.results.trace_time import times

__all__ = ["Role", "Trace", "TraceOptions", "parse_columns", "read_trace"]


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
    table = Table.find(text, columns, options, path)
    units = {role: table.unit(role, options.units.get(role)) for role in columns}
    units["time"], t_s, absolute = times(table, units["time"], options)
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
        if canonical(role, unit) is None and not (
            role == "time" and (unit == "iso" or "%" in unit)
        ):
            raise UsageError(
                f"{unit!r} is no unit of {role}", where=f"--{role}-unit", fix=one_of(unit, known)
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


def _in_order(
    t_s: npt.NDArray[np.float64],
    value: npt.NDArray[np.float64],
    lines: npt.NDArray[np.int64],
    table: Table,
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
    table: Table,
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
