"""Dynamic int8 by ONNX Runtime's own quantiser.

Matrices are stored as int8 with one scale an output channel, embedding tables as uint8 with one
scale a table; activations are quantised to uint8 at run time, each tensor by its own range.
Products of two activations (attention) stay in fp32, and so do narrow matrices: LoRA factors,
classification heads.

``reduce_range`` (7-bit weights) is off. It exists because x86 without VNNI adds pairs of u8 x s8
products in 16 bits, which saturate. Measured on such a machine (Zen 3). MiniLM: cosine of 200 news
articles' embeddings against fp32, mean / min, and time at 128 tokens; normal weights [K, 384] and
inputs: largest error over largest output.

                                              MiniLM                    K = 384   K = 1536
    8-bit weights                             .9935 / .987   24.7 ms    10.6 %    5.9 %
    7-bit weights (reduce_range)              .9935 / .986   24.6 ms     2.0 %    1.7 %
    8-bit, session.x64quantprecision = 1      .9947 / .989   30.1 ms     1.1 %    1.2 %

The session option makes such a CPU compute what all others do with the same file, for a fifth more
time; seven bits would cost every device accuracy. So the manifest names the option, for a runtime
on x86 without VNNI to set. Where VNNI is, leave it off: it changes no sum there, and may cost time.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import onnx

from edgebench.artifact import Quantization
from edgebench.errors import InputError
from edgebench.quantize import bits, files
from edgebench.quantize.graph import Graph

if TYPE_CHECKING:
    from edgebench.quantize import Progress

# onnxruntime_session_options_config_keys.h: u8 x u8 products in place of u8 x s8, which saturate.
EXACT_SUMS = {"session.x64quantprecision": "1"}

# The mark that the quantiser looks for before it advises, on the root logger, to preprocess.
_PREPARED = ("onnx.quant.pre_process", "onnxruntime.quant")


def convert(source: Path, target: Path, progress: Progress) -> Quantization:
    """Write ``source`` in int8 to ``target``; see ``edgebench.quantize.quantize``."""
    progress("reading the model", None)
    model = files.load(source)
    graph = Graph(model)
    graph.check_finite()
    graph.expose()
    narrow = prepare(model, graph)
    progress("quantising", 0.2)
    quantized = _quantize(model, narrow, source, target)
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
        scheme="int8",
        storage_bits=8,
        compute_bits=8,
        activation_bits=8,
        storage_bits_per_weight=counted.storage_bits_per_weight,
        file_bits_per_weight=counted.file_bits_per_weight,
        quantized_weights=counted.quantized_weights,
        total_weights=counted.total_weights,
        details={
            "method": "onnxruntime.quantization.quantize_dynamic",
            "per_channel": True,
            "reduce_range": False,
            "kept_fp32": sorted(set(narrow.values())),
            "session_options": {},
            "session_options_x86_without_vnni": dict(EXACT_SUMS),
        },
    )


def prepare(model: onnx.ModelProto, graph: Graph) -> dict[str, str]:
    """Make the model ready for the quantiser, in place.

    Returns:
        Node name -> what it multiplies by, of nodes to leave in fp32: those of narrow weights, and
        those of weights that are inputs too (a swappable adapter's factors).
    """
    # It turns Gemm into MatMul with a transposed weight, and then stops at the shapes noted before.
    del model.graph.value_info[:]
    # It excludes nodes by name.
    for index, node in enumerate(model.graph.node):
        node.name = node.name or f"{node.op_type}_{index}"
    del model.metadata_props[:]
    model.metadata_props.add(key=_PREPARED[0], value=_PREPARED[1])
    kept = {model.graph.node[w.node].name: w.initializer for w in graph.weights() if w.narrow}
    given = {value.name for value in model.graph.input} & set(graph.initializers)
    for node in model.graph.node:
        if node.op_type in ("MatMul", "Gemm") and node.input[1] in given:
            kept[node.name] = node.input[1]
    return kept


def _quantize(
    model: onnx.ModelProto, narrow: dict[str, str], source: Path, target: Path
) -> onnx.ModelProto:
    from onnxruntime.quantization import QuantType, quantize_dynamic

    with files.scratch(target) as directory:
        result = Path(directory) / "quantized.onnx"
        try:
            quantize_dynamic(
                model,
                result,
                per_channel=True,
                reduce_range=False,
                weight_type=QuantType.QInt8,
                # A Gemm is renamed when it becomes a MatMul.
                nodes_to_exclude=[n for name in narrow for n in (name, f"{name}_MatMul")],
                use_external_data_format=files.too_large(model),
            )
        except OSError as error:
            raise files.unwritable(target, error) from error
        except (ValueError, RuntimeError, onnx.shape_inference.InferenceError) as error:
            raise InputError(
                f"ONNX Runtime cannot quantise this model: {error}", where=str(source)
            ) from error
        quantized = files.load(result)
    del quantized.metadata_props[:]
    return quantized
