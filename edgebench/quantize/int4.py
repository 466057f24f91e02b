"""Four stored bits a weight, embedding tables included.

Matrices are INT4 before a blocked DequantizeLinear, which is standard ONNX and which ONNX Runtime
fuses into its own 4-bit kernel; tables are ``edgebench::Gather4Bit``. One fp16 scale a block of
128 weights along the summed axis: 4.125 bits a weight. Fitted as ``int3`` is.

Narrow matrices (LoRA factors of rank <= 64, classification heads, token types) stay in fp32.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from edgebench.artifact import Quantization
from edgebench.errors import InputError
from edgebench.quantize import blocks, files
from edgebench.quantize.blocks import Width
from edgebench.quantize.calibration import Feed
from edgebench.quantize.graph import Graph

if TYPE_CHECKING:
    from edgebench.quantize import Progress

BLOCK = 128


def convert(
    source: Path,
    target: Path,
    progress: Progress,
    *,
    calibration: Sequence[Feed] | None = None,
    block_size: int | None = None,
) -> Quantization:
    """Write ``source`` in four bits to ``target``; see ``edgebench.quantize.quantize``.

    Args:
        calibration: inputs to fit the matrices to; None rounds them plainly.
        block_size: weights that share a scale, 128 by default.

    Raises:
        UsageError: a block size that no kernel takes.
        InputError: NaN or infinite weights, no matrix that could be quantised, or a calibration
            set that is too short.
    """
    blocks.check_block_size("int4", block_size)
    progress("reading the model", None)
    model = blocks.at_opset(files.load(source), str(source), "int4")
    graph = Graph(model)
    graph.check_finite()
    width = Width(4, block_size or BLOCK)
    plan = {weight.node: (weight, width) for weight in graph.weights() if not weight.narrow}
    if not plan:
        raise InputError(
            "no matrix of this model is wide enough for four bits",
            where=str(source),
            fix="Export it as int8 or fp32.",
        )
    fitted = blocks.fit_all(
        graph, plan, calibration, lambda name, done: progress(f"rounding {name}", 0.9 * done)
    )
    blocks.rewrite(graph, plan, fitted)
    progress("writing", 0.95)
    files.save(model, target)
    result = blocks.quantization("int4", model, fitted, calibration)
    progress("written", 1.0)
    return result
