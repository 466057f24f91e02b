"""llama.cpp's Q3_K matrix product through its own libraries, for ``kernel3.py``.

ggml's libraries are those in the directory that EDGEBENCH_GGML names, else those of an installed
``llama-cpp-python``. What is called is the public interface of ggml.h, ggml-backend.h and
ggml-cpu.h. Q3_K holds 256 weights in 110 bytes: 32 of high bits, 64 of low ones, 12 of sixteen
6-bit scales, and one fp16 scale.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib.util
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

F32, Q3_K = 0, 11
SUPER_BLOCK, SUPER_BLOCK_BYTES = 256, 110
_FILES = ("libggml-base.so", "libggml-cpu.so")


class Unavailable(Exception):
    """Why Q3_K can't be measured here."""


class _InitParams(ctypes.Structure):
    _fields_ = (
        ("mem_size", ctypes.c_size_t),
        ("mem_buffer", ctypes.c_void_p),
        ("no_alloc", ctypes.c_bool),
    )


def _directory() -> Path:
    named = os.environ.get("EDGEBENCH_GGML")
    if named:
        found = Path(named)
    else:
        package = importlib.util.find_spec("llama_cpp")
        if package is None or package.origin is None:
            raise Unavailable("llama-cpp-python is not installed and EDGEBENCH_GGML names nothing")
        found = Path(package.origin).parent / "lib"
    missing = [name for name in _FILES if not (found / name).exists()]
    if missing:
        raise Unavailable(f"{found} has no {' and no '.join(missing)}")
    return found


