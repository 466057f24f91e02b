"""Fitting a decoder's matrices to calibration text: error feedback, one layer in memory at a time.

Each layer is read from the checkpoint and walked as an encoder is
(``edgebench.quantize.calibration``): a matrix is fitted to the inputs that the rounded layers
before it will really deliver. Two streams of hidden states go from layer to layer, those of the
exact layers and those of the rounded ones.

The writer asks for codes and scales in the order in which it stores matrices, which is the order of
the layers. So a layer is fitted when the first of its matrices is asked for, and forgotten when the
last of them has been.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from edgebench.export.decoder import pieces
from edgebench.export.decoder.architecture import TABLE, Architecture, Linear
from edgebench.export.decoder.network import Widths, hidden
from edgebench.export.decoder.pieces import States
from edgebench.export.decoder.source import Source
from edgebench.export.decoder.storage import Rows, plain
from edgebench.export.module import Feed
from edgebench.export.request import Progress
from edgebench.quantize import blocks, calibration
from edgebench.quantize.blocks import Width
from edgebench.quantize.calibration import Moments, Streams
from edgebench.quantize.feedback import fit_with_feedback
from edgebench.quantize.fit import dequantize
from edgebench.quantize.graph import Graph, Weight

Codes = tuple[NDArray[np.int8], NDArray[np.float16]]


class LayerFit:
    """Codes and scales of a decoder's matrices, in the order in which they are stored."""

    def __init__(
        self,
        architecture: Architecture,
        source: Source,
        widths: Widths,
        feeds: Sequence[Feed],
        *,
        unmerged: bool,
        progress: Progress,
    ) -> None:
        """
        Args:
            widths: of every matrix; those without are left in fp32.
            feeds: calibration text, ids and mask [rows, tokens].
            progress: called with each matrix that is fitted; the writer knows the share done.

        Raises:
            InputError: the calibration set is too short.
        """
        calibration.check(feeds)
        self._a = architecture
        self._source = source
        self._widths = widths
        self._feeds = feeds
        self._network = pieces.exact(architecture, source, unmerged)
        self._progress = progress
        self._next = 0
        self._found: dict[str, Codes] = {}
        self._streams: tuple[States, States] | None = None

    def __call__(self, name: str, rows: Rows, width: Width) -> Codes:
        """Codes [n, k] and scales of one matrix; tables are rounded plainly.

        Raises:
            InputError: the activations are not finite.
        """
        if name == TABLE:
            codes, scales = plain(name, rows, width)
            self._begin(rows, dequantize(codes, scales, width.block_size))
            return codes, scales
        if self._streams is None:
            rows = self._source.merged(self._a.table)
            self._begin(rows, rows)
        while name not in self._found and self._next < self._a.layers:
            self._fit_layer(self._next)
            self._next += 1
        if name not in self._found:
            self._fit_head()
        return self._found.pop(name)

    def _begin(self, exact: Rows, rounded: Rows) -> None:
        self._streams = (
            pieces.looked_up(exact, self._feeds),
            pieces.looked_up(rounded, self._feeds),
        )

    def _fit_layer(self, index: int) -> None:
        assert self._streams is not None
        exact, rounded = (
            pieces.layer_feeds(self._a, index, self._feeds, states) for states in self._streams
        )
        graph = Graph(pieces.layer(self._network, index))
        matrices = {matrix.name: matrix for matrix in self._a.layer(index).matrices}
        streams = Streams(graph, exact, None, rounded)
        self._visit(graph, streams, matrices)
        streams.exact.finish()
        streams.quantised.finish()
        after = hidden(index + 1)
        self._streams = streams.exact.values(after), streams.quantised.values(after)

    def _fit_head(self) -> None:
        assert self._streams is not None
        exact, rounded = (
            pieces.head_feeds(self._a, self._feeds, states) for states in self._streams
        )
        graph = Graph(pieces.head(self._network))
        self._visit(graph, Streams(graph, exact, None, rounded), {self._a.head.name: self._a.head})

    def _visit(self, graph: Graph, streams: Streams, matrices: dict[str, Linear]) -> None:
        """Fit one graph's matrices, in the order of the groups that they form."""
        weights, widths = [], {}
        for weight in graph.weights():
            matrix = matrices.get(weight.initializer.removesuffix(".weight"))
            width = self._widths(matrix, False) if matrix else None  # None: an adapter's factor
            if matrix and width:
                weights.append(weight)
                widths[weight.initializer] = matrix.name, width

        def fit(group: Sequence[Weight], moments: Moments) -> dict[str, Rows]:
            changed = {}
            for weight in group:
                name, width = widths[weight.initializer]
                self._progress(f"fitting {name}", None)
                codes, scales = fit_with_feedback(
                    graph.rows(weight), moments, width.block_size, bits=width.bits
                )
                self._found[name] = codes, scales
                values = dequantize(codes, scales, width.block_size)
                changed[weight.initializer] = blocks.stored_form(weight, values)
            return changed

        import threadpoolctl

        # As in ``edgebench.quantize.quantize``: the same file with any number of threads.
        with threadpoolctl.threadpool_limits(limits=1, user_api="blas"):
            streams.visit(calibration.grouped(graph, weights), fit)
