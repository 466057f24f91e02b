"""Each family from a checkpoint to a graph that ONNX Runtime runs, and what is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest

from edgebench.artifact import Artifact
from edgebench.errors import CheckpointError, UsageError
from edgebench.export import ExportRequest, export
from edgebench.export.base import read_base
from edgebench.export.checkpoint import AdapterCheckpoint, read_adapter
from edgebench.export.exporter import find_exporter
from edgebench.export.weights import TensorInfo
from edgebench.measure.plan import _worker_entry as worker_entry
from edgebench.workspace import builtin_root
from tests.export import tiny
from tests.fixtures_export import require
from tests.native import building

require("torch", "transformers", "peft", "onnxscript")

from tests.adapters import families  # noqa: E402

BUILT_IN = (builtin_root() / "exporters",)
FAMILIES = tuple(families.MEMBERS)
UNMERGED_ONLY = ("himalaya", "unihyperlora", "representation_edit")


@pytest.fixture(scope="module")
def room(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("exported-families")


@pytest.fixture(scope="module")
def base(room: Path) -> Path:
    return tiny.write_bert(room / "bert")


@pytest.fixture(scope="module")
def checkpoint(room: Path, base: Path) -> Callable[[str], Path]:
    def write(family: str) -> Path:
        directory = room / family
        return directory if directory.exists() else families.write(family, base, directory)

    return write


def exported(adapter: Path, base: Path, out: Path, **changes: Any) -> list[Artifact]:
    return export(
        ExportRequest(out=out, adapter=adapter, base=str(base), **{"seq_len": 16, **changes})
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_a_branch_is_exported_and_agrees_with_pytorch(family, checkpoint, base, room):
    artifacts = exported(
        checkpoint(family), base, room / "out", lowering="unmerged", quants=("fp32", "int8")
    )
    manifest = artifacts[0].manifest
    assert manifest.parity.max_abs_error <= 1e-4
    assert manifest.adapter is not None
    assert manifest.adapter.kind == family
    assert manifest.labels == tiny.LABELS
    assert manifest.extra_flops > 0
    if family == "sat_lora":  # a site: 2 r (d_in + d_out) and the addition, a token
        sizes = [(32, 32)] * 4 + [(32, 64), (64, 32)]
        assert manifest.extra_flops == 2 * 16 * sum(2 * 4 * (i + o) + o for i, o in sizes)
    ranks = {"sat_lora": 2 * 6 * 4, "lilac": 2 * 6 * 2, "dictionary": 2 * 2 * 5}
    if family in ranks:
        assert manifest.statistics.kept_ranks == ranks[family]
    assert artifacts[1].manifest.quantization.scheme == "int8"


@pytest.mark.parametrize("family", families.LINEAR[:1])
def test_a_linear_update_is_folded(family, checkpoint, base, room):
    (artifact,) = exported(checkpoint(family), base, room / "out", lowering="merged")
    assert artifact.manifest.parity.max_abs_error <= 1e-4
    assert artifact.manifest.statistics.kept_ranks == 0


@pytest.mark.parametrize("family", UNMERGED_ONLY)
def test_what_depends_on_the_token_is_not_folded(family, checkpoint, base, tmp_path):
    with pytest.raises(UsageError, match="have no merged form"):
        exported(checkpoint(family), base, tmp_path, lowering="merged")


def test_himalayas_update_is_an_op_of_our_own_whose_body_travels_along(checkpoint, base, room):
    fp32, int3 = exported(
        checkpoint("himalaya"), base, room / "out", lowering="unmerged", quants=("fp32", "int3")
    )
    for artifact in (fp32, int3):
        model = onnx.load(artifact.path / "model.onnx")
        nodes = [node for node in model.graph.node if node.op_type == "DictionaryUpdate"]
        assert len(nodes) == 2  # q and v of a layer read one value, so they share one update
        planes = {t.name: t for t in model.graph.initializer}
        low, high = (planes[nodes[0].input[i]] for i in (3, 4))
        assert 8 * (low.dims[1] + high.dims[1]) == 3 * tiny.HIDDEN
        assert "DictionaryUpdate" in {function.name for function in model.functions}
        assert not any(
            list(t.dims) == [tiny.HIDDEN] * 2 and "atom" in t.name for t in planes.values()
        )


def test_himalayas_update_is_taken_over_by_the_native_kernel(checkpoint, base, room):
    (artifact,) = exported(checkpoint("himalaya"), base, room / "out", lowering="unmerged")
    assert worker_entry(artifact, True, None)["native"]
    with np.load(artifact.path / artifact.manifest.data.inputs) as rows:
        feed = {name: rows[name][:4] for name in rows.files}
    outputs = []
    for library in (None, building.library()):
        options = onnxruntime.SessionOptions()
        options.optimized_model_filepath = str(room / "optimised.onnx")
        if library:
            options.register_custom_ops_library(str(library))
        made = onnxruntime.InferenceSession(artifact.model_path, options)
        outputs.append(made.run(None, feed)[0])
        nodes = onnx.load(room / "optimised.onnx").graph.node
        assert any(n.op_type == "DictionaryUpdate" for n in nodes) == (library is not None)
    np.testing.assert_allclose(*outputs, atol=1e-5)


def test_one_universal_file_is_exported_on_other_widths_depths_and_architectures(checkpoint, room):
    adapter = checkpoint("unihyperlora")
    digests = set()
    for other in (
        tiny.write_bert(room / "wide", hidden=48, layers=3),
        tiny.write_distilbert(room / "distil"),
        tiny.write_roberta(room / "roberta"),
    ):
        (artifact,) = exported(adapter, other, room / "out", lowering="unmerged")
        assert artifact.manifest.parity.max_abs_error <= 1e-4
        assert artifact.manifest.adapter is not None
        digests.add((artifact.manifest.adapter.digest, artifact.manifest.adapter.bytes))
    assert len(digests) == 1


def test_the_base_under_a_generated_head_is_exported_too(checkpoint, base, room):
    (artifact,) = exported(checkpoint("unihyperlora"), base, room / "out", lowering="base")
    assert artifact.manifest.labels == tiny.LABELS
    assert artifact.manifest.extra_flops == 0


def llama(directory: Path) -> Path:
    """A decoder with two key-value heads for four query heads, without weights for a head."""
    import torch
    from transformers import LlamaConfig, LlamaModel

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=80,
        hidden_size=tiny.HIDDEN,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=48,
        max_position_embeddings=300,
        initializer_range=0.3,
        pad_token_id=0,
    )
    LlamaModel(config).save_pretrained(directory)
    tiny.write_tokenizer(directory, ["input_ids", "attention_mask"])
    return directory


def test_a_decoder_with_grouped_queries_takes_families_by_role(tmp_path):
    base = llama(tmp_path / "llama")
    adapter = families.write("himalaya", base, tmp_path / "himalaya", targets=["q", "o"])
    (artifact,) = exported(adapter, base, tmp_path / "out", lowering="unmerged")
    assert artifact.manifest.parity.max_abs_error <= 1e-4


def test_one_universal_file_goes_on_a_decoder_and_its_score(checkpoint, tmp_path):
    base = llama(tmp_path / "llama")
    adapter = checkpoint("unihyperlora")
    (artifact,) = exported(adapter, base, tmp_path / "out", lowering="unmerged")
    assert artifact.manifest.parity.max_abs_error <= 1e-4


def test_a_decoder_has_no_norm_whose_output_is_a_layers(checkpoint, tmp_path):
    said = refused(read_adapter(checkpoint("representation_edit")), llama(tmp_path / "llama"))
    assert "no module of a 'llama' model plays the role 'hidden'" in said


# ---------------------------------------------------------------- PEFT's other methods

IA3 = {"target_modules": ["key", "value", "output.dense"], "feedforward_modules": ["output.dense"]}


def peft_config(method: str) -> Any:
    import peft

    made = {
        "IA3": lambda: peft.IA3Config(task_type="SEQ_CLS", **IA3),
        "VERA": lambda: peft.VeraConfig(task_type="SEQ_CLS", r=4, target_modules=["query"]),
        "LOHA": lambda: peft.LoHaConfig(task_type="SEQ_CLS", r=3, target_modules=["query"]),
        "LOKR": lambda: peft.LoKrConfig(task_type="SEQ_CLS", r=3, target_modules=["query"]),
        "OFT": lambda: peft.OFTConfig(
            task_type="SEQ_CLS", oft_block_size=8, target_modules=["query"]
        ),
        "BOFT": lambda: peft.BOFTConfig(
            task_type="SEQ_CLS", boft_block_size=8, target_modules=["query"]
        ),
        "DORA": lambda: peft.LoraConfig(
            task_type="SEQ_CLS", r=3, use_dora=True, target_modules=["query"]
        ),
    }
    return made[method]()


def peft_adapter(method: str, base: Path, directory: Path) -> Path:
    """A checkpoint of a PEFT method, all its parameters random."""
    import peft
    import torch

    torch.manual_seed(3)
    model = peft.get_peft_model(families.model(base), peft_config(method))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad and "classifier" not in name:
                parameter += 0.1 * torch.randn(parameter.shape)
    model.save_pretrained(directory, save_embedding_layers=False)
    return directory


@pytest.mark.parametrize("method", ["IA3", "VERA", "LOHA", "LOKR", "OFT", "BOFT", "DORA"])
def test_a_peft_method_is_attached_and_folded_by_peft(method, base, tmp_path):
    import torch

    adapter = read_adapter(peft_adapter(method, base, tmp_path / method))
    exporter = find_exporter(BUILT_IN, adapter).exporter
    facts = exporter.inspect(adapter, read_base(str(base)))
    assert (facts.kind, facts.num_labels) == ("lora" if method == "DORA" else method.lower(), 3)
    from edgebench.export.weights import load_tensors

    tensors = load_tensors(adapter.weights, "adapter")
    ids = torch.randint(5, 60, (2, 9), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        plain = families.model(base)(input_ids=ids).logits
        attached = exporter.attach(adapter, tensors, families.model(base)).eval()
        unmerged = attached(input_ids=ids).logits
        merged = exporter.lower(attached, "merged").eval()(input_ids=ids).logits
    torch.testing.assert_close(merged, unmerged, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(unmerged, plain, atol=1e-3)


def test_ia3_keeps_its_vectors_as_a_branch(base, room, tmp_path):
    (artifact,) = exported(
        peft_adapter("IA3", base, tmp_path / "ia3"), base, room / "out", lowering="unmerged"
    )
    assert artifact.manifest.parity.max_abs_error <= 1e-4


def test_boft_has_only_a_folded_form(base, tmp_path):
    adapter = peft_adapter("BOFT", base, tmp_path / "boft")
    with pytest.raises(UsageError, match="have no unmerged form"):
        exported(adapter, base, tmp_path / "out", lowering="unmerged")


# ---------------------------------------------------------------- bad input


def refused(adapter: AdapterCheckpoint, base: Path) -> str:
    exporter = find_exporter(BUILT_IN, adapter).exporter
    with pytest.raises(CheckpointError) as caught:
        exporter.inspect(adapter, read_base(str(base)))
    return str(caught.value)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_missing_tensor_is_named(family, checkpoint, base):
    adapter = read_adapter(checkpoint(family))
    lost = next(name for name in adapter.shapes if name.startswith("adapter."))
    shapes = {n: t for n, t in adapter.shapes.items() if n != lost}
    assert f"lacks the tensor {lost.removeprefix('adapter.')}" in refused(
        replace(adapter, shapes=shapes), base
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_an_extra_tensor_is_named(family, checkpoint, base):
    adapter = read_adapter(checkpoint(family))
    shapes = adapter.shapes | {"adapter.spare": TensorInfo("F32", (3,))}
    assert "holds a tensor spare" in refused(replace(adapter, shapes=shapes), base)


@pytest.mark.parametrize("family", [f for f in FAMILIES if f != "unihyperlora"])
def test_an_adapter_for_another_width_is_refused(family, checkpoint, room):
    wide = room / "wide"
    if not wide.exists():
        tiny.write_bert(wide, hidden=48, layers=3)
    said = refused(read_adapter(checkpoint(family)), wide)
    assert "on this base it must be" in said or "it is for another model" in said


def test_an_architecture_without_roles_is_refused(checkpoint, base):
    adapter = read_adapter(checkpoint("lilac"))
    other = replace(read_base(str(base)), config={"model_type": "mamba"})
    with pytest.raises(CheckpointError, match="'mamba' model play them is not known"):
        find_exporter(BUILT_IN, adapter).exporter.inspect(adapter, other)


@pytest.mark.parametrize(
    ("family", "changes", "said"),
    [
        ("sat_lora", {"rank": 0}, "rank = 0 is not in 1..256"),
        ("sat_lora", {"rank": "8"}, "is not a whole number"),
        ("sat_lora", {"alpha": -1}, "is not a number above 0"),
        ("sat_lora", {"share_layers": 1}, "is not true or false"),
        ("lilac", {"targets": ["query"]}, "is not a list of some of q, k, v"),
        ("lilac", {"targets": []}, "is not a list of roles"),
        ("lilac", {"atmos": 64}, "Did you mean atoms?"),
        ("dictionary", {"active_atoms": 17}, "17 of 16 atoms can't be active"),
        ("dictionary", {"active_atoms": None}, "lacks the member 'active_atoms'"),
        ("himalaya", {"active_atoms": 4}, "is not in 1..3"),
        ("himalaya", {"elastic_atoms": 17}, "is not in 0..16"),
        ("himalaya", {"task": 2}, "task 2 is not one of the adapter's 2"),
        ("himalaya", {"targets": ["ffn_in"]}, "needs square weights"),
        ("unihyperlora", {"routing": "layer"}, "is not one of token, sequence"),
        ("unihyperlora", {"active_atoms": 3}, "is not in 1..2"),
        ("representation_edit", {"targets": ["q"]}, "is not a list of some of hidden"),
        ("representation_edit", {"task_type": "CAUSAL_LM"}, "can't be exported yet"),
    ],
)
def test_a_member_that_can_not_be_is_named(family, changes, said, checkpoint, base):
    adapter = read_adapter(checkpoint(family))
    assert said in refused(replace(adapter, config=adapter.config | changes), base)


def test_not_a_number_is_refused_and_leaves_nothing(checkpoint, base, tmp_path):
    from safetensors.torch import load_file, save_file

    broken = shutil.copytree(checkpoint("representation_edit"), tmp_path / "broken")
    weights = broken / "adapter_model.safetensors"
    tensors = load_file(weights)
    tensors["adapter.b"][0, 0] = float("nan")
    save_file(tensors, weights)
    with pytest.raises(CheckpointError, match=r"adapter\.b holds NaN or infinity"):
        exported(broken, base, tmp_path / "out", lowering="unmerged")
    assert not list((tmp_path / "out").glob("[!.]*"))


def test_a_peft_adapter_of_rank_0_or_for_another_model_is_refused(base, tmp_path):
    adapter = read_adapter(peft_adapter("VERA", base, tmp_path / "vera"))
    assert "rank is 0" in refused(replace(adapter, config=adapter.config | {"r": 0}), base)
    wide = tiny.write_bert(tmp_path / "wide", hidden=48)
    assert "vera_lambda_b" in refused(adapter, wide)
    shapes = {n.replace("layer.0", "layer.7"): t for n, t in adapter.shapes.items()}
    assert "layer.7.attention.self.query, which the base" in refused(
        replace(adapter, shapes=shapes), base
    )
    bare = {n: t for n, t in adapter.shapes.items() if "vera" not in n}
    assert "holds no tensor of its method" in refused(replace(adapter, shapes=bare), base)


def test_an_adapters_files_are_its_configuration_and_tensors(checkpoint):
    directory = checkpoint("himalaya")
    assert sorted(file.name for file in directory.iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
        "labels.json",
    ]
    assert json.loads((directory / "adapter_config.json").read_text())["peft_type"] == "HIMALAYA"
