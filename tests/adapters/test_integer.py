"""Products of 8-bit integers in PyTorch against the operators of ONNX Runtime."""

from __future__ import annotations

import numpy as np
import onnxruntime
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from edgebench.adapters import integer


def in_onnx(module: integer.IntegerLinear, x: torch.Tensor) -> np.ndarray:
    """The same by DynamicQuantizeLinear, MatMulInteger, Cast and Mul."""
    named = {name: buffer.numpy() for name, buffer in module.named_buffers()}
    nodes = [
        helper.make_node("DynamicQuantizeLinear", ["x"], ["q", "s", "z"]),
        helper.make_node(
            "MatMulInteger", ["q", "weight_quantized", "z", "weight_zero_point"], ["sum"]
        ),
        helper.make_node("Cast", ["sum"], ["real"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["s", "weight_scale"], ["scale"]),
        helper.make_node("Mul", ["real", "scale"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "product",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, list(x.shape))],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(array, name) for name, array in named.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    session = onnxruntime.InferenceSession(model.SerializeToString())
    found: np.ndarray = session.run(None, {"x": x.numpy()})[0]
    return found


@settings(max_examples=25, deadline=None)
@given(
    st.integers(0, 10**6),
    st.sampled_from([(1, 4, 3), (2, 7, 64), (3, 5, 33)]),
    st.sampled_from(["both", "positive", "negative", "zero", "far"]),
)
def test_the_simulation_is_what_onnx_runtime_computes(seed, shape, sign):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(shape, generator=generator)
    x = {
        "both": x,
        "positive": x.abs() + 1,
        "negative": -x.abs() - 1,
        "zero": x * 0,
        "far": x + 100,
    }[sign]
    weight = torch.randn(6, shape[-1], generator=generator)
    codes, scale = integer.codes_and_scales(weight, 1)
    module = integer.IntegerLinear(codes, scale[:, 0])
    expected = in_onnx(module, x)
    np.testing.assert_allclose(
        module(x).numpy(), expected, rtol=1e-5, atol=1e-5 * max(1, float(np.abs(expected).max()))
    )


def test_large_sums_do_not_saturate():
    # 255 x 127 twice is more than 16 bits hold: signed with unsigned bytes would stop there.
    x = torch.cat([torch.full((1, 1535), 2.0), torch.zeros(1, 1)], dim=1)
    module = integer.IntegerLinear(torch.full((4, 1536), 127.0), torch.ones(4))
    expected = 2.0 * 127 * 1535
    np.testing.assert_allclose(in_onnx(module, x), expected, rtol=1e-5)
    np.testing.assert_allclose(module(x).numpy(), expected, rtol=1e-5)


@given(st.integers(0, 10**6))
def test_rounding_to_int8_is_within_half_a_step_and_keeps_the_gradient(seed):
    generator = torch.Generator().manual_seed(seed)
    vectors = torch.randn(3, 8, generator=generator, requires_grad=True)
    rounded = integer.to_int8(vectors, 1)
    step = vectors.detach().abs().amax(1, keepdim=True) / 127
    assert bool(((rounded - vectors).detach().abs() <= step / 2 * 1.001 + 1e-7).all())
    rounded.sum().backward()
    assert torch.equal(vectors.grad, torch.ones_like(vectors))
    assert torch.equal(integer.to_int8(torch.zeros(2, 3), 1), torch.zeros(2, 3))


def test_rounded_activations_are_within_half_a_step_and_exact_ones_are_left_alone():
    x = torch.randn(4, 50, requires_grad=True)
    rounded = integer.rounded_activations(x)
    step = float((x.max() - x.min()) / 255)
    assert float((rounded - x).abs().max()) <= step * 1.001
    rounded.sum().backward()
    assert torch.equal(x.grad, torch.ones_like(x))
    with integer.exact_activations():
        assert integer.rounded_activations(x) is x
    assert integer.rounded_activations(x) is not x


def test_fp16_rounds_values_and_keeps_the_gradient():
    values = torch.tensor([0.1, 1000.3], requires_grad=True)
    rounded = integer.to_fp16(values)
    assert torch.equal(rounded.detach(), values.detach().half().float())
    rounded.sum().backward()
    assert torch.equal(values.grad, torch.ones(2))
