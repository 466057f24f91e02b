"""The nodes of int8-static: standard ONNX, which ONNX Runtime fuses to integer products.

    QuantizeLinear(x) ─ DequantizeLinear ─┐
    weight int8 [k, n] ─ DequantizeLinear ─ MatMul        com.microsoft::MatMulIntegerToFloat

Weights have a scale an output channel, activations a scale and a zero point a tensor, fixed. Where
one range is too coarse for a tensor, what it leaves is quantised again, 255 times finer:

    x = q s + r,  255 r = t s        W x ~ W (q s) + W (t s) / 255

Both have the same scale and go through one product, as twice the rows: weights are read once. (Two
products by one weight would do, but for session.x64quantprecision, on which ONNX Runtime 1.20 and
1.31 fail then.) The embedding table has a scale a row; a head that is the table multiplies by it
transposed, which is done once, when the session is made.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto, numpy_helper

from edgebench.export.decoder.storage import Data, Part, Rows, Storage, Table
from edgebench.quantize.blocks import Width

LEVELS = 255
_MOST = LEVELS // 2


@dataclass(frozen=True)
class Range:
    """How a tensor is quantised to uint8: x ~ (q - zero_point) scale, perhaps with the rest."""

    scale: float
    zero_point: int
    twice: bool = False

    @classmethod
    def of(cls, lowest: float, highest: float) -> Range:
        """The range that holds zero, ``lowest`` and ``highest``."""
        lowest, highest = min(lowest, 0.0), max(highest, 0.0)
        scale = float(np.float32((highest - lowest) / LEVELS)) or 1.0
        return cls(scale, min(LEVELS, max(0, round(-lowest / scale))))

    @classmethod
    def in_two(cls, lowest: float, highest: float) -> Range:
        """For two pieces: around zero, since what rounding leaves is."""
        scale = float(np.float32(max(-lowest, highest) / _MOST))
        return cls(scale if scale > 0 else 1.0, _MOST + 1, twice=True)

    def quantised(self, x: Rows) -> Rows:
        """What the graph's products see."""
        found = self._once(x)
        if self.twice:
            found = found + self._once((x - found) * np.float32(LEVELS)) / np.float32(LEVELS)
        return found

    def _once(self, x: Rows) -> Rows:
        scale = np.float32(self.scale)
        codes = np.clip(np.rint(x / scale) + self.zero_point, 0, LEVELS)
        values: Rows = (codes - np.float32(self.zero_point)).astype(np.float32) * scale
        return values


def rounded(rows: Rows) -> tuple[NDArray[np.int8], Rows]:
    """Codes [n, k] in -127..127 and a scale a row [n]."""
    scales = np.abs(rows).max(1, initial=0) / np.float32(_MOST)
    scales[scales == 0] = 1
    return np.rint(rows / scales[:, None]).astype(np.int8), scales.astype(np.float32)


class StaticStorage(Storage):
    """Writes matrices in eight bits, and their inputs' quantisation into the parts."""

    def __init__(self, data: Data, ranges: Mapping[str, Range], lookup: Rows | None = None) -> None:
        """
        Args:
            ranges: of what each matrix reads, by the matrix's name.
            lookup: factors [k] of what is looked up in the table; None where there are none.
        """
        super().__init__(data, 32)
        self._ranges = ranges
        self._lookup = lookup
        self._made: dict[str, str] = {}

    def matrix(self, part: Part, x: str, y: str, name: str, rows: Rows, width: Width | None) -> str:
        return self._product(part, x, y, name, self._eight_bits(part, name, rows, transposed=True))

    def table(
        self, part: Part, ids: str, y: str, name: str, rows: Rows, width: Width | None
    ) -> Table:
        stored = self._eight_bits(part, name, rows, transposed=False)
        codes, scales, _ = stored
        axis = numpy_helper.from_array(np.array([-1], np.int64), f"{y}.axis")
        part.initializers.append(axis)
        part.node("Gather", [codes, ids], [f"{y}.codes"], axis=0)
        part.node("Cast", [f"{y}.codes"], [f"{y}.integers"], to=TensorProto.FLOAT)
        part.node("Gather", [scales, ids], [f"{y}.scales"], axis=0)
        part.node("Unsqueeze", [f"{y}.scales", axis.name], [f"{y}.factors"])
        values = y if self._lookup is None else f"{y}.smooth"
        part.node("Mul", [f"{y}.integers", f"{y}.factors"], [values])
        if self._lookup is not None:
            lookup = self.constant(part, f"{y}.lookup", self._lookup)
            part.node("Mul", [values, lookup], [y])
        return Table(stored, rows.shape, None)

    def tied_head(self, part: Part, x: str, y: str, table: Table) -> str:
        codes, *scales = table.stored
        part.node("Transpose", [codes], [f"{y}.columns"], perm=[1, 0])
        name = codes.removesuffix(".weight_quantized")
        return self._product(part, x, y, name, [f"{y}.columns", *scales])

    def _eight_bits(self, part: Part, name: str, rows: Rows, *, transposed: bool) -> list[str]:
        """Append codes, scales and zero points; their names."""
        codes, scales = rounded(rows)
        # The names are those of ONNX Runtime's quantiser, by which ``bits`` counts. Zero points are
        # zero, and written out: on session.x64quantprecision ONNX Runtime 1.20 fails without.
        arrays: dict[str, NDArray[Any]] = {
            "quantized": np.ascontiguousarray(codes.T) if transposed else codes,
            "scale": scales,
            "zero_point": np.zeros(len(rows), np.int8),
        }
        names = [f"{name}.weight_{suffix}" for suffix in arrays]
        for full, array in zip(names, arrays.values(), strict=True):
            part.initializers.append(self.data.tensor(full, array))
        return names

    def _product(self, part: Part, x: str, y: str, name: str, stored: list[str]) -> str:
        weight = part.node("DequantizeLinear", stored, [f"{y}.weight"], axis=1)
        found = self._ranges[name]
        given = self._quantised(part, x, found)
        if not found.twice:
            return part.node("MatMul", [given, weight], [y])
        product = part.node("MatMul", [given, weight], [f"{y}.both"])
        halves = [f"{y}.coarse", f"{y}.fine"]
        part.node("Split", [product], halves, axis=0, num_outputs=2)
        finer = self.constant(part, f"{y}.finer", np.array([1 / LEVELS], np.float32))
        part.node("Mul", [halves[1], finer], [f"{y}.rest"])
        return part.node("Add", [halves[0], f"{y}.rest"], [y])

    def _quantised(self, part: Part, x: str, found: Range) -> str:
        """What stands for x, made by its first reader; two pieces behind each other."""
        if x not in self._made:
            given: dict[str, NDArray[Any]] = {
                f"{x}.scale": np.array(found.scale, np.float32),
                f"{x}.zero_point": np.array(found.zero_point, np.uint8),
            }
            part.initializers += [numpy_helper.from_array(a, n) for n, a in given.items()]

            def once(value: str) -> str:
                codes = part.node("QuantizeLinear", [value, *given], [f"{value}.codes"])
                return part.node("DequantizeLinear", [codes, *given], [f"{value}.quantised"])

            if found.twice:
                coarser = self.constant(part, f"{x}.coarser", np.array([LEVELS], np.float32))
                part.node("Sub", [x, once(x)], [f"{x}.left"])
                part.node("Mul", [f"{x}.left", coarser], [f"{x}.rest"])
                self._made[x] = once(part.node("Concat", [x, f"{x}.rest"], [f"{x}.both"], axis=0))
            else:
                self._made[x] = once(x)
        return self._made[x]
