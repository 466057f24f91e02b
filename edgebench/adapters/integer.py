"""Products of 8-bit integers: what ONNX computes with int8 weights, stated in PyTorch.

A matrix W [n, k] is codes w in -127..127 with a scale t for each row (or one for all), W = t w.
Activations x are rounded to 8 bits when they come, with one range a tensor (ONNX operator
DynamicQuantizeLinear, https://onnx.ai/onnx/operators/onnx__DynamicQuantizeLinear.html):

    s = (max(x, 0) - min(x, 0)) / 255,   z = round(-min(x, 0) / s)
    q = clip(round(x / s) + z, 0, 255)
    y_j = s t_j sum_i (q_i - z) w_ji                  an int32 sum (MatMulInteger)

Rounding is to the nearest, ties to even. ``rounded_activations`` gives s (q - z): what the sum sees
of x; a product with it in fp32 differs from the integer one in the last bits of the sum alone.

The codes are stored as unsigned bytes with zero point 128. Products of signed with unsigned bytes
saturate at 16 bits on x86 without VNNI (``edgebench.quantize.int8``); unsigned with unsigned don't,
so every CPU gives the same sum.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor, nn

#: Added to a code in the file.
ZERO_POINT = 128


class IntegerLinear(nn.Module):
    """y = x W^T with x rounded to 8 bits and W [n, k] in 8 bits.

    In an ONNX graph it is DynamicQuantizeLinear, MatMulInteger, Cast and two Mul, which ONNX
    Runtime fuses into com.microsoft::DynamicQuantizeMatMul.

    Args:
        codes: whole numbers -127..127, [n, k].
        scale: [n], or [] for one.
    """

    # Names that ``edgebench.quantize.bits`` counts by.
    weight_quantized: Tensor
    weight_scale: Tensor
    weight_zero_point: Tensor

    def __init__(self, codes: Tensor, scale: Tensor) -> None:
        super().__init__()
        stored = (codes.round() + ZERO_POINT).to(torch.uint8).t().contiguous()
        self.register_buffer("weight_quantized", stored)
        self.register_buffer("weight_scale", scale.detach().float().clone())
        self.register_buffer("weight_zero_point", torch.tensor(ZERO_POINT, dtype=torch.uint8))

    def forward(self, x: Tensor) -> Tensor:
        """x [..., k] -> [..., n]."""
        if torch.onnx.is_in_onnx_export():
            return self._symbolic(x)
        codes = self.weight_quantized.t().float() - ZERO_POINT
        y: Tensor = nn.functional.linear(rounded_activations(x), codes) * self.weight_scale
        return y

    def _symbolic(self, x: Tensor) -> Tensor:
        onnx: Any = torch.onnx.ops
        codes, scale, zero_point = onnx.symbolic_multi_out(
            "DynamicQuantizeLinear",
            (x,),
            dtypes=(torch.uint8, torch.float32, torch.uint8),
            shapes=(x.shape, (), ()),
        )
        total = onnx.symbolic(
            "MatMulInteger",
            (codes, self.weight_quantized, zero_point, self.weight_zero_point),
            dtype=torch.int32,
            shape=(*x.shape[:-1], self.weight_quantized.shape[1]),
        )
        y: Tensor = total.to(torch.float32) * (scale * self.weight_scale)
        return y


def rounded_activations(x: Tensor) -> Tensor:
    """x rounded to 8 bits with one range for the tensor; the gradient passes through.

    The range is that of all of x, [batch, tokens, d]: a row's rounding depends on what it is in a
    batch with, as it does in ONNX.
    """
    if _EXACT.get():
        return x
    values = x.detach()
    low, high = values.amin().clamp(max=0), values.amax().clamp(min=0)
    scale = (high - low) / 255
    scale = torch.where(scale > 0, scale, torch.ones_like(scale))
    zero = (-low / scale).round().clamp(0, 255)
    codes = ((values / scale).round() + zero).clamp(0, 255)
    return x + ((codes - zero) * scale - values)


@contextlib.contextmanager
def exact_activations() -> Iterator[None]:
    """Compute with activations as they are: what rounding them changes is then seen."""
    token = _EXACT.set(True)
    try:
        yield
    finally:
        _EXACT.reset(token)


_EXACT: ContextVar[bool] = ContextVar("exact activations", default=False)


def codes_and_scales(vectors: Tensor, along: int) -> tuple[Tensor, Tensor]:
    """Codes -127..127 and one symmetric scale a vector; a vector of zeros has the scale 1.

    Args:
        along: the axis of a vector's elements; the scales keep it with length 1.
    """
    scale = vectors.detach().abs().amax(dim=along, keepdim=True) / 127
    scale = torch.where(scale > 0, scale, torch.ones_like(scale))
    return (vectors.detach() / scale).round(), scale


def to_int8(vectors: Tensor, along: int) -> Tensor:
    """Vectors rounded to 8 bits, one symmetric scale each; the gradient passes through."""
    codes, scale = codes_and_scales(vectors, along)
    return vectors + (codes * scale - vectors).detach()


def to_fp16(values: Tensor) -> Tensor:
    """Values rounded to fp16, in fp32; the gradient passes through."""
    return values + (values.detach().half().float() - values.detach())
