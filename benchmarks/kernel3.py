"""The native three-bit kernel beside ONNX Runtime's own four-bit kernel, on the same file.

One model of MatMul3Bit (random codes and scales) makes two sessions: without the library ONNX
Runtime decodes the function's body at load and fuses it to MatMulNBits with four bits and int8
activations; with it the native kernel takes the node. They take turns in one process: a round calls
the one for some milliseconds, then the other, and gives the ratio of the faster calls of each; the
figure is the median over the rounds. Such ratios repeat where times do not: the load of the machine
meets both. With two threads each turn begins after a pause: a session's idle threads spin for tens
of milliseconds after its last call, on the processor that the other one's second thread then lacks.

Resident: one layer called again and again, which an L3 cache of 32 MB holds. Streaming: as many
layers of the same shape as hold 88 MB in three bits, each with weights of its own and all of one
input, too much for any cache met here; and beside them, in the same rounds, the rate at which as
many threads of the C library read a plain array of 256 MB (memchr for a byte that is not there).

For the record, llama.cpp's Q3_K on the same shapes takes its turns too where ggml's libraries are:
in the directory that EDGEBENCH_GGML names, or in an installed llama-cpp-python. It has no target.

The library is the companion package edgebench_native, or the one that EDGEBENCH_NATIVE names.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import onnx
import onnxruntime
from common import Figure, Refusal, at_least, at_most, run_benchmark, table
from ggml_q3k import Ggml, Unavailable, random_weights
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from edgebench.agent.agent import native_kernels
from edgebench.quantize import functions
from edgebench.quantize.int3 import SESSION_OPTIONS
from edgebench.quantize.packing import padded

SHAPES = ((768, 3072), (4096, 4096), (4096, 11008))
BLOCKS = (32, 128)
ROWS = (1, 8, 128)
STREAMED_BYTES, QUICK_STREAMED_BYTES = 88_000_000, 8_000_000

ROUNDS, QUICK_ROUNDS = 15, 3
CALLS_S = 0.02
# How long a turn of several threads waits for the spinning of those before it to end.
SETTLE_S = 0.1
PLAIN_BYTES = 256 << 20

# What must be moved: three bits and an fp16 scale a block against four bits and an fp32 scale,
# 3.5 / 5 and 3.125 / 4.25. AVX2 has no dot product of bytes and is bound by arithmetic.
BYTES_RATIO = {32: 0.70, 128: 0.74}
DOT_PRODUCT = {"avx512vnni", "avxvnni", "neon-dotprod", "neon-i8mm"}
AT_MOST_M128 = 0.75
OF_PLAIN_READ = 0.8


@dataclass(frozen=True)
class Cell:
    """One line: the median ratio native / four-bit, and best times a layer in seconds.

    ``q3k_s`` is None without ggml, ``plain_s`` (the whole plain read's time) without streaming.
    """

    n: int
    k: int
    block: int
    m: int
    threads: int
    layers: int
    ratio: float
    four_s: float
    native_s: float
    q3k_s: float | None
    plain_s: float | None

    @property
    def title(self) -> str:
        """Its name in the table and in the closing lines."""
        where = "resident" if self.layers == 1 else f"streaming {self.layers}"
        threads = f"{self.threads} thread{'s' if self.threads > 1 else ''}"
        return f"{where} {self.n} x {self.k}, block {self.block}, M={self.m}, {threads}"

    @property
    def bytes_a_second(self) -> float:
        """The rate at which the native kernel went through its weights."""
        return _layer_bytes(self.n, self.k, self.block) / self.native_s


def _layer_bytes(n: int, k: int, block: int) -> float:
    return n * k * (3 + 16 / block) / 8


def layers_model(n: int, k: int, block: int, layers: int) -> bytes:
    """A model of ``layers`` products X W^T of one X, each with a W [n, k] of its own."""
    rng = np.random.default_rng(0)
    nodes, tensors = [], []
    for i in range(layers):
        names = [f"low{i}", f"high{i}", f"scales{i}"]
        scales = rng.normal(scale=0.01, size=(n, -(-k // block)))
        arrays = (
            rng.integers(0, 256, (n, padded(k) // 4), np.uint8),
            rng.integers(0, 256, (n, padded(k) // 8), np.uint8),
            scales.astype(np.float16),
        )
        tensors += [numpy_helper.from_array(a, name) for name, a in zip(names, arrays, strict=True)]
        nodes.append(
            helper.make_node(
                functions.MATMUL,
                ["x", *names],
                [f"y{i}"],
                domain=functions.DOMAIN,
                K=k,
                N=n,
                block_size=block,
            )
        )
    graph = helper.make_graph(
        nodes,
        "layers",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["m", k])],
        [
            helper.make_tensor_value_info(f"y{i}", TensorProto.FLOAT, ["m", n])
            for i in range(layers)
        ],
        tensors,
    )
    opsets = [("", functions.OPSET), (functions.DOMAIN, functions.DOMAIN_VERSION)]
    model: onnx.ModelProto = helper.make_model(
        graph,
        opset_imports=[helper.make_opsetid(*opset) for opset in opsets],
        ir_version=10,
        functions=[functions.matmul()],
    )
    return bytes(model.SerializeToString())


def session(model: bytes, library: str | None, threads: int) -> onnxruntime.InferenceSession:
    """The model on so many threads, with the library or without."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    for key, value in SESSION_OPTIONS.items():
        options.add_session_config_entry(key, value)
    if library is not None:
        options.register_custom_ops_library(library)
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def best_s(call: Callable[[], object], seconds: float) -> float:
    """The shortest of the calls that fit into so many seconds, two at least."""
    best, end = float("inf"), time.perf_counter() + seconds
    count = 0
    while count < 2 or time.perf_counter() < end:
        start = time.perf_counter()
        call()
        best = min(best, time.perf_counter() - start)
        count += 1
    return best


def take_turns(*calls: Callable[[], object], rounds: int, pause_s: float) -> list[list[float]]:
    """For each call its best time in each round, in seconds."""
    for call in calls:
        call()
    times: list[list[float]] = [[] for _ in calls]
    for _ in range(rounds):
        for kept, call in zip(times, calls, strict=True):
            time.sleep(pause_s)
            kept.append(best_s(call, CALLS_S))
    return times


@contextlib.contextmanager
def plain_read(threads: int) -> Iterator[Callable[[], object]]:
    """A call in which so many threads read an array of ``PLAIN_BYTES`` once, a part each."""
    array = np.ones(PLAIN_BYTES, np.uint8)
    memchr = ctypes.CDLL(None).memchr
    memchr.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t]
    part = PLAIN_BYTES // threads
    starts = [array.ctypes.data + part * i for i in range(threads)]
    with ThreadPoolExecutor(threads) as pool:  # ctypes lets go of the interpreter's lock
        yield lambda: list(pool.map(lambda start: memchr(start, 0, part), starts))


