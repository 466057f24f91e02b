"""Merged and unmerged, family by family: what stands in the graph, and that it is right."""

from __future__ import annotations

import os

import onnx
import peft
import pytest

from edgebench.adapters import lora
from edgebench.artifact import Artifact
from edgebench.export import ExportRequest, export
from edgebench.export.checkpoint import read_adapter
from edgebench.workspace import builtin_root
from tests.export import tiny

pytestmark = pytest.mark.filterwarnings("ignore")

TOKENS = 24


def low_rank_products(artifact: Artifact, rank: int) -> int:
    model = onnx.load(str(artifact.model_path))
    weights = {i.name: tuple(i.dims) for i in model.graph.initializer}
    products = [n for n in model.graph.node if n.op_type == "MatMul"]
    return sum(rank in weights.get(n.input[1], ()) for n in products)


def test_unmerged_keeps_every_factor_as_its_own_product(unmerged, tiny_adapter):
    modules = 2 * tiny.LAYERS
    assert low_rank_products(unmerged, tiny.RANK) == 2 * modules
    s = unmerged.manifest.statistics
    assert (s.kept_layers, s.kept_heads) == (tiny.LAYERS, tiny.LAYERS * tiny.HEADS)
    assert s.kept_ranks == modules * tiny.RANK
    shapes = {n: t.shape for n, t in read_adapter(tiny_adapter).shapes.items()}
    by_formula = sum(factor.flops(TOKENS) for factor in lora.linear_factors(shapes))
    assert unmerged.manifest.extra_flops == by_formula > 0


def test_merged_keeps_none(merged):
    assert low_rank_products(merged, tiny.RANK) == 0
    assert merged.manifest.statistics.kept_ranks == 0
    assert merged.manifest.extra_flops == 0


def test_the_lowering_is_in_the_directory_name_unless_merged(merged, unmerged):
    assert merged.path.name == f"short-adapter-fp32-{merged.digest[7:19]}"
    assert unmerged.path.name == f"tiny-adapter-unmerged-fp32-{unmerged.digest[7:19]}"


def test_a_base_alone_gives_its_hidden_states(short_base, tmp_path):
    (artifact,) = export(ExportRequest(base=str(short_base), out=tmp_path, seq_len=TOKENS))
    manifest = artifact.manifest
    assert (manifest.lowering, manifest.adapter) == ("base", None)
    assert manifest.task == "feature-extraction"
    assert manifest.signature.outputs[0].shape == ("batch", "sequence", tiny.HIDDEN)
    assert manifest.parity.kl_mean is None
    assert manifest.data.inputs_source.startswith("edgebench's own 66 sentences")
    assert artifact.path.name.startswith("short-bert-base-fp32-")


def families() -> list[tuple[str, object]]:
    common = {"task_type": "SEQ_CLS", "target_modules": ["query", "value"]}
    return [
        (
            "adalora",
            peft.AdaLoraConfig(**common, target_r=4, init_r=4, total_step=10, tinit=1, tfinal=1),
        ),
        (
            "rsdora",  # with ranks of its own for one kind of module
            peft.LoraConfig(
                **common,
                r=4,
                use_dora=True,
                use_rslora=True,
                rank_pattern={"value": 2},
                init_lora_weights=False,
            ),
        ),
    ]


@pytest.mark.parametrize(("name", "config"), families(), ids=lambda value: str(value)[:8])
def test_the_lora_family_exports_unmerged_with_its_ranks(name, config, short_base, tmp_path):
    adapter = tiny.write_adapter(short_base, tmp_path / name, config)
    (artifact,) = export(
        ExportRequest(
            adapter=adapter,
            base=str(short_base),
            out=tmp_path / "out",
            seq_len=TOKENS,
            lowering="unmerged",
        )
    )
    shapes = {n: t.shape for n, t in read_adapter(adapter).shapes.items()}
    ranks = sum(factor.rank for factor in lora.linear_factors(shapes))
    assert artifact.manifest.statistics.kept_ranks == ranks > 0
    assert artifact.manifest.parity.max_abs_error <= 1e-4


@pytest.mark.parametrize(
    ("write", "targets"),
    [(tiny.write_distilbert, ["q_lin", "v_lin"]), (tiny.write_roberta, ["query", "value"])],
)
def test_other_encoders_export_merged(write, targets, models, tmp_path):
    base = write(tmp_path / "base")
    config = peft.LoraConfig(
        task_type="SEQ_CLS", r=4, target_modules=targets, init_lora_weights=False
    )
    if write is tiny.write_distilbert:  # its head has a second layer that PEFT does not know of
        config.modules_to_save = ["classifier", "pre_classifier"]
    adapter = tiny.write_adapter(base, tmp_path / "adapter", config)
    (artifact,) = export(
        ExportRequest(adapter=adapter, base=str(base), out=tmp_path / "out", seq_len=TOKENS)
    )
    s = artifact.manifest.statistics
    assert (s.kept_layers, s.kept_heads) == (1, tiny.HEADS)
    assert [t.name for t in artifact.manifest.signature.inputs] == ["input_ids", "attention_mask"]
    assert artifact.manifest.labels == tiny.LABELS


@pytest.mark.parametrize("method", [peft.IA3Config, peft.BOFTConfig])
def test_a_method_of_peft_merges_under_a_head_of_several_layers(
    method, models, tmp_path, monkeypatch
):
    # RoBERTa's head is trained in full, and has no weight of its own: its two layers have.
    base = tiny.write_roberta(tmp_path / "base")
    more = {"feedforward_modules": []} if method is peft.IA3Config else {"boft_block_size": 4}
    config = method(task_type="SEQ_CLS", target_modules=["query", "value"], **more)
    adapter = tiny.write_adapter(base, tmp_path / "adapter", config)
    # peft's BOFT sets these, and leaves them so where it finds no CUDA compiler.
    monkeypatch.setenv("CC", "my-cc")
    monkeypatch.delenv("CXX", raising=False)
    (artifact,) = export(
        ExportRequest(
            adapter=adapter,
            base=str(base),
            out=tmp_path / "out",
            seq_len=TOKENS,
            lowering="merged",
            exporter_dirs=(builtin_root() / "exporters",),
        )
    )
    assert (os.environ["CC"], os.environ.get("CXX")) == ("my-cc", None)
    assert artifact.manifest.adapter.kind == config.peft_type.value.lower()
    assert artifact.manifest.parity.max_abs_error <= 1e-4


def test_a_token_classifier_gives_logits_for_every_token(short_base, tmp_path):
    # The base is the one that adapter_config.json names, so --base is left out.
    adapter = tiny.write_adapter(short_base, tmp_path / "adapter", task="TOKEN_CLS")
    (artifact,) = export(ExportRequest(adapter=adapter, out=tmp_path / "out", seq_len=TOKENS))
    assert artifact.manifest.task == "token-classification"
    assert artifact.manifest.signature.outputs[0].shape == ("batch", "sequence", 3)
    assert artifact.manifest.base.name == "short-bert"
