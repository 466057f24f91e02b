"""Static ranges of what a decoder's matrices read, from calibration text, a layer at a time.

The exact model reads the text; each channel's smallest and largest value is kept, and the first
rows' activations. Then, for each group of matrices that read the same value, scale is moved between
activations and weights (``smoothing``), with the alpha of ``_ALPHAS`` at which the products of
quantised activations by quantised weights are nearest to the exact ones.

A decoder's activations have values that are a hundred times the others, in few tokens and channels
(Sun et al. 2024, arXiv:2402.17762), above all what the down projection reads: one token's scale is
every token's then, and no factor a channel helps. Where the products stay off by more than
``_LARGEST_ERROR`` of their squared length, activations are quantised in two pieces (``static``).
SmolLM2-135M, six articles, KL from fp32 in nats: one piece everywhere .16, alpha .65 everywhere
.10, two pieces above an error of .002: .08, of .001: .065, of .0005: .014.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from edgebench.errors import InputError
from edgebench.export.decoder import pieces
from edgebench.export.decoder.architecture import NORM, Architecture, Linear
from edgebench.export.decoder.pieces import Open
from edgebench.export.decoder.smoothing import (
    Smoothed,
    factors,
    of_value_heads,
    shared_by_heads,
)
from edgebench.export.decoder.source import Array, Source
from edgebench.export.decoder.static import Range, StaticStorage, rounded
from edgebench.export.decoder.storage import Data
from edgebench.export.module import Feed
from edgebench.export.request import Progress
from edgebench.quantize import calibration

_ALPHAS = (0.5, 0.65, 0.8, 0.9)
_LARGEST_ERROR = 5e-4

# In two pieces there are bits to spare: room for twice what the text brought.
_ROOM = 2.0

# Rows of text that alphas are compared on, and rows of a matrix (heads have tens of thousands).
_TRIED = 4
_MOST_ROWS = 1024


@dataclass
class Static:
    """What the scheme int8-static stores: scales that were moved, and ranges.

    ``lookup`` [hidden] takes the head's scales out of what a tied table gives.
    """

    taken: dict[str, Array] = field(default_factory=dict)
    given: dict[str, Array] = field(default_factory=dict)
    ranges: dict[str, Range] = field(default_factory=dict)
    alphas: dict[str, float] = field(default_factory=dict)
    lookup: Array | None = None

    def smoothed(self, source: Source) -> Source:
        return Smoothed(source, self.taken, self.given)

    def storage(self, data: Data) -> StaticStorage:
        return StaticStorage(data, self.ranges, self.lookup)

    @property
    def details(self) -> dict[str, Any]:
        """For the manifest."""
        return {
            "alphas": self.alphas,
            "in_two_pieces": [name for name, range in self.ranges.items() if range.twice],
        }


def find(
    a: Architecture, source: Source, feeds: Sequence[Feed], *, unmerged: bool, progress: Progress
) -> Static:
    """Scales and ranges for every matrix.

    Args:
        feeds: calibration text, ids and mask [rows, tokens].
        progress: called with the share of the layers that is done.

    Raises:
        InputError: the calibration set is too short, or gives activations that are not finite.
    """
    calibration.check(feeds)
    found = Static()
    table = source.merged(a.table)
    states = pieces.looked_up(table, feeds)
    if not a.tied:
        del table
    built = pieces.exact(a, source, unmerged)
    for index in range(a.layers):
        progress(f"finding the ranges of layer {index + 1} of {a.layers}", index / a.layers)
        layer = Open(built, index)
        seen = {name: _Seen() for name in layer.read}
        given = pieces.layer_feeds(a, index, feeds, states)
        for position, (feed, values) in enumerate(zip(feeds, given, strict=True)):
            states[position], read = layer.run(values)
            for name, value in read.items():
                seen[name].add(value, feed)
        _layer(a, found, layer, seen)
    progress("finding the range of the head", 1.0)
    weight = source.plain(f"{NORM}.weight")
    last = _Seen()
    for feed, state in zip(feeds, states, strict=True):
        last.add(pieces.normed(a, state, weight), feed)
    rows = table if a.tied else pieces.rows(source, a.head, unmerged)
    s = _group(found, {a.head: rows}, last, looked_up=a.tied)
    found.given[NORM] = s
    if a.tied:
        found.lookup = (1 / s).astype(np.float32)
    return found


class _Seen:
    """What a group of matrices reads: each channel's range [k], and some of it [tokens, k]."""

    def __init__(self) -> None:
        self.lowest: Array | None = None
        self.highest: Array | None = None
        self.some: Array | None = None

    def add(self, value: Array, feed: Feed) -> None:
        """Note a batch [rows, tokens, k], padding left out."""
        if self.some is None:
            first = {key: array[:_TRIED] for key, array in feed.items()}
            self.some = pieces.kept(value[:_TRIED], first)
        kept = pieces.kept(value, feed)
        low, high = kept.min(0), kept.max(0)
        if not (np.isfinite(low).all() and np.isfinite(high).all()):
            raise InputError(
                "the calibration inputs give activations that are NaN or infinite",
                fix="Check the checkpoint, and the text given with --calibration.",
            )
        self.lowest = low if self.lowest is None else np.minimum(self.lowest, low)
        self.highest = high if self.highest is None else np.maximum(self.highest, high)

    def range(self, s: Array, *, twice: bool) -> Range:
        """Of x / s."""
        assert self.lowest is not None
        assert self.highest is not None
        low, high = float((self.lowest / s).min()), float((self.highest / s).max())
        return Range.in_two(_ROOM * low, _ROOM * high) if twice else Range.of(low, high)

    @property
    def largest(self) -> Array:
        assert self.lowest is not None
        assert self.highest is not None
        found: Array = np.maximum(np.abs(self.lowest), np.abs(self.highest))
        return found


