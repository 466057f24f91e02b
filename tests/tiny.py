"""Tiny artifacts that run in microseconds: real ONNX files, sealed like any other.

The model looks token ids up in a small table, takes their mean and multiplies it into two logits,
so it has the shape of a classifier without its cost.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from edgebench.artifact import (
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

SEQ_LEN = 8
VOCABULARY = 16


def tiny_model(*, width: int = 4, layers: int = 0, seed: int = 0) -> onnx.ModelProto:
    """Logits [batch, 2] of input_ids [batch, sequence]; ``layers`` square MatMuls add work."""
    rng = np.random.default_rng(seed)
    table = rng.normal(size=(VOCABULARY, width)).astype(np.float32)
    head = rng.normal(size=(width, 2)).astype(np.float32)
    weights = [numpy_helper.from_array(table, "table"), numpy_helper.from_array(head, "head")]
    nodes = [helper.make_node("Gather", ["table", "input_ids"], ["x0"])]
    for i in range(layers):
        square = (rng.normal(size=(width, width)) / np.sqrt(width)).astype(np.float32)
        weights.append(numpy_helper.from_array(square, f"w{i}"))
        nodes.append(helper.make_node("MatMul", [f"x{i}", f"w{i}"], [f"x{i + 1}"]))
    nodes.append(helper.make_node("ReduceMean", [f"x{layers}"], ["mean"], axes=[1], keepdims=0))
    nodes.append(helper.make_node("MatMul", ["mean", "head"], ["logits"]))
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["batch", "sequence"])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 2])],
        weights,
    )
    return helper.make_model(
        graph, ir_version=10, opset_imports=[helper.make_opsetid("", 17)], producer_name="tests"
    )


def tiny_artifact(
    directory: Path,
    *,
    name: str = "tiny",
    scheme: str = "fp32",
    width: int = 4,
    layers: int = 0,
    evaluation: int = 40,
    model: onnx.ModelProto | None = None,
) -> Artifact:
    """Write a sealed artifact into ``directory / name`` and load it."""
    import onnxruntime

    root = directory / name
    root.mkdir(parents=True)
    proto = model or tiny_model(width=width, layers=layers)
    onnx.save(proto, root / "model.onnx")
    rng = np.random.default_rng(1)
    ids = rng.integers(0, VOCABULARY, size=(64, SEQ_LEN), dtype=np.int64)
    np.savez(root / "inputs.npz", input_ids=ids)
    held_out = rng.integers(0, VOCABULARY, size=(evaluation, SEQ_LEN), dtype=np.int64)
    if model is None:
        session = onnxruntime.InferenceSession(str(root / "model.onnx"))
        labels = session.run(None, {"input_ids": held_out})[0].argmax(-1)
        labels[: evaluation // 10] ^= 1  # so that the accuracy is 90 %, not a suspicious 100 %
    else:
        labels = np.zeros(evaluation, dtype=np.int64)
    np.savez(root / "evaluation.npz", input_ids=held_out, labels=labels)
    parameters = sum(int(np.prod(t.dims)) for t in proto.graph.initializer)
    manifest = Manifest(
        schema="edgebench.artifact/1",
        name=name,
        task="sequence-classification",
        labels=("no", "yes"),
        base=Base(
            name="tiny",
            digest="sha256:" + "0" * 64,
            architecture="Tiny",
            hidden_size=width,
            layers=1,
            heads=1,
            parameters=parameters,
        ),
        adapter=None,
        exporter=Exporter(name="tests", road="torch", opset=17, ir_version=10, versions={}),
        lowering="base",
        quantization=Quantization(
            scheme=scheme,
            storage_bits=3 if scheme == "int3" else 32,
            compute_bits=4 if scheme == "int3" else 32,
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
            seq_len=SEQ_LEN,
            kept_layers=1,
            kept_heads=1,
            kept_ranks=0,
            param_bits=32 * parameters,
        ),
        extra_flops=0.0,
        parity=Parity(
            reference="the same model",
            n=1,
            max_abs_error=0.0,
            mean_abs_error=0.0,
            cosine_min=1.0,
            cosine_mean=1.0,
            kl_mean=0.0,
            top1_agreement=1.0,
            tolerance=1e-4,
        ),
        data=Data(
            inputs="inputs.npz",
            inputs_n=64,
            inputs_source="seeded random ids",
            evaluation="evaluation.npz",
            evaluation_n=evaluation,
            evaluation_source="the model's own answers, a tenth flipped",
        ),
        files={
            file.name: FileEntry(sha256=sha256_file(file), bytes=file.stat().st_size)
            for file in sorted(root.iterdir())
        },
    )
    write_manifest(root, manifest)
    return Artifact.load(root)


def edit_manifest(artifact: Artifact, **changes: object) -> None:
    """Change members of the manifest on disk without sealing it again."""
    path = artifact.path / "artifact.json"
    document = json.loads(path.read_text())
    document.update(changes)
    path.write_text(json.dumps(document))
