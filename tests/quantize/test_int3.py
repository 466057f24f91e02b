"""Three bits on whole graphs: what is replaced, what is kept, and what comes out."""

from collections import Counter

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgebench.errors import InputError, UsageError
from edgebench.quantize import files, functions, int3, quantize
from edgebench.quantize.fit import dequantize, fit
from edgebench.quantize.packing import unpack
from tests.quantize import models


def silent(_what, _fraction):
    return None


def convert(proto, tmp_path, **options):
    source = models.save(proto, tmp_path / "source.onnx")
    target = tmp_path / "target.onnx"
    result = int3.convert(source, target, silent, **options)
    made = onnx.load(target)
    onnx.checker.check_model(made)
    return result, made, target


def ours(made):
    return [node for node in made.graph.node if node.domain == functions.DOMAIN]


def decoded(made, node):
    """The weights [N, K] that a node's planes stand for."""
    arrays = {t.name: numpy_helper.to_array(t) for t in made.graph.initializer}
    attributes = {a.name: a.i for a in node.attribute}
    start = 0 if node.op_type == functions.GATHER else 1
    low, high, scales = (arrays[name] for name in node.input[start : start + 3])
    codes = unpack(low, high, attributes["K"])
    return dequantize(codes, scales, attributes["block_size"])


@pytest.mark.parametrize("n", [65, 96])
@pytest.mark.parametrize("k", [32, 100, 101, 128, 257])
def test_a_matrix_of_any_shape_computes_with_its_decoded_weights(tmp_path, k, n):
    weight = np.random.default_rng(0).normal(size=(k, n)).astype(np.float32)
    result, made, target = convert(models.linear(weight), tmp_path)
    (node,) = ours(made)
    assert np.array_equal(decoded(made, node), dequantize(*fit(weight.T, block(node)), block(node)))
    assert result.storage_bits_per_weight <= int3.MOST_BITS
    x = np.random.default_rng(1).normal(size=(3, 5, k)).astype(np.float32)
    expected = x @ decoded(made, node).T
    plain = models.run(models.session(target, plain=True), X=x)
    assert np.allclose(plain, expected, rtol=1e-4, atol=1e-4)


def block(node):
    return next(a.i for a in node.attribute if a.name == "block_size")


def test_a_row_that_blocks_do_not_divide_takes_larger_blocks_to_stay_within_the_bits(tmp_path):
    weight = np.ones((312, 96), np.float32)  # TinyBERT's width: 3.51 bits with blocks of 32
    result, made, _ = convert(models.linear(weight), tmp_path)
    assert block(ours(made)[0]) == 64
    assert result.storage_bits_per_weight == 3 + 5 * 16 / 312


def test_a_matrix_too_short_for_its_padding_stays_in_fp32(tmp_path):
    """33 weights take 40 codes: 3.6 bits before any scale."""
    with pytest.raises(InputError, match="no matrix"):
        convert(models.linear(np.ones((33, 65), np.float32)), tmp_path)


@pytest.mark.parametrize("size", [32, 64, 128, 256])
def test_a_block_size_can_be_chosen(tmp_path, size):
    weight = np.random.default_rng(0).normal(size=(256, 96)).astype(np.float32)
    result, made, _ = convert(models.linear(weight), tmp_path, block_size=size)
    assert result.block_size == block(ours(made)[0]) == size
    assert result.storage_bits_per_weight == 3 + 16 / size


@pytest.mark.parametrize("size", [0, -32, 16, 33, 48, 512])
def test_a_block_size_that_no_kernel_takes_is_refused(tmp_path, size):
    with pytest.raises(UsageError, match=f"blocks of {size} weights"):
        convert(models.linear(np.ones((256, 96), np.float32)), tmp_path, block_size=size)
    assert not (tmp_path / "target.onnx").exists()


