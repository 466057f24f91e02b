"""The columns of the latency table for people, by scenario, and how a figure is printed.

A figure is printed to two digits of its uncertainty: ``39.8 ± 2.7``, where ± is the larger side of
its 99 % interval. The highest percentile that the run asked for has its upper end:
``42.6 (<45.7)``. A figure that was withheld is ``—``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import floor, log10

from edgebench.results.rows import Row

ABSENT = "—"


@dataclass(frozen=True)
class Shown:
    """A column: its heading, and its cell of a row (latency, energy and power in one)."""

    name: str
    cell: Callable[[Row], str]


def columns_of(session: Sequence[Row], measured: Sequence[Row]) -> list[Shown]:
    """The columns between the artifact and the verdict, for the rows of one recording.

    Args:
        session, measured: its rows of the latency table, and of the energy and power tables.
    """
    size = [
        Shown("bits", lambda row: f"{row['storage_bits']} / {row['compute_bits']}"),
        Shown("MB", lambda row: f"{row['artifact_size_mb']:.1f}"),
    ]
    powered = any(row["energy_per_inference_j"] is not None for row in measured)
    decoders = session[0]["scenario"] in _DECODERS
    joules = "energy_per_token_j" if decoders else "energy_per_inference_j"
    power = [
        Shown("J/token" if decoders else "J/call", lambda row: plus_minus(row, joules)),
        Shown("peak W", lambda row: _plain(row["power_peak_w"])),
    ]
    if decoders:
        times = _DECODERS[session[0]["scenario"]](session)
        return [*size, *times, *(power if powered else []), *_quality(session)]
    tail = _tail(session)
    return [
        *size,
        _estimate("p50 ms", "latency_p50_ms"),
        _slow(f"{tail} ms", f"latency_{tail}_ms"),
        *(power if powered else []),
        Shown("accuracy", lambda row: plus_minus(row, "accuracy", scale=100, unit=" %")),
    ]


def _estimate(heading: str, name: str) -> Shown:
    return Shown(heading, lambda row: plus_minus(row, name))


def _slow(heading: str, name: str) -> Shown:
    return Shown(heading, lambda row: _bounded(row, name))


_MEMORY = Shown("peak MB", lambda row: _megabytes(row["memory_peak_rss_mb"]))
_SPEED = _estimate("tokens/s", "tokens_per_s")


def _prefill(session: Sequence[Row]) -> list[Shown]:
    tail = _tail(session)
    ttft = _estimate("TTFT p50 ms", "ttft_p50_ms")
    return [ttft, _slow(f"{tail} ms", f"latency_{tail}_ms"), _SPEED, _MEMORY]


def _decode(session: Sequence[Row]) -> list[Shown]:
    tail = _tail(session)
    tpot = _estimate("TPOT p50 ms", "tpot_p50_ms")
    return [tpot, _slow(f"{tail} ms", f"latency_{tail}_ms"), _SPEED, _MEMORY]


def _generate(session: Sequence[Row]) -> list[Shown]:
    return [
        _estimate("TTFT ms", "ttft_p50_ms"),
        _estimate("TPOT ms", "tpot_p50_ms"),
        _SPEED,
        _MEMORY,
    ]


_DECODERS = {"prefill": _prefill, "decode": _decode, "generate": _generate}


def _quality(session: Sequence[Row]) -> list[Shown]:
    """How good a decoder's answers are, as far as any row says it."""
    if any(row["perplexity"] is not None for row in session):
        return [_estimate("perplexity", "perplexity")]
    if any(row["greedy_agreement"] is not None for row in session):
        return [Shown("greedy", lambda row: _share(row["greedy_agreement"]))]
    return []


def _tail(session: Sequence[Row]) -> str:
    return next((p for p in _TAILS if any(_asked(row, p) for row in session)), "p99")


#: The slow end, the slowest first: one of them is shown.
_TAILS = ("p99", "p95", "p90")


def _asked(row: Row, percentile: str) -> bool:
    """Whether there is such a figure, or should be: a verdict counts what the run asked for."""
    there = row[f"latency_{percentile}_ms"] is not None
    return there or f"{percentile}-samples" in row["reasons"].split(";")


#: An interval so many times as wide as its figure bounds nothing: two launches that differ.
_UNBOUNDED = 10


def plus_minus(row: Row, name: str, *, scale: float = 1, unit: str = "") -> str:
    """A figure of a row with the larger side of its interval, to two digits of that."""
    value, lo, hi = (row[name + end] for end in ("", "_lo", "_hi"))
    if value is None:
        return ABSENT
    if lo is None or hi is None:
        return f"{value * scale:.4g}{unit} ± ?"
    half = scale * max(hi - value, value - lo)
    if half > _UNBOUNDED * scale * value > 0:
        return f"{value * scale:.3g}{unit} ± ?"
    # An interval wider than its figure must not round the figure away.
    digits = _decimals(min(half, scale * value) if value > 0 else half)
    return f"{value * scale:.{digits}f} ± {half:.{digits}f}{unit}"


def _bounded(row: Row, name: str) -> str:
    value, hi = row[name], row[f"{name}_hi"]
    if value is None:
        return ABSENT
    if hi is None:
        return f"{value:.4g}"
    digits = _decimals(hi - value)
    return f"{value:.{digits}f} (<{hi:.{digits}f})"


def _plain(value: float | None) -> str:
    return ABSENT if value is None else f"{value:.3g}"


def _decimals(uncertainty: float) -> int:
    """Decimal places that show two digits of an uncertainty (at most six places)."""
    if uncertainty <= 0:
        return 3
    return min(6, max(0, 1 - floor(log10(uncertainty))))


def _megabytes(value: float | None) -> str:
    return ABSENT if value is None else f"{value:.0f}"


def _share(value: float | None) -> str:
    return ABSENT if value is None else f"{100 * value:.0f} %"
