"""A decoder of some thousand weights with real grouped-query attention, as an artifact."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from edgebench.artifact import (
    Artifact,
    Decoder,
    FileEntry,
    Manifest,
    sha256_file,
    write_manifest,
)
from tests.tiny import tiny_artifact

LAYERS, HEADS, KV_HEADS, HEAD_DIM = 2, 4, 2, 8
VOCABULARY, POSITIONS, PROMPT = 32, 64, 8
HIDDEN = HEADS * HEAD_DIM

Names = dict[str, str]


def tiny_decoder(
    *,
    foreign: bool = False,
    head_dim: int = HEAD_DIM,
    seed: int = 0,
    swapped: tuple[str, ...] = (),
) -> onnx.ModelProto:
    """Embedding, layers of attention, head; one graph for prefill and decode.

    Args:
        foreign: as optimum writes it: position_ids, logits of every position.
        swapped: products (``q0``, ``v1``, ...) that have a branch of inputs, as a swappable
            export writes them.
    """
    rng = np.random.default_rng(seed)
    weights: list[onnx.TensorProto] = []
    nodes: list[onnx.NodeProto] = []
    factors: list[onnx.ValueInfoProto] = []

    def weight(name: str, *shape: int, scale: float = 1.0) -> str:
        array = (rng.normal(size=shape) * scale).astype(np.float32)
        weights.append(numpy_helper.from_array(array, name))
        return name

    def constant(name: str, value: Any, kind: Any = np.int64) -> str:
        weights.append(numpy_helper.from_array(np.array(value, kind), name))
        return name

    def node(op: str, inputs: list[str], outputs: list[str], **attributes: Any) -> None:
        nodes.append(helper.make_node(op, inputs, outputs, **attributes))

    hidden, kv = HEADS * head_dim, KV_HEADS * head_dim
    node("ReduceSum", ["attention_mask", constant("axis", [1])], ["sum"], keepdims=0)
    node("Sub", ["sum", constant("one", [1])], ["last"])
    node("Cast", ["last"], ["seqlens"], to=TensorProto.INT32)
    node("Shape", ["attention_mask"], ["mask.shape"])
    node("Gather", ["mask.shape", constant("index", 1)], ["width"])
    node("Cast", ["width"], ["total"], to=TensorProto.INT32)
    node("Gather", [weight("table", VOCABULARY, hidden), "input_ids"], ["x0"])
    if foreign:
        node("Gather", [weight("places", POSITIONS, hidden), "position_ids"], ["placed"])
        node("Add", ["x0", "placed"], ["start"])
    else:
        node("Identity", ["x0"], ["start"])
    x = "start"
    for i in range(LAYERS):
        for part, width in (("q", hidden), ("k", kv), ("v", kv)):
            name = weight(f"{part}{i}.weight", hidden, width, scale=hidden**-0.5)
            product = f"{part}{i}"
            if product not in swapped:
                node("MatMul", [x, name], [product])
                continue
            down, up = f"{product}.lora_A", f"{product}.lora_B"
            for each, shape in ((down, [hidden, 0]), (up, [0, width])):
                weights.append(numpy_helper.from_array(np.zeros(shape, np.float32), each))
                free = [size or f"{product}.rank" for size in shape]
                factors.append(helper.make_tensor_value_info(each, TensorProto.FLOAT, free))
            node("MatMul", [x, name], [f"{product}.own"])
            node("MatMul", [x, down], [f"{product}.down"])
            node("MatMul", [f"{product}.down", up], [f"{product}.branch"])
            node("Add", [f"{product}.own", f"{product}.branch"], [product])
        past = [f"past_key_values.{i}.{part}" for part in ("key", "value")]
        present = [f"present.{i}.{part}" for part in ("key", "value")]
        node(
            "GroupQueryAttention",
            [f"q{i}", f"k{i}", f"v{i}", *past, "seqlens", "total"],
            [f"a{i}", *present],
            domain="com.microsoft",
            num_heads=HEADS,
            kv_num_heads=KV_HEADS,
        )
        node("MatMul", [f"a{i}", weight(f"o{i}.weight", hidden, hidden)], [f"o{i}"])
        node("Sin", [f"o{i}"], [f"s{i}"])  # so that tokens don't repeat
        node("Add", [x, f"s{i}"] if i + 1 < LAYERS else [f"s{i}", f"s{i}"], [f"y{i}"])
        x = f"y{i}"
    if not foreign:
        node("Neg", ["logits_to_keep"], ["begin"])
        ends, axes = constant("ends", [2**62]), constant("axes", [1])
        node("Slice", [x, "begin", ends, axes], ["kept"])
        x = "kept"
    node("MatMul", [x, weight("head", hidden, VOCABULARY)], ["logits"])

    def ids(name: str, *shape: Any) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, TensorProto.INT64, shape)

    def cache(name: str, length: str) -> onnx.ValueInfoProto:
        shape = ["batch", KV_HEADS, length, head_dim]
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)

    places = [(i, part) for i in range(LAYERS) for part in ("key", "value")]
    extra = ids("position_ids", "batch", "sequence") if foreign else ids("logits_to_keep", 1)
    logits = ["batch", "kept", VOCABULARY]
    graph = helper.make_graph(
        nodes,
        "tiny-decoder",
        [
            ids("input_ids", "batch", "sequence"),
            ids("attention_mask", "batch", "total_sequence"),
            extra,
            *(cache(f"past_key_values.{i}.{part}", "past_sequence") for i, part in places),
            *factors,
        ],
        [
            helper.make_tensor_value_info("logits", TensorProto.FLOAT, logits),
            *(cache(f"present.{i}.{part}", "present_sequence") for i, part in places),
        ],
        weights,
    )
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, ir_version=10, opset_imports=opsets, producer_name="tests")


def greedy(
    model: onnx.ModelProto,
    prompt: list[int],
    count: int,
    adapter: dict[str, np.ndarray[Any, Any]] | None = None,
) -> list[int]:
    """Greedy tokens without a cache: the whole sequence through the graph for each of them."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(model.SerializeToString(), options)
    names = {item.name: item for item in session.get_inputs()}
    tokens = list(prompt)
    while len(tokens) < len(prompt) + count:
        n = len(tokens)
        feed = {
            "input_ids": np.array([tokens]),
            "attention_mask": np.ones((1, n), np.int64),
            "position_ids": np.arange(n)[None],
            "logits_to_keep": np.array([1]),
        }
        feed = {name: feed[name] for name in feed if name in names} | (adapter or {})
        for name, item in names.items():
            if name.startswith("past"):
                feed[name] = np.zeros((1, KV_HEADS, 0, item.shape[3]), np.float32)
        tokens.append(int(session.run(["logits"], feed)[0][0, -1].argmax()))
    return tokens[len(prompt) :]


