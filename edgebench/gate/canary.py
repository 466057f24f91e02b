"""The canary: a small fixed network that is timed beside both sides of every check.

It never changes, so when its latency moves, the device has changed and not the code. About 34 MFLOP
on 4 MB of weights a row, whatever the sequence length: long enough to time, short enough to cost
nothing, large enough to feel a lost cache, a lower clock or a neighbour. Its weights are exact
fractions made of integers, so that its digest is the same wherever it is made.

The first canary had 4 MFLOP on 2 MB. On two shared cores its calls of 0.1 ms scattered from launch
to launch with a standard deviation of 8.4 and 6.1 % (20 launches each), this one's of 0.5 ms with
4.2 and 4.7 % in the same launches. A canary of other work needs another ``NAME``: what a
self-test found with one says nothing about another (``stored.SelfTest``).
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from edgebench.artifact import (
    SCHEMA,
    Artifact,
    Base,
    Data,
    Exporter,
    FileEntry,
    Manifest,
    Parity,
    Quantization,
    Signature,
    Statistics,
    Tensor,
    sha256_file,
    write_manifest,
)

if TYPE_CHECKING:
    from onnx import ModelProto

NAME = "edgebench-canary-2"
WIDTH, LAYERS, TOKENS, VOCABULARY = 512, 4, 4, 64
#: The few tokens that any sequence has, so often side by side: more work on the same weights.
COPIES = 4


def has_canary(artifact: Artifact) -> bool:
    """Whether the canary can share a worker with an artifact: an encoder's ONNX file."""
    return artifact.manifest.format == "onnx" and artifact.manifest.decoder is None


def make_canary(directory: Path, seq_len: int) -> Artifact:
    """Write the canary for a sequence length below a directory, and load it."""
    import onnx

    root = directory / f"{NAME}-{seq_len}"
    root.mkdir(parents=True)
    onnx.save(_model(), root / "model.onnx")
    ids = np.arange(8 * seq_len, dtype=np.int64).reshape(8, seq_len) % VOCABULARY
    np.savez(root / "inputs.npz", input_ids=ids)
    write_manifest(root, _manifest(root, seq_len))
    return Artifact.load(root)


def _weights(rows: int, columns: int, step: int) -> np.ndarray:
    """Numbers of -1/16 ... 1/16 in steps of 1/1024: exact, and without a pattern that helps."""
    index = np.arange(rows * columns, dtype=np.int64).reshape(rows, columns)
    return (((index * step) % 129 - 64) / 1024).astype(np.float32)


def _model() -> ModelProto:
    from onnx import TensorProto, helper, numpy_helper

    weights = [
        numpy_helper.from_array(_weights(VOCABULARY, WIDTH, 7919), "table"),
        numpy_helper.from_array(_weights(WIDTH, 2, 5471), "head"),
        numpy_helper.from_array(np.array([0], dtype=np.int64), "zero"),
        numpy_helper.from_array(np.array([TOKENS], dtype=np.int64), "tokens"),
        numpy_helper.from_array(np.array([1], dtype=np.int64), "axis"),
    ]
    nodes = [
        helper.make_node("Slice", ["input_ids", "zero", "tokens", "axis"], ["ids"]),
        helper.make_node("Concat", ["ids"] * COPIES, ["more_ids"], axis=1),
        helper.make_node("Gather", ["table", "more_ids"], ["x0"]),
    ]
    for layer in range(LAYERS):
        square = _weights(WIDTH, WIDTH, 6007 + 2 * layer)
        weights.append(numpy_helper.from_array(square, f"w{layer}"))
        nodes.append(helper.make_node("MatMul", [f"x{layer}", f"w{layer}"], [f"y{layer}"]))
        nodes.append(helper.make_node("Relu", [f"y{layer}"], [f"x{layer + 1}"]))
    nodes.append(helper.make_node("ReduceMean", [f"x{LAYERS}"], ["mean"], axes=[1], keepdims=0))
    nodes.append(helper.make_node("MatMul", ["mean", "head"], ["logits"]))
    graph = helper.make_graph(
        nodes,
        NAME,
        [helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["batch", "sequence"])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 2])],
        weights,
    )
    return helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 17)])


def _manifest(root: Path, seq_len: int) -> Manifest:
    parameters = VOCABULARY * WIDTH + LAYERS * WIDTH * WIDTH + 2 * WIDTH
    return Manifest(
        schema=SCHEMA,
        name=NAME,
        task="sequence-classification",
        base=Base(
            name=NAME,
            digest="sha256:" + "0" * 64,
            architecture="Canary",
            hidden_size=WIDTH,
            layers=LAYERS,
            heads=1,
            parameters=parameters,
        ),
        adapter=None,
        exporter=Exporter(name=NAME, road="torch", opset=17, ir_version=8, versions={}),
        lowering="base",
        quantization=Quantization(
            scheme="fp32",
            storage_bits=32,
            compute_bits=32,
            activation_bits=32,
            storage_bits_per_weight=32.0,
            file_bits_per_weight=32.0,
            total_weights=parameters,
        ),
        signature=Signature(
            inputs=(Tensor(name="input_ids", dtype="int64", shape=("batch", "sequence")),),
            outputs=(Tensor(name="logits", dtype="float32", shape=("batch", 2)),),
        ),
        statistics=Statistics(
            seq_len=seq_len,
            kept_layers=LAYERS,
            kept_heads=0,
            kept_ranks=0,
            param_bits=32 * parameters,
        ),
        extra_flops=0.0,
        # It has no PyTorch original: it is its own reference.
        parity=Parity(
            reference="itself",
            n=0,
            max_abs_error=0.0,
            mean_abs_error=0.0,
            cosine_min=1.0,
            cosine_mean=1.0,
            kl_mean=0.0,
            top1_agreement=1.0,
            tolerance=None,
        ),
        data=Data(inputs="inputs.npz", inputs_n=8, inputs_source="counted ids"),
        files={
            file.name: FileEntry(sha256=sha256_file(file), bytes=file.stat().st_size)
            for file in sorted(root.iterdir())
        },
    )
