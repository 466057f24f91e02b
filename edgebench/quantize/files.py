"""Reading and writing ONNX files: whole, deterministic, and never half-written."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError, EncodeError

from edgebench.errors import InputError, StorageError

# One protobuf message holds at most 2 GiB (2^31 - 1 bytes); leave 64 MiB for the graph itself.
INLINE_LIMIT_BYTES = (1 << 31) - (1 << 26)

# Below this many bytes a tensor stays in the graph even when the others move out.
_EXTERNAL_TENSOR_BYTES = 1024

# From this many bytes on, few-bit weights lie in a file of their own, which ONNX Runtime maps: the
# native kernels pack them, and only pages of a file can be given back after that. In a smaller
# model one file is worth more than what is saved.
MAPPED_BYTES = 4 << 20

READABLE_IR = 13
"""ONNX Runtime 1.31 reads IR versions up to this one."""


def load(path: Path) -> onnx.ModelProto:
    """The model with its external data in memory.

    Raises:
        InputError: not ONNX, or its external data are missing or broken.
    """
    try:
        model = onnx.load(os.fspath(path))
    except DecodeError as error:
        raise InputError("the file is not a readable ONNX model", where=str(path)) from error
    except (OSError, ValueError, onnx.checker.ValidationError) as error:
        raise InputError(
            f"the ONNX model's weights cannot be read: {error}", where=str(path)
        ) from error
    if not model.HasField("graph") or not model.graph.node:
        raise InputError("the ONNX model has no graph", where=str(path))
    if model.ir_version > READABLE_IR:
        raise InputError(
            f"the ONNX model has IR version {model.ir_version}, "
            f"ONNX Runtime reads up to {READABLE_IR}",
            where=str(path),
            fix="Export it with ir_version=10.",
        )
    return model


def save(model: onnx.ModelProto, target: Path, *, mapped: bool = False) -> None:
    """Write ``target`` (and ``<target>.data`` when the weights are too large for one message).

    Args:
        mapped: write ``<target>.data`` from ``MAPPED_BYTES`` on.

    Notes and metadata on nodes and values are dropped, so equal models are equal bytes. The files
    are written under a temporary name beside the target, and renamed when complete.

    Raises:
        StorageError: the directory cannot be written, or is full.
    """
    data = target.name + ".data"
    _strip(model)
    try:
        with tempfile.TemporaryDirectory(prefix=".quantize-", dir=target.parent) as directory:
            staged = Path(directory) / target.name
            if too_large(model, MAPPED_BYTES if mapped else INLINE_LIMIT_BYTES):
                onnx.save(
                    model,
                    os.fspath(staged),
                    save_as_external_data=True,
                    all_tensors_to_one_file=True,
                    location=data,
                    size_threshold=_EXTERNAL_TENSOR_BYTES,
                )
                staged.with_name(data).replace(target.with_name(data))
            else:
                staged.write_bytes(model.SerializeToString(deterministic=True))
            staged.replace(target)
    except (OSError, EncodeError) as error:
        raise unwritable(target, error) from error


def scratch(target: Path) -> tempfile.TemporaryDirectory[str]:
    """A temporary directory on the target's file system.

    Raises:
        StorageError: the target's directory cannot be written.
    """
    try:
        return tempfile.TemporaryDirectory(prefix=".quantize-", dir=target.parent)
    except OSError as error:
        raise unwritable(target, error) from error


def unwritable(target: Path, error: Exception) -> StorageError:
    """The sentence for a disk that is full, or a directory that cannot be written."""
    return StorageError(
        f"the quantised model cannot be written: {error}",
        where=str(target),
        fix="Free space, or choose another directory.",
    )


def too_large(model: onnx.ModelProto, limit_bytes: int = INLINE_LIMIT_BYTES) -> bool:
    """Whether the weights need a file of their own."""
    total: int = sum(tensor.ByteSize() for tensor in model.graph.initializer)
    return total > limit_bytes


def _strip(model: onnx.ModelProto) -> None:
    """Drop what exporters note beside the computation: stack traces name this machine's paths."""
    model.doc_string = model.graph.doc_string = ""
    for item in (*model.graph.node, *model.graph.value_info, *model.graph.initializer):
        item.doc_string = ""
        del item.metadata_props[:]
