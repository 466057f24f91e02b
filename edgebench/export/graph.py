"""An exported ONNX file made clean: no traces of the machine that wrote it, readable names.

The exporter leaves in every node the source lines, with their paths, that it came from. They would
make the artifact's digest depend on where Python is installed, so they go. First they serve to
name the folded weights: ``val_87`` becomes ``bert.encoder.layer.0.attention.self.query.weight``.
"""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

from edgebench.adapters import dictionary_op
from edgebench.artifact import Signature, Tensor

OPSET = 20
IR_VERSION = 10

#: Above this, weights go to a file beside the graph: protobuf ends at 2 GiB.
_ONE_FILE_BYTES = 1_500_000_000

_SCOPES = "pkg.torch.onnx.name_scopes"
_CLASSES = "pkg.torch.onnx.class_hierarchy"
#: How the names of an adapter's nodes begin.
ADAPTER = "adapter/"

_WRAPPERS = ("model.", "base_model.model.")


def tidy(model: Any) -> Any:
    """Name folded weights, give our own ops their bodies, drop metadata, set the IR version."""
    _mark_adapters(model.graph)
    _name_weights(model.graph)
    _store_halves(model.graph)
    dictionary_op.complete(model)
    model.ir_version = IR_VERSION
    model.doc_string = ""
    del model.metadata_props[:]
    graph = model.graph
    graph.doc_string = ""
    graph.name = "edgebench"
    del graph.metadata_props[:]
    for part in (graph.node, graph.input, graph.output, graph.value_info, graph.initializer):
        for item in part:
            item.doc_string = ""
            del item.metadata_props[:]
    return model


def save(model: Any, target: Path) -> None:
    """Write a model; the weights of a large one go to ``<target>.data``."""
    import onnx

    if model.ByteSize() > _ONE_FILE_BYTES:
        onnx.save(model, str(target), save_as_external_data=True, location=target.name + ".data")
    else:
        target.write_bytes(model.SerializeToString(deterministic=True))


def signature(model: Any) -> Signature:
    """Names, types and shapes (symbolic axes by name) of the inputs and outputs."""
    import onnx

    def tensor(value: Any) -> Tensor:
        kind = value.type.tensor_type
        dtype = onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type).name
        shape = tuple(d.dim_param or d.dim_value for d in kind.shape.dim)
        return Tensor(name=value.name, dtype=dtype, shape=shape)

    weights = {initializer.name for initializer in model.graph.initializer}
    return Signature(
        inputs=tuple(tensor(v) for v in model.graph.input if v.name not in weights),
        outputs=tuple(tensor(v) for v in model.graph.output),
    )


def _mark_adapters(graph: Any) -> None:
    """Name the nodes of an adapter's branch ``adapter/...``, so that their cost can be told.

    They came from a module that holds the changed one as ``base`` (``edgebench.adapters.base``).
    """
    scopes = [_scope(node) for node in graph.node]
    adapted = {scope.removesuffix(".base") for scope in scopes if scope.endswith(".base")}
    for node, scope in zip(graph.node, scopes, strict=True):
        owner = next((a for a in adapted if f"{scope}.".startswith(f"{a}.")), None)
        if owner is not None and not f"{scope}.".startswith(f"{owner}.base."):
            node.name = f"{ADAPTER}{node.name or node.output[0]}"


def _name_weights(graph: Any) -> None:
    """Call each constant of a MatMul or Gemm after the module that it came from."""
    taken = {initializer.name for initializer in graph.initializer}
    names: dict[str, str] = {}
    for node in graph.node:
        if node.op_type in {"MatMul", "Gemm"} and node.input[1] in taken:
            scope = _scope(node)
            name = f"{scope}.weight"
            if scope and node.input[1].startswith("val_") and name not in taken | {*names.values()}:
                names.setdefault(node.input[1], name)
    # The wrappers that export and peft put round the model are no part of a weight's name.
    for initializer in graph.initializer:
        plain = names.get(initializer.name, initializer.name)
        for wrapper in _WRAPPERS:
            plain = plain.removeprefix(wrapper)
        if plain != initializer.name and plain not in taken:
            taken.add(plain)
            names[initializer.name] = plain
    for initializer in graph.initializer:
        initializer.name = names.get(initializer.name, initializer.name)
    for node in graph.node:
        for position, value in enumerate(node.input):
            node.input[position] = names.get(value, value)
    for value in graph.value_info:
        value.name = names.get(value.name, value.name)


def _store_halves(graph: Any) -> None:
    """Store in fp16 what an ``Fp16Linear`` multiplies by: its values are fp16's already.

    A Cast makes them fp32 again, once, when the session is made: a CPU computes in fp32.
    """
    import numpy as np
    from onnx import TensorProto, helper, numpy_helper

    tensors = {tensor.name: tensor for tensor in graph.initializer}
    names = {
        node.input[1]
        for node in graph.node
        if node.op_type == "MatMul" and _innermost(node, _CLASSES).endswith(".Fp16Linear")
    }
    for number, name in enumerate(sorted(names)):
        array = numpy_helper.to_array(tensors[name])
        stored = f"{name}.half"
        tensors[name].CopyFrom(numpy_helper.from_array(array.astype(np.float16), stored))
        cast = helper.make_node("Cast", [stored], [name], to=TensorProto.FLOAT)
        graph.node.insert(number, cast)


def _scope(node: Any) -> str:
    """The path of the torch module that a node came from, or ""."""
    return _innermost(node, _SCOPES)


def _innermost(node: Any, key: str) -> str:
    """What the exporter noted of the innermost torch module that a node came from, or ""."""
    for entry in node.metadata_props:
        if entry.key == key:
            noted = ast.literal_eval(entry.value)
            return str(noted[-2]) if len(noted) > 1 else ""
    return ""
