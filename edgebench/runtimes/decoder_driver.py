"""One prompt after another through a decoder's graph: bindings, buffers and the cache behind them.

This file is sent to the device beside the agent, so it runs on Python 3.8 and imports numpy and
what travels along, nothing else.
"""

from __future__ import annotations

from typing import Any, List

from edgebench.runtimes.decoder_graph import IDS, LOGITS, MASK


class Driver:
    """Prompts of one length through one binding and one cache.

    ONNX Runtime is given the addresses of the buffers here, so they live as long as this does.
    """

    def __init__(self, runtime: Any, length: int, longest: int, every: bool = False) -> None:
        """Make the buffers.

        Args:
            runtime: a ``DecoderRuntime``.
            length: tokens of a prompt.
            longest: positions that are written at most.
            every: logits of all positions of the prompt, not of the last alone.
        """
        import numpy

        self.graph, self.shared, self.device = runtime.graph, runtime.shared, runtime.device
        self.length = length
        self.empty = self.cache = runtime.cache(longest)
        self.mask = numpy.ones((1, longest), dtype=numpy.int64)
        self.positions = numpy.arange(longest, dtype=numpy.int64)[None]
        self.next = numpy.zeros((1, 1), dtype=numpy.int64)
        kept = length if every or not self.graph.keep else 1
        self.kept = numpy.array([kept], dtype=numpy.int64)
        kind = numpy.dtype(self.graph.logits_type)
        self.logits = numpy.zeros((1, kept, runtime.vocabulary), dtype=kind)
        one = (1, 1, runtime.vocabulary)
        self.last = self.logits if kept == 1 else numpy.zeros(one, dtype=kind)
        self.bound: Any = None
        self.binding = runtime.session.io_binding()
        self.call = runtime.session.run_with_iobinding
        runtime.adapters.bind_active(self.binding)
        self._output(self.logits)
        if self.graph.keep:
            self._input(self.graph.keep, self.kept, [1])
        if self.shared:
            for past, present in self.graph.pairs:
                self.binding.bind_ortvalue_input(past, self.cache[past])
                self.binding.bind_ortvalue_output(present, self.cache[past])

    def run(self, ids: Any) -> None:
        """A prompt [1, length] through an empty cache; its logits are in ``logits``."""
        self.cache = self.empty
        self._output(self.logits)
        self._pass(ids, 0, True)

    def prefill(self, ids: Any) -> int:
        """A prompt [1, length] through an empty cache, and the token that follows it."""
        self.run(ids)
        return int(self.logits[0, -1].argmax())

    def step(self, token: int, behind: int, again: bool = False) -> int:
        """The token after ``token``, which is the ``behind``-th (from 1) behind the prompt.

        Args:
            again: leave the cache as it is, so that the same step can be made again.
        """
        self.next[0, 0] = token
        self._output(self.last)
        self._pass(self.next, self.length + behind - 1, not again)
        return int(self.last[0, 0].argmax())

    def _pass(self, ids: Any, position: int, advance: bool) -> None:
        """Ids [1, n] that stand at ``position`` and behind it, through the graph."""
        count = ids.shape[1]
        end = position + count
        self._input(IDS, ids, [1, count])
        for name in self.graph.takes:
            if name == MASK:
                self._input(name, self.mask, [1, end])
            else:
                self._input(name, self.positions[:, position:end], [1, count])
        if self.shared:
            self.call(self.binding)
            return
        for past, present in self.graph.pairs:
            self.binding.bind_ortvalue_input(past, self.cache[past])
            self.binding.bind_output(present, self.device)
        self.call(self.binding)
        if advance:
            # Outputs come in the order in which they were first bound.
            grown = self.binding.get_outputs()[1:]
            self.cache = {pair[0]: grown[i] for i, pair in enumerate(self.graph.pairs)}

    def _input(self, name: str, array: Any, shape: List[int]) -> None:
        """Bind the beginning of a contiguous int64 buffer, by its address.

        Anew for each pass: where the graph runs on a GPU, binding is what copies it there.
        """
        self.binding.bind_input(name, "cpu", 0, array.dtype, shape, array.ctypes.data)

    def _output(self, array: Any) -> None:
        """Have the logits written into a buffer."""
        if self.bound is not array:
            self.bound = array
            data = array.ctypes.data
            self.binding.bind_output(LOGITS, "cpu", 0, array.dtype, array.shape, data)


def whole(row: Any) -> Any:
    """A row of ids as a contiguous int64 array [1, length]."""
    import numpy

    return numpy.ascontiguousarray(row, dtype=numpy.int64)[None]
