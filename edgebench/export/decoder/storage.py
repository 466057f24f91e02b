"""How a decoder's matrices are stored, by width, and the nodes that multiply by them.

    bits   a matrix [n, k]                           the embedding table
    32     MatMul with [k, n]                        Gather
    16     Cast, MatMul                              Gather, Cast
    8, 4   com.microsoft::MatMulNBits                com.microsoft::GatherBlockQuantized
    3      edgebench::MatMul3Bit                     edgebench::Gather3Bit

with fp16 scales, one a block of weights along k. For encoders ``edgebench.quantize`` writes four
and eight bits as standard ONNX, which ONNX Runtime turns into MatMulNBits when it loads the file.
Here the operator stands in the file: the runtime then uses the bytes as they lie there, and a
table that is also the head is stored once. (Standard ONNX has no look-up in nibbles by rows, and
the graph needs the runtime's own attention anyway.)
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from edgebench.errors import InputError
from edgebench.quantize import functions
from edgebench.quantize.blocks import Width
from edgebench.quantize.fit import fit
from edgebench.quantize.packing import pack

MICROSOFT = "com.microsoft"

Rows = NDArray[np.float32]
Fit = Callable[[str, Rows, Width], tuple[NDArray[np.int8], NDArray[np.float16]]]
"""Codes and scales of a matrix: its name, its rows, and its width."""

# Int8 activations (MatMulNBits, attribute accuracy_level), as ``edgebench.quantize.blocks`` asks.
_ACCURACY_LEVEL = 4

# Below this a tensor stays in the graph, as onnx.save does by default.
_EXTERNAL_BYTES = 1024

# Fewer rows are not worth a thread.
_ROWS_A_WORKER = 64

# The ONNX specification recommends page alignment for what is to be mapped.
_ALIGNMENT = 4096


class Data(Protocol):
    """Where initialisers' bytes go."""

    def tensor(self, name: str, array: NDArray[Any]) -> onnx.TensorProto: ...


