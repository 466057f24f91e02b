"""The library of three-bit kernels on this machine: whether there is one, and whether it fits.

It comes in the companion package ``edgebench_native``, or from a build of ``native/`` that the
environment variable EDGEBENCH_NATIVE names. Without it every artifact runs all the same: the ops'
bodies are in the file, and ONNX Runtime computes them with its own four-bit kernel. So a library
that cannot be used is a warning with a reason, and no failure.

The file is loaded to be asked (``ctypes``): only a path that its user has installed or named.
"""

from __future__ import annotations

import ctypes
import importlib.util
import os
from dataclasses import dataclass
from pathlib import Path

ABI = 1
"""The signatures of the ops and the layout of their planes, as ``quantize`` writes them now."""

VARIABLE = "EDGEBENCH_NATIVE"
PACKAGE = "edgebench_native"
FILE = "libedgebench_ops.so"


@dataclass(frozen=True)
class Native:
    """A library that ONNX Runtime may register.

    Attributes:
        path: the shared library.
        version: its release.
        kernel: what it runs on this processor: "avx2", "neon-dotprod", ..., "scalar".
    """

    path: Path
    version: str
    kernel: str


@dataclass(frozen=True)
class Lookup:
    """What was found: a library, or a reason why there is none to use; neither, where none is."""

    native: Native | None = None
    warning: str = ""


def find() -> Lookup:
    """The library that EDGEBENCH_NATIVE names, else the companion package's."""
    path = _path()
    return Lookup() if path is None else load(path)


def load(path: Path) -> Lookup:
    """Load one library and ask it what it is.

    A file that is missing, for another architecture or C library, of another ABI, or something
    else gives a warning that says so.
    """
    try:
        library = ctypes.CDLL(str(path))
        library.edgebench_native_version.restype = ctypes.c_char_p
        library.edgebench_native_kernel.restype = ctypes.c_char_p
        version: bytes = library.edgebench_native_version()
        abi = int(library.edgebench_native_abi())
        kernel: bytes | None = library.edgebench_native_kernel()
    except OSError as error:
        return Lookup(warning=f"{path} cannot be loaded on this machine: {error}")
    except AttributeError:
        return Lookup(warning=f"{path} is not a library of edgebench's kernels")
    if abi != ABI:
        return Lookup(warning=f"{path} has ABI {abi}, this edgebench writes for ABI {ABI}")
    if kernel is None:
        return Lookup(warning=f"{path} has no kernel by the name in EDGEBENCH_NATIVE_KERNEL here")
    return Lookup(Native(path, version.decode(), kernel.decode()))


def _path() -> Path | None:
    named = os.environ.get(VARIABLE)
    if named:
        return Path(named).absolute()
    found = importlib.util.find_spec(PACKAGE)
    if found is None or found.origin is None:
        return None
    return Path(found.origin).parent / FILE
