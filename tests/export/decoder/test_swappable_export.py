"""One base decoder and adapters of unlike ranks and targets: each is PyTorch with it attached."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest

from edgebench.artifact import NO_ADAPTER, Artifact
from edgebench.errors import CheckpointError, EdgebenchError, ExportError, UsageError
from edgebench.export import ExportRequest, export, swappable
from edgebench.export.decoder import parity, plan
from edgebench.export.decoder.reference import GREEDY_TOKENS
from edgebench.export.decoder.swapping import Form
from edgebench.overhead.run import count_artifact
from tests.export.decoder import tiny

SCHEMES = ("fp32", "fp16", "int8", "int4", "int3")
SEQ_LEN = 24


@pytest.fixture(scope="module")
def other(decoders: Path, llama: Path) -> Path:
    """An adapter of another rank, on other matrices, the head among them."""
    return tiny.write_adapter(
        llama,
        decoders / "mood",
        r=7,
        target_modules=["k_proj", "v_proj", "up_proj", "lm_head"],
        rank_pattern={},
        alpha_pattern={},
        use_rslora=True,
    )


def request(out: Path, base: Path, first: Path, *more: Path, **changes: Any) -> ExportRequest:
    settings = {"lowering": "swappable", "seq_len": SEQ_LEN, **changes}
    return ExportRequest(out=out, base=str(base), adapter=first, more_adapters=more, **settings)


@pytest.fixture(scope="module")
def made(decoders: Path, llama: Path, adapter: Path, other: Path) -> dict[str, Artifact]:
    found = export(request(decoders / "swap", llama, adapter, other, quants=SCHEMES))
    return {artifact.manifest.quantization.scheme: artifact for artifact in found}


def test_the_base_and_every_adapter_are_pytorch(made: dict[str, Artifact]) -> None:
    manifest = made["fp32"].manifest
    assert manifest.lowering == "swappable"
    assert [a.name for a in manifest.adapters] == ["adapter", "mood"]
    assert "of the base alone: logits" in manifest.parity.reference
    parities = [manifest.parity, *(a.parity for a in manifest.adapters)]
    for each in parities:
        assert each.tolerance is not None
        assert each.max_abs_error < each.tolerance
        assert (each.greedy_tokens, each.greedy_agreement) == (2 * GREEDY_TOKENS, 1)
    assert "with the adapter mood unmerged" in manifest.adapters[1].parity.reference


def test_the_tokens_that_travel_are_each_adapters_own(made: dict[str, Artifact]) -> None:
    names = ["expected_tokens", "expected_tokens.adapter", "expected_tokens.mood"]
    with np.load(made["int4"].path / "inputs.npz") as arrays:
        tokens = [arrays[name].tolist() for name in names]
        assert arrays[names[0]].shape == (2, GREEDY_TOKENS)
    assert all(tokens[i] != tokens[j] for i, j in ((0, 1), (0, 2), (1, 2)))


def test_ranks_and_cost_are_each_adapters_own(
    made: dict[str, Artifact], decoders: Path, llama: Path, adapter: Path
) -> None:
    manifest = made["fp32"].manifest
    assert manifest.statistics.kept_ranks == 0
    # q, v and down of two layers, rank 4 but for one q of rank 2; k, v and up of both, the head.
    assert [a.ranks for a in manifest.adapters] == [5 * 4 + 2, 7 * 7]
    assert [a.rank for a in manifest.adapters] == [None, 7]
    (unmerged,) = export(request(decoders / "swap", llama, adapter, lowering="unmerged"))
    assert manifest.adapters[0].extra_flops == unmerged.manifest.extra_flops
    assert manifest.adapters[0].ranks == unmerged.manifest.statistics.kept_ranks


@pytest.mark.parametrize("scheme", SCHEMES)
def test_factors_are_inputs_of_fp32_at_every_precision(
    made: dict[str, Artifact], scheme: str
) -> None:
    artifact = made[scheme]
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(artifact.model_path), options)
    given = {value.name: value for value in session.get_overridable_initializers()}
    # Two factors on q, k, v, up and down of both layers, and on the head.
    assert len(given) == 2 * (5 * 2 + 1)
    assert {value.type for value in given.values()} == {"tensor(float)"}
    assert not set(given) & {tensor.name for tensor in artifact.manifest.signature.inputs}
    first = swappable.read_file(artifact.path / artifact.manifest.adapters[0].file)
    assert set(first) < set(given)
    # A random model this small loses much in few bits; the adapters must still be in it.
    least = 0.5 if scheme in ("int4", "int3") else 0.99
    assert min(a.parity.cosine_mean for a in artifact.manifest.adapters) > least


def test_the_base_is_stored_once_and_as_without_adapters(
    made: dict[str, Artifact], decoders: Path, llama: Path
) -> None:
    (alone,) = export(
        ExportRequest(out=decoders / "out", base=str(llama), quants=("int3",), seq_len=SEQ_LEN)
    )
    ours, theirs = made["int3"].manifest, alone.manifest
    assert ours.files["model.onnx.data"] == theirs.files["model.onnx.data"]
    assert ours.quantization == theirs.quantization
    assert ours.statistics == theirs.statistics
    assert ours.parity.kl_mean == pytest.approx(theirs.parity.kl_mean, rel=1e-3)


def test_the_base_is_fitted_to_what_it_computes_without_an_adapter(
    decoders: Path, llama: Path, adapter: Path, tmp_path: Path
) -> None:
    from edgebench.export.sample_text import TEXTS

    text = tmp_path / "calibration.txt"
    text.write_text("\n".join(TEXTS))
    fitting: dict[str, Any] = {"quants": ("int3",), "calibration": text}
    out = decoders / "swap"
    (ours,) = export(request(out, llama, adapter, **fitting))
    (alone,) = export(ExportRequest(out=out, base=str(llama), seq_len=SEQ_LEN, **fitting))
    assert ours.manifest.files["model.onnx.data"] == alone.manifest.files["model.onnx.data"]


@pytest.mark.parametrize("tied", [False, True])
def test_a_layer_at_a_time_every_adapter_is_pytorch_too(
    decoders: Path,
    llama: Path,
    adapter: Path,
    other: Path,
    monkeypatch: pytest.MonkeyPatch,
    tied: bool,
) -> None:
    monkeypatch.setattr(plan, "WHOLE_BYTES", 0)
    base, second = llama, other
    if tied:
        base = tiny.write_llama(decoders / "tied", tie_word_embeddings=True)
        second = tiny.write_adapter(
            base,
            decoders / "up",
            r=3,
            target_modules=["up_proj"],
            rank_pattern={},
            alpha_pattern={},
        )
    (artifact,) = export(request(decoders / "layerwise-swap", base, adapter, second, seq_len=20))
    manifest = artifact.manifest
    for each in (manifest.parity, *(a.parity for a in manifest.adapters)):
        assert each.tolerance is not None
        assert each.max_abs_error < each.tolerance
        assert "a layer at a time" in each.reference
    assert len(manifest.files) == 5


def test_qwen2_with_biases(decoders: Path) -> None:
    from transformers import Qwen2Config

    base = tiny.write_llama(decoders / "qwen", config=Qwen2Config, tie_word_embeddings=True)
    first = tiny.write_adapter(base, decoders / "q4")
    second = tiny.write_adapter(
        base, decoders / "k2", r=2, target_modules=["k_proj"], rank_pattern={}, alpha_pattern={}
    )
    (artifact,) = export(request(decoders / "swap", base, first, second))
    assert [a.parity.greedy_agreement for a in artifact.manifest.adapters] == [1, 1]
    model = onnx.load(artifact.model_path, load_external_data=False)
    assert any(t.name.endswith("k_proj.bias") for t in model.graph.initializer)


def test_the_base_alone_keeps_what_the_adapter_trained_in_full(
    decoders: Path, llama: Path, tmp_path: Path
) -> None:
    trained = tiny.write_adapter(llama, tmp_path / "trained", modules_to_save=["lm_head"])
    (alone,) = export(request(decoders / "swap", llama, trained, lowering="base"))
    assert (alone.manifest.lowering, alone.manifest.adapter) == ("base", None)
    assert alone.manifest.parity.greedy_agreement == 1
    assert "with what the adapter trained in full" in alone.manifest.parity.reference
    with pytest.raises(CheckpointError, match=r"brings lm_head.weight in full"):
        export(request(tmp_path / "out", llama, trained))
    assert not (tmp_path / "out").exists()


def refused(kind: type[EdgebenchError], asked: ExportRequest) -> str:
    with pytest.raises(kind) as caught:
        export(asked)
    out = asked.out
    assert not [p for p in out.glob("*") if p.name != ".exports"] if out.exists() else True
    return str(caught.value)


def test_adapters_that_can_not_share_the_base(
    decoders: Path, llama: Path, adapter: Path, tmp_path: Path
) -> None:
    wide = tiny.write_llama(decoders / "wide-swap", hidden_size=96, head_dim=16)
    stranger = tiny.write_adapter(wide, tmp_path / "stranger")
    out = tmp_path / "out"
    said = refused(CheckpointError, request(out, llama, adapter, stranger))
    assert "expects hidden size 96, the base has 64" in said
    dora = tiny.write_adapter(llama, tmp_path / "dora", use_dora=True)
    assert "DoRA scales" in refused(CheckpointError, request(out, llama, adapter, dora))
    twin = tiny.write_adapter(llama, tmp_path / "adapter")
    assert "two adapters are called" in refused(UsageError, request(out, llama, adapter, twin))
    none = tiny.write_adapter(llama, tmp_path / "none")
    assert "means the base alone" in refused(UsageError, request(out, llama, none))


def test_an_adapter_that_differs_from_pytorch_leaves_nothing(
    llama: Path, adapter: Path, other: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second adapter's file is put in the place of the first's."""
    asked = request(tmp_path / "out", llama, adapter, other)

    def mood(form: Form, directory: Path) -> Any:
        file = directory / "adapters/mood.onnx_adapter"
        return swappable.AdapterFile(file) if form.adapter else {}

    monkeypatch.setattr(parity, "_factors", mood)
    said = refused(ExportError, asked)
    assert "is off PyTorch" in said
    assert "adapter adapter" in said


@pytest.mark.parametrize("scheme", ["fp32", "int4", "int3"])
def test_operations_are_counted_for_a_prefill_with_the_adapter(
    made: dict[str, Artifact], scheme: str
) -> None:
    artifact = made[scheme]
    alone = count_artifact(artifact, NO_ADAPTER)
    active = count_artifact(artifact, "adapter")
    model = onnx.load(artifact.model_path, load_external_data=False)
    widths = {v.name: v.type.tensor_type.shape.dim for v in model.graph.input}
    first = artifact.manifest.adapters[0]
    given = swappable.read_file(artifact.path / first.file)
    # The addition stands in the graph with and without the adapter.
    added = sum(widths[name][1].dim_value for name in given if name.endswith("lora_B"))
    assert active.flops - alone.flops == first.extra_flops - SEQ_LEN * added
    assert active.uncounted == ()
    assert alone.flops > 2 * SEQ_LEN * 2 * (64 * 64 * 2 + 64 * 32 * 2 + 3 * 64 * 96)
