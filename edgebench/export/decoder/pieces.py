"""Parts of a decoder in fp32 as models of their own, in memory: what fitting and measuring run.

One layer is read from the checkpoint, built, run and dropped, so memory holds one layer, whatever
the size of the model. What travels from layer to layer are the calibration rows' hidden states,
[rows, tokens, hidden].
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from edgebench.export.decoder import network
from edgebench.export.decoder.architecture import Architecture, Linear
from edgebench.export.decoder.network import IDS, KEEP, LOGITS, MASK, Network, Value, hidden, past
from edgebench.export.decoder.source import Source
from edgebench.export.decoder.storage import Storage, Table
from edgebench.export.module import Feed
from edgebench.export.session import open_session, runtime_errors

States = list[NDArray[np.float32]]
"""Hidden states [rows, tokens, hidden] of each batch of calibration rows."""


class Memory:
    """Where initialisers stay in the graph."""

    def tensor(self, name: str, array: NDArray[Any]) -> onnx.TensorProto:
        return numpy_helper.from_array(np.ascontiguousarray(array), name)


def exact(architecture: Architecture, source: Source, unmerged: bool) -> Network:
    """Builds parts with every matrix in fp32."""
    storage = Storage(Memory(), 32)
    return Network(architecture, source, storage, lambda _matrix, _looked_up: None, unmerged)


def layer(built: Network, index: int) -> onnx.ModelProto:
    """Layer ``index``: hidden.i, the mask and empty caches in, hidden.i+1 out."""
    a = built.architecture
    given = [_state(a, index), _MASK, *network.caches(a, index, past)]
    return network.model([built.shared(), built.layer(index)], given, [_state(a, index + 1)])


def head(built: Network) -> onnx.ModelProto:
    """The last norm and a head of its own: hidden.L in, logits out."""
    a = built.architecture
    given: list[Value] = [_state(a, a.layers), (KEEP, TensorProto.INT64, (1,))]
    logits: Value = (LOGITS, TensorProto.FLOAT, ("batch", "kept", a.vocab_size))
    return network.model([built.head(Table([], (), None))], given, [logits])


def layer_feeds(
    a: Architecture, index: int, feeds: Sequence[Feed], states: States
) -> list[dict[str, NDArray[Any]]]:
    """What a layer is given: a prefill with empty caches."""
    found: list[dict[str, NDArray[Any]]] = []
    for feed, state in zip(feeds, states, strict=True):
        rows, tokens = feed[IDS].shape
        empty = np.zeros((rows, a.kv_heads, tokens, a.head_dim), np.float32)
        given: dict[str, NDArray[Any]] = {hidden(index): state, MASK: feed[MASK]}
        found.append(given | dict.fromkeys(past(index), empty))
    return found


def head_feeds(
    a: Architecture, feeds: Sequence[Feed], states: States
) -> list[dict[str, NDArray[Any]]]:
    """What the head is given: every position."""
    return [
        {hidden(a.layers): state, KEEP: np.array([state.shape[1]], np.int64), MASK: feed[MASK]}
        for feed, state in zip(feeds, states, strict=True)
    ]


def looked_up(rows: NDArray[np.float32], feeds: Sequence[Feed]) -> States:
    """The embeddings of every calibration row."""
    return [rows[feed[IDS]] for feed in feeds]


def normed(
    a: Architecture, states: NDArray[np.float32], weight: NDArray[np.float32]
) -> NDArray[np.float32]:
    """RMSNorm (arXiv:1910.07467) of hidden states [.., hidden]: what the head reads."""
    mean = (states.astype(np.float64) ** 2).mean(-1, keepdims=True)
    found: NDArray[np.float32] = (states / np.sqrt(mean + a.norm_eps) * weight).astype(np.float32)
    return found


def rows(source: Source, matrix: Linear, unmerged: bool) -> NDArray[np.float32]:
    """A matrix [n, k] as it is computed with: with its branch in it, or beside it."""
    return source.plain(f"{matrix.name}.weight") if unmerged else source.merged(matrix)


def kept(value: NDArray[np.float32], feed: Feed) -> NDArray[np.float32]:
    """The positions [n, k] of [rows, tokens, k] that are not padding."""
    found: NDArray[np.float32] = value[feed[MASK] != 0]
    return found


_MASK: Value = (MASK, TensorProto.INT64, ("batch", "total_sequence"))


def _state(a: Architecture, index: int) -> Value:
    return hidden(index), TensorProto.FLOAT, ("batch", "sequence", a.hidden)


class Open:
    """A layer whose matrices can be changed from run to run, and which shows what they read."""

    def __init__(self, built: Network, index: int) -> None:
        """
        Raises:
            ExportError: the runtime refuses the layer.
        """
        self.index = index
        model = layer(built, index)
        graph = model.graph
        named = {f"{m.name}.weight": m for m in built.architecture.layer(index).matrices}
        self.reads: dict[Linear, str] = {
            named[node.input[1]]: node.input[0]
            for node in graph.node
            if node.input[1:2] and node.input[1] in named
        }
        self.read = tuple(dict.fromkeys(self.reads.values()))
        self._weights = {}
        for tensor in [t for t in graph.initializer if t.name in named]:
            self._weights[tensor.name] = numpy_helper.to_array(tensor)
            value = helper.make_tensor_value_info(tensor.name, TensorProto.FLOAT, tensor.dims)
            graph.input.append(value)
            graph.initializer.remove(tensor)
        graph.output.extend(onnx.ValueInfoProto(name=name) for name in self.read)
        self._what = f"fp32 layer {index + 1}"
        with runtime_errors(self._what):
            self._session = open_session(model.SerializeToString())

    def width(self, read: str) -> int:
        """How many values a value has at each position."""
        return next(matrix.k for matrix, name in self.reads.items() if name == read)

    def rows(self, matrix: Linear) -> NDArray[np.float32]:
        """A matrix [n, k] as it is computed with."""
        return np.ascontiguousarray(self._weights[f"{matrix.name}.weight"].T)

    def run(
        self,
        feed: Mapping[str, NDArray[Any]],
        changed: Mapping[Linear, NDArray[np.float32]] | None = None,
    ) -> tuple[NDArray[np.float32], dict[str, NDArray[np.float32]]]:
        """hidden.i+1, and what the matrices read; with other rows [n, k] for some matrices."""
        weights = dict(self._weights)
        for matrix, rows in (changed or {}).items():
            weights[f"{matrix.name}.weight"] = np.ascontiguousarray(rows.T)
        names = [hidden(self.index + 1), *self.read]
        with runtime_errors(self._what):
            made, *read = self._session.run(names, {**feed, **weights})
        return made, dict(zip(self.read, read, strict=True))
