"""Running a graph on calibration inputs, one group of weights after the other.

A *group* is the matrices that read one value: a block's query, key and value. The list of nodes is
cut before the first reader of every group, and each piece is run once, on what the pieces before it
left behind: the values that are made before the cut and read after it. So the cost is that of one
pass over the inputs, and memory holds one cut's values, not every layer's.

Two streams run side by side: the exact one, with the model's own weights, and the quantised one,
whose weights are replaced by what has been fitted so far. A fit sees both: what the matrix was
meant to be given, and what it will be given.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from edgebench.errors import InputError
from edgebench.quantize.graph import Graph, Weight, values_read

Feed = Mapping[str, NDArray[Any]]

LEAST_TOKENS = 512
"""Fewer positions than this say nothing about a matrix: even MiniLM's narrow ones have 384 inputs,
and what is fitted to fewer samples than inputs is fitted to noise."""

_MASK = "attention_mask"


@dataclass(frozen=True)
class Moments:
    """Second moments of what a group reads, over all positions of all inputs, in float64.

    ``quantised`` [k, k] is the mean of x x^T with x as the quantised layers before deliver it,
    ``cross`` [k, k] the mean of y x^T with y as the exact layers deliver it.
    """

    quantised: NDArray[np.float64]
    cross: NDArray[np.float64]


def check(feeds: Sequence[Feed]) -> int:
    """The number of positions in a calibration set, those under the mask left out.

    Raises:
        InputError: it is empty, or shorter than ``LEAST_TOKENS``.
    """
    tokens = sum(_positions(feed) for feed in feeds)
    if not tokens:
        raise InputError("the calibration set is empty", fix=_MORE)
    if tokens < LEAST_TOKENS:
        raise InputError(
            f"the calibration set has {tokens} tokens, at least {LEAST_TOKENS} are needed",
            fix=_MORE,
        )
    return tokens


def first(feeds: Sequence[Feed], tokens: int) -> list[Feed]:
    """The first batches that have so many positions together; all where they have fewer."""
    taken: list[Feed] = []
    for feed in feeds:
        taken.append(feed)
        tokens -= _positions(feed)
        if tokens <= 0:
            break
    return taken


_MORE = "Give more text with --calibration."


Fit = Callable[[Sequence[Weight], Moments], Mapping[str, NDArray[np.float32]]]
"""Gives a group's weights new values, by what they read."""


def walk(
    graph: Graph,
    groups: Sequence[Sequence[Weight]],
    feeds: Sequence[Feed],
    fit: Fit,
    replaced: Mapping[str, NDArray[np.float32]],
) -> list[dict[str, NDArray[Any]]]:
    """Visit every group in order, and return the quantised graph's outputs for each feed.

    Args:
        graph: the exact model; it is not changed.
        groups: weights by the value that they read, as ``grouped`` gives them.
        feeds: calibration inputs, batch by batch.
        fit: called once a group; gives new values for initialisers, in their own shapes.
        replaced: initialisers that the quantised stream has replaced from the start (tables).

    Raises:
        InputError: a feed lacks an input of the model.
    """
    streams = Streams(graph, feeds, replaced)
    streams.visit(groups, fit)
    streams.quantised.finish()
    return streams.quantised.live


class Streams:
    """A graph's two streams. They may begin apart: a layer behind others that were rounded."""

    def __init__(
        self,
        graph: Graph,
        feeds: Sequence[Feed],
        replaced: Mapping[str, NDArray[np.float32]] | None = None,
        quantised: Sequence[Feed] | None = None,
    ) -> None:
        """
        Args:
            feeds: inputs of the exact stream, and of both where ``quantised`` is None.

        Raises:
            InputError: a feed lacks an input of the model.
        """
        names = {value.name for value in graph.proto.input} - set(graph.initializers)
        for feed in feeds:
            if lacking := sorted(names - set(feed)):
                raise InputError(
                    f"the calibration inputs lack {lacking[0]!r}, which the model takes"
                )

        def taken(given: Sequence[Feed]) -> list[Feed]:
            return [{n: a for n, a in feed.items() if n in names} for feed in given]

        self._feeds = feeds
        self.exact = Stream(graph, taken(feeds))
        self.quantised = Stream(
            graph, taken(feeds if quantised is None else quantised), dict(replaced or {})
        )

    def visit(self, groups: Sequence[Sequence[Weight]], fit: Fit) -> None:
        """Bring both streams to the last group's cut; the values after it: ``Stream.finish``."""
        for group in groups:
            cut = min(weight.node for weight in group)
            value = self.exact.graph.proto.node[cut].input[0]
            self.exact.run_to(cut)
            self.quantised.run_to(cut)
            found = _moments(self.exact.values(value), self.quantised.values(value), self._feeds)
            self.quantised.replaced.update(fit(group, found))


