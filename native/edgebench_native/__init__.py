"""Where the library of edgebench's ONNX Runtime ops lies, and what it says of itself.

    options.register_custom_ops_library(edgebench_native.library_path())

``describe`` loads it, which fails with OSError where it was built for another architecture or C
library. Python 3.8 and its standard library are enough: this runs on devices.
"""

import ctypes
from pathlib import Path

ABI = 1
"""The layout and the ops' signatures that this package's library reads."""


def library_path():
    """The shared library beside this file."""
    return str(Path(__file__).resolve().parent / "libedgebench_ops.so")


def describe(path=None):
    """{path, version, abi, kernel} of a library; kernel is None where it would refuse to run.

    Raises:
        OSError: the file is missing, or this machine cannot load it.
        AttributeError: it is some other library.
    """
    path = path or library_path()
    library = ctypes.CDLL(path)
    library.edgebench_native_version.restype = ctypes.c_char_p
    library.edgebench_native_kernel.restype = ctypes.c_char_p
    kernel = library.edgebench_native_kernel()
    return {
        "path": path,
        "version": library.edgebench_native_version().decode(),
        "abi": int(library.edgebench_native_abi()),
        "kernel": kernel.decode() if kernel else None,
    }
