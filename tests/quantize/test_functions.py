"""The function bodies in ONNX Runtime: exact values, and fused into its 4-bit kernel."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import load, numpy_helper

from edgebench.quantize.fit import dequantize
from tests.quantize import models

BLOCKS = (16, 32, 64, 128, 256)


def planes(n, k, block, seed=0):
    rng = np.random.default_rng(seed)
    codes = rng.integers(-4, 4, (n, k)).astype(np.int8)
    scales = rng.normal(size=(n, -(-k // block))).astype(np.float16)
    return codes, scales


@given(
    n=st.integers(1, 70),
    k=st.integers(2, 300),
    m=st.integers(1, 8),
    b=st.integers(1, 3),
    block=st.sampled_from(BLOCKS),
    seed=st.integers(0, 2**32 - 1),
)
@settings(deadline=None, max_examples=60)
def test_matmul_equals_the_reference_in_fp32(n, k, m, b, block, seed):
    """With small integers and power-of-two scales every sum is exact, so equality is exact."""
    rng = np.random.default_rng(seed)
    codes, _ = planes(n, k, block, seed)
    scales = (2.0 ** rng.integers(-3, 4, (n, -(-k // block)))).astype(np.float16)
    x = rng.integers(-8, 9, (b, m, k)).astype(np.float32)
    expected = x @ dequantize(codes, scales, block).T
    plain = models.session(models.three_bit_matmul(codes, scales, block), plain=True)
    assert np.array_equal(models.run(plain, X=x), expected)


@given(
    n=st.integers(1, 40),
    k=st.integers(1, 300),
    block=st.sampled_from(BLOCKS),
    seed=st.integers(0, 2**32 - 1),
)
@settings(deadline=None, max_examples=40)
def test_gather_gives_exactly_the_reference_rows(n, k, block, seed):
    codes, scales = planes(n, k, block, seed)
    indices = np.random.default_rng(seed).integers(-n, n, (2, 5))
    session = models.session(models.three_bit_gather(codes, scales, block))
    rows = models.run(session, indices=indices)
    assert np.array_equal(rows, dequantize(codes, scales, block)[indices])


def test_gathering_nothing_gives_nothing():
    session = models.session(models.three_bit_gather(*planes(40, 96, 32), 32))
    assert models.run(session, indices=np.zeros((0, 3), np.int64)).shape == (0, 3, 96)


@pytest.mark.parametrize(
    ("k", "n", "block"),
    [(384, 384, 32), (384, 1536, 64), (100, 77, 32), (312, 312, 64), (257, 33, 128), (512, 9, 256)],
)
def test_matmul_fuses_into_the_runtimes_four_bit_kernel(tmp_path, k, n, block):
    """The optimised graph is one MatMulNBits, and its weights are exactly the codes and scales."""
    codes, scales = planes(n, k, block)
    optimised = tmp_path / "optimised.onnx"
    session = models.session(models.three_bit_matmul(codes, scales, block), optimised=optimised)
    assert models.operators(optimised) == ["MatMulNBits"]
    graph = load(optimised).graph
    attributes = {a.name: a.i for a in graph.node[0].attribute}
    assert (attributes["bits"], attributes["K"], attributes["N"]) == (4, k, n)
    assert attributes["block_size"] == block
    assert attributes["accuracy_level"] == 4, "the documented default: int8 activations"
    arrays = [numpy_helper.to_array(t) for t in graph.initializer]
    stored = next(a for a in arrays if a.dtype == np.uint8 and a.ndim == 3)  # [N, blocks, block/2]
    nibbles = np.stack([stored & 15, stored >> 4], axis=-1).reshape(n, -1)[:, :k]
    assert np.array_equal(nibbles.astype(np.int8) - 8, codes)
    kept = next(a for a in arrays if a.dtype == np.float32)
    assert np.array_equal(kept.reshape(n, -1), scales.astype(np.float32))
    x = np.random.default_rng(1).normal(size=(2, 3, k)).astype(np.float32)
    expected = x @ dequantize(codes, scales, block).T
    error = np.abs(models.run(session, X=x) - expected).max() / np.abs(expected).max()
    assert error < 0.02, "int8 activations"


def test_the_fused_kernel_is_exact_to_fp32_when_it_keeps_fp32_activations():
    codes, scales = planes(96, 384, 32)
    session = models.session(
        models.three_bit_matmul(codes, scales, 32),
        options={"session.qdq_matmulnbits_accuracy_level": "1"},
    )
    x = np.random.default_rng(1).normal(size=(1, 4, 384)).astype(np.float32)
    expected = x.astype(np.float64) @ dequantize(codes, scales, 32).astype(np.float64).T
    assert np.allclose(models.run(session, X=x), expected, rtol=1e-5, atol=1e-4)
