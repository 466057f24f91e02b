"""Small models that tests quantise: built by hand, so that no test needs torch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from edgebench.quantize import functions
from edgebench.quantize.packing import pack

CPU = ["CPUExecutionProvider"]


def model(
    nodes: list[onnx.NodeProto],
    weights: Mapping[str, NDArray[Any]],
    inputs: Mapping[str, tuple[int, list[Any]]],
    outputs: Mapping[str, list[Any]],
    *,
    opset: int = 21,
) -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info(n, t, s) for n, (t, s) in inputs.items()],
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in outputs.items()],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)


def linear(weight: NDArray[np.float32], *, opset: int = 21) -> onnx.ModelProto:
    """Y [b, m, N] = X [b, m, K] W [K, N]."""
    k, n = weight.shape
    return model(
        [helper.make_node("MatMul", ["X", "W"], ["Y"])],
        {"W": weight},
        {"X": (TensorProto.FLOAT, ["b", "m", k])},
        {"Y": ["b", "m", n]},
        opset=opset,
    )


def three_bit_matmul(
    codes: NDArray[np.int8], scales: NDArray[np.float16], block: int
) -> onnx.ModelProto:
    """One MatMul3Bit node on planes of codes [N, K]."""
    n, k = codes.shape
    low, high = pack(codes)
    node = helper.make_node(
        functions.MATMUL,
        ["X", "low", "high", "scales"],
        ["Y"],
        domain=functions.DOMAIN,
        K=k,
        N=n,
        block_size=block,
    )
    made = model(
        [node],
        {"low": low, "high": high, "scales": scales},
        {"X": (TensorProto.FLOAT, ["b", "m", k])},
        {"Y": ["b", "m", n]},
    )
    return _with(made, functions.matmul())


def three_bit_gather(
    codes: NDArray[np.int8], scales: NDArray[np.float16], block: int
) -> onnx.ModelProto:
    """One Gather3Bit node on planes of codes [N, K]."""
    n, k = codes.shape
    low, high = pack(codes)
    node = helper.make_node(
        functions.GATHER,
        ["low", "high", "scales", "indices"],
        ["Y"],
        domain=functions.DOMAIN,
        K=k,
        N=n,
        block_size=block,
    )
    made = model(
        [node],
        {"low": low, "high": high, "scales": scales},
        {"indices": (TensorProto.INT64, ["b", "s"])},
        {"Y": ["b", "s", k]},
    )
    return _with(made, functions.gather())


def transformer(
    *,
    width: int = 128,
    vocabulary: int = 500,
    layers: int = 2,
    classes: int = 3,
    rank: int = 0,
    seed: int = 0,
    opset: int = 21,
) -> onnx.ModelProto:
    """An encoder of single-headed blocks with logits [b, classes] of input_ids [b, s].

    ``rank`` adds an unmerged LoRA branch to each block's query.
    """
    rng = np.random.default_rng(seed)
    weights: dict[str, NDArray[Any]] = {}
    nodes: list[onnx.NodeProto] = []

    def add(op: str, inputs: list[str], **attributes: Any) -> str:
        name = f"t{len(nodes)}"
        nodes.append(helper.make_node(op, inputs, [name], name=f"n{len(nodes)}", **attributes))
        return name

    def weight(name: str, *shape: int) -> str:
        scale = 1 / np.sqrt(shape[0]) if len(shape) > 1 else 0.02
        weights[name] = (rng.normal(size=shape) * scale).astype(np.float32)
        return name

    def norm(x: str, name: str) -> str:
        weights[f"{name}.gain"] = np.ones(width, np.float32)
        return add("LayerNormalization", [x, f"{name}.gain", weight(f"{name}.bias", width)])

    weights["table"] = rng.normal(size=(vocabulary, width)).astype(np.float32)
    weights["root"] = np.float32(np.sqrt(width))
    x = norm(add("Gather", ["table", "input_ids"]), "embedding")
    for i in range(layers):
        q, k, v = (add("MatMul", [x, weight(f"{i}.{p}", width, width)]) for p in "qkv")
        if rank:
            down = add("MatMul", [x, weight(f"{i}.lora_A", width, rank)])
            q = add("Add", [q, add("MatMul", [down, weight(f"{i}.lora_B", rank, width)])])
        scores = add("MatMul", [q, add("Transpose", [k], perm=[0, 2, 1])])
        attention = add("Softmax", [add("Div", [scores, "root"])], axis=-1)
        mixed = add("MatMul", [add("MatMul", [attention, v]), weight(f"{i}.o", width, width)])
        x = norm(add("Add", [x, mixed]), f"{i}.first")
        inner = add("MatMul", [x, weight(f"{i}.up", width, 4 * width)])
        inner = add("Relu", [add("Add", [inner, weight(f"{i}.up.bias", 4 * width)])])
        x = norm(
            add("Add", [x, add("MatMul", [inner, weight(f"{i}.down", 4 * width, width)])]),
            f"{i}.second",
        )
    weights["axis"] = np.array([1], np.int64)
    pooled = add("ReduceMean", [x, "axis"], keepdims=0)
    dense = add(
        "Gemm", [pooled, weight("dense", width, width), weight("dense.bias", width)], transB=1
    )
    pooled = add("Tanh", [dense])
    nodes.append(
        helper.make_node(
            "Gemm",
            [pooled, weight("head", classes, width), weight("head.bias", classes)],
            ["logits"],
            name="classifier",
            transB=1,
        )
    )
    return model(
        nodes,
        weights,
        {"input_ids": (TensorProto.INT64, ["b", "s"])},
        {"logits": ["b", classes]},
        opset=opset,
    )


def calibration(tokens: int = 1024, *, vocabulary: int = 500) -> list[dict[str, NDArray[Any]]]:
    """Inputs for ``transformer``: rows of 32 tokens, drawn unevenly, in batches of eight."""
    rows = np.random.default_rng(7).zipf(1.3, (tokens // 32, 32)) % vocabulary
    return [{"input_ids": rows[i : i + 8]} for i in range(0, len(rows), 8)]


def save(proto: onnx.ModelProto, path: Path) -> Path:
    onnx.save(proto, path)
    return path


def session(
    source: onnx.ModelProto | Path,
    *,
    optimised: Path | None = None,
    plain: bool = False,
    options: Mapping[str, str] | None = None,
) -> ort.InferenceSession:
    """A single-threaded session; ``plain`` switches every optimisation off."""
    settings = ort.SessionOptions()
    settings.intra_op_num_threads = 1
    settings.log_severity_level = 3
    for key, value in (options or {}).items():
        settings.add_session_config_entry(key, value)
    if plain:
        settings.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    if optimised is not None:
        settings.optimized_model_filepath = str(optimised)
    given = str(source) if isinstance(source, Path) else source.SerializeToString()
    return ort.InferenceSession(given, settings, providers=CPU)


def run(s: ort.InferenceSession, **inputs: NDArray[Any]) -> NDArray[np.float32]:
    result: NDArray[np.float32] = s.run(None, inputs)[0]
    return result


def operators(path: Path) -> list[str]:
    return [node.op_type for node in onnx.load(path).graph.node]


def _with(proto: onnx.ModelProto, body: onnx.FunctionProto) -> onnx.ModelProto:
    proto.functions.append(body)
    proto.opset_import.append(helper.make_opsetid(functions.DOMAIN, functions.DOMAIN_VERSION))
    onnx.checker.check_model(proto)
    return proto
