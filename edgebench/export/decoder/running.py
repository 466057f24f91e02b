"""Running a decoder's graph: prefill, and greedy decoding through its key-value cache."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgebench.export.decoder.architecture import Architecture
from edgebench.export.decoder.network import IDS, KEEP, LOGITS, MASK, past, present
from edgebench.export.session import not_finite, open_session, runtime_errors

Ids = NDArray[np.int64]
Caches = dict[str, NDArray[np.float32]]


class Runner:
    """A session on a decoder's graph, with the caches that a caller has to bring."""

    def __init__(
        self,
        model: Path | bytes,
        architecture: Architecture,
        what: str,
        session_options: Mapping[str, str] | None = None,
    ) -> None:
        """
        Raises:
            ExportError: the runtime refuses the graph.
        """
        self.architecture = architecture
        self.what = what
        #: What the inputs of a swappable adapter are given; nothing leaves them at their default.
        self.adapter: Mapping[str, NDArray[np.float32]] = {}
        with runtime_errors(what):
            self._session: Any = open_session(
                model if isinstance(model, bytes) else str(model), session_options
            )

    def prefill(
        self, ids: Ids, mask: Ids, *, keep: int | None = None, length: int | None = None
    ) -> tuple[NDArray[np.float32], Caches]:
        """Logits [batch, kept, vocab] of new rows, and caches of ``length`` positions.

        Args:
            ids, mask: [batch, sequence]; padding, if any, on the right.
            keep: positions at the end that logits are wanted for; None means all.
            length: positions that the caches hold; None just those given.
        """
        a = self.architecture
        shape = (len(ids), a.kv_heads, length or ids.shape[1], a.head_dim)
        empty = {n: np.zeros(shape, np.float32) for i in range(a.layers) for n in past(i)}
        return self._run(ids, mask, empty, ids.shape[1] if keep is None else keep)

    def decode(self, ids: Ids, total: int, caches: Caches) -> tuple[NDArray[np.float32], Caches]:
        """Logits [batch, 1, vocab] of one more token a row, ids [batch, 1], the ``total``-th."""
        return self._run(ids, np.ones((len(ids), total), np.int64), caches, 1)

    def greedy(self, prompts: Ids, count: int) -> Ids:
        """``count`` more tokens for each prompt [batch, sequence]: the likeliest each time."""
        batch, start = prompts.shape
        logits, caches = self.prefill(prompts, np.ones_like(prompts), keep=1, length=start + count)
        made = [logits[:, -1].argmax(-1)]
        while len(made) < count:
            ids = made[-1][:, None].astype(np.int64)
            logits, caches = self.decode(ids, start + len(made), caches)
            made.append(logits[:, -1].argmax(-1))
        return np.stack(made, axis=1).reshape(batch, count)

    def _run(
        self, ids: Ids, mask: Ids, caches: Caches, keep: int
    ) -> tuple[NDArray[np.float32], Caches]:
        feed = {IDS: ids, MASK: mask, KEEP: np.array([keep], np.int64), **caches, **self.adapter}
        pairs = [
            pair
            for index in range(self.architecture.layers)
            for pair in zip(past(index), present(index), strict=True)
        ]
        names = [LOGITS, *(after for _, after in pairs)]
        with runtime_errors(self.what):
            logits, *after = self._session.run(names, feed)
        if not np.isfinite(logits).all():
            raise not_finite(self.what)
        return logits, dict(zip((before for before, _ in pairs), after, strict=True))
