"""Dynamic int8 on a small transformer."""

from collections import Counter

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from edgebench.errors import InputError
from edgebench.quantize import quantize
from tests.quantize import models

EXACT = {"session.x64quantprecision": "1"}


@pytest.fixture(params=[20, 21], ids=["opset20", "opset21"])
def converted(request, tmp_path):
    proto = models.transformer(rank=8, opset=request.param)
    source = models.save(proto, tmp_path / "s.onnx")
    target = tmp_path / "t.onnx"
    return proto, quantize(source, target, "int8"), target


def test_the_logits_stay_close_to_fp32(converted):
    proto, _, target = converted
    ids = np.random.default_rng(0).integers(0, 500, (64, 17))
    expected = models.run(models.session(proto), input_ids=ids)
    got = models.run(models.session(target), input_ids=ids)
    assert np.abs(got - expected).mean() < 0.05 * np.abs(expected).mean()


def test_matrices_and_tables_are_integers_and_the_adapter_is_not(converted):
    _, result, target = converted
    tensors = {t.name: t for t in onnx.load(target).graph.initializer}
    assert tensors["table_quantized"].data_type == TensorProto.UINT8
    assert tensors["0.q_quantized"].data_type == TensorProto.INT8
    assert list(tensors["0.q_scale"].dims) == [128], "one scale an output channel"
    kept = {"head", "0.lora_A", "0.lora_B", "1.lora_A", "1.lora_B"}
    assert {n for n in kept if n in tensors and tensors[n].data_type == TensorProto.FLOAT} == kept
    assert result.details["kept_fp32"] == sorted(kept)


def test_the_manifest_says_what_is_stored(converted):
    proto, result, target = converted
    assert (result.storage_bits, result.compute_bits, result.activation_bits) == (8, 8, 8)
    assert result.quantized_weights == 2 * 12 * 128**2 + 128**2 + 500 * 128
    assert 8.0 < result.storage_bits_per_weight < 8.3
    assert 8.1 < result.file_bits_per_weight < 9
    assert target.stat().st_size < 0.3 * proto.ByteSize()


def test_the_integer_kernels_are_used(converted, tmp_path):
    _, _, target = converted
    optimised = tmp_path / "optimised.onnx"
    models.session(target, optimised=optimised)
    kinds = Counter(models.operators(optimised))
    assert kinds["MatMulIntegerToFloat"] + kinds["DynamicQuantizeMatMul"] == 13


def test_a_weight_behind_a_transpose_is_quantised(tmp_path):
    table = np.random.default_rng(0).normal(size=(300, 96)).astype(np.float32)
    proto = models.model(
        [
            helper.make_node("Transpose", ["W"], ["turned"], perm=[1, 0]),
            helper.make_node("MatMul", ["X", "turned"], ["Y"]),
        ],
        {"W": table},
        {"X": (TensorProto.FLOAT, ["b", 96])},
        {"Y": ["b", 300]},
    )
    source = models.save(proto, tmp_path / "s.onnx")
    result = quantize(source, tmp_path / "t.onnx", "int8")
    assert result.quantized_weights == result.total_weights == 300 * 96
    x = np.random.default_rng(1).normal(size=(4, 96)).astype(np.float32)
    got = models.run(models.session(tmp_path / "t.onnx", options=EXACT), X=x)
    assert np.abs(got - x @ table.T).max() < 0.03 * np.abs(x @ table.T).max()


@pytest.mark.parametrize("k", [96, 384, 1536])
def test_sums_are_exact_on_every_cpu_with_the_session_option_of_the_manifest(tmp_path, k):
    """Without it, x86 without VNNI saturates: 22 % of the range on these weights at K = 96."""
    rng = np.random.default_rng(0)
    weight = rng.normal(size=(k, 300)).astype(np.float32)
    source = models.save(models.linear(weight), tmp_path / "s.onnx")
    result = quantize(source, tmp_path / "t.onnx", "int8")
    options = result.details["session_options_x86_without_vnni"]
    assert options == EXACT
    x = rng.normal(size=(1, 64, k)).astype(np.float32)
    got = models.run(models.session(tmp_path / "t.onnx", options=options), X=x)
    assert np.abs(got - x @ weight).max() < 0.02 * np.abs(x @ weight).max()


def test_a_model_with_nothing_to_quantise_is_refused(tmp_path):
    source = models.save(models.linear(np.ones((384, 5), np.float32)), tmp_path / "s.onnx")
    with pytest.raises(InputError, match="no matrix"):
        quantize(source, tmp_path / "t.onnx", "int8")
    assert not (tmp_path / "t.onnx").exists()


def test_the_quantiser_says_nothing_on_the_root_logger(tmp_path, caplog):
    source = models.save(models.transformer(layers=1), tmp_path / "s.onnx")
    quantize(source, tmp_path / "t.onnx", "int8")
    assert not caplog.records
