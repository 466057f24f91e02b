"""The schemes of more than three bits: int4, mixed and fp16."""

from collections import Counter

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgebench.errors import InputError, UsageError
from edgebench.quantize import blocks, functions, int4, quantize
from edgebench.quantize.blocks import Fitted, Width
from edgebench.quantize.fit import fit
from edgebench.quantize.graph import Graph
from edgebench.quantize.mixed import Option, choose
from tests.quantize import models


def silent(_what, _fraction):
    return None


@pytest.fixture
def source(tmp_path):
    return models.save(models.transformer(layers=1), tmp_path / "source.onnx")


def lookup(table):
    k = table.shape[1]
    return models.model(
        [onnx.helper.make_node("Gather", ["T", "ids"], ["Y"])],
        {"T": table},
        {"ids": (onnx.TensorProto.INT64, ["b", "s"])},
        {"Y": ["b", "s", k]},
    )


def rewritten(proto, width):
    """A graph of one weight with that weight at a width, and the values that it then has."""
    graph = Graph(proto)
    (weight,) = graph.weights()
    item = Fitted(width, *fit(graph.rows(weight), width.block_size, bits=width.bits))
    blocks.rewrite(graph, {weight.node: (weight, width)}, {blocks.key(weight): item})
    onnx.checker.check_model(graph.model)
    return graph.model, item.values


@given(
    n=st.integers(1, 40),
    k=st.integers(1, 300),
    bits=st.sampled_from([3, 4, 8]),
    block=st.sampled_from(blocks.BLOCK_SIZES),
    seed=st.integers(0, 2**32 - 1),
)
@settings(deadline=None, max_examples=40)
def test_a_table_of_any_width_gives_exactly_its_rows(n, k, bits, block, seed):
    rng = np.random.default_rng(seed)
    table = rng.normal(size=(n, k)).astype(np.float32)
    model, values = rewritten(lookup(table), Width(bits, block))
    ids = rng.integers(-n, n, (2, 5))
    session = models.session(model)
    assert np.array_equal(models.run(session, ids=ids), values[ids])
    assert models.run(session, ids=ids[:0]).shape == (0, 5, k)


