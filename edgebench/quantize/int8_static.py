"""Static int8 by ONNX Runtime's own quantiser: ranges of activations fixed by calibration inputs.

Weights are int8 with one scale an output channel, embedding tables int8 with one scale a table.
What every matrix reads, and what it gives, is quantised to uint8 by the smallest and largest value
that the calibration inputs bring there, so no range is looked for at run time. In exchange a value
beyond it is clipped: on MiniLM it costs more than ``int8`` (docs/quantization.md).

The form is QDQ, weights s8 and activations u8: ONNX Runtime's CPU kernels for s8 activations are
several times slower. As in ``int8``, products of two activations and narrow matrices stay in fp32,
and ``reduce_range`` is off for the reasons given there.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnx

from edgebench.artifact import Quantization
from edgebench.errors import InputError
from edgebench.quantize import bits, files
from edgebench.quantize import calibration as calibrating
from edgebench.quantize.calibration import Feed
from edgebench.quantize.graph import Graph
from edgebench.quantize.int8 import EXACT_SUMS, prepare

if TYPE_CHECKING:
    from edgebench.quantize import Progress

# ONNX Runtime's severities; warnings are its default.
_WARNINGS, _ERRORS = 2, 3

_OPERATORS = ["MatMul", "Gemm", "Gather"]


def convert(
    source: Path,
    target: Path,
    progress: Progress,
    *,
    calibration: Sequence[Feed] | None = None,
) -> Quantization:
    """Write ``source`` in static int8 to ``target``; see ``edgebench.quantize.quantize``.

    Raises:
        InputError: no or too short a calibration set, NaN or infinite weights, or no matrix that
            could be quantised.
    """
    tokens = calibrating.check(calibration or ())
    assert calibration is not None
    progress("reading the model", None)
    model = files.load(source)
    graph = Graph(model)
    graph.check_finite()
    graph.expose()
    weights = {model.graph.node[w.node].output[0] for w in graph.weights() if not w.narrow}
    narrow = prepare(model, graph)
    # Any other look-up is of shapes and positions, and stays as it is.
    kept = [
        node.name
        for node in model.graph.node
        if node.op_type in _OPERATORS and node.output[0] not in weights
    ]
    progress("reading activations", 0.1)
    quantized = _quantize(model, kept, calibration, source, target)
    counted = bits.count(quantized)
    if not counted.quantized_weights:
        raise InputError(
            "no matrix of this model can be stored in int8",
            where=str(source),
            fix="Export it as fp32.",
        )
    progress("writing", 0.9)
    files.save(quantized, target)
    progress("written", 1.0)
    return Quantization(
        scheme="int8-static",
        storage_bits=8,
        compute_bits=8,
        activation_bits=8,
        storage_bits_per_weight=counted.storage_bits_per_weight,
        file_bits_per_weight=counted.file_bits_per_weight,
        quantized_weights=counted.quantized_weights,
        total_weights=counted.total_weights,
        details={
            "method": "onnxruntime.quantization.quantize_static, QDQ, u8 s8, smallest to largest",
            "per_channel": True,
            "reduce_range": False,
            "calibration_tokens": tokens,
            "kept_fp32": sorted(set(narrow.values())),
            "session_options": {},
            "session_options_x86_without_vnni": dict(EXACT_SUMS),
        },
    )


def _quantize(
    model: onnx.ModelProto, kept: list[str], feeds: Sequence[Feed], source: Path, target: Path
) -> onnx.ModelProto:
    import onnxruntime
    from onnxruntime.quantization import (
        CalibrationDataReader,
        QuantFormat,
        QuantType,
        quantize_static,
    )

    takes = {value.name for value in model.graph.input}

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self._left: Iterator[Feed] = iter(feeds)

        def get_next(self) -> dict[str, Any] | None:
            feed = next(self._left, None)
            if feed is None:
                return None
            return {name: array for name, array in feed.items() if name in takes}

    with files.scratch(target) as directory:
        result = Path(directory) / "quantized.onnx"
        # Its own sessions warn of every weight that is an input too (a swappable adapter's).
        onnxruntime.set_default_logger_severity(_ERRORS)
        try:
            quantize_static(
                model,
                result,
                Reader(),
                quant_format=QuantFormat.QDQ,
                op_types_to_quantize=_OPERATORS,
                per_channel=True,
                reduce_range=False,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
                # A Gemm is renamed when it becomes a MatMul.
                nodes_to_exclude=[n for name in kept for n in (name, f"{name}_MatMul")],
                use_external_data_format=files.too_large(model),
                extra_options={"MatMulConstBOnly": True, "QuantizeBias": False},
            )
        except OSError as error:
            raise files.unwritable(target, error) from error
        except (ValueError, RuntimeError, onnx.shape_inference.InferenceError) as error:
            raise InputError(
                f"ONNX Runtime cannot quantise this model: {error}", where=str(source)
            ) from error
        finally:
            onnxruntime.set_default_logger_severity(_WARNINGS)
        quantized = files.load(result)
    del quantized.metadata_props[:]
    return quantized
