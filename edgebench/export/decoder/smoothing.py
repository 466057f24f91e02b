"""Moving scale between what a decoder's matrices read and the matrices themselves, exactly.

    y = W x = (W diag(s)) (x / s)

SmoothQuant (Xiao et al. 2023, arXiv:2211.10438): channels that are far larger than others in the
activations give some of it to the weights, which have a scale a row. In a decoder that normalises
first, 1/s goes for nothing into what makes x: the norm's weight (query, key, value; gate, up; the
head), the rows of up (down), the rows of value (output projection; query heads that share a value
head share s). An adapter's branch beside a matrix, and biases, are moved along.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from edgebench.export.decoder.architecture import Architecture, Linear
from edgebench.export.decoder.source import Array, Branch, Source

# SmoothQuant's range of factors is not bounded; beyond these a channel is all zero.
_FURTHEST = 1e4


class Smoothed(Source):
    """A source whose matrices read x / s, and whose makers of x give it."""

    def __init__(
        self, source: Source, taken: Mapping[str, Array], given: Mapping[str, Array]
    ) -> None:
        """
        Args:
            taken: s [k] of what a matrix reads, by the matrix's name.
            given: s [n] of what a matrix or a norm makes, by its name.
        """
        super().__init__(source.base, source.adapter, source.branches, source.replaced)
        self._taken = taken
        self._given = given

    def plain(self, name: str) -> Array:
        """A tensor with its share of the scales in it."""
        array = super().plain(name)
        stem, _, kind = name.rpartition(".")
        if kind == "weight" and stem in self._taken:
            array = array * self._taken[stem]
        if stem in self._given:
            array = np.ascontiguousarray((array.T / self._given[stem]).T)
        return array

    def branch(self, matrix: Linear) -> Branch | None:
        """The adapter's factors with their shares."""
        found = super().branch(matrix)
        if found is None:
            return None
        down, up = found.down, found.up
        if matrix.name in self._taken:
            down = down * self._taken[matrix.name][:, None]
        if matrix.name in self._given:
            up = up / self._given[matrix.name]
        return Branch(down, up)


def factors(largest: Array, columns: Array, alpha: float) -> Array:
    """s [k]: largest^alpha / columns^(1 - alpha), around 1.

    Args:
        largest: of each channel's activations, without sign [k].
        columns: the largest weight, without sign, that each channel is multiplied by [k].
        alpha: 0 leaves the weights level, 1 the activations.
    """
    logs = alpha * _logs(largest) - (1 - alpha) * _logs(columns)
    scaled: Array = np.exp(logs - logs.mean()).clip(1 / _FURTHEST, _FURTHEST).astype(np.float32)
    return scaled


def shared_by_heads(a: Architecture, largest: Array) -> Array:
    """The largest over the query heads that share a value head, [heads * head_dim]."""
    by_head = largest.reshape(a.kv_heads, a.heads // a.kv_heads, a.head_dim)
    return np.broadcast_to(by_head.max(1, keepdims=True), by_head.shape).reshape(-1)


def of_value_heads(a: Architecture, s: Array) -> Array:
    """s of the output projection's channels as s of the value projection's rows."""
    by_head = s.reshape(a.kv_heads, a.heads // a.kv_heads, a.head_dim)
    return np.ascontiguousarray(by_head[:, 0].reshape(-1))


def _logs(values: Array) -> NDArray[np.float64]:
    wide = values.astype(np.float64)
    least = wide.max(initial=0) / _FURTHEST or 1.0
    return np.log(np.maximum(wide, least))