def test_a_transformer_is_stored_in_three_bits_and_says_so(tmp_path):
    result, made, target = convert(models.transformer(), tmp_path)
    assert Counter(node.op_type for node in ours(made)) == {"MatMul3Bit": 13, "Gather3Bit": 1}
    assert (result.storage_bits, result.compute_bits, result.activation_bits) == (3, 4, 8)
    matrices, table = 2 * 12 * 128**2 + 128**2, 500 * 128
    assert result.quantized_weights == matrices + table
    assert result.storage_bits_per_weight * (matrices + table) == 3.5 * matrices + 3.25 * table
    assert 3.4 < result.file_bits_per_weight < 3.8
    assert result.details["kept_fp32"] == ["head"]
    assert result.details["session_options"] == {"session.qdq_matmulnbits_accuracy_level": "4"}
    assert target.stat().st_size < (tmp_path / "source.onnx").stat().st_size / 7


def test_every_three_bit_matmul_of_a_transformer_fuses(tmp_path):
    _, _, target = convert(models.transformer(), tmp_path)
    optimised = tmp_path / "optimised.onnx"
    models.session(target, optimised=optimised)
    assert Counter(models.operators(optimised))["MatMulNBits"] == 13


def test_the_transformer_computes_what_its_decoded_weights_compute(tmp_path):
    """Against the fp32 graph whose weights are replaced with the decoded ones."""
    proto = models.transformer(rank=8)
    _, made, target = convert(proto, tmp_path)
    values = {}
    for node in ours(made):
        start = 0 if node.op_type == functions.GATHER else 1
        values[node.input[start].removesuffix(".low")] = decoded(made, node)
    for tensor in proto.graph.initializer:
        if tensor.name in values:
            shape = tuple(tensor.dims)
            array = values[tensor.name]
            # Square matrices of MatMul are stored transposed as well; the Gemm's and the table not.
            stored = array if tensor.name in ("dense", "table") else array.T
            assert stored.shape == shape
            tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(stored), tensor.name))
    ids = np.random.default_rng(0).integers(0, 500, (3, 17))
    expected = models.run(models.session(proto), input_ids=ids)
    exact = models.run(models.session(target, plain=True), input_ids=ids)
    assert np.allclose(exact, expected, rtol=1e-4, atol=1e-4)
    fused = models.run(models.session(target), input_ids=ids)
    assert np.abs(fused - expected).max() < 0.05 * np.abs(expected).max(), "int8 activations"


def test_an_unmerged_adapter_stays_in_fp32(tmp_path):
    result, made, _ = convert(models.transformer(rank=8), tmp_path)
    kept = {t.name for t in made.graph.initializer if t.data_type == TensorProto.FLOAT}
    factors = {f"{i}.lora_{side}" for i in range(2) for side in "AB"}
    assert factors <= kept
    assert result.details["kept_fp32"] == sorted({*factors, "head"})


def test_a_tied_table_is_stored_once(tmp_path):
    """A table that embeds and, transposed, gives the logits of a language model."""
    table = np.random.default_rng(0).normal(size=(300, 96)).astype(np.float32)
    proto = models.model(
        [
            helper.make_node("Gather", ["table", "ids"], ["x"]),
            helper.make_node("Transpose", ["table"], ["head"], perm=[1, 0]),
            helper.make_node("MatMul", ["x", "head"], ["Y"]),
        ],
        {"table": table},
        {"ids": (TensorProto.INT64, ["b", "s"])},
        {"Y": ["b", "s", 300]},
    )
    result, made, target = convert(proto, tmp_path)
    assert [node.op_type for node in made.graph.node] == ["Gather3Bit", "MatMul3Bit"]
    assert len(made.graph.initializer) == 3
    assert result.quantized_weights == result.total_weights == 300 * 96
    w = decoded(made, ours(made)[0])
    ids = np.array([[1, 299, 0]])
    plain = models.run(models.session(target, plain=True), ids=ids)
    assert np.allclose(plain, w[ids] @ w.T, rtol=1e-4, atol=1e-3)


