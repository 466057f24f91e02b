"""Writing one decoder at one precision: a layer read, merged, rounded, appended, forgotten."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path

import onnx

from edgebench.export.decoder.architecture import Architecture
from edgebench.export.decoder.network import Network, Widths, inputs, model, outputs
from edgebench.export.decoder.source import Source
from edgebench.export.decoder.storage import DataFile, Fit, Part, Storage
from edgebench.export.request import Progress

MODEL = "model.onnx"


@dataclass(frozen=True)
class Decoder:
    """A decoder that was written: its graph (weights in the data file), and the graph's parts."""

    architecture: Architecture
    model: onnx.ModelProto
    shared: Part
    embed: Part
    layers: tuple[Part, ...]
    head: Part


def write(
    directory: Path,
    architecture: Architecture,
    source: Source,
    widths: Widths,
    *,
    bits: int,
    unmerged: bool,
    progress: Progress,
    fitted: Fit | None = None,
    storage: Callable[[DataFile], Storage] | None = None,
    swapped: Collection[str] = (),
) -> Decoder:
    """Write model.onnx and model.onnx.data.

    Args:
        bits: of what has no width: 32 or 16.
        progress: called before each part with the share of the weights that is done.
        storage: makes what writes matrices in another form than by widths.
        swapped: names of the matrices whose branch is inputs of the graph.

    Raises:
        CheckpointError: a tensor holds NaN or infinity.
        InputError: a weight does not fit into fp16.
        OSError: the directory can't be written, or is full.
    """
    data = DataFile(directory / f"{MODEL}.data")
    total = architecture.matrix_weights
    try:
        stored = storage(data) if storage else Storage(data, bits, fitted)
        network = Network(architecture, source, stored, widths, unmerged, swapped)
        progress("storing the embeddings", 0.0)
        shared = network.shared()
        embed, table = network.embed()
        done = architecture.table.n * architecture.table.k
        layers = []
        for index in range(architecture.layers):
            progress(f"storing layer {index + 1} of {architecture.layers}", done / total)
            layers.append(network.layer(index))
            done += sum(m.n * m.k for m in architecture.layer(index).matrices)
        progress("storing the head", done / total)
        head = network.head(table)
    finally:
        data.close()
    whole = model([shared, embed, *layers, head], inputs(architecture), outputs(architecture))
    (directory / MODEL).write_bytes(whole.SerializeToString(deterministic=True))
    if data.path.stat().st_size == 0:
        data.path.unlink()
    progress("stored", 1.0)
    return Decoder(architecture, whole, shared, embed, tuple(layers), head)
