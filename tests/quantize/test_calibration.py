"""The walk over a graph in pieces: exact, in order, and refused with too little text."""

import numpy as np
import onnx
import pytest

from edgebench.errors import InputError
from edgebench.quantize import calibration, int3, quantize
from edgebench.quantize.graph import Graph
from tests.quantize import models


def silent(_what, _fraction):
    return None


def watched(proto, values):
    """What the whole graph, run at once, computes for these values."""
    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    copy.graph.output.extend(onnx.ValueInfoProto(name=v) for v in values)
    return models.session(copy)


def test_pieces_compute_what_the_whole_graph_computes():
    proto = models.transformer()
    graph, feeds = Graph(proto), models.calibration()
    seen = []

    def note(group, found):
        seen.append(found)
        return {}

    groups = calibration.grouped(graph, [w for w in graph.weights() if w.kind != "Gather"])
    outputs = calibration.walk(graph, groups, feeds, note, {})
    whole = models.session(proto)
    for feed, live in zip(feeds, outputs, strict=True):
        assert np.allclose(live["logits"], models.run(whole, **feed), atol=1e-5)
    names = [proto.graph.node[min(w.node for w in group)].input[0] for group in groups]
    session = watched(proto, names)
    for position, name in enumerate(names):
        x = np.concatenate([session.run([name], feed)[0].reshape(-1, 128) for feed in feeds])
        if x.shape[1] == seen[position].quantised.shape[0]:
            expected = x.T.astype(np.float64) @ x / len(x)
            assert np.allclose(seen[position].quantised, expected, atol=1e-3)
            assert np.allclose(seen[position].cross, expected, atol=1e-3)


def test_query_key_and_value_are_one_group():
    graph = Graph(models.transformer(layers=1))
    groups = calibration.grouped(graph, [w for w in graph.weights() if w.kind != "Gather"])
    assert [w.initializer for w in groups[0]] == ["0.q", "0.k", "0.v"]
    assert [len(group) for group in groups] == [3, 1, 1, 1, 1, 1]


def test_later_groups_see_what_earlier_ones_have_become():
    graph, feeds = Graph(models.transformer(layers=1)), models.calibration()
    seen = {}

    def fit(group, found):
        for weight in group:
            seen[weight.initializer] = found
        return {"0.up": np.zeros((128, 512), np.float32)} if group[0].initializer == "0.up" else {}

    groups = calibration.grouped(graph, [w for w in graph.weights() if w.kind != "Gather"])
    calibration.walk(graph, groups, feeds, fit, {})
    assert np.allclose(seen["0.up"].quantised, seen["0.up"].cross, atol=1e-5)
    # Only the bias is left of what the block's second matrix is given: the same at each position.
    for found in (seen["0.down"].quantised, seen["0.down"].cross):
        assert np.linalg.matrix_rank(found, tol=1e-4 * np.linalg.norm(found)) == 1


def test_padding_is_left_out():
    mask = np.array([[1, 1, 0], [1, 0, 0]])
    feeds = [{"input_ids": np.ones((2, 3), np.int64), "attention_mask": mask}]
    with pytest.raises(InputError, match="has 3 tokens, at least 512"):
        calibration.check(feeds)


@pytest.mark.parametrize("scheme", ["int3", "int4", "mixed"])
@pytest.mark.parametrize(
    ("feeds", "message"),
    [([], "calibration set is empty"), (models.calibration(256), "has 256 tokens")],
)
def test_an_empty_or_short_calibration_set_is_refused(tmp_path, scheme, feeds, message):
    source = models.save(models.transformer(layers=1), tmp_path / "s.onnx")
    with pytest.raises(InputError, match=message):
        quantize(source, tmp_path / "t.onnx", scheme, calibration=feeds)
    assert [p.name for p in tmp_path.iterdir()] == ["s.onnx"]


def logits(path, ids):
    return models.run(models.session(path, plain=True), input_ids=ids)


@pytest.mark.parametrize("scheme", ["int3", "int4"])
def test_a_calibrated_model_is_closer_to_the_exact_one(tmp_path, scheme):
    proto = models.transformer()
    source = models.save(proto, tmp_path / "s.onnx")
    ids = np.random.default_rng(11).zipf(1.3, (64, 32)) % 500
    exact = models.run(models.session(proto), input_ids=ids)
    errors = {}
    for name, feeds in (("plain", None), ("fitted", models.calibration(4096))):
        quantize(source, tmp_path / f"{name}.onnx", scheme, calibration=feeds)
        errors[name] = ((logits(tmp_path / f"{name}.onnx", ids) - exact) ** 2).mean()
    assert errors["fitted"] < 0.7 * errors["plain"]


def test_a_tied_table_has_one_form_with_calibration_as_well(tmp_path):
    proto = models.model(
        [
            onnx.helper.make_node("Gather", ["table", "ids"], ["x"]),
            onnx.helper.make_node("Transpose", ["table"], ["head"], perm=[1, 0]),
            onnx.helper.make_node("MatMul", ["x", "head"], ["Y"]),
        ],
        {"table": np.random.default_rng(0).normal(size=(300, 96)).astype(np.float32)},
        {"ids": (onnx.TensorProto.INT64, ["b", "s"])},
        {"Y": ["b", "s", 300]},
    )
    source = models.save(proto, tmp_path / "s.onnx")
    feeds = [{"ids": np.arange(1024).reshape(8, 128) % 300}]
    result = int3.convert(source, tmp_path / "t.onnx", silent, calibration=feeds)
    made = onnx.load(tmp_path / "t.onnx")
    assert [node.op_type for node in made.graph.node] == ["Gather3Bit", "MatMul3Bit"]
    assert len(made.graph.initializer) == 3
    assert result.storage_bits_per_weight == 3.5


def test_the_first_batches_are_taken_until_they_have_the_tokens():
    feeds = models.calibration()  # four batches of 256
    assert [len(calibration.first(feeds, n)) for n in (1, 256, 257, 10_000)] == [1, 1, 2, 4]


def test_inputs_that_lack_one_of_the_models_are_refused_by_name(tmp_path):
    source = models.save(models.transformer(layers=1), tmp_path / "s.onnx")
    feeds = [{"attention_mask": np.ones((8, 128), np.int64)}]
    with pytest.raises(InputError, match="lack 'input_ids'"):
        quantize(source, tmp_path / "t.onnx", "int3", calibration=feeds)
