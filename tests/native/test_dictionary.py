"""DictionaryUpdate in ONNX Runtime: the kernel, its body, and the formula in double precision."""

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from edgebench.adapters import dictionary_op
from edgebench.quantize.packing import pack
from tests.native import sanitized
from tests.native.test_custom_ops import library, session  # noqa: F401 - a fixture

DICTIONARY = ("low", "high", "scales", "smooth")
TYPES = {
    np.dtype(np.float32): TensorProto.FLOAT,
    np.dtype(np.float16): TensorProto.FLOAT16,
    np.dtype(np.uint8): TensorProto.UINT8,
    np.dtype(np.int8): TensorProto.INT8,
    np.dtype(np.int64): TensorProto.INT64,
}


def dictionary(atoms, k, block, seed=0):
    """The stored arrays, and the atoms [M, K] in double precision that they stand for."""
    rng = np.random.default_rng(seed)
    codes = rng.integers(-4, 4, (atoms, k)).astype(np.int8)
    scales = rng.normal(scale=0.1, size=(atoms, -(-k // block))).astype(np.float16)
    smooth = rng.integers(-128, 128, k).astype(np.int8)
    wide = np.repeat(scales.astype(np.float64), block, axis=1)[:, :k]
    low, high = pack(codes)
    stored = {"low": low, "high": high, "scales": scales, "smooth": smooth}
    return stored, codes * wide * 2 ** (smooth / 16.0)


def tokens(shape, k, count, atoms, seed=0):
    rng = np.random.default_rng(seed)
    return {
        "X": rng.normal(size=(*shape, k)).astype(np.float32),
        "indices": rng.integers(-min(atoms, 128), min(atoms, 128), (*shape, count)).astype(np.int8),
        "coefficients": rng.integers(-128, 128, (*shape, count)).astype(np.int8),
    }


def model(constants, feeds, *, body=True, **attributes):
    """A model of one node; ``feeds`` are graph inputs, ``constants`` initialisers."""
    order = ["X", "indices", "coefficients", *DICTIONARY]
    node = helper.make_node(
        dictionary_op.NAME, order, ["Y"], domain=dictionary_op.DOMAIN, **attributes
    )
    inputs = [
        helper.make_tensor_value_info(name, TYPES[value.dtype], [None] * value.ndim)
        for name, value in feeds.items()
    ]
    output = helper.make_tensor_value_info("Y", TensorProto.FLOAT, None)
    held = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    made = helper.make_model(
        helper.make_graph([node], "one", inputs, [output], held),
        opset_imports=[helper.make_opsetid("", 20), helper.make_opsetid("edgebench", 1)],
        ir_version=10,
    )
    if body:
        dictionary_op.complete(made)
    return made


def exact(atoms, feeds):
    """Y in double precision, and the bound that native/include/edgebench/dictionary.h states."""
    x, c = feeds["X"].astype(np.float64), feeds["coefficients"].astype(np.float64)
    chosen = atoms[feeds["indices"].astype(int) % len(atoms)] * c[..., None]
    k, count = x.shape[-1], c.shape[-1]
    r, whole = chosen.sum(-2), np.linalg.norm(np.abs(chosen).sum(-2), axis=-1)
    norm = np.linalg.norm(r, axis=-1)
    with np.errstate(divide="ignore", invalid="ignore"):
        y = r * ((r * x).sum(-1) / (norm**2 * np.sqrt(k)))[..., None]
        kappa = whole / norm
    length = np.linalg.norm(x, axis=-1) / np.sqrt(k)
    bound = 2.0**-24 * length * (2 * k + 8 + 8 * kappa * (count + 4))
    # Where the atoms cancel, no bound is stated.
    sound = (norm > 1e-14) & (2.0**-24 * kappa * (count + 4) < 1e-3)
    return y, bound[..., None], sound


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    shape=st.sampled_from([(), (1,), (7,), (2, 5), (2, 1, 3), (1, 300)]),
    atoms=st.one_of(st.integers(1, 60), st.just(200)),
    k=st.integers(1, 600),
    block=st.sampled_from([1, 5, 8, 32, 100, 128, 1024]),
    count=st.integers(1, 5),
    as_inputs=st.booleans(),
    threads=st.integers(1, 2),
    seed=st.integers(0, 2**31),
)
def test_kernel_and_body_are_the_formula_within_the_bound(
    library,  # noqa: F811
    shape, atoms, k, block, count, as_inputs, threads, seed,
):  # fmt: skip
    stored, wide = dictionary(atoms, k, block, seed)
    feeds = tokens(shape, k, count, atoms, seed)
    constants, fed = ({}, {**feeds, **stored}) if as_inputs else (stored, feeds)
    proto = model(constants, fed, K=k, block_size=block)
    (ours,) = session(proto, library, threads=threads).run(None, fed)
    (body,) = session(proto).run(None, fed)
    y, bound, sound = exact(wide, feeds)
    assert ours.shape == body.shape == feeds["X"].shape
    assert (np.abs(ours - y) <= bound)[sound].all()
    # The body's sums run over all the atoms, in any order: its own rounding comes on top.
    assert (np.abs(ours - body) <= bound * (2 + atoms / 4))[sound].all()


def test_two_threads_give_the_bits_of_one(library):  # noqa: F811
    stored, _ = dictionary(40, 384, 128)
    feeds = tokens((4, 500), 384, 3, 40)
    proto = model(stored, feeds, K=384, block_size=128)
    one, two = (session(proto, library, threads=t).run(None, feeds)[0] for t in (1, 2))
    assert np.array_equal(one, two)


def test_no_direction_and_no_atom_and_no_token_are_no_update(library):  # noqa: F811
    stored, _ = dictionary(4, 40, 32)
    feeds = tokens((3,), 40, 2, 4)
    feeds["coefficients"][:] = [0, 0]
    feeds["coefficients"][1] = [5, -5]
    feeds["indices"][1] = [2, 2]
    for one in (feeds, tokens((3,), 40, 0, 4)):
        proto = model(stored, one, K=40, block_size=32)
        assert np.array_equal(session(proto, library).run(None, one)[0], np.zeros((3, 40)))
    none = tokens((0,), 40, 2, 4)
    proto = model(stored, none, K=40, block_size=32)
    assert session(proto, library).run(None, none)[0].shape == (0, 40)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_not_finite_reaches_its_token_and_no_other(library, bad):  # noqa: F811
    stored, _ = dictionary(4, 40, 32)
    feeds = tokens((3,), 40, 2, 4)
    feeds["X"][1, 7] = bad
    proto = model(stored, feeds, K=40, block_size=32)
    (y,) = session(proto, library).run(None, feeds)
    (body,) = session(proto).run(None, feeds)
    assert not np.isfinite(y[1]).any()
    assert np.array_equal(np.isfinite(y), np.isfinite(body))


def test_the_library_takes_the_node(library):  # noqa: F811
    """With the function left out of the file, only the library can run it."""
    stored, _ = dictionary(4, 40, 32)
    feeds = tokens((3,), 40, 2, 4)
    bare = model(stored, feeds, body=False, K=40, block_size=32)
    with pytest.raises(Exception, match="DictionaryUpdate"):
        session(bare)
    with_body = model(stored, feeds, K=40, block_size=32)
    ours, taken = (session(p, library).run(None, feeds)[0] for p in (bare, with_body))
    assert np.array_equal(ours, taken)


HOSTILE = {
    "K is 0": {"K": 0},
    "K is negative": {"K": -64},
    "K is huge": {"K": 1 << 62},
    "K is not the planes'": {"K": 72},
    "blocks of nothing": {"block_size": 0},
    "negative blocks": {"block_size": -32},
    "huge blocks": {"block_size": (1 << 63) - 1},
    "blocks that the scales are not for": {"block_size": 64},
    "a missing attribute": {"block_size": None},
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_attributes_are_refused_with_a_status(library, case):  # noqa: F811
    stored, _ = dictionary(16, 64, 32)
    feeds = tokens((2,), 64, 3, 16)
    attributes = {"K": 64, "block_size": 32, **HOSTILE[case]}
    attributes = {name: value for name, value in attributes.items() if value is not None}
    proto = model(stored, feeds, body=False, **attributes)
    with pytest.raises(Exception, match=r"edgebench|block_size"):
        session(proto, library).run(None, feeds)


CUTS = {
    "a column less": lambda a: a[..., :-1],
    "a row less": lambda a: a[:-1],
    "nothing": lambda a: a[:0],
    "flat": lambda a: a.reshape(-1)[:3],
    "one more dimension": lambda a: a[None],
    "a single value": lambda a: a.reshape(-1)[0],
}


@pytest.mark.parametrize("name", ["X", "indices", "coefficients", *DICTIONARY])
@pytest.mark.parametrize("as_inputs", [False, True])
@pytest.mark.parametrize("cut", CUTS)
def test_arrays_of_another_shape_are_refused_with_a_status(
    library,  # noqa: F811
    name, as_inputs, cut,
):  # fmt: skip
    stored, _ = dictionary(16, 64, 32)
    arrays = {**tokens((2,), 64, 3, 16), **stored}
    arrays[name] = np.array(CUTS[cut](arrays[name]))
    feeds = {n: a for n, a in arrays.items() if as_inputs or n not in DICTIONARY}
    constants = {n: a for n, a in arrays.items() if n not in feeds}
    proto = model(constants, feeds, body=False, K=64, block_size=32)
    # A plane of indices may fit, and coefficients then be the ones that do not.
    with pytest.raises(Exception, match=r"edgebench::DictionaryUpdate: \w+ has the shape"):
        session(proto, library).run(None, feeds)


@pytest.mark.parametrize("name", ["indices", "coefficients", *DICTIONARY])
def test_arrays_of_another_type_are_refused(library, name):  # noqa: F811
    stored, _ = dictionary(16, 64, 32)
    arrays = {**tokens((2,), 64, 3, 16), **stored}
    arrays[name] = arrays[name].astype(np.int64)
    feeds = {n: a for n, a in arrays.items() if n not in stored}
    constants = {n: arrays[n] for n in stored}
    proto = model(constants, feeds, body=False, K=64, block_size=32)
    with pytest.raises(Exception, match=r"(?i)type"):
        session(proto, library)


@pytest.mark.parametrize("index", [16, 127, -17, -128])
def test_an_index_outside_the_dictionary_is_refused_with_a_status(library, index):  # noqa: F811
    stored, _ = dictionary(16, 64, 32)
    feeds = tokens((2,), 64, 3, 16)
    feeds["indices"][1, 2] = index
    proto = model(stored, feeds, K=64, block_size=32)
    with pytest.raises(Exception, match=f"index {index} is outside the 16 atoms"):
        session(proto, library).run(None, feeds)


def test_all_of_this_holds_under_the_sanitizers():
    sanitized.run_again(__file__)