class DataFile:
    """The file beside a graph that holds its weights, written from front to back."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._stream: BinaryIO = path.open("wb")

    def tensor(self, name: str, array: NDArray[Any]) -> onnx.TensorProto:
        """Append an array; the initialiser that stands for it."""
        array = np.ascontiguousarray(array)
        if array.nbytes < _EXTERNAL_BYTES:
            return numpy_helper.from_array(array, name)
        position = self._stream.tell()
        self._stream.write(b"\0" * (-position % _ALIGNMENT))
        position = self._stream.tell()
        self._stream.write(array.data.cast("B"))
        proto = onnx.TensorProto(
            name=name,
            data_type=helper.np_dtype_to_tensor_dtype(array.dtype),
            dims=array.shape,
            data_location=TensorProto.EXTERNAL,
        )
        for key, value in (
            ("location", self.path.name),
            ("offset", position),
            ("length", array.nbytes),
        ):
            proto.external_data.add(key=key, value=str(value))
        return proto

    def close(self) -> None:
        self._stream.close()


@dataclass
class Part:
    """Nodes and initialisers that belong together: a layer, or what is before or after them."""

    nodes: list[onnx.NodeProto] = field(default_factory=list)
    initializers: list[onnx.TensorProto] = field(default_factory=list)
    #: Inputs of the graph whose defaults stand among the initialisers.
    inputs: list[onnx.ValueInfoProto] = field(default_factory=list)

    def node(
        self,
        op_type: str,
        inputs: list[str],
        outputs: list[str],
        domain: str = "",
        **attributes: Any,
    ) -> str:
        """Add a node; its first output."""
        made = helper.make_node(
            op_type, inputs, outputs, name=outputs[0], domain=domain, **attributes
        )
        self.nodes.append(made)
        return outputs[0]


class Storage:
    """Writes matrices at their widths into a data file, and the nodes into parts."""

    def __init__(self, data: Data, bits: int, fitted: Fit | None = None) -> None:
        """
        Args:
            bits: of what has no blocks: 32, or 16. Matrices with a width follow it.
            fitted: where codes and scales come from; None rounds plainly.
        """
        self.data = data
        self.bits = bits
        self._fit = fitted or plain

    def constant(self, part: Part, name: str, array: Rows) -> str:
        """A parameter that is no matrix (norm, bias), or a factor of an adapter, as fp32 value."""
        if self.bits == 32:
            part.initializers.append(self.data.tensor(name, array))
            return name
        half = f"{name}.half"
        part.initializers.append(self.data.tensor(half, _halves(name, array)))
        return part.node("Cast", [half], [name], to=TensorProto.FLOAT)

    def matrix(self, part: Part, x: str, y: str, name: str, rows: Rows, width: Width | None) -> str:
        """y = x rows^T."""
        if width is None:
            weight = self.constant(part, f"{name}.weight", np.ascontiguousarray(rows.T))
            return part.node("MatMul", [x, weight], [y])
        stored = self._stored(part, name, rows, width, by_block=True)
        return self._multiply(part, x, y, stored, rows.shape, width)

    def table(
        self, part: Part, ids: str, y: str, name: str, rows: Rows, width: Width | None
    ) -> Table:
        """y = rows[ids]; what a tied head needs to multiply by the same rows."""
        n, k = rows.shape
        if width is None:
            stored = [f"{name}.weight"]
            if self.bits == 32:
                part.initializers.append(self.data.tensor(stored[0], rows))
                part.node("Gather", [stored[0], ids], [y], axis=0)
            else:
                stored = [f"{name}.weight.half"]
                part.initializers.append(self.data.tensor(stored[0], _halves(name, rows)))
                part.node("Gather", [stored[0], ids], [f"{y}.half"], axis=0)
                part.node("Cast", [f"{y}.half"], [y], to=TensorProto.FLOAT)
            return Table(stored, (n, k), None)
        stored = self._stored(part, name, rows, width)
        if width.bits == 3:
            sizes = {"K": k, "N": n, "block_size": width.block_size}
            part.node(functions.GATHER, [*stored, ids], [y], functions.DOMAIN, **sizes)
            return Table(stored, (n, k), width)
        whole = k % width.block_size == 0
        looked_up = y if whole else f"{y}.padded"
        part.node(
            "GatherBlockQuantized",
            [stored[0], ids, stored[1]],
            [looked_up],
            MICROSOFT,
            bits=width.bits,
            block_size=width.block_size,
            gather_axis=0,
            quantize_axis=1,
        )
        if not whole:
            for suffix, value in (("from", 0), ("to", k), ("axis", -1)):
                part.initializers.append(
                    numpy_helper.from_array(np.array([value], np.int64), f"{y}.{suffix}")
                )
            part.node("Slice", [looked_up, f"{y}.from", f"{y}.to", f"{y}.axis"], [y])
        return Table(stored, (n, k), width)

    def tied_head(self, part: Part, x: str, y: str, table: Table) -> str:
        """y = x rows^T for a table's rows; x [batch, sequence, k]."""
        n, k = table.shape
        if table.width is not None:
            stored = list(table.stored)
            if table.width.bits != 3:
                shape = np.array(_by_block(n, k, table.width), np.int64)
                part.initializers.append(numpy_helper.from_array(shape, f"{y}.by_block"))
                # A view: folded when the session is made, so that the bytes are stored once.
                part.node("Reshape", [stored[0], f"{y}.by_block"], [f"{y}.codes"])
                stored[0] = f"{y}.codes"
            return self._multiply(part, x, y, stored, table.shape, table.width)
        weight = table.stored[0]
        if self.bits != 32:
            weight = part.node("Cast", [weight], [f"{y}.weight"], to=TensorProto.FLOAT)
        # Gemm multiplies by rows as they lie; MatMul would need a transposed copy in memory.
        for suffix, value in (("rows", [-1, k]), ("n", [n])):
            part.initializers.append(
                numpy_helper.from_array(np.array(value, np.int64), f"{y}.{suffix}")
            )
        part.node("Reshape", [x, f"{y}.rows"], [f"{y}.x"])
        part.node("Gemm", [f"{y}.x", weight], [f"{y}.flat"], transB=1)
        part.node("Shape", [x], [f"{y}.leading"], start=0, end=2)
        part.node("Concat", [f"{y}.leading", f"{y}.n"], [f"{y}.full"], axis=0)
        return part.node("Reshape", [f"{y}.flat", f"{y}.full"], [y])

    def _stored(
        self, part: Part, name: str, rows: Rows, width: Width, *, by_block: bool = False
    ) -> list[str]:
        """Fit a matrix and append it; the names of codes (or planes) and scales.

        ``by_block`` says that MatMulNBits is to read them, which wants the blocks as an axis.
        """
        codes, scales = self._fit(name, rows, width)
        if not np.isfinite(scales).all():
            raise InputError(
                f"the weight {name!r} is too large for fp16 scales",
                where=f"{rows.shape[0]} x {rows.shape[1]}",
                fix="Train or convert the checkpoint again; nothing was written.",
            )
        arrays: dict[str, NDArray[Any]]
        if width.bits == 3:
            low, high = pack(codes)
            arrays = {"low": low, "high": high, "scales": scales}
        else:
            packed = _unsigned(codes, width)
            if by_block:
                packed = packed.reshape(_by_block(len(rows), rows.shape[1], width))
            arrays = {"codes": packed, "scales": scales}
        names = [f"{name}.{suffix}" for suffix in arrays]
        part.initializers += [
            self.data.tensor(full, array)
            for full, array in zip(names, arrays.values(), strict=True)
        ]
        if width.bits != 3:
            cast = f"{name}.scales.float"
            part.node("Cast", [names[1]], [cast], to=TensorProto.FLOAT)
            names[1] = cast
        return names

    def _multiply(
        self,
        part: Part,
        x: str,
        y: str,
        stored: list[str],
        shape: tuple[int, ...],
        width: Width,
    ) -> str:
        n, k = shape
        sizes = {"K": k, "N": n, "block_size": width.block_size}
        if width.bits == 3:
            return part.node(functions.MATMUL, [x, *stored], [y], functions.DOMAIN, **sizes)
        return part.node(
            "MatMulNBits",
            [x, *stored],
            [y],
            MICROSOFT,
            bits=width.bits,
            accuracy_level=_ACCURACY_LEVEL,
            **sizes,
        )


