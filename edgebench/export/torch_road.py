"""The main road to ONNX: ``torch.onnx.export``, the exporter that is built on torch.export.

It traces symbolic shapes, so batch and sequence stay free axes (batch 1 and sequence 1 included),
and it folds each linear layer to one MatMul with a constant. Opset 20 is the newest that both
roads write, and has Gelu and LayerNormalization as single operators.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from edgebench.errors import ExportError
from edgebench.export.graph import OPSET, save, tidy
from edgebench.export.module import Feed


def lower(module: Any, example: Feed, output: str, target: Path) -> None:
    """Write a forward module (see ``forward_module``) as an ONNX file.

    Args:
        module: takes the example's arrays in order.
        example: int64 arrays [batch, sequence], both at least 2 so that neither axis is taken for
            a constant 1.
        output: name for the output.
        target: the file to write; a model over 1.5 GB gets ``<target>.data`` beside it.

    Raises:
        ExportError: an operation can't be exported.
    """
    import torch

    tensors = tuple(torch.from_numpy(array) for array in example.values())
    axes = {0: "batch", 1: "sequence"}
    try:
        program = torch.onnx.export(
            module,
            tensors,
            dynamo=True,
            opset_version=OPSET,
            input_names=list(example),
            output_names=[output],
            # One entry for ``forward(*tensors)``, which holds one dictionary a tensor.
            dynamic_shapes=(tuple(axes for _ in tensors),),
            external_data=False,
            verbose=False,
        )
    except torch.onnx.OnnxExporterError as error:
        raise ExportError(
            f"the model can't be lowered to ONNX: {_reason(error)}",
            fix="Try --via optimum, or run with --debug for the whole trace.",
        ) from error
    if program is None:
        raise ExportError("torch.onnx.export returned nothing")
    save(tidy(program.model_proto), target)


def _reason(error: BaseException) -> str:
    """The innermost cause's first line: the exporter wraps it in pages of advice."""
    cause = error
    while cause.__cause__ is not None:
        cause = cause.__cause__
    return f"{type(cause).__name__}: {str(cause).strip().partition(chr(10))[0][:200]}"