def grouped(graph: Graph, weights: Sequence[Weight]) -> list[list[Weight]]:
    """Weights by the value that they read, in the order of the first reader of each."""
    groups: dict[str, list[Weight]] = {}
    for weight in weights:
        groups.setdefault(graph.proto.node[weight.node].input[0], []).append(weight)
    return list(groups.values())


class Stream:
    """The values that are alive at a cut of the list of nodes, for each feed."""

    def __init__(
        self,
        graph: Graph,
        feeds: Sequence[Feed],
        replaced: dict[str, NDArray[np.float32]] | None = None,
    ) -> None:
        self.graph = graph
        self.replaced = replaced or {}
        self.live: list[dict[str, NDArray[Any]]] = [dict(feed) for feed in feeds]
        self._at = 0

    def values(self, name: str) -> list[NDArray[Any]]:
        return [live[name] for live in self.live]

    def finish(self) -> None:
        """Run what is left: ``live`` then holds the outputs."""
        self.run_to(len(self.graph.proto.node))

    def run_to(self, stop: int) -> None:
        """Run the nodes from the cut so far up to, and without, the node ``stop``."""
        proto = self.graph.proto
        nodes = list(proto.node[self._at : stop])
        self._at = stop
        if not nodes:
            return
        made = {name for node in nodes for name in node.output if name}
        later = values_read(list(proto.node[stop:])) | {value.name for value in proto.output}
        wanted = sorted(made & later)
        session = self._session(nodes, wanted)
        takes = [value.name for value in session.get_inputs()]
        for position, live in enumerate(self.live):
            results = session.run(wanted, {name: live[name] for name in takes})
            kept = {name: array for name, array in live.items() if name in later}
            self.live[position] = kept | dict(zip(wanted, results, strict=True))

    def _session(self, nodes: list[onnx.NodeProto], wanted: list[str]) -> Any:
        import onnxruntime

        read = values_read(nodes)
        initializers = [
            numpy_helper.from_array(self.replaced[name], name) if name in self.replaced else tensor
            for name, tensor in self.graph.initializers.items()
            if name in read
        ]
        (first, *_) = self.live
        inputs = [
            helper.make_tensor_value_info(
                name, helper.np_dtype_to_tensor_dtype(array.dtype), [None] * array.ndim
            )
            for name, array in first.items()
            if name in read
        ]
        piece = helper.make_model(
            helper.make_graph(
                nodes, "piece", inputs, [onnx.ValueInfoProto(name=n) for n in wanted], initializers
            ),
            opset_imports=self.graph.model.opset_import,
            functions=self.graph.model.functions,
            ir_version=self.graph.model.ir_version,
        )
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        return onnxruntime.InferenceSession(
            piece.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )


def _moments(
    exact: Sequence[NDArray[Any]], quantised: Sequence[NDArray[Any]], feeds: Sequence[Feed]
) -> Moments:
    k = exact[0].shape[-1]
    quantised_sum, cross_sum, total = np.zeros((k, k)), np.zeros((k, k)), 0
    for whole, given, feed in zip(exact, quantised, feeds, strict=True):
        keep = _kept(given, feed)
        x = given.reshape(-1, k)[keep].astype(np.float32)
        y = whole.reshape(-1, k)[keep].astype(np.float32)
        quantised_sum += x.T @ x
        cross_sum += y.T @ x
        total += len(x)
    quantised_sum /= total
    cross_sum /= total
    return Moments(quantised_sum, cross_sum)


def _kept(value: NDArray[Any], feed: Feed) -> Any:
    """The positions of [batch, sequence, k] that are not padding; all of any other shape."""
    mask = feed.get(_MASK)
    if mask is None or value.shape[:-1] != mask.shape:
        return slice(None)
    return mask.reshape(-1) != 0


def _positions(feed: Feed) -> int:
    mask = feed.get(_MASK)
    if mask is not None:
        return int((mask != 0).sum())
    return max((array.size for array in feed.values()), default=0)