def _layer(a: Architecture, found: Static, layer: Open, seen: dict[str, _Seen]) -> None:
    """A layer's groups, from behind: down's scales are in up's rows before up's group is scaled."""
    names = a.layer(layer.index)

    def group(*matrices: Linear) -> Array:
        rows = {matrix: layer.rows(matrix) for matrix in matrices}
        for matrix in matrices:
            if matrix.name in found.given:
                rows[matrix] = rows[matrix] / found.given[matrix.name][:, None]
        shared = a if names.o in matrices else None
        return _group(found, rows, seen[layer.reads[matrices[0]]], shared)

    found.given[names.up.name] = group(names.down)
    found.given[names.feed_forward_norm] = group(names.gate, names.up)
    found.given[names.v.name] = of_value_heads(a, group(names.o))
    found.given[names.attention_norm] = group(names.q, names.k, names.v)


def _group(
    found: Static,
    rows: dict[Linear, Array],
    seen: _Seen,
    by_heads: Architecture | None = None,
    *,
    looked_up: bool = False,
) -> Array:
    """Choose s [k] and the range of matrices that read one value, and note them.

    Args:
        by_heads: whose heads share factors, where those of a value head must be the same.
        looked_up: the matrix is a table as well, whose rows must stay near.
    """
    some, largest = seen.some, seen.largest
    assert some is not None
    columns = np.max([np.abs(part).max(0) for part in rows.values()], axis=0)
    if by_heads is not None:
        largest, columns = (shared_by_heads(by_heads, each) for each in (largest, columns))
    tried = [part[:: max(1, len(part) // _MOST_ROWS)] for part in rows.values()]
    exact = [some @ part.T for part in tried]

    def best(twice: bool) -> tuple[float, float, float, Array, Range]:
        ways = []
        for alpha in _ALPHAS:
            s = factors(largest, columns, alpha)
            chosen = seen.range(s, twice=twice)
            error = _error(some / s, chosen, s, tried, exact)
            beside = _table_error(tried[0], s) if looked_up else 0.0
            ways.append((error + beside, alpha, error, s, chosen))
        return min(ways, key=lambda way: way[:2])

    _, alpha, error, s, chosen = best(twice=False)
    if error > _LARGEST_ERROR:
        _, alpha, error, s, chosen = best(twice=True)
    for matrix in rows:
        found.taken[matrix.name] = s
        found.ranges[matrix.name] = chosen
        found.alphas[matrix.name] = alpha
    return s


def _error(
    x: Array, chosen: Range, s: Array, rows: Sequence[Array], exact: Sequence[Array]
) -> float:
    """Squared error of the products over their squared length, mean over tokens and matrices."""
    seen = chosen.quantised(x)
    errors = []
    for part, wanted in zip(rows, exact, strict=True):
        codes, scales = rounded(part * s)
        off = seen @ (codes * scales[:, None]).T - wanted
        length = np.maximum((wanted**2).sum(1), np.finfo(np.float32).tiny)
        errors.append(float(((off**2).sum(1) / length).mean()))
    return float(np.mean(errors))


def _table_error(rows: Array, s: Array) -> float:
    """Squared error of rows that were rounded as rows s, over their squared length, mean."""
    codes, scales = rounded(rows * s)
    off = codes * scales[:, None] / s - rows
    length = np.maximum((rows**2).sum(1), np.finfo(np.float32).tiny)
    return float(((off**2).sum(1) / length).mean())