def cells(
    library: str, ggml: Ggml | None, shape: tuple[int, int], block: int, layers: int, rounds: int
) -> Iterator[Cell]:
    """Every number of threads and of rows for one shape and block, on so many layers."""
    n, k = shape
    model = layers_model(n, k, block, layers)
    rng = np.random.default_rng(1)
    weights = [random_weights(n, k, rng) for _ in range(layers)] if ggml else []
    for threads in (1, 2) if len(os.sched_getaffinity(0)) > 1 else (1,):
        made = session(model, None, threads), session(model, library, threads)
        for m in ROWS:
            x = rng.normal(size=(m, k)).astype(np.float32)
            # 128 rows take a thousand times one row's time.
            some = rounds if m < ROWS[-1] else max(3, rounds // (3 if layers == 1 else 5))
            with contextlib.ExitStack() as held:
                calls = [_runner(one, x) for one in made]
                if ggml is not None:
                    calls.append(held.enter_context(ggml.products(weights, n, x, threads))[0])
                if layers > 1:
                    calls.append(held.enter_context(plain_read(threads)))
                pause_s = SETTLE_S if threads > 1 else 0.0
                times = take_turns(*calls, rounds=some, pause_s=pause_s)
            best = [min(taken) for taken in times]
            yield Cell(
                n,
                k,
                block,
                m,
                threads,
                layers,
                statistics.median(b / a for a, b in zip(times[0], times[1], strict=True)),
                best[0] / layers,
                best[1] / layers,
                best[2] / layers if ggml is not None else None,
                best[-1] if layers > 1 else None,
            )


def _runner(made: onnxruntime.InferenceSession, x: NDArray[np.float32]) -> Callable[[], object]:
    return lambda: made.run(None, {"x": x})


def figures_of(cell: Cell, kernel: str) -> Iterator[Figure]:
    """The verdicts on a line: those that the kernel was made to meet."""
    if cell.m == 1:
        limit = BYTES_RATIO[cell.block] if kernel in DOT_PRODUCT else 1.0
        yield at_most(cell.title, cell.ratio, limit)
        if cell.plain_s is not None:
            rate, plain = cell.bytes_a_second, PLAIN_BYTES / cell.plain_s
            note = f" ({rate / 1e9:.1f} of {plain / 1e9:.1f} GB/s)"
            name = f"{cell.title}, of a plain read"
            yield at_least(name, rate / plain, OF_PLAIN_READ, "", note)
    elif cell.m == ROWS[-1]:
        yield at_most(cell.title, cell.ratio, AT_MOST_M128)


def measure(quick: bool) -> list[Figure]:
    """Every cell, and the verdict on those that have a target."""
    found = native_kernels()
    if "path" not in found:
        raise Refusal(
            found.get("warning")
            or "there is no native library. `pip install ./native`, or name a build "
            "of it in EDGEBENCH_NATIVE."
        )
    library, kernel = found["path"], found["kernel"]
    print(f"kernel {kernel}, ONNX Runtime {onnxruntime.__version__}")
    ggml: Ggml | None = None
    try:
        ggml = Ggml.load()
    except Unavailable as reason:
        print(f"Q3_K: not measured, because {reason}")
    rounds = QUICK_ROUNDS if quick else ROUNDS
    streamed = QUICK_STREAMED_BYTES if quick else STREAMED_BYTES
    done: list[Cell] = []
    for shape in SHAPES[:1] if quick else SHAPES:
        for block in BLOCKS:
            enough = max(2, -int(-streamed // _layer_bytes(*shape, block)))
            for layers in (1, enough):
                print(
                    f"{shape[0]} x {shape[1]}, block {block}, layers {layers} ...", file=sys.stderr
                )
                done += cells(library, ggml, shape, block, layers, rounds)
    print()
    table(("a layer", "4 bit us", "native us", "Q3_K us", "ratio", "to Q3_K"), map(_row, done))
    return [figure for cell in done for figure in figures_of(cell, kernel)]


def _row(cell: Cell) -> tuple[str, ...]:
    times = (cell.four_s, cell.native_s, cell.q3k_s)
    shown = ("" if s is None else f"{1e6 * s:.1f}" for s in times)
    beside = "" if cell.q3k_s is None else f"{cell.native_s / cell.q3k_s:.3f}"
    return (cell.title, *shown, f"{cell.ratio:.3f}", beside)


if __name__ == "__main__":
    sys.exit(run_benchmark(__doc__, measure))
