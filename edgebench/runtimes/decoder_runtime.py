"""Driving a decoder's graph: prefill, one-token steps with a key-value cache, greedy generation.

This file is sent to the device beside the agent and imported there, so it runs on Python 3.8 with
numpy and onnxruntime, and imports nothing else of ours. The agent's timing loop times ``call``::

    prefill    call = the prompt through an empty cache, and its first token        (TTFT)
    decode     call = one step behind a cache of prompt_len tokens, and its token   (TPOT)
    generate   call = prefill + new_tokens - 1 steps: new_tokens tokens, greedily

Choosing the token (argmax of the last logits) is part of each call: what a user waits for is the
token, not the logits. End-of-sequence tokens are ignored, so that every call does the same work.

The cache of one layer is a key and a value [1, kv_heads, positions, head_dim]. Two kinds:

shared    one buffer a key or value, made once for all positions and bound as past and as present,
          as onnxruntime-genai does with com.microsoft.GroupQueryAttention: nothing is copied
          (onnxruntime.ai/docs/genai/howto/past-present-share-buffer.html). A call begins by
          writing position 0 again; what stands behind the mask's length is never read.
growing   each step's present is a new tensor, one position longer, and the next step's past.
"""

from __future__ import annotations

import itertools
import time
from typing import Any, Callable, Dict, List, Mapping, Optional, Tuple

from edgebench.runtimes.decoder_adapters import Adapters
from edgebench.runtimes.decoder_driver import Driver, whole
from edgebench.runtimes.decoder_graph import IDS, MASK, DecoderError, Graph, expected_tokens

clock = time.perf_counter_ns

#: Prompts that take turns; more would say no more about time.
PROMPTS = 8
#: Tokens that are compared with the expected ones, at most.
CHECKED = 64


