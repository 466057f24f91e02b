"""The moments of a trace: ISO 8601, another written form, Unix time, or seconds of its own.

A local time may mean two moments, or none; without its place it means nothing.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING
from zoneinfo import ZoneInfo

import numpy as np
import numpy.typing as npt

from edgebench.errors import InputError, UsageError
from edgebench.results.trace_table import UNITS, Table, TraceOptions

if TYPE_CHECKING:
    import pandas as pd

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


def times(
    table: Table, unit: str, options: TraceOptions
) -> tuple[str, npt.NDArray[np.float64], bool]:
    """The unit that was taken, seconds, and whether they are Unix time."""
    cells = table.cells["time"]
    if not len(cells):
        raise InputError("the trace has no rows", where=str(table.path))
    table.refuse("time", (cells == "").to_numpy(dtype=bool), "is no time")
    if not unit:
        first = str(cells.iloc[0])
        unit = "s" if re.fullmatch(r"[+-]?[\d.,]+([eE][+-]?\d+)?", first) else "iso"
    if unit == "iso" or "%" in unit:
        return unit, _wall_times(table, cells, unit, options), True
    seconds = table.numbers("time")
    table.refuse("time", np.isnan(seconds), "is no time")
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
    table: Table, cells: pd.Series, unit: str, options: TraceOptions
) -> npt.NDArray[np.float64]:
    import pandas as pd

    if options.decimal == ",":
        cells = cells.str.replace(r",(?=\d+(?:\D|$))", ".", regex=True)
    if unit == "iso":
        wrong = ~cells.str.contains(_ISO, regex=True).to_numpy(dtype=bool)
        table.refuse(
            "time",
            wrong,
            "is neither a number nor an ISO 8601 time",
            'Say its form, as for strptime: --time-unit "%d.%m.%Y %H:%M:%S.%f".',
        )
    own = cells.str.contains(_OWN_OFFSET, regex=True).to_numpy(dtype=bool)
    if unit != "iso":
        own = np.full(len(cells), "%z" in unit)
    if np.any(own) and not np.all(own):
        table.refuse("time", own != own[0], "has another form than the times before it")
    parsed = pd.to_datetime(
        cells, format="ISO8601" if unit == "iso" else unit, utc=bool(own[0]), errors="coerce"
    )
    table.refuse("time", parsed.isna().to_numpy(dtype=bool), f"is no time of the form {unit}")
    if not own[0]:
        parsed = _localised(table, parsed, options.timezone)
    nanoseconds = parsed.dt.tz_convert("UTC").dt.tz_localize(None).astype("datetime64[ns]")
    return np.asarray(nanoseconds.to_numpy().astype(np.int64) / 1e9, dtype=np.float64)


def _localised(table: Table, parsed: pd.Series, timezone: str | None) -> pd.Series:
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
    table.refuse(
        "time",
        sure.isna().to_numpy(dtype=bool),
        f"happens twice in {timezone}: clocks are put back then",
        "Export the trace in UTC or with its offset (+01:00), or cut those rows off.",
    )
    there = parsed.dt.tz_localize(zone, ambiguous="NaT", nonexistent="NaT")
    table.refuse(
        "time",
        there.isna().to_numpy(dtype=bool),
        f"does not exist in {timezone}: clocks are put forward then",
        "Check --timezone.",
    )
    return there
