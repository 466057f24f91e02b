"""Quantisation schemes: one fp32 ONNX file in, one quantised ONNX file out.

Each scheme is one module with one function ``convert(source, target, progress)``; this registry
names them and imports a scheme only when it is used, so importing the package costs nothing.
To add a scheme, write its module and name it here.
"""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, cast

from edgebench.errors import InputError, UsageError

if TYPE_CHECKING:
    from edgebench.artifact import Quantization

Progress = Callable[[str, float | None], None]
"""Called with what is being done and the fraction done in 0..1, or None where that is unknown."""

_MODULES = {
    "fp32": "edgebench.quantize.fp32",
    "int8": "edgebench.quantize.int8",
    "int3": "edgebench.quantize.int3",
}

SCHEMES: tuple[str, ...] = tuple(_MODULES)


class _Scheme(Protocol):
    def convert(self, source: Path, target: Path, progress: Progress) -> Quantization: ...


def check_scheme(name: str) -> str:
    """The name itself if it is a scheme.

    Raises:
        UsageError: there is no such scheme; the message names the valid ones and a near miss.
    """
    if name in _MODULES:
        return name
    near = difflib.get_close_matches(name.lower(), SCHEMES, n=1)
    hint = f"Did you mean {near[0]}? " if near else ""
    raise UsageError(
        f"there is no quantisation scheme {name!r}",
        where="--quant",
        fix=f"{hint}Valid schemes: {', '.join(SCHEMES)}.",
    )


def quantize(
    source: Path, target: Path, scheme: str, *, progress: Progress | None = None
) -> Quantization:
    """Write ``source`` to ``target`` with its weights stored as ``scheme`` says.

    The same source gives the same bytes. Nothing is left at ``target`` when it fails.

    Args:
        source: a readable fp32 ONNX file, with its external data beside it if it has any.
        target: the ONNX file to write; ``<target>.data`` appears beside it when the weights
            do not fit into one protobuf (2 GiB).
        scheme: one of ``SCHEMES``.
        progress: called from time to time.

    Returns:
        The manifest's account of what was stored and what computes.

    Raises:
        UsageError: there is no such scheme.
        InputError: the source is missing, not ONNX, or holds weights that cannot be quantised.
        StorageError: the target cannot be written.
    """
    module = _MODULES[check_scheme(scheme)]
    if not source.is_file():
        raise InputError("there is no model to quantise", where=str(source))
    if target.exists() and target.samefile(source):
        raise UsageError("source and target are the same file", where=str(source))
    implementation = cast(_Scheme, importlib.import_module(module))
    return implementation.convert(source, target, progress or _silent)


def _silent(_what: str, _fraction: float | None) -> None:
    return None