@dataclass
class Ggml:
    """The two libraries, loaded."""

    base: ctypes.CDLL
    cpu: ctypes.CDLL
    _backends: dict[int, int] = field(default_factory=dict)

    @classmethod
    def load(cls) -> Ggml:
        """The libraries, tried on a small product whose value is known.

        Raises:
            Unavailable: there are none, they don't load, or they compute something else.
        """
        directory = _directory()
        try:
            base, cpu = (ctypes.CDLL(str(directory / n), mode=ctypes.RTLD_GLOBAL) for n in _FILES)
            _declare(base, cpu)
        except (OSError, AttributeError) as error:
            raise Unavailable(str(error)) from error
        made = cls(base, cpu)
        made._check()
        return made

    @contextlib.contextmanager
    def products(
        self, weights: Iterable[NDArray[np.uint8]], n: int, x: NDArray[np.float32], threads: int
    ) -> Iterator[tuple[Callable[[], object], Callable[[], NDArray[np.float32]]]]:
        """A call that multiplies x [m, k] by each matrix [n, k], and one that reads the first.

        Args:
            weights: matrices in Q3_K, as bytes.
        """
        held = list(weights)
        m, k = x.shape
        g = self.base
        memory = (2 * len(held) + 8) * g.ggml_tensor_overhead() + g.ggml_graph_overhead()
        context = g.ggml_init(_InitParams(memory, None, True))
        rows = g.ggml_new_tensor_2d(context, F32, k, m)
        matrices = [g.ggml_new_tensor_2d(context, Q3_K, k, n) for _ in held]
        products = [g.ggml_mul_mat(context, matrix, rows) for matrix in matrices]
        graph = g.ggml_new_graph(context)
        for product in products:
            g.ggml_build_forward_expand(graph, product)
        backend = self._backend(threads)
        buffer = g.ggml_backend_alloc_ctx_tensors(context, backend)
        if not buffer:
            raise Unavailable("ggml could not allocate the tensors")
        g.ggml_backend_tensor_set(rows, x.ctypes.data, 0, x.nbytes)
        for matrix, data in zip(matrices, held, strict=True):
            g.ggml_backend_tensor_set(matrix, data.ctypes.data, 0, data.nbytes)

        def call() -> None:
            if g.ggml_backend_graph_compute(backend, graph) != 0:
                raise RuntimeError("ggml could not compute the product")

        def first() -> NDArray[np.float32]:
            y = np.empty((m, n), np.float32)
            g.ggml_backend_tensor_get(products[0], y.ctypes.data, 0, y.nbytes)
            return y

        try:
            yield call, first
        finally:
            g.ggml_backend_buffer_free(buffer)
            g.ggml_free(context)

    def _backend(self, threads: int) -> int:
        """A CPU backend with threads that stay; one for each number of them."""
        if threads not in self._backends:
            backend = self.cpu.ggml_backend_cpu_init()
            self.cpu.ggml_backend_cpu_set_n_threads(backend, threads)
            # struct ggml_threadpool_params is smaller than this, whatever the version.
            parameters = ctypes.create_string_buffer(4096)
            self.base.ggml_threadpool_params_init(parameters, threads)
            pool = self.cpu.ggml_threadpool_new(parameters)
            self.cpu.ggml_backend_cpu_set_threadpool(backend, pool)
            self._backends[threads] = backend
        return self._backends[threads]

    def _check(self) -> None:
        """ggml's own rounding of a matrix, multiplied, against the product in numpy."""
        rng = np.random.default_rng(0)
        w = rng.normal(size=(64, 512)).astype(np.float32)
        x = rng.normal(size=(3, 512)).astype(np.float32)
        data = np.zeros(w.size // SUPER_BLOCK * SUPER_BLOCK_BYTES, np.uint8)
        written = self.base.ggml_quantize_chunk(
            Q3_K, w.ctypes.data, data.ctypes.data, 0, len(w), w.shape[1], None
        )
        if written != data.nbytes:
            raise Unavailable(f"a matrix in Q3_K is {written} bytes, not {data.nbytes}")
        for threads in (1, 2):
            with self.products([data], len(w), x, threads) as (call, first):
                call()
                y, wanted = first().ravel(), (x @ w.T).ravel()
            cosine = y @ wanted / np.linalg.norm(y) / np.linalg.norm(wanted)
            if not cosine > 0.97:
                raise Unavailable(f"its product has a cosine of {cosine:.3f} to the exact one")


def random_weights(n: int, k: int, rng: np.random.Generator) -> NDArray[np.uint8]:
    """A matrix [n, k] in Q3_K with random codes and scales; k is a multiple of 256."""
    blocks = rng.integers(0, 256, (n * k // SUPER_BLOCK, SUPER_BLOCK_BYTES), np.uint8)
    blocks[:, -2:] = np.frombuffer(np.float16(0.001).tobytes(), np.uint8)
    return blocks


def _declare(base: ctypes.CDLL, cpu: ctypes.CDLL) -> None:
    """Types of what is called; AttributeError where a function is not there."""
    p, i, size, i64 = ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t, ctypes.c_int64
    signatures = {
        base: {
            "ggml_init": (p, _InitParams),
            "ggml_free": (None, p),
            "ggml_backend_buffer_free": (None, p),
            "ggml_tensor_overhead": (size,),
            "ggml_graph_overhead": (size,),
            "ggml_new_tensor_2d": (p, p, i, i64, i64),
            "ggml_mul_mat": (p, p, p, p),
            "ggml_new_graph": (p, p),
            "ggml_build_forward_expand": (None, p, p),
            "ggml_quantize_chunk": (size, i, p, p, i64, i64, i64, p),
            "ggml_backend_alloc_ctx_tensors": (p, p, p),
            "ggml_backend_tensor_set": (None, p, p, size, size),
            "ggml_backend_tensor_get": (None, p, p, size, size),
            "ggml_backend_graph_compute": (i, p, p),
            "ggml_threadpool_params_init": (None, p, i),
        },
        cpu: {
            "ggml_backend_cpu_init": (p,),
            "ggml_backend_cpu_set_n_threads": (None, p, i),
            "ggml_backend_cpu_set_threadpool": (None, p, p),
            "ggml_threadpool_new": (p, p),
        },
    }
    for library, functions in signatures.items():
        for name, (result, *arguments) in functions.items():
            function = getattr(library, name)
            function.restype, function.argtypes = result, arguments
