"""The ops in ONNX Runtime: what the library computes beside what the functions' bodies compute."""

import os
import subprocess
import sys

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from edgebench.agent import agent
from edgebench.quantize import functions
from edgebench.quantize.packing import pack
from tests.native import building, sanitized

BODIES = {"MatMul3Bit": functions.matmul, "Gather3Bit": functions.gather}
TYPES = {
    np.dtype(np.float32): TensorProto.FLOAT,
    np.dtype(np.int64): TensorProto.INT64,
    np.dtype(np.int32): TensorProto.INT32,
    np.dtype(np.uint8): TensorProto.UINT8,
    np.dtype(np.float16): TensorProto.FLOAT16,
}


@pytest.fixture(scope="module")
def library():
    return os.environ.get(sanitized.LIBRARY) or str(building.library())


def matrix(n, k, block, seed=0):
    """Planes, scales, and the weights [N, K] in fp32 that they stand for."""
    rng = np.random.default_rng(seed)
    codes = rng.integers(-4, 4, (n, k)).astype(np.int8)
    scales = rng.normal(scale=0.1, size=(n, -(-k // block))).astype(np.float16)
    weights = codes * np.repeat(scales.astype(np.float32), block, axis=1)[:, :k]
    return {"low": pack(codes)[0], "high": pack(codes)[1], "scales": scales}, weights


def model(op, constants, feeds, *, body=True, **attributes):
    """A model of one node; ``feeds`` are graph inputs, ``constants`` initialisers."""
    order = ["X", "low", "high", "scales"] if op == "MatMul3Bit" else ["low", "high", "scales"]
    order += [] if op == "MatMul3Bit" else ["indices"]
    node = helper.make_node(op, order, ["Y"], domain=functions.DOMAIN, **attributes)
    inputs = [
        helper.make_tensor_value_info(name, TYPES[value.dtype], [None] * value.ndim)
        for name, value in feeds.items()
    ]
    graph = helper.make_graph(
        [node],
        "one",
        inputs,
        [helper.make_tensor_value_info("Y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    return helper.make_model(
        graph,
        opset_imports=[
            helper.make_opsetid("", functions.OPSET),
            helper.make_opsetid(functions.DOMAIN, functions.DOMAIN_VERSION),
        ],
        ir_version=10,
        functions=[BODIES[op]()] if body else [],
    )


def session(proto, library=None, *, threads=1):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 4
    if library:
        options.register_custom_ops_library(library)
    data = proto if isinstance(proto, bytes) else proto.SerializeToString()
    return onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])


def int8_bound(x, weights, block):
    """What rounding activations to int8, a scale a block, may cost: half a step times sum |w|."""
    k = x.shape[-1]
    starts = range(0, k, block)
    steps = [np.abs(x[..., s : s + block]).max(-1) / 127 for s in starts]
    sums = [np.abs(weights[:, s : s + block]).sum(-1) for s in starts]
    rounding = sum(step[..., None] / 2 * s for step, s in zip(steps, sums, strict=True))
    return rounding * 1.001 + 1e-5 * (np.abs(x) @ np.abs(weights).T) + 1e-30


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    m=st.one_of(st.integers(1, 9), st.just(512)),
    n=st.integers(1, 70),
    k=st.integers(1, 700),
    block=st.sampled_from([32, 64, 96, 128, 256]),
    rank=st.integers(1, 4),
    threads=st.integers(1, 2),
    seed=st.integers(0, 2**31),
)
def test_matmul_equals_the_dequantised_product_within_the_int8_bound(
    library, m, n, k, block, rank, threads, seed
):
    planes, weights = matrix(n, k, block, seed)
    shape = {1: (k,), 2: (m, k), 3: (1, m, k), 4: (1, m, 1, k)}[rank]
    x = np.random.default_rng(seed).normal(size=shape).astype(np.float32)
    proto = model("MatMul3Bit", planes, {"X": x}, K=k, N=n, block_size=block)
    (y,) = session(proto, library, threads=threads).run(None, {"X": x})
    exact = x.astype(np.float64) @ weights.astype(np.float64).T
    assert y.shape == (*shape[:-1], n)
    assert (np.abs(y - exact) <= int8_bound(x, weights, block)).all()


@pytest.mark.parametrize("block", [1, 7, 16, 33])
def test_blocks_that_no_kernel_packs_are_computed_in_fp32(library, block):
    planes, weights = matrix(21, 53, block)
    x = np.random.default_rng(1).normal(size=(5, 53)).astype(np.float32)
    proto = model("MatMul3Bit", planes, {"X": x}, K=53, N=21, block_size=block)
    (y,) = session(proto, library).run(None, {"X": x})
    assert np.allclose(y, x @ weights.T, rtol=1e-5, atol=1e-5)


def test_a_block_longer_than_the_row_is_one_block(library):
    planes, weights = matrix(21, 50, 1000)
    x = np.random.default_rng(1).normal(size=(5, 50)).astype(np.float32)
    proto = model("MatMul3Bit", planes, {"X": x}, K=50, N=21, block_size=1000)
    (y,) = session(proto, library).run(None, {"X": x})
    assert (np.abs(y - x @ weights.T) <= int8_bound(x, weights, 1000)).all()


def test_weights_that_are_inputs_of_the_graph_are_multiplied_all_the_same(library):
    planes, weights = matrix(300, 64, 32)
    x = np.random.default_rng(1).normal(size=(40, 64)).astype(np.float32)
    feeds = {"X": x, **planes}
    proto = model("MatMul3Bit", {}, feeds, K=64, N=300, block_size=32)
    for threads in (1, 2):
        (y,) = session(proto, library, threads=threads).run(None, feeds)
        assert np.allclose(y, x @ weights.T, rtol=1e-5, atol=1e-4)


def test_no_activations_give_no_outputs(library):
    planes, _ = matrix(5, 32, 32)
    x = np.zeros((0, 32), np.float32)
    proto = model("MatMul3Bit", planes, {"X": x}, K=32, N=5, block_size=32)
    assert session(proto, library).run(None, {"X": x})[0].shape == (0, 5)


def test_a_nan_reaches_every_output_of_its_row_and_no_other(library):
    planes, _ = matrix(40, 96, 32)
    x = np.ones((3, 96), np.float32)
    x[1, 70] = np.nan
    proto = model("MatMul3Bit", planes, {"X": x}, K=96, N=40, block_size=32)
    (y,) = session(proto, library).run(None, {"X": x})
    assert np.isnan(y[1]).all()
    assert np.isfinite(y[[0, 2]]).all()


def test_two_threads_give_the_bits_of_one(library):
    planes, _ = matrix(1000, 512, 32)
    x = np.random.default_rng(1).normal(size=(37, 512)).astype(np.float32)
    proto = model("MatMul3Bit", planes, {"X": x}, K=512, N=1000, block_size=32)
    one, two = (session(proto, library, threads=t).run(None, {"X": x})[0] for t in (1, 2))
    assert np.array_equal(one, two)


@pytest.mark.parametrize("dtype", [np.int32, np.int64])
@pytest.mark.parametrize(("n", "k", "block"), [(1, 1, 32), (50, 100, 32), (7, 129, 64)])
def test_gather_equals_the_body_bit_for_bit(library, dtype, n, k, block):
    planes, weights = matrix(n, k, block)
    indices = np.random.default_rng(2).integers(-n, n, (3, 4)).astype(dtype)
    proto = model("Gather3Bit", planes, {"indices": indices}, K=k, N=n, block_size=block)
    (ours,) = session(proto, library).run(None, {"indices": indices})
    (body,) = session(proto).run(None, {"indices": indices})
    assert np.array_equal(ours, body)
    assert np.array_equal(ours, weights[indices])


@pytest.mark.parametrize("dtype", [np.int32, np.int64])
@pytest.mark.parametrize(("n", "k", "block"), [(1, 1, 32), (50, 100, 32), (7, 129, 64)])
def test_gather_of_nibbles_equals_the_decoded_rows_bit_for_bit(library, dtype, n, k, block):
    rng = np.random.default_rng(0)
    codes = rng.integers(-8, 8, (n, k + k % 2)).astype(np.int8)
    scales = rng.normal(scale=0.1, size=(n, -(-k // block))).astype(np.float16)
    packed = (codes[:, ::2].view(np.uint8) & 15) | codes[:, 1::2].view(np.uint8) << 4
    weights = codes[:, :k] * np.repeat(scales.astype(np.float32), block, axis=1)[:, :k]
    indices = rng.integers(-n, n, (3, 4)).astype(dtype)
    made = session(nibbles(packed, scales, indices, k, block), library)
    assert np.array_equal(made.run(None, {"indices": indices})[0], weights[indices])
    with pytest.raises(Exception, match="Gather4Bit: index"):
        made.run(None, {"indices": np.full((1, 1), n, dtype)})


@pytest.mark.parametrize("cut", [lambda a: a[:, :-1], lambda a: a[:0], lambda a: a[0, 0]])
def test_nibbles_of_another_shape_are_refused_with_a_status(library, cut):
    packed, scales = np.zeros((4, 32), np.uint8), np.ones((4, 2), np.float16)
    indices = np.zeros(1, np.int64)
    proto = nibbles(np.ascontiguousarray(cut(packed)), scales, indices, 64, 32)
    with pytest.raises(Exception, match="Gather4Bit"):
        session(proto, library).run(None, {"indices": indices})


def nibbles(packed, scales, indices, k, block):
    """A model of one Gather4Bit, without its body."""
    attributes = {"domain": functions.DOMAIN, "K": k, "block_size": block}
    node = helper.make_node("Gather4Bit", ["codes", "scales", "indices"], ["Y"], **attributes)
    proto = model("Gather3Bit", {"codes": packed, "scales": scales}, {"indices": indices})
    proto.graph.node[0].CopyFrom(node)
    del proto.functions[:]
    return proto


def test_the_library_takes_the_node_and_the_body_serves_without_it(library):
    """With the function left out of the file, only the library can run it."""
    planes, _ = matrix(16, 32, 32)
    x = np.ones((1, 32), np.float32)
    bare = model("MatMul3Bit", planes, {"X": x}, body=False, K=32, N=16, block_size=32)
    with pytest.raises(Exception, match="MatMul3Bit"):
        session(bare)
    with_body = model("MatMul3Bit", planes, {"X": x}, K=32, N=16, block_size=32)
    ours, taken = (session(p, library).run(None, {"X": x})[0] for p in (bare, with_body))
    assert np.array_equal(ours, taken)


HOSTILE = {
    "K is 0": {"K": 0},
    "K is negative": {"K": -32},
    "K is huge": {"K": 1 << 62},
    "K is not the planes'": {"K": 72},
    "N is 0": {"N": 0},
    "N is not the planes'": {"N": 17},
    "N is huge": {"N": (1 << 63) - 1},
    "blocks of nothing": {"block_size": 0},
    "negative blocks": {"block_size": -32},
    "blocks that the scales are not for": {"block_size": 64},
    "a missing attribute": {"block_size": None},
}


@pytest.mark.parametrize("op", ["MatMul3Bit", "Gather3Bit"])
@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_attributes_are_refused_with_a_status(library, op, case):
    planes, _ = matrix(16, 64, 32)
    feeds = {"X": np.ones((2, 64), np.float32)}
    if op == "Gather3Bit":
        feeds = {"indices": np.zeros(2, np.int64)}
    attributes = {"K": 64, "N": 16, "block_size": 32, **HOSTILE[case]}
    attributes = {name: value for name, value in attributes.items() if value is not None}
    proto = model(op, planes, feeds, body=False, **attributes)
    with pytest.raises(Exception, match=r"edgebench|block_size"):
        session(proto, library).run(None, feeds)


@pytest.mark.parametrize("plane", ["low", "high", "scales"])
@pytest.mark.parametrize("as_input", [False, True])
@pytest.mark.parametrize(
    "cut",
    [
        lambda a: a[:, :-1],
        lambda a: a[:-1],
        lambda a: a[:, :0],
        lambda a: a.reshape(-1),
        lambda a: a[None],
        lambda a: a.reshape(-1)[:1].reshape(()),
    ],
)
def test_planes_of_another_shape_are_refused_with_a_status(library, plane, as_input, cut):
    planes, _ = matrix(16, 64, 32)
    planes[plane] = np.ascontiguousarray(cut(planes[plane]))
    feeds = {"X": np.ones((2, 64), np.float32), **(planes if as_input else {})}
    constants = {} if as_input else planes
    proto = model("MatMul3Bit", constants, feeds, body=False, K=64, N=16, block_size=32)
    with pytest.raises(Exception, match=rf"edgebench::MatMul3Bit: {plane} has the shape"):
        session(proto, library).run(None, feeds)


@pytest.mark.parametrize("plane", ["low", "high", "scales"])
def test_planes_of_another_type_are_refused(library, plane):
    planes, _ = matrix(16, 64, 32)
    planes[plane] = planes[plane].astype(np.float32)
    feeds = {"X": np.ones((2, 64), np.float32)}
    proto = model("MatMul3Bit", planes, feeds, body=False, K=64, N=16, block_size=32)
    with pytest.raises(Exception, match=r"(?i)type"):
        session(proto, library)


@pytest.mark.parametrize("shape", [(), (2, 63), (64, 2), (0,)])
def test_activations_of_another_width_are_refused_with_a_status(library, shape):
    planes, _ = matrix(16, 64, 32)
    x = np.ones(shape, np.float32)
    proto = model("MatMul3Bit", planes, {"X": x}, body=False, K=64, N=16, block_size=32)
    with pytest.raises(Exception, match="X has the shape"):
        session(proto, library).run(None, {"X": x})


@pytest.mark.parametrize("index", [16, -17, 1 << 40, -(1 << 63)])
def test_an_index_outside_the_table_is_refused_with_a_status(library, index):
    planes, _ = matrix(16, 64, 32)
    indices = np.array([0, index], np.int64)
    proto = model("Gather3Bit", planes, {"indices": indices}, K=64, N=16, block_size=32)
    with pytest.raises(Exception, match="outside the 16 rows"):
        session(proto, library).run(None, {"indices": indices})


def test_indices_of_another_type_are_refused_with_a_status(library):
    planes, _ = matrix(16, 64, 32)
    indices = np.zeros(2, np.float32)
    feeds = {"indices": indices}
    proto = model("Gather3Bit", planes, feeds, body=False, K=64, N=16, block_size=32)
    with pytest.raises(Exception, match="int32 or int64"):
        session(proto, library).run(None, feeds)


def test_all_of_this_holds_under_the_sanitizers():
    sanitized.run_again(__file__)


FORCED = """
import sys
import onnxruntime
options = onnxruntime.SessionOptions()
options.register_custom_ops_library(sys.argv[1])
"""


def test_a_kernel_can_be_named_and_one_that_is_not_there_is_refused(library):
    def register(kernel):
        return subprocess.run(
            [sys.executable, "-c", FORCED, library],
            env={**os.environ, "EDGEBENCH_NATIVE_KERNEL": kernel},
            capture_output=True,
            text=True,
        )

    assert register("scalar").returncode == 0
    assert "names no kernel" in register("mmx").stderr


def test_the_library_says_what_it_is(library, monkeypatch):
    monkeypatch.delenv("EDGEBENCH_NATIVE_KERNEL", raising=False)
    monkeypatch.setenv("EDGEBENCH_NATIVE", library)
    found = agent.native_kernels()
    assert found["path"] == library
    assert found["kernel"] in {
        "avx512vnni", "avxvnni", "avx2", "neon-dotprod", "neon", "scalar",
    }  # fmt: skip
    monkeypatch.setenv("EDGEBENCH_NATIVE_KERNEL", "mmx")
    assert "EDGEBENCH_NATIVE_KERNEL" in agent.native_kernels()["warning"]


def test_external_data_gives_the_same(library, tmp_path):
    """Weights in a mapped file: their pages are let go after packing, their values stay."""
    planes, weights = matrix(512, 1024, 32)
    x = np.random.default_rng(1).normal(size=(3, 1024)).astype(np.float32)
    indices = np.arange(512, dtype=np.int64)
    proto = model("MatMul3Bit", planes, {"X": x}, K=1024, N=512, block_size=32)
    look_up = model("Gather3Bit", planes, {"indices": indices}, K=1024, N=512, block_size=32)
    proto.graph.node.append(look_up.graph.node[0])
    proto.graph.node[1].output[0] = "rows"
    proto.graph.input.append(look_up.graph.input[0])
    proto.graph.output.append(helper.make_tensor_value_info("rows", TensorProto.FLOAT, None))
    proto.functions.append(functions.gather())
    onnx.save_model(proto, tmp_path / "m.onnx", save_as_external_data=True, location="m.bin")
    options = onnxruntime.SessionOptions()
    options.register_custom_ops_library(library)
    made = onnxruntime.InferenceSession(
        tmp_path / "m.onnx", options, providers=["CPUExecutionProvider"]
    )
    y, rows = made.run(None, {"X": x, "indices": indices})
    assert (np.abs(y - x @ weights.T) <= int8_bound(x, weights, 32)).all()
    assert np.array_equal(rows, weights)
