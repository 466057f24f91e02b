"""int8-static on decoders: scale that is moved changes nothing, and integer products really run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest

from edgebench.artifact import Artifact
from edgebench.errors import InputError, UsageError
from edgebench.export import ExportRequest, export
from edgebench.export.base import read_base
from edgebench.export.decoder import plan, ranges
from edgebench.export.decoder.architecture import read_architecture
from edgebench.export.decoder.running import Runner
from edgebench.export.decoder.source import Source, Tensors
from edgebench.export.decoder.static import Range
from edgebench.export.decoder.writer import MODEL, write
from edgebench.export.sample_text import TEXTS
from tests.export.decoder import tiny


def one(out: Path, base: Path, **changes: Any) -> Artifact:
    settings = {"seq_len": 24, "quants": ("int8-static",), **changes}
    (artifact,) = export(ExportRequest(out=out, base=str(base), **settings))
    return artifact


def optimised(model: Path, directory: Path, **entries: str) -> list[str]:
    """The operators that ONNX Runtime computes with."""
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(directory / "optimised.onnx")
    options.log_severity_level = 4
    for name, value in entries.items():
        options.add_session_config_entry(f"session.{name}", value)
    onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
    found = onnx.load(directory / "optimised.onnx", load_external_data=False)
    return [node.op_type for node in found.graph.node]


@pytest.fixture(scope="module")
def text(decoders: Path) -> Path:
    file = decoders / "static.txt"
    file.write_text("\n".join(TEXTS))
    return file


@pytest.fixture(scope="module")
def qwen(decoders: Path) -> Path:
    """Biases, and a head that is the table."""
    from transformers import Qwen2Config

    return tiny.write_llama(decoders / "static-qwen", config=Qwen2Config, tie_word_embeddings=True)


@pytest.mark.parametrize("family", ["llama", "qwen"])
def test_every_matrix_is_an_integer_product(
    decoders: Path, text: Path, tmp_path: Path, family: str, request: pytest.FixtureRequest
) -> None:
    artifact = one(decoders / "out", request.getfixturevalue(family), calibration=text)
    manifest = artifact.manifest
    stored = manifest.quantization
    assert (stored.storage_bits, stored.compute_bits, stored.activation_bits) == (8, 8, 8)
    assert stored.file_bits_per_weight < 10
    assert stored.details["calibration"].startswith("static.txt")
    assert manifest.parity.cosine_mean > 0.99
    assert manifest.parity.greedy_tokens == 32
    operators = optimised(artifact.model_path, tmp_path)
    # Two layers of seven matrices, and the head.
    assert operators.count("MatMulIntegerToFloat") == 15
    assert "MatMul" not in operators
    model = onnx.load(artifact.model_path, load_external_data=False)
    assert model.ir_version == 10
    assert {o.version for o in model.opset_import if not o.domain} == {21}
    floats = [t for t in model.graph.initializer if t.data_type == onnx.TensorProto.FLOAT]
    assert all(len(t.dims) < 2 or t.name.startswith("rotary") for t in floats)


def test_activations_in_two_pieces_are_nearer(
    decoders: Path, llama: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    errors = {}
    for limit in (np.inf, 0.0):
        monkeypatch.setattr(ranges, "_LARGEST_ERROR", limit)
        artifact = one(tmp_path / str(limit), llama, calibration=text)
        manifest = artifact.manifest
        # Where sums would saturate, too: the session option that the manifest names.
        for entries in ({}, {"x64quantprecision": "1"}):
            operators = optimised(artifact.model_path, tmp_path, **entries)
            assert operators.count("MatMulIntegerToFloat") == 15
        assert len(manifest.quantization.details["in_two_pieces"]) == (15 if limit == 0 else 0)
        errors[limit] = manifest.parity.kl_mean
    assert errors[0.0] is not None
    assert errors[np.inf] is not None
    assert errors[0.0] < errors[np.inf] / 2


@pytest.mark.parametrize("family", ["llama", "qwen"])
@pytest.mark.parametrize("unmerged", [False, True])
def test_moved_scale_changes_nothing_before_rounding(
    decoders: Path, tmp_path: Path, family: str, unmerged: bool, request: pytest.FixtureRequest
) -> None:
    base = read_base(str(request.getfixturevalue(family)))
    a = read_architecture(base)
    rng = np.random.default_rng(0)

    def drawn(count: int) -> np.ndarray[Any, np.dtype[np.float32]]:
        return np.exp(rng.normal(size=count)).astype(np.float32)

    found = ranges.Static()
    for index in range(a.layers):
        names = a.layer(index)
        by_value_head = drawn(a.kv_heads * a.head_dim).reshape(a.kv_heads, 1, a.head_dim)
        shared = np.repeat(by_value_head, a.heads // a.kv_heads, 1).reshape(-1)
        for readers, s, makers in (
            ((names.q, names.k, names.v), drawn(a.hidden), {names.attention_norm: None}),
            ((names.o,), shared, {names.v.name: by_value_head.reshape(-1)}),
            ((names.gate, names.up), drawn(a.hidden), {names.feed_forward_norm: None}),
            ((names.down,), drawn(a.intermediate), {names.up.name: None}),
        ):
            found.taken |= {matrix.name: s for matrix in readers}
            found.given |= {name: s if own is None else own for name, own in makers.items()}
    source = Source(Tensors(base.weights, "base model"))
    ids = rng.integers(3, tiny.VOCABULARY, size=(2, 12))
    logits = []
    for name, weights in (("plain", source), ("smoothed", found.smoothed(source))):
        (tmp_path / name).mkdir()
        write(
            tmp_path / name,
            a,
            weights,
            lambda _matrix, _looked_up: None,
            bits=32,
            unmerged=unmerged,
            progress=lambda _step, _done: None,
        )
        runner = Runner(tmp_path / name / MODEL, a, name)
        logits.append(runner.prefill(ids, np.ones_like(ids))[0])
    assert np.abs(logits[0] - logits[1]).max() < 1e-4 * np.abs(logits[0]).max()


def test_an_unmerged_adapter_above_what_fits_in_memory(
    decoders: Path, qwen: Path, text: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plan, "WHOLE_BYTES", 0)
    adapter = tiny.write_adapter(qwen, decoders / "static-adapter")
    manifest = one(
        decoders / "out", qwen, adapter=adapter, lowering="unmerged", calibration=text
    ).manifest
    assert "a layer at a time" in manifest.parity.reference
    assert manifest.parity.cosine_mean > 0.99
    assert manifest.statistics.kept_ranks == 5 * 4 + 2


def test_without_text_it_is_refused(llama: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="none is given") as caught:
        one(tmp_path / "out", llama)
    assert "--calibration" in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_swapped_adapters_are_refused(
    llama: Path, adapter: Path, text: Path, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match="adapters that are swapped would be given other values"):
        one(tmp_path / "out", llama, adapter=adapter, lowering="swappable", calibration=text)


def test_too_little_text_is_refused(llama: Path, tmp_path: Path) -> None:
    text = tmp_path / "few.txt"
    text.write_text("a few words\n")
    with pytest.raises(InputError, match="at least 512 are needed"):
        one(tmp_path / "out", llama, calibration=text)
    text.write_text("\n")
    with pytest.raises(InputError, match="holds no text"):
        one(tmp_path / "out", llama, calibration=text)


@pytest.mark.parametrize(("low", "high"), [(-1.0, 3.0), (0.5, 2.0), (-4.0, -1.0), (0.0, 0.0)])
def test_a_range_holds_zero_and_what_it_was_made_for(low: float, high: float) -> None:
    one_piece, two = Range.of(low, high), Range.in_two(low, high)
    assert 0 <= one_piece.zero_point <= 255
    assert one_piece.quantised(np.zeros(1, np.float32)) == 0
    x = np.linspace(low, high, 1001, dtype=np.float32)
    assert np.abs(one_piece.quantised(x) - x).max() <= 1.01 * one_piece.scale
    assert np.abs(two.quantised(x) - x).max() <= 1.01 * two.scale / 255