@given(
    n=st.integers(1, 70),
    k=st.integers(2, 300),
    bits=st.sampled_from([4, 8]),
    block=st.sampled_from(blocks.BLOCK_SIZES),
    seed=st.integers(0, 2**32 - 1),
)
@settings(deadline=None, max_examples=40)
def test_a_matrix_of_any_width_multiplies_with_its_values(n, k, bits, block, seed):
    rng = np.random.default_rng(seed)
    model, values = rewritten(
        models.linear(rng.normal(size=(k, n)).astype(np.float32)), Width(bits, block)
    )
    x = rng.normal(size=(2, 3, k)).astype(np.float32)
    plain = models.run(models.session(model, plain=True), X=x)
    assert np.allclose(plain, x @ values.T, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("bits", [3, 4, 8])
@pytest.mark.parametrize(("k", "block"), [(384, 32), (384, 128), (100, 64)])
def test_every_width_fuses_into_the_runtimes_kernel(tmp_path, bits, k, block):
    weight = np.random.default_rng(0).normal(size=(k, 77)).astype(np.float32)
    model, _ = rewritten(models.linear(weight), Width(bits, block))
    optimised = tmp_path / "optimised.onnx"
    models.session(model, optimised=optimised, options=blocks.SESSION_OPTIONS)
    assert models.operators(optimised) == ["MatMulNBits"]
    (node,) = onnx.load(optimised).graph.node
    assert {a.name: a.i for a in node.attribute}["bits"] == (8 if bits == 8 else 4)


def test_int4_covers_matrices_tables_and_says_so(source, tmp_path):
    result = quantize(source, tmp_path / "t.onnx", "int4", calibration=models.calibration())
    assert (result.storage_bits, result.compute_bits, result.activation_bits) == (4, 4, 8)
    assert result.storage_bits_per_weight == 4 + 16 / 128
    assert result.quantized_weights == 12 * 128**2 + 128**2 + 500 * 128
    assert result.details["kept_fp32"] == ["head"]
    assert result.details["calibration_tokens"] == 1024
    optimised = tmp_path / "optimised.onnx"
    models.session(tmp_path / "t.onnx", optimised=optimised)
    assert Counter(models.operators(optimised))["MatMulNBits"] == 7


@pytest.mark.parametrize("size", [0, 16, 48, 512])
def test_int4_refuses_a_block_size_that_no_kernel_takes(source, tmp_path, size):
    with pytest.raises(UsageError, match=f"blocks of {size} weights"):
        int4.convert(source, tmp_path / "t.onnx", silent, block_size=size)


def test_int4_refuses_weights_beyond_fp16_scales(tmp_path):
    source = models.save(models.linear(np.full((64, 64), 1e7, np.float32)), tmp_path / "s.onnx")
    with pytest.raises(InputError, match="'W' is too large for fp16 scales"):
        quantize(source, tmp_path / "t.onnx", "int4")
    assert not (tmp_path / "t.onnx").exists()


@pytest.mark.parametrize("budget", [3.6, 6.0])
def test_mixed_stays_within_its_budget_over_all_weights(source, tmp_path, budget):
    result = quantize(
        source, tmp_path / "t.onnx", "mixed", calibration=models.calibration(), mixed_bits=budget
    )
    assert budget - 0.1 < result.file_bits_per_weight <= budget
    assert result.details["budget"] == budget
    assert len(result.details["widths"]) == 8
    models.session(tmp_path / "t.onnx")


def test_more_bits_bring_the_outputs_closer(source, tmp_path):
    ids = np.random.default_rng(11).zipf(1.3, (64, 32)) % 500
    exact = models.run(models.session(source), input_ids=ids)
    errors = []
    for budget in (3.5, 5.5):
        target = tmp_path / f"{budget}.onnx"
        quantize(source, target, "mixed", calibration=models.calibration(), mixed_bits=budget)
        got = models.run(models.session(target, plain=True), input_ids=ids)
        errors.append(float(((got - exact) ** 2).mean()))
    assert errors[0] > 2 * errors[1]


def test_a_budget_that_no_choice_meets_is_refused_with_the_least_that_one_does(source, tmp_path):
    feeds = models.calibration()
    with pytest.raises(UsageError, match=r"budget of 2\.5 bits") as caught:
        quantize(source, tmp_path / "t.onnx", "mixed", calibration=feeds, mixed_bits=2.5)
    least = float(caught.value.fix.split()[-1].rstrip("."))
    result = quantize(source, tmp_path / "t.onnx", "mixed", calibration=feeds, mixed_bits=least)
    assert result.file_bits_per_weight <= least


def test_mixed_without_calibration_is_refused(source, tmp_path):
    with pytest.raises(InputError, match="calibration set is empty"):
        quantize(source, tmp_path / "t.onnx", "mixed")


def test_bits_go_where_they_save_most_error():
    def ways(*pairs):
        return [Option(Width(bits, 32), bits * 100, error) for bits, error in pairs]

    options = {
        ("dear", False): ways((3, 9.0), (4, 2.0), (8, 0.1)),
        ("cheap", False): ways((3, 0.2), (4, 0.1), (8, 0.0)),
    }
    whole = (200, 0)
    assert {k[0]: w.bits for k, w in choose(options, 700, whole).items()} == {
        "dear": 4,
        "cheap": 3,
    }
    assert {k[0]: w.bits for k, w in choose(options, 1100, whole).items()} == {
        "dear": 8,
        "cheap": 3,
    }
    with pytest.raises(UsageError, match="needs at least 3"):
        raise_fix(lambda: choose(options, 599, whole))


def raise_fix(call):
    try:
        call()
    except UsageError as error:
        raise UsageError(error.fix) from error


def test_fp16_is_half_the_size_and_nearly_the_same_function(source, tmp_path):
    target = tmp_path / "t.onnx"
    result = quantize(source, target, "fp16")
    assert (result.storage_bits, result.compute_bits) == (16, 32)
    assert result.file_bits_per_weight == 16
    assert target.stat().st_size < 0.51 * source.stat().st_size
    ids = np.random.default_rng(0).integers(0, 500, (3, 17))
    exact, got = (models.run(models.session(p), input_ids=ids) for p in (source, target))
    assert 0 < np.abs(got - exact).max() < 1e-3 * np.abs(exact).max()


def test_fp16_refuses_a_weight_that_it_cannot_hold(tmp_path):
    source = models.save(models.linear(np.full((64, 64), 1e5, np.float32)), tmp_path / "s.onnx")
    with pytest.raises(InputError, match="'W' is too large for fp16"):
        quantize(source, tmp_path / "t.onnx", "fp16")
    assert not (tmp_path / "t.onnx").exists()


def test_the_functions_of_a_model_are_those_that_it_uses(source, tmp_path):
    quantize(source, tmp_path / "t.onnx", "int4")
    assert [f.name for f in onnx.load(tmp_path / "t.onnx").functions] == [functions.GATHER4]
