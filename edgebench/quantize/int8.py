"""Dynamic int8 by ONNX Runtime's own quantiser.

Weights are stored as int8 with one scale an output channel, embedding tables as uint8 with one scale
a table; activations are quantised to uint8 at run time, each tensor by its own range. Narrow matrices
(LoRA factors, classification heads) stay in fp32: they hold what was trained and weigh nothing.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING

from edgebench.artifact import Quantization
from edgebench.quantize import bits, files
from edgebench.quantize.graph import Graph

if TYPE_CHECKING:
    from edgebench.quantize import Progress


def convert(source: Path, target: Path, progress: Progress) -> Quantization:
    """Write ``source`` in int8 to ``target``; see ``edgebench.quantize.quantize``."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    progress("reading the model", None)
    model = files.load(source)
    graph = Graph(model)
    # The quantiser infers shapes again, and stops at ones that its own rewriting made wrong.
    del model.graph.value_info[:]
    for index, node in enumerate(model.graph.node):
        node.name = node.name or f"node_{index}"
    weights = graph.weights()
    for weight in weights:
        graph.rows(weight)
    skipped = [model.graph.node[w.node].name for w in weights if w.narrow]
    progress("quantising", 0.2)
    with files.scratch(target) as directory:
        result = Path(directory) / "quantized.onnx"
        logger = logging.getLogger()
        quantize_dynamic(
            model,
            result,
            per_channel=True,
            reduce_range=False,
            weight_type=QuantType.QInt8,
            nodes_to_exclude=skipped,
            use_external_data_format=False,
        )
        quantized = files.load(result)
    progress("writing", 0.9)
    files.save(quantized, target)
    counted = bits.count(quantized)
    return Quantization(
        scheme="int8",
        storage_bits=8,
        compute_bits=8,
        activation_bits=8,
        storage_bits_per_weight=counted.storage_bits_per_weight,
        file_bits_per_weight=counted.file_bits_per_weight,
        quantized_weights=counted.quantized_weights,
        total_weights=counted.total_weights,
    )