def decoder_artifact(
    directory: Path,
    *,
    name: str = "decoder",
    scheme: str = "fp32",
    cache: str = "shared",
    foreign: bool = False,
    expected: int = 6,
    wrong: bool = False,
    head_dim: int = HEAD_DIM,
    max_positions: int = POSITIONS,
    model: onnx.ModelProto | None = None,
) -> Artifact:
    """A sealed artifact with inputs, the tokens expected after them, and texts for perplexity.

    Args:
        expected: greedy tokens that travel along, 0 for none; ``wrong``: the last is another.
    """
    proto = model or tiny_decoder(foreign=foreign, head_dim=head_dim)
    made = tiny_artifact(directory, name=name, scheme=scheme, model=proto)
    root = made.path
    rng = np.random.default_rng(1)
    ids = rng.integers(0, VOCABULARY, size=(16, PROMPT))
    arrays = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
    if expected:
        tokens = np.array([greedy(proto, row.tolist(), expected) for row in ids[:2]])
        tokens[-1, -1] = (tokens[-1, -1] + int(wrong)) % VOCABULARY
        arrays["expected_tokens"] = tokens
    np.savez(root / "inputs.npz", **arrays)
    texts = rng.integers(0, VOCABULARY, size=(5, 12))
    mask = np.ones_like(texts)
    mask[1, 9:] = 0
    np.savez(root / "evaluation.npz", input_ids=texts, attention_mask=mask)
    document = json.loads((root / "artifact.json").read_text())
    manifest = Manifest.model_validate(document)
    data = manifest.data.model_copy(update={"inputs_n": len(ids), "evaluation_n": len(texts)})
    manifest = manifest.model_copy(
        update={
            "task": "text-generation",
            "labels": (),
            "data": data,
            "decoder": Decoder(
                layers=LAYERS,
                kv_heads=KV_HEADS,
                head_dim=head_dim,
                vocab_size=VOCABULARY,
                max_positions=max_positions,
                eos_token_ids=(),
                cache=cache,
            ),
            "files": {
                file.name: FileEntry(sha256=sha256_file(file), bytes=file.stat().st_size)
                for file in sorted(root.iterdir())
                if file.name != "artifact.json"
            },
        }
    )
    write_manifest(root, manifest)
    return Artifact.load(root)