class DecoderRuntime:
    """One loaded decoder in one scenario: ``prompts`` makes bindings, ``call`` runs one."""

    call: Callable[[Any], Any]
    #: The agent's own loop times the calls.
    time_calls: Optional[Callable[..., None]] = None

    def __init__(
        self,
        runtime: Any,
        spec: Mapping[str, Any],
        rule: Mapping[str, Any],
        adapters: Optional[Mapping[str, str]] = None,
        active: Optional[str] = None,
    ) -> None:
        """Take a loaded model over.

        Args:
            runtime: the agent's, with ``session``, ``execution`` and ``synchronize``.
            spec: the manifest's ``decoder``.
            rule: ``scenario``, ``prompt_len`` and ``new_tokens``.
            adapters: of a swappable decoder the adapter files, by name.
            active: the one of them that is active in every call; None: the base alone.

        Raises:
            DecoderError: the graph is not such a decoder, or an adapter can't be loaded.
        """
        self.runtime = runtime
        self.session = runtime.session
        self.spec = spec
        self.rule = rule
        self.graph = Graph(self.session, int(spec["layers"]))
        self.vocabulary = self.graph.vocabulary or int(spec["vocab_size"])
        provider = self.session.get_providers()[0]
        self.device = "cuda" if provider.startswith(("CUDA", "Tensorrt")) else "cpu"
        self.shared = spec["cache"] == "shared"
        self.adapters = Adapters(self.session, adapters or {}, active, self.device)
        self.call = {"prefill": self._prefill, "decode": self._decode, "generate": self._generate}[
            rule["scenario"]
        ]
        self.cache_bytes = 0
        self.first = 0
        self.emitted: Dict[int, List[int]] = {}
        self.rows(None)

    # -- what the agent asks for

    def rows(self, token_ns: Any) -> None:
        """Where the next calls write the durations of their tokens: rows [calls, new_tokens]."""
        spare: List[int] = [0] * int(self.rule["new_tokens"])
        self._rows = iter(token_ns) if token_ns is not None else itertools.repeat(spare)

    def prompts(self, arrays: Mapping[str, Any]) -> List[Tuple[int, Any]]:
        """What ``call`` takes: numbered prompts [1, prompt_len], which share one cache; for decode
        one, whose cache is filled here.

        Prompts are rows of the artifact's real tokens; longer ones are rows in a row.
        """
        length, new = int(self.rule["prompt_len"]), int(self.rule["new_tokens"])
        rows = cut(arrays[IDS], length)[:PROMPTS]
        found = list(enumerate(whole(row) for row in rows))
        self.driver = Driver(self, length, length + new)
        if self.rule["scenario"] == "decode":
            found = found[:1]
            self.first = self.driver.prefill(found[0][1])
        return found

    def synchronize(self) -> None:
        """Return when everything that was called has been done."""
        self.runtime.synchronize()

    def execution(self) -> Dict[str, Any]:
        """What really executes the model, and what its cache takes."""
        kind = "shared" if self.shared else "growing"
        cache = {"kind": kind, "bytes": self.cache_bytes, "dtype": self.graph.cache_type}
        return dict(self.runtime.execution(), cache=cache)

    def adapter_times(self) -> Dict[str, float]:
        """How long it takes to change adapters (ns)."""
        return self.adapters.times()

    def generated(self) -> List[Dict[str, Any]]:
        """The tokens that the last call of each prompt gave."""
        return [{"prompt": i, "tokens": tokens} for i, tokens in sorted(self.emitted.items())]

    # -- scenarios

    def _prefill(self, prompt: Tuple[int, Any]) -> None:
        self.emitted[prompt[0]] = [self.driver.prefill(prompt[1])]

    def _decode(self, prompt: Tuple[int, Any]) -> None:
        self.emitted[prompt[0]] = [self.driver.step(self.first, 1, again=True)]

    def _generate(self, prompt: Tuple[int, Any]) -> None:
        row, step = next(self._rows), self.driver.step
        before = clock()
        token = self.driver.prefill(prompt[1])
        now = clock()
        row[0] = now - before
        tokens = [token]
        for k in range(1, len(row)):
            before = now
            token = step(token, k)
            now = clock()
            row[k] = now - before
            tokens.append(token)
        self.emitted[prompt[0]] = tokens

    # -- quality, which is not timed

    def greedy(self, ids: Any, count: int) -> List[int]:
        """``count`` tokens after a prompt [length], each the likeliest."""
        driver = Driver(self, len(ids), len(ids) + count)
        tokens = [driver.prefill(whole(ids))]
        while len(tokens) < count:
            tokens.append(driver.step(tokens[-1], len(tokens)))
        return tokens

    def check(self, arrays: Mapping[str, Any]) -> Optional[Dict[str, Any]]:
        """The tokens generated here beside those that the host's reference generated.

        ``expected_tokens`` [k, m] of the inputs (``expected_tokens.<name>`` while that adapter is
        active) follow the first k rows, cut to ``expected_prompt_len`` where that is there. None:
        there are none.
        """
        name = expected_tokens(self.adapters.active)
        if name not in arrays:
            return None
        expected = arrays[name][:, :CHECKED]
        length = int(arrays.get("expected_prompt_len", arrays[IDS].shape[1]))
        tokens = [
            self.greedy(ids, len(row))
            for ids, row in zip(arrays[IDS][:, :length], expected)  # noqa: B905 - Python 3.8
        ]
        return {"prompt_len": length, "tokens": tokens, "expected": expected.tolist()}

    def perplexity(self, arrays: Mapping[str, Any], limit: Any) -> Dict[str, Any]:
        """Negative log-likelihood of held-out texts: each token but the first, given those before.

        Args:
            arrays: ``input_ids`` [texts, length], and ``attention_mask`` where rows are padded.
            limit: "all", or a number of texts.

        Returns:
            by text ``nll_nat`` (summed over its tokens) and ``tokens``; ``duration_ns``.
        """
        import numpy

        ids = arrays[IDS]
        lengths = arrays[MASK].sum(-1) if MASK in arrays else [ids.shape[1]] * len(ids)
        count = len(ids) if limit == "all" else min(len(ids), int(limit))
        nll: List[float] = []
        counted: List[int] = []
        begin = clock()
        for i in range(count):
            row = ids[i][: int(lengths[i])]
            if len(row) < 2:
                continue
            driver = Driver(self, len(row), len(row), every=True)
            driver.run(whole(row))
            logits = driver.logits[0, :-1].astype(numpy.float64)
            top = logits.max(-1, keepdims=True)
            total = numpy.log(numpy.exp(logits - top).sum(-1)) + top[:, 0]
            nll.append(float((total - logits[numpy.arange(len(row) - 1), row[1:]]).sum()))
            counted.append(len(row) - 1)
        return {"nll_nat": nll, "tokens": counted, "duration_ns": clock() - begin}

    # -- the cache

    def cache(self, length: int) -> Dict[str, Any]:
        """An empty cache: buffers of ``length`` positions, or tensors of none."""
        import numpy
        import onnxruntime

        positions = length if self.shared else 0
        shape = [1, int(self.spec["kv_heads"]), positions, int(self.spec["head_dim"])]
        kind = numpy.dtype(self.graph.cache_type)
        needed = 2 * int(self.spec["layers"]) * length * shape[1] * shape[3] * kind.itemsize
        self.cache_bytes = max(self.cache_bytes, needed)
        make = onnxruntime.OrtValue
        if self.shared:
            pasts = (past for past, _ in self.graph.pairs)
            return {
                p: make.ortvalue_from_shape_and_type(shape, kind, self.device, 0) for p in pasts
            }
        empty = numpy.zeros(shape, kind)
        return {p: make.ortvalue_from_numpy(empty, self.device, 0) for p, _ in self.graph.pairs}


def cut(ids: Any, length: int) -> Any:
    """Rows [n, length] of token ids: beginnings of rows, or where that is longer, rows in a row.

    Raises:
        DecoderError: there are not so many tokens.
    """
    if length <= ids.shape[1]:
        return ids[:, :length]
    stream = ids.reshape(-1)
    count = len(stream) // length
    if not count:
        raise DecoderError(
            f"a prompt of {length} tokens was asked for, the artifact's inputs have {len(stream)}"
        )
    return stream[: count * length].reshape(count, length)