def test_a_weight_behind_an_identity_is_found(tmp_path):
    proto = models.linear(np.ones((64, 96), np.float32))
    proto.graph.node.insert(0, helper.make_node("Identity", ["W"], ["same"]))
    proto.graph.node[1].input[1] = "same"
    _, made, _ = convert(proto, tmp_path)
    assert [node.op_type for node in made.graph.node] == ["MatMul3Bit"]


@pytest.mark.parametrize("attributes", [{"alpha": 0.5}, {"beta": 2.0}, {"transA": 1}])
def test_a_gemm_that_does_more_is_left_alone(tmp_path, attributes):
    rng = np.random.default_rng(0)
    proto = models.model(
        [
            helper.make_node("Gemm", ["X", "W", "b"], ["h"], **attributes),
            helper.make_node("MatMul", ["h", "V"], ["Y"]),
        ],
        {
            name: rng.normal(size=shape).astype(np.float32)
            for name, shape in (("W", (96, 96)), ("V", (96, 96)), ("b", (96,)))
        },
        {"X": (TensorProto.FLOAT, [96, 96])},
        {"Y": [96, 96]},
    )
    _, made, _ = convert(proto, tmp_path)
    assert [node.op_type for node in made.graph.node] == ["Gemm", "MatMul3Bit"]


def test_a_model_with_nothing_to_store_in_three_bits_is_refused(tmp_path):
    with pytest.raises(InputError, match="no matrix"):
        convert(models.linear(np.ones((384, 5), np.float32)), tmp_path)


def test_weights_beyond_fp16_scales_are_refused(tmp_path):
    with pytest.raises(InputError, match="'W' is too large for fp16 scales"):
        convert(models.linear(np.full((64, 64), 1e6, np.float32)), tmp_path)
    assert not (tmp_path / "target.onnx").exists()


@pytest.mark.parametrize("opset", [17, 20, 21, 22])
def test_opsets_are_brought_up_to_21(tmp_path, opset):
    proto = models.linear(np.ones((64, 64), np.float32), opset=opset)
    _, made, target = convert(proto, tmp_path)
    assert next(o.version for o in made.opset_import if not o.domain) == max(opset, 21)
    models.session(target)


def test_an_opset_that_is_too_old_is_refused(tmp_path):
    proto = models.linear(np.ones((64, 64), np.float32), opset=11)
    with pytest.raises(InputError, match="opset 21"):
        convert(proto, tmp_path)


def test_the_registry_reaches_the_scheme(tmp_path):
    source = models.save(models.linear(np.ones((64, 64), np.float32)), tmp_path / "s.onnx")
    assert quantize(source, tmp_path / "t.onnx", "int3").scheme == "int3"


@pytest.mark.parametrize("scheme", ["int3", "mixed"])
def test_weights_of_a_larger_model_lie_in_a_file_that_is_mapped(tmp_path, monkeypatch, scheme):
    """The same values and the same account of them, whether in one file or in two."""
    source = tmp_path / "s.onnx"
    rng = np.random.default_rng(0)
    onnx.save(models.linear(rng.normal(size=(96, 512)).astype(np.float32)), source)
    x = rng.normal(size=(1, 600, 96)).astype(np.float32)
    how = {"calibration": [{"X": x}], "mixed_bits": 4}
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    one = quantize(source, tmp_path / "one" / "m.onnx", scheme, **how)
    monkeypatch.setattr(files, "MAPPED_BYTES", 1000)
    two = quantize(source, tmp_path / "two" / "m.onnx", scheme, **how)
    assert one == two
    assert [path.name for path in sorted((tmp_path / "one").iterdir())] == ["m.onnx"]
    found = sorted(path.name for path in (tmp_path / "two").iterdir())
    assert found == ["m.onnx", "m.onnx.data"]
    y = [models.run(models.session(tmp_path / p / "m.onnx"), X=x) for p in ("one", "two")]
    assert np.array_equal(*y)
