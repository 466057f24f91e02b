"""Static int8: what is quantised, what is kept, and that ranges are in the file."""

import numpy as np
import onnx
import pytest

from edgebench.errors import InputError
from edgebench.quantize import quantize
from tests.quantize import models


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    directory = tmp_path_factory.mktemp("static")
    source = models.save(models.transformer(layers=1, rank=8), directory / "s.onnx")
    target = directory / "t.onnx"
    result = quantize(source, target, "int8-static", calibration=models.calibration())
    return source, target, result


def test_every_wide_matrix_and_table_is_int8_and_the_manifest_says_so(made):
    _, target, result = made
    assert (result.storage_bits, result.compute_bits, result.activation_bits) == (8, 8, 8)
    assert result.quantized_weights == 12 * 128**2 + 128**2 + 500 * 128
    assert 8 < result.storage_bits_per_weight < 8.5
    assert result.details["calibration_tokens"] == 1024
    assert result.details["kept_fp32"] == ["0.lora_A", "0.lora_B", "head"]
    tensors = onnx.load(target).graph.initializer
    assert not [t.name for t in tensors if t.data_type == 1 and np.prod(t.dims) > 20 * 128]


def test_ranges_are_in_the_file_and_activations_are_unsigned(made):
    model = onnx.load(made[1])
    assert "DynamicQuantizeLinear" not in {node.op_type for node in model.graph.node}
    tensors = {t.name: t for t in model.graph.initializer}
    activations = [
        node
        for node in model.graph.node
        if node.op_type == "QuantizeLinear" and node.input[0] not in tensors
    ]
    assert activations
    assert {tensors[node.input[2]].data_type for node in activations} == {onnx.TensorProto.UINT8}


def test_products_of_two_activations_stay_in_fp32(made):
    model = onnx.load(made[1])
    producers = {name: node for node in model.graph.node for name in node.output}
    made_by = [
        [producers[name].op_type for name in node.input]
        for node in model.graph.node
        if node.op_type == "MatMul" and all(name in producers for name in node.input)
    ]
    # Attention's own two: scores, and the mixture of values. For int8 both sides must be integers.
    exact = [operators for operators in made_by if set(operators) != {"DequantizeLinear"}]
    assert len(exact) == 2


def test_outputs_are_near(made):
    source, target, result = made
    options = result.details["session_options_x86_without_vnni"]
    ids = np.random.default_rng(11).zipf(1.3, (16, 32)) % 500
    exact = models.run(models.session(source), input_ids=ids)
    got = models.run(models.session(target, options=options), input_ids=ids)
    assert 0 < np.abs(got - exact).max() < 0.3 * np.abs(exact).max()


@pytest.mark.parametrize(
    ("feeds", "message"),
    [(None, "is empty"), ([], "is empty"), (models.calibration(128), "has 128 tokens")],
)
def test_calibration_inputs_are_needed(tmp_path, feeds, message):
    source = models.save(models.transformer(layers=1), tmp_path / "s.onnx")
    with pytest.raises(InputError, match=message):
        quantize(source, tmp_path / "t.onnx", "int8-static", calibration=feeds)
    assert not (tmp_path / "t.onnx").exists()
