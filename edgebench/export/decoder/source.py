"""A checkpoint's tensors, read one at a time as fp32, with the adapter folded in on the way.

safetensors files say where each tensor's bytes begin (see ``edgebench.export.weights``), so one
tensor costs one read of a file and its own memory, whatever the size of the checkpoint. They are
read, not mapped: mapped pages would count as this process's memory.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgebench.errors import CheckpointError
from edgebench.export.decoder.architecture import Linear
from edgebench.export.exporter import LowRank

Array = NDArray[np.float32]

_TYPES: dict[str, np.dtype[Any]] = {
    "F64": np.dtype("<f8"),
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
}
_BF16 = "BF16"
_BYTES = {"F64": 8, "F32": 4, "F16": 2, _BF16: 2}


@dataclass(frozen=True)
class _Place:
    file: Path
    dtype: str
    shape: tuple[int, ...]
    begin: int
    length: int


class Tensors:
    """The tensors of some safetensors files, by name."""

    def __init__(self, files: tuple[Path, ...], what: str) -> None:
        """Read the headers.

        Raises:
            CheckpointError: a file is not safetensors.
        """
        self.what = what
        self._places: dict[str, _Place] = {}
        for file in files:
            if file.suffix != ".safetensors":
                raise CheckpointError(
                    f"the {what} of a decoder must be safetensors, not {file.name}",
                    where=str(file),
                    fix="Save it with save_pretrained and try again.",
                )
            with file.open("rb") as stream:
                length = int.from_bytes(stream.read(8), "little")
                header = json.loads(stream.read(length))
            for name, entry in header.items():
                if name != "__metadata__":
                    begin, end = entry["data_offsets"]
                    self._places[name] = _Place(
                        file, entry["dtype"], tuple(entry["shape"]), 8 + length + begin, end - begin
                    )

    def __contains__(self, name: str) -> bool:
        return name in self._places

    def shape(self, name: str) -> tuple[int, ...]:
        return self._places[name].shape

    def read(self, name: str) -> Array:
        """One tensor as fp32.

        Raises:
            CheckpointError: it is of a type without fractions, or holds NaN or infinity.
        """
        place = self._places[name]
        count = int(np.prod(place.shape))
        if place.dtype == _BF16:
            halves = np.fromfile(place.file, "<u2", count, offset=place.begin)
            # bf16 is the upper half of fp32.
            array = (halves.astype(np.uint32) << 16).view(np.float32)
        elif place.dtype in _TYPES:
            raw = np.fromfile(place.file, _TYPES[place.dtype], count, offset=place.begin)
            with np.errstate(over="ignore"):
                array = raw.astype(np.float32, copy=False)
        else:
            raise CheckpointError(
                f"the {self.what}'s tensor {name} is of the type {place.dtype}",
                where=str(place.file),
                fix="Give the checkpoint in fp32, fp16 or bf16.",
            )
        if array.size != count or count * _BYTES[place.dtype] != place.length:
            raise CheckpointError(
                f"the {self.what}'s tensor {name} has another size than its header says",
                where=str(place.file),
                fix="Copy or download the checkpoint again.",
            )
        # One NaN or infinity makes the sum one; the slow check only where the sum is not finite.
        with np.errstate(over="ignore", invalid="ignore"):
            total = array.sum()
        if not np.isfinite(total) and not np.isfinite(array).all():
            raise CheckpointError(
                f"the {self.what}'s weight {name} holds NaN or infinity: its training diverged, "
                "or the file is damaged",
                where=str(place.file),
                fix="Use an earlier checkpoint.",
            )
        return array.reshape(place.shape)


@dataclass(frozen=True)
class Branch:
    """A matrix's low-rank branch, y += x down up: down [k, r], up [r, n] with the scale in it."""

    down: Array
    up: Array


class Source:
    """A base model and perhaps an adapter: what each of the decoder's parameters is."""

    def __init__(
        self,
        base: Tensors,
        adapter: Tensors | None = None,
        branches: dict[str, LowRank] | None = None,
        replaced: dict[str, str] | None = None,
    ) -> None:
        """
        Args:
            branches: the adapter's low-rank factors, by the name of the matrix that they change.
            replaced: the adapter's tensors that stand in for the base's, by the base's name.
        """
        self.base = base
        self.adapter = adapter
        self.branches = branches or {}
        self.replaced = replaced or {}

    def without_branches(self) -> Source:
        """The same with what the adapter trained in the base's place, and no update."""
        return Source(self.base, self.adapter, None, self.replaced)

    def plain(self, name: str) -> Array:
        """A tensor of the base, or what the adapter trained in its place."""
        if name in self.replaced and self.adapter is not None:
            return self.adapter.read(self.replaced[name])
        return self.base.read(name)

    def branch(self, matrix: Linear) -> Branch | None:
        """The adapter's factors on a matrix."""
        found = self.branches.get(matrix.name)
        if found is None or self.adapter is None:
            return None
        down, up = self.adapter.read(found.a), self.adapter.read(found.b)
        return Branch(
            np.ascontiguousarray(down.T), np.ascontiguousarray(up.T) * np.float32(found.scale)
        )

    def merged(self, matrix: Linear) -> Array:
        """The rows [n, k] of a matrix with its branch folded in."""
        rows = self.plain(f"{matrix.name}.weight")
        branch = self.branch(matrix)
        if branch is not None:
            rows = rows + branch.up.T @ branch.down.T
        return rows
