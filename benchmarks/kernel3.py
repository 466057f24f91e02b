"""The native three-bit kernel beside ONNX Runtime's own four-bit kernel, on the same file.

One model of one MatMul3Bit (random codes and scales) makes two sessions: without the library ONNX
Runtime decodes the function's body at load and fuses it to MatMulNBits with four bits and int8
activations; with it the native kernel takes the node. They take turns in one process: a round calls
the one for some milliseconds, then the other, and gives the ratio of the faster calls of each; the
figure is the median over the rounds. Such ratios repeat where times do not: the load of the machine
meets both.

Resident: one layer called again and again, which an L3 cache of 32 MB holds. Streaming: a chain
of twelve layers of 4096 x 4096 (88 MB in three bits at blocks of 32), too much for any cache met
here, and beside it the rate at which one thread of the C library reads a plain array of 256 MB
(memchr for a byte that is not there).

The library is the companion package edgebench_native, or the one that EDGEBENCH_NATIVE names.
"""

from __future__ import annotations

import ctypes
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import onnx
import onnxruntime
from common import Figure, Refusal, at_least, at_most, run_benchmark, table
from onnx import TensorProto, helper, numpy_helper

from edgebench.agent.agent import native_kernels
from edgebench.quantize import functions
from edgebench.quantize.int3 import SESSION_OPTIONS
from edgebench.quantize.packing import padded

SHAPES = ((768, 3072), (4096, 4096), (4096, 11008))
BLOCKS = (32, 128)
ROWS = (1, 8, 128)
LAYERS = 12
STREAMED = 4096

ROUNDS, QUICK_ROUNDS = 15, 3
CALLS_S = 0.02
PLAIN_BYTES = 256 << 20

# What must be moved: three bits and an fp16 scale a block against four bits and an fp32 scale,
# 3.5 / 5 and 3.125 / 4.25. AVX2 has no dot product of bytes and is bound by arithmetic.
BYTES_RATIO = {32: 0.70, 128: 0.74}
DOT_PRODUCT = {"avx512vnni", "avxvnni", "neon-dotprod"}
AT_MOST_M128 = 0.75
OF_PLAIN_READ = 0.8


@dataclass(frozen=True)
class Pair:
    """One cell: the median ratio native / four-bit, and the best time of either, in seconds."""

    ratio: float
    four_s: float
    native_s: float


def chain(n: int, k: int, block: int, layers: int) -> bytes:
    """A model of ``layers`` products X W^T, W [n, k]."""
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
                [f"x{i}", *names],
                [f"x{i + 1}"],
                domain=functions.DOMAIN,
                K=k,
                N=n,
                block_size=block,
            )
        )
    graph = helper.make_graph(
        nodes,
        "chain",
        [helper.make_tensor_value_info("x0", TensorProto.FLOAT, ["m", k])],
        [helper.make_tensor_value_info(f"x{layers}", TensorProto.FLOAT, ["m", n])],
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


def take_turns(*calls: Callable[[], object], rounds: int) -> list[list[float]]:
    """For each call its best time in each round, in seconds."""
    for call in calls:
        call()
    times: list[list[float]] = [[] for _ in calls]
    for _ in range(rounds):
        for kept, call in zip(times, calls, strict=True):
            kept.append(best_s(call, CALLS_S))
    return times


def pair(four: list[float], ours: list[float]) -> Pair:
    """The figures of a cell from the rounds of both."""
    ratios = [b / a for a, b in zip(four, ours, strict=True)]
    return Pair(statistics.median(ratios), min(four), min(ours))


def runner(made: onnxruntime.InferenceSession, m: int, k: int) -> Callable[[], object]:
    """A call of the session with one fixed input of m rows."""
    x = np.random.default_rng(1).normal(size=(m, k)).astype(np.float32)
    return lambda: made.run(None, {"x0": x})


def resident(library: str, rounds: int, threads: int) -> Iterator[tuple[str, int, int, Pair]]:
    """Every shape and block: (name, block, rows of activations, figures)."""
    for n, k in SHAPES:
        for block in BLOCKS:
            model = chain(n, k, block, 1)
            four, ours = session(model, None, threads), session(model, library, threads)
            for m in ROWS:
                calls = runner(four, m, k), runner(ours, m, k)
                # 128 rows take a thousand times one row's time.
                some = rounds if m < ROWS[-1] else max(3, rounds // 3)
                times = take_turns(*calls, rounds=some)
                yield f"{n} x {k}, block {block}, M={m}", block, m, pair(*times)


def streaming(library: str, rounds: int, block: int) -> tuple[Pair, float, float]:
    """A chain's figures a layer, and bytes a second: of our weights, and of a plain read."""
    model = chain(STREAMED, STREAMED, block, LAYERS)
    plain = np.ones(PLAIN_BYTES, np.uint8)
    memchr = ctypes.CDLL(None).memchr
    memchr.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t]
    calls = (
        runner(session(model, None, 1), 1, STREAMED),
        runner(session(model, library, 1), 1, STREAMED),
        lambda: memchr(plain.ctypes.data, 0, PLAIN_BYTES),
    )
    four, ours, read = take_turns(*calls, rounds=rounds)
    layer = pair([t / LAYERS for t in four], [t / LAYERS for t in ours])
    moved = STREAMED * STREAMED * (3 + 16 / block) / 8
    return layer, moved / layer.native_s, PLAIN_BYTES / min(read)


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
    rounds = QUICK_ROUNDS if quick else ROUNDS
    print(f"kernel {kernel}, ONNX Runtime {onnxruntime.__version__}\n")
    rows, figures = [], []
    for threads in (1, 2) if len(os.sched_getaffinity(0)) > 1 else (1,):
        for name, block, m, cell in resident(library, rounds, threads):
            title = f"{name}, {threads} thread{'s' if threads > 1 else ''}"
            rows.append(_row(title, cell))
            limit = BYTES_RATIO[block] if kernel in DOT_PRODUCT else 1.0
            if threads == 1 and m in (1, ROWS[-1]):
                figures.append(at_most(title, cell.ratio, limit if m == 1 else AT_MOST_M128))
    for block in BLOCKS:
        cell, rate, plain = streaming(library, rounds, block)
        title = f"streaming {LAYERS} x {STREAMED}^2, block {block}, M=1"
        rows.append(_row(f"{title}, a layer", cell))
        limit = BYTES_RATIO[block] if kernel in DOT_PRODUCT else 1.0
        figures.append(at_most(title, cell.ratio, limit))
        note = f" ({rate / 1e9:.1f} of {plain / 1e9:.1f} GB/s)"
        figures.append(at_least(f"{title}, of a plain read", rate / plain, OF_PLAIN_READ, "", note))
    table(("what", "4 bit us", "native us", "ratio"), rows)
    return figures


def _row(title: str, cell: Pair) -> tuple[str, str, str, str]:
    times = (f"{1e6 * s:.1f}" for s in (cell.four_s, cell.native_s))
    return (title, *times, f"{cell.ratio:.3f}")


if __name__ == "__main__":
    sys.exit(run_benchmark(__doc__, measure))
