"""Quantisation schemes: one fp32 ONNX file in, one quantised ONNX file out.

Each scheme is one module with one function ``convert(source, target, progress, **options)``; this
registry names them with the options that each takes, and imports a scheme only when it is used, so
importing the package costs nothing. To add a scheme, write its module and name it here.
"""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

from edgebench.errors import InputError, UsageError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from edgebench.artifact import Quantization

Progress = Callable[[str, float | None], None]
"""Called with what is being done and the fraction done in 0..1, or None where that is unknown."""

_MODULES = {
    "fp32": "edgebench.quantize.fp32",
    "fp16": "edgebench.quantize.fp16",
    "int8": "edgebench.quantize.int8",
    "int8-static": "edgebench.quantize.int8_static",
    "int4": "edgebench.quantize.int4",
    "int3": "edgebench.quantize.int3",
    "mixed": "edgebench.quantize.mixed",
}

SCHEMES: tuple[str, ...] = tuple(_MODULES)

CALIBRATED = frozenset({"int8-static", "int4", "int3", "mixed"})
"""Schemes that use calibration inputs."""

MIXED_BITS = 3.5
"""The budget of the scheme mixed where none is given."""


class _Scheme(Protocol):
    def convert(
        self, source: Path, target: Path, progress: Progress, **options: Any
    ) -> Quantization: ...


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
    source: Path,
    target: Path,
    scheme: str,
    *,
    calibration: Sequence[Mapping[str, NDArray[Any]]] | None = None,
    mixed_bits: float = MIXED_BITS,
    progress: Progress | None = None,
) -> Quantization:
    """Write ``source`` to ``target`` with its weights stored as ``scheme`` says.

    The same source gives the same bytes on the same kind of processor, whatever the number of its
    threads. Nothing is left at ``target`` when it fails.

    Args:
        source: a readable fp32 ONNX file, with its external data beside it if it has any.
        target: the ONNX file to write; ``<target>.data`` appears beside it when the weights
            do not fit into one protobuf (2 GiB), and for int3 and mixed from 4 MiB on, so that a
            runtime maps them.
        scheme: one of ``SCHEMES``.
        calibration: inputs of the model, batch by batch, that the schemes of ``CALIBRATED`` fit
            weights to; the others ignore them. Without any, int4 and int3 round plainly.
        mixed_bits: the budget of the scheme mixed, in stored bits a weight over all weights.
        progress: called from time to time.

    Returns:
        The manifest's account of what was stored and what computes.

    Raises:
        UsageError: there is no such scheme.
        InputError: the source is missing, not ONNX, or holds weights that cannot be quantised;
            or calibration inputs are too few, or missing where a scheme cannot do without.
        StorageError: the target cannot be written.
    """
    module = _MODULES[check_scheme(scheme)]
    if not source.is_file():
        raise InputError("there is no model to quantise", where=str(source))
    if target.exists() and target.samefile(source):
        raise UsageError("source and target are the same file", where=str(source))
    implementation = cast(_Scheme, importlib.import_module(module))
    options: dict[str, Any] = {"calibration": calibration} if scheme in CALIBRATED else {}
    if scheme == "mixed":
        options["budget"] = mixed_bits
    import threadpoolctl

    # NumPy's sums depend on how many threads share them, and a last bit decides a rounding.
    with threadpoolctl.threadpool_limits(limits=1, user_api="blas"):
        return implementation.convert(source, target, progress or _silent, **options)


def _silent(_what: str, _fraction: float | None) -> None:
    return None
