"""Stored bits, counted off graphs whose bits are known."""

import numpy as np
import onnx
import pytest

from edgebench.quantize import bits, quantize
from tests.quantize import models


def test_an_fp32_model_has_32_bits_a_weight():
    counted = bits.count(models.linear(np.zeros((64, 96), np.float32)))
    assert counted.total_weights == 64 * 96
    assert counted.param_bits == 32 * 64 * 96
    assert counted.file_bits_per_weight == counted.storage_bits_per_weight == 32


def test_three_bit_planes_count_their_scales(tmp_path):
    weight = np.random.default_rng(0).normal(size=(128, 96)).astype(np.float32)
    source = models.save(models.linear(weight), tmp_path / "s.onnx")
    quantize(source, tmp_path / "t.onnx", "int3")
    counted = bits.count(onnx.load(tmp_path / "t.onnx"))
    assert counted.quantized_weights == counted.total_weights == 128 * 96
    assert counted.quantized_bits == 3.5 * 128 * 96


def test_scalars_shapes_and_positions_are_not_weights():
    weights = {
        "eps": np.float32(1e-5),
        "positions": np.arange(512)[None],
        "gain": np.ones(7, np.float32),
    }
    counted = bits.count(models.model([], weights, {}, {}))
    assert counted.total_weights == 7


@pytest.mark.parametrize("scheme", ["fp32", "int8", "int3"])
def test_the_number_of_weights_is_the_same_in_every_scheme(tmp_path, scheme):
    proto = models.transformer(rank=8)
    source = models.save(proto, tmp_path / "s.onnx")
    result = quantize(source, tmp_path / "t.onnx", scheme)
    assert result.total_weights == bits.count(proto).total_weights
    assert result.file_bits_per_weight == pytest.approx(
        8 * (tmp_path / "t.onnx").stat().st_size / result.total_weights, rel=0.12
    )
