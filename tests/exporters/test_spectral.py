"""A HEST adapter exported: off directions are gone, int8 ones are integer products, others fp16."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import numpy_helper

from edgebench.adapters import spectral_files
from edgebench.errors import CheckpointError, ExportError
from edgebench.export import ExportRequest, export, integer_graph
from edgebench.export.parity import compare
from edgebench.export.session import run_graph
from edgebench.overhead.run import count_artifact
from tests.adapters.gated_models import LABELS, LAYERS, model
from tests.adapters.test_spectral import R, adapted
from tests.export.tiny import write_tokenizer


def checkpoint(directory: Path) -> tuple[Path, Path]:
    base, adapter = directory / "base", directory / "adapter"
    module, parts, role = adapted("bert", states=True)
    plain = model("bert")
    plain.save_pretrained(base)
    write_tokenizer(base, ["input_ids", "attention_mask", "token_type_ids"])
    with torch.no_grad():
        for part in parts.values():
            part.state_logits.zero_()
            for index in range(R):  # off, int8, fp16, off, ...
                part.state_logits[index, index % 3] = 5.0
    spectral_files.save(
        module,
        parts,
        adapter,
        kind="HEST",
        module=role,
        base_name=str(base),
        task_type="SEQ_CLS",
        labels=[str(i) for i in range(LABELS)],
    )
    return base, adapter


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    directory = tmp_path_factory.mktemp("hest")
    base, adapter = checkpoint(directory)
    request = ExportRequest(
        out=directory / "out",
        adapter=adapter,
        base=str(base),
        lowering="unmerged",
        seq_len=16,
        quants=("fp32", "int8", "fp16", "int3"),
    )
    artifacts = export(request)
    return request, {a.manifest.quantization.scheme: a for a in artifacts}


def test_directions_that_are_off_are_not_in_the_graph(exported):
    request, artifacts = exported
    manifest = artifacts["fp32"].manifest
    each = LAYERS * R // 3
    assert manifest.statistics.kept_ranks == 2 * each
    assert manifest.adapter.kind == "hest"
    assert manifest.adapter.directions == {"off": each, "int8": each, "fp16": each}
    assert manifest.extra_flops > 0
    with pytest.raises(CheckpointError, match="can't be folded into a weight"):
        export(replace(request, lowering="merged", quants=("fp32",)))


@pytest.mark.parametrize("scheme", ["fp32", "int8", "fp16", "int3"])
def test_int8_directions_run_in_integer_kernels_whatever_the_scheme(exported, scheme, tmp_path):
    artifact = exported[1][scheme]
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    options.enable_profiling = True
    options.profile_file_prefix = str(tmp_path / "profile")
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(
        str(artifact.model_path), options, providers=["CPUExecutionProvider"]
    )
    with np.load(artifact.path / "inputs.npz") as rows:
        session.run(None, {name: rows[name][:1] for name in rows.files})
    events = json.loads(Path(session.end_profiling()).read_text())
    ran = [event["args"]["op_name"] for event in events if event["name"].endswith("_kernel_time")]
    # Two products a layer; ONNX Runtime made one kernel of rounding, product and scales.
    assert ran.count("DynamicQuantizeMatMul") >= 2 * LAYERS
    codes = {
        tensor.name
        for tensor in onnx.load(tmp_path / "optimised.onnx").graph.initializer
        if tensor.data_type == onnx.TensorProto.UINT8 and len(tensor.dims) == 2
    }
    assert len({name for name in codes if "branches" in name}) == 2 * LAYERS


def test_fp16_directions_are_stored_in_fp16(exported):
    model = onnx.load(exported[1]["fp32"].model_path)
    halves = [t for t in model.graph.initializer if t.data_type == onnx.TensorProto.FLOAT16]
    assert len(halves) == 2 * LAYERS
    assert all(t.name.endswith(".half") for t in halves)


def test_the_manifest_says_how_far_rounded_activations_are_from_pytorch(exported):
    for scheme, artifact in exported[1].items():
        found = artifact.manifest.integer
        assert found.products == 2 * LAYERS
        assert found.largest_error <= 1e-5
        assert found.in_float.max_abs_error <= found.in_float.tolerance == 1e-4
        assert found.rounding.max_abs_error > 1e-4
        parity = artifact.manifest.parity
        assert "rounded as the graph does" in parity.reference
        assert parity.tolerance is None
        if scheme == "fp32":
            assert parity.mean_abs_error < found.rounding.mean_abs_error / 10
    assert exported[1]["fp32"].manifest.quantization.storage_bits_per_weight > 20


def test_operations_of_the_branch_are_counted(exported):
    artifact = exported[1]["fp32"]
    cost = count_artifact(artifact)
    assert not cost.uncounted
    branch = [node for node in cost.nodes if node.name.startswith("adapter/")]
    assert {"MatMulInteger", "DynamicQuantizeLinear", "Sigmoid"} <= {node.op for node in branch}
    assert sum(node.flops for node in branch) == artifact.manifest.extra_flops


def test_a_product_with_a_changed_code_is_found(exported, tmp_path):
    model = onnx.load(exported[1]["fp32"].model_path)
    with np.load(exported[1]["fp32"].path / "inputs.npz") as rows:
        feeds = [{name: rows[name][:2] for name in rows.files}]
    expected = [o[0] for o in run_graph(model_bytes(integer_graph.in_float(model)), feeds, "x")]
    file = tmp_path / "model.onnx"
    file.write_bytes(model.SerializeToString())
    kept = integer_graph.check(file, feeds, expected, agree)
    assert kept.products == 2 * LAYERS
    tensor = next(t for t in model.graph.initializer if t.name.endswith("v.weight_quantized"))
    codes = numpy_helper.to_array(tensor).copy()
    codes[:, 0] = 255 - codes[:, 0]
    tensor.CopyFrom(numpy_helper.from_array(codes, tensor.name))
    file.write_bytes(model.SerializeToString())
    with pytest.raises(ExportError, match="off"):
        integer_graph.check(file, feeds, expected, agree)


def model_bytes(model) -> bytes:
    return model.SerializeToString()


def agree(wanted, got):
    parity = compare(wanted, got, reference="x", logits=True, tolerance=1e-4)
    if parity.max_abs_error > 1e-4:
        raise ExportError(f"off by {parity.max_abs_error}")
    return parity
