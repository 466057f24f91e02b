"""Fitting a decoder's matrices to calibration text (error feedback), for models that fit in memory.

The decoder is written in fp32, and that graph is walked layer by layer as an encoder's is
(``edgebench.quantize.calibration``): each matrix is fitted to the inputs that the rounded layers
before it will really deliver. What comes out are codes and scales, which the writer then stores in
place of plainly rounded ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgebench.export.decoder.architecture import Architecture, Linear
from edgebench.export.decoder.network import IDS, KEEP, MASK, Widths, past
from edgebench.export.decoder.source import Source
from edgebench.export.decoder.storage import Fit, Rows
from edgebench.export.decoder.writer import MODEL, write
from edgebench.export.module import Feed
from edgebench.export.request import Progress
from edgebench.quantize import blocks, files
from edgebench.quantize.blocks import Width
from edgebench.quantize.graph import Graph


def fit_to_text(
    directory: Path,
    architecture: Architecture,
    source: Source,
    widths: Widths,
    feeds: Sequence[Feed],
    *,
    unmerged: bool,
    progress: Progress,
) -> Fit:
    """Codes and scales of every matrix that has a width.

    Args:
        directory: an empty one, for the fp32 graph; it is the caller's to remove.
        feeds: calibration text, ids and mask [rows, tokens].

    Raises:
        InputError: the calibration set is too short, or gives activations that are not finite.
    """
    write(
        directory,
        architecture,
        source,
        lambda _matrix, _looked_up: None,
        bits=32,
        unmerged=unmerged,
        progress=lambda step, done: progress(step, None if done is None else 0.1 * done),
    )
    graph = Graph(files.load(directory / MODEL))
    matrices = {matrix.name: matrix for matrix in architecture.matrices}
    plan = {}
    for weight in graph.weights():
        matrix = matrices.get(weight.initializer.removesuffix(".weight"))
        if matrix is None:
            continue  # a factor of the adapter
        width = widths(matrix, _only_looked_up(architecture, matrix))
        if width is not None:
            plan[weight.node] = (weight, width)
    fitted = blocks.fit_all(
        graph,
        plan,
        [_with_caches(architecture, feed) for feed in feeds],
        lambda name, done: progress(f"fitting {name}", 0.1 + 0.9 * done),
    )
    found = {name.removesuffix(".weight"): item for (name, _), item in fitted.items()}

    def fit(name: str, _rows: Rows, width: Width) -> tuple[NDArray[np.int8], NDArray[np.float16]]:
        item = found[name]
        assert item.width == width
        return item.codes, item.scales

    return fit


def _only_looked_up(architecture: Architecture, matrix: Linear) -> bool:
    return matrix == architecture.table and not architecture.tied


def _with_caches(architecture: Architecture, feed: Feed) -> dict[str, NDArray[np.generic]]:
    """A prefill with empty caches; logits of one position, since nothing reads them."""
    ids = feed[IDS]
    a = architecture
    empty = np.zeros((len(ids), a.kv_heads, ids.shape[1], a.head_dim), np.float32)
    caches = {name: empty for index in range(a.layers) for name in past(index)}
    return {IDS: ids, MASK: feed[MASK], KEEP: np.array([1], np.int64), **caches}
