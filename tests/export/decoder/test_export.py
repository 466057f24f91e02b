"""A decoder's artifacts compute what PyTorch does, at every scheme and lowering."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from edgebench.artifact import Artifact
from edgebench.export import ExportRequest, export
from edgebench.export.decoder import plan
from edgebench.export.decoder.reference import GREEDY_TOKENS
from edgebench.export.sample_text import TEXTS
from tests.export.decoder import tiny

PLAIN = ("fp32", "fp16", "int8", "int4", "int3")


def one(out: Path, base: Path, **changes: Any) -> Artifact:
    settings = {"seq_len": 24, **changes}
    (artifact,) = export(ExportRequest(out=out, base=str(base), **settings))
    return artifact


@pytest.fixture(scope="module")
def merged(decoders: Path, llama: Path, adapter: Path) -> dict[str, Artifact]:
    request = ExportRequest(
        out=decoders / "out", base=str(llama), adapter=adapter, quants=PLAIN, seq_len=24
    )
    return {a.manifest.quantization.scheme: a for a in export(request)}


def test_fp32_is_pytorch_and_generates_the_same_tokens(merged: dict[str, Artifact]) -> None:
    parity = merged["fp32"].manifest.parity
    assert parity.tolerance is not None
    assert parity.max_abs_error < parity.tolerance
    assert parity.greedy_tokens == 2 * GREEDY_TOKENS
    assert parity.greedy_agreement == 1
    assert parity.top1_agreement == 1


def test_fewer_bits_are_smaller_and_further_off(merged: dict[str, Artifact]) -> None:
    ordered = [merged[scheme].manifest for scheme in PLAIN]
    bits = [m.quantization.file_bits_per_weight for m in ordered]
    errors = [m.parity.kl_mean for m in ordered]
    assert bits == sorted(bits, reverse=True)
    assert errors == sorted(errors)
    assert {m.quantization.total_weights for m in ordered} == {
        ordered[0].quantization.total_weights
    }
    for manifest in ordered:
        assert manifest.statistics.param_bits == pytest.approx(
            manifest.quantization.file_bits_per_weight * manifest.quantization.total_weights
        )


def test_the_manifest_says_how_to_generate(merged: dict[str, Artifact], llama: Path) -> None:
    manifest = merged["int3"].manifest
    config = json.loads((llama / "config.json").read_text())
    assert manifest.task == "text-generation"
    assert manifest.decoder is not None
    assert manifest.decoder.layers == config["num_hidden_layers"]
    assert manifest.decoder.kv_heads == config["num_key_value_heads"]
    assert manifest.decoder.vocab_size == config["vocab_size"]
    assert manifest.decoder.eos_token_ids == (2,)
    assert manifest.statistics.kept_layers == 2
    assert manifest.statistics.kept_heads == 8
    names = [tensor.name for tensor in manifest.signature.inputs]
    assert names[:2] == ["input_ids", "attention_mask"]
    assert names[-1] == "logits_to_keep"
    assert "past_key_values.1.value" in names
    with np.load(merged["int3"].path / "inputs.npz") as arrays:
        assert arrays["input_ids"].shape == (manifest.data.inputs_n, 24)
        assert arrays["attention_mask"].all()
        assert arrays["expected_tokens"].shape == (2, GREEDY_TOKENS)
        assert arrays["expected_prompt_len"] == 24


def test_texts_of_the_user_are_prompts_and_held_out(
    decoders: Path, llama: Path, tmp_path: Path
) -> None:
    file = tmp_path / "texts.txt"
    file.write_text("a short one.\n" + "\n".join(TEXTS[:5]))
    artifact = one(decoders / "out", llama, data=file, evaluation_limit=3)
    data = artifact.manifest.data
    assert data.evaluation == "evaluation.npz"
    assert data.evaluation_n == 3
    assert data.evaluation_source is not None
    assert data.evaluation_source.startswith("texts.txt")
    with np.load(artifact.path / data.evaluation) as arrays:
        assert arrays["input_ids"].shape == (3, 24)
        assert arrays["attention_mask"].sum(1).tolist()[0] < 24


@pytest.mark.parametrize(
    ("scheme", "operators"),
    [
        ("int3", {"Gather3Bit", "MatMul3Bit"}),
        ("int4", {"GatherBlockQuantized", "MatMulNBits"}),
        ("int8", {"GatherBlockQuantized", "MatMulNBits"}),
    ],
)
def test_table_and_head_are_quantised_too(
    merged: dict[str, Artifact], scheme: str, operators: set[str]
) -> None:
    model = onnx.load(merged[scheme].model_path, load_external_data=False)
    used = [node.op_type for node in model.graph.node]
    assert operators <= set(used)
    assert "MatMul" not in used
    floats = [t for t in model.graph.initializer if t.data_type == onnx.TensorProto.FLOAT]
    assert all(len(t.dims) < 2 or t.name.startswith("rotary") for t in floats)


def test_unmerged_keeps_the_branches(decoders: Path, llama: Path, adapter: Path) -> None:
    artifact = one(decoders / "out", llama, adapter=adapter, lowering="unmerged")
    manifest = artifact.manifest
    # q, v and down of two layers, rank 4, but for one q of rank 2.
    assert manifest.statistics.kept_ranks == 5 * 4 + 2
    assert manifest.extra_flops > 0
    assert manifest.parity.greedy_agreement == 1
    assert manifest.adapter is not None
    assert manifest.adapter.kind == "lora"


def test_an_adapted_head_and_one_trained_in_full(
    decoders: Path, llama: Path, tmp_path: Path
) -> None:
    factors = tiny.write_adapter(
        llama, tmp_path / "factors", target_modules=["q_proj", "lm_head"], use_rslora=True
    )
    trained = tiny.write_adapter(llama, tmp_path / "trained", modules_to_save=["lm_head"])
    unmerged = one(decoders / "out", llama, adapter=factors, lowering="unmerged")
    assert unmerged.manifest.statistics.kept_ranks == 4 + 2 + 4
    assert one(decoders / "out", llama, adapter=trained).manifest.parity.greedy_agreement == 1


def test_merged_leaves_no_branch(merged: dict[str, Artifact]) -> None:
    assert merged["fp32"].manifest.statistics.kept_ranks == 0
    assert merged["fp32"].manifest.extra_flops == 0


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("whole", [False, True])
def test_weights_fitted_to_text_lose_less(
    decoders: Path,
    llama: Path,
    adapter: Path,
    tmp_path: Path,
    tied: bool,
    whole: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if not whole:  # as for a model that does not fit in memory
        monkeypatch.setattr(plan, "WHOLE_BYTES", 0)
    base = tiny.write_llama(decoders / "tied", tie_word_embeddings=True) if tied else llama
    text = tmp_path / "calibration.txt"
    text.write_text("\n".join(TEXTS))
    settings: dict[str, Any] = {"quants": ("int3",), "adapter": adapter, "seq_len": 48}
    settings["lowering"] = "unmerged" if tied else "merged"
    plain = one(tmp_path / "out", base, **settings).manifest
    fitted = one(tmp_path / "out", base, calibration=text, **settings).manifest
    assert plain.quantization.details["fit"].startswith("plain rounding")
    assert fitted.quantization.details["fit"].startswith("error feedback")
    assert fitted.quantization.details["calibration"].startswith("calibration.txt")
    assert fitted.statistics == plain.statistics
    assert fitted.parity.kl_mean is not None
    assert plain.parity.kl_mean is not None
    assert fitted.parity.kl_mean < plain.parity.kl_mean


@pytest.mark.parametrize("tied", [False, True])
def test_a_layer_at_a_time_is_pytorch_too(
    decoders: Path, llama: Path, adapter: Path, monkeypatch: pytest.MonkeyPatch, tied: bool
) -> None:
    monkeypatch.setattr(plan, "WHOLE_BYTES", 0)
    base = tiny.write_llama(decoders / "tied", tie_word_embeddings=True) if tied else llama
    request = ExportRequest(
        out=decoders / "layerwise",
        base=str(base),
        adapter=adapter,
        quants=("fp32", "int3"),
        lowering="unmerged" if tied else "merged",
        seq_len=20,
    )
    exact, few = (artifact.manifest for artifact in export(request))
    assert exact.parity.tolerance is not None
    assert exact.parity.max_abs_error < exact.parity.tolerance
    assert exact.parity.top1_agreement == 1
    assert "a layer at a time" in exact.parity.reference
    assert exact.parity.greedy_tokens is None
    assert 0.3 < few.parity.cosine_mean < 0.999
    assert set(exact.files) == {"model.onnx", "model.onnx.data", "inputs.npz"}


def _qwen() -> dict[str, Any]:
    from transformers import Qwen2Config

    return {"config": Qwen2Config, "tie_word_embeddings": True}


def _mistral() -> dict[str, Any]:
    from transformers import MistralConfig

    return {"config": MistralConfig, "sliding_window": 128, "head_dim": 32}


def _llama3() -> dict[str, Any]:
    rope = {
        "rope_type": "llama3",
        "rope_theta": 500000.0,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    }
    return {"rope_parameters": rope}


def _odd() -> dict[str, Any]:
    """Tied, and rows that no block divides."""
    return {
        "tie_word_embeddings": True,
        "hidden_size": 72,
        "num_attention_heads": 3,
        "num_key_value_heads": 1,
        "head_dim": 16,
        "intermediate_size": 100,
    }


@pytest.mark.parametrize("family", [_qwen, _mistral, _llama3, _odd])
def test_every_family_is_pytorch(decoders: Path, family: Any) -> None:
    base = tiny.write_llama(decoders / family.__name__, **family())
    request = ExportRequest(
        out=decoders / "out", base=str(base), quants=("fp32", "fp16", "int8", "int3"), seq_len=24
    )
    by_scheme = {a.manifest.quantization.scheme: a.manifest for a in export(request)}
    assert by_scheme["fp32"].parity.greedy_agreement == 1
    assert by_scheme["fp16"].parity.cosine_mean > 0.9999
    assert by_scheme["int8"].parity.cosine_mean > 0.99
    decoder = by_scheme["int3"].decoder
    assert decoder is not None
    assert decoder.max_positions == (128 if family is _mistral else 256)


def test_a_tied_table_is_stored_once(decoders: Path) -> None:
    base = tiny.write_llama(decoders / "tied", tie_word_embeddings=True)
    artifact = one(decoders / "out", base, quants=("int4",))
    weights = artifact.manifest.quantization.total_weights
    assert weights == artifact.manifest.base.parameters