@dataclass(frozen=True)
class Table:
    """A stored embedding table: the values that hold it, its shape [n, k], its width."""

    stored: list[str]
    shape: tuple[int, ...]
    width: Width | None


def plain(_name: str, rows: Rows, width: Width) -> tuple[NDArray[np.int8], NDArray[np.float16]]:
    """``fit`` on every core: rows are fitted alone, so the result is the same with any number."""
    workers = int(os.environ.get("OMP_NUM_THREADS") or len(os.sched_getaffinity(0)))
    parts = np.array_split(rows, max(1, min(workers, len(rows) // _ROWS_A_WORKER)))
    with ThreadPoolExecutor(len(parts)) as pool:
        found = list(pool.map(lambda p: fit(p, width.block_size, bits=width.bits), parts))
    return np.concatenate([c for c, _ in found]), np.concatenate([s for _, s in found])


def _by_block(n: int, k: int, width: Width) -> tuple[int, int, int]:
    return n, -(-k // width.block_size), width.block_size * width.bits // 8


def _unsigned(codes: NDArray[np.int8], width: Width) -> NDArray[np.uint8]:
    """MatMulNBits' form: codes above a zero point of half the range, nibbles low one first.

    Shape [n, blocks * block_size * bits / 8], the last block filled up with zeros.
    """
    n, k = codes.shape
    zero = 1 << width.bits - 1
    full = np.full((n, -(-k // width.block_size) * width.block_size), zero, np.uint8)
    full[:, :k] = (codes.view(np.uint8) + np.uint8(zero)) & np.uint8((1 << width.bits) - 1)
    if width.bits == 8:
        return full
    packed: NDArray[np.uint8] = full[:, ::2] | full[:, 1::2] << 4
    return packed


def _halves(name: str, array: Rows) -> NDArray[np.float16]:
    if float(np.abs(array).max(initial=0)) > float(np.finfo(np.float16).max):
        raise InputError(
            f"the weight {name!r} is too large for fp16",
            where="x".join(map(str, array.shape)),
            fix="Export it as fp32; nothing was written.",
        )
    return array.astype(np.float16)
