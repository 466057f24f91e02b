"""Everything that can be wrong with what a user gives: one sentence each, nothing written."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from edgebench.errors import (
    CheckpointError,
    EdgebenchError,
    ExportError,
    InputError,
    UsageError,
)
from edgebench.export import ExportRequest, export
from tests.export import tiny
from tests.export.conftest import left_in

pytestmark = pytest.mark.filterwarnings("ignore")

WEIGHTS = "adapter_model.safetensors"


@pytest.fixture
def adapter(short_adapter: Path, tmp_path: Path) -> Path:
    """A copy to spoil."""
    return Path(shutil.copytree(short_adapter, tmp_path / "adapter"))


@pytest.fixture
def base(short_base: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(short_base, tmp_path / "base"))


def refused(kind: type[EdgebenchError], adapter: Path | None, base: Path | str | None, **more):
    """The sentence with which an export is refused; nothing may be left in ``out``."""
    out = (adapter or Path(str(base))).parent / "out"
    request = ExportRequest(
        adapter=adapter, base=None if base is None else str(base), out=out, **more
    )
    with pytest.raises(kind) as caught:
        export(request)
    assert left_in(out) == []
    assert caught.value.exit_code == {UsageError: 2, ExportError: 7}.get(kind, 3)
    return str(caught.value)


def test_an_adapter_that_is_not_there(short_base, tmp_path):
    assert "no adapter here" in refused(CheckpointError, tmp_path / "nowhere", short_base)


def test_an_adapter_without_weights(adapter, base):
    (adapter / WEIGHTS).unlink()
    assert "adapter_model.safetensors is missing" in refused(CheckpointError, adapter, base)


def test_an_adapter_without_a_configuration(adapter, base):
    (adapter / "adapter_config.json").unlink()
    assert "adapter_config.json is missing" in refused(CheckpointError, adapter, base)


@pytest.mark.parametrize("keep", [0, 7, 100, -1])
def test_a_truncated_adapter(adapter, base, keep):
    content = (adapter / WEIGHTS).read_bytes()
    (adapter / WEIGHTS).write_bytes(content[:keep])
    assert "truncated or damaged" in refused(CheckpointError, adapter, base)


def test_a_truncated_base(adapter, base):
    content = (base / "model.safetensors").read_bytes()
    (base / "model.safetensors").write_bytes(content[:-1000])
    message = refused(CheckpointError, adapter, base)
    assert "base model's model.safetensors is truncated" in message


def test_an_adapter_for_a_wider_base(models, short_base, tmp_path):
    wide = tiny.write_bert(tmp_path / "wide-base", hidden=64, layers=1)
    adapter = tiny.write_adapter(wide, tmp_path / "adapter")
    configuration = json.loads((adapter / "adapter_config.json").read_text())
    configuration["base_model_name_or_path"] = "bert-base-uncased"
    (adapter / "adapter_config.json").write_text(json.dumps(configuration))
    assert refused(CheckpointError, adapter, short_base) == (
        "the adapter expects hidden size 64, the base has 32 "
        '(adapter_config.json: base_model "bert-base-uncased"). '
        "Give its own base with --base, or check the path."
    )


def test_an_adapter_for_a_deeper_base(tiny_adapter, short_base, tmp_path):
    deep = Path(shutil.copytree(tiny_adapter, tmp_path / "adapter"))
    message = refused(CheckpointError, deep, short_base)
    assert "changes bert.encoder.layer.1.attention.self.query, which the base does" in message


def test_an_adapter_for_another_architecture(short_adapter, models, tmp_path):
    other = tiny.write_distilbert(tmp_path / "distil")
    adapter = Path(shutil.copytree(short_adapter, tmp_path / "adapter"))
    assert "which the base does not have" in refused(CheckpointError, adapter, other)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_an_adapter_whose_training_diverged(adapter, base, value):
    tensors = load_file(adapter / WEIGHTS)
    tensors["base_model.model.classifier.weight"][0, 0] = value
    save_file(tensors, adapter / WEIGHTS)
    assert "classifier.weight holds NaN or infinity" in refused(CheckpointError, adapter, base)


class Bomb:
    """A pickle that makes a file when it is opened."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self):
        return (os.mkdir, (str(self.mark),))


@pytest.mark.parametrize("name", ["adapter_model.bin", "adapter_model.pt", "adapter.pkl"])
def test_a_pickle_is_refused_and_never_run(adapter, base, tmp_path, name):
    (adapter / WEIGHTS).unlink()
    mark = tmp_path / "it-ran"
    if name.endswith(".pkl"):
        (adapter / name).write_bytes(pickle.dumps(Bomb(mark)))
    else:
        torch.save({"weight": Bomb(mark)}, adapter / name)
    message = refused(CheckpointError, adapter, base)
    assert "pickle" in message
    assert "safetensors" in message
    assert not mark.exists()


def test_a_single_pickle_file_is_refused(base, tmp_path):
    (tmp_path / "adapter.pt").write_bytes(pickle.dumps(Bomb(tmp_path / "it-ran")))
    assert "a pickle is never opened" in refused(CheckpointError, tmp_path / "adapter.pt", base)
    assert not (tmp_path / "it-ran").exists()


def test_a_bin_file_that_holds_tensors_alone_is_read(adapter, base, tmp_path):
    from edgebench.export.checkpoint import read_adapter

    shapes = {n: t.shape for n, t in read_adapter(adapter).shapes.items()}
    torch.save(load_file(adapter / WEIGHTS), adapter / "adapter_model.bin")
    (adapter / WEIGHTS).unlink()
    assert {n: t.shape for n, t in read_adapter(adapter).shapes.items()} == shapes


def test_an_unknown_adapter_type(adapter, base):
    (adapter / "adapter_config.json").write_text(json.dumps({"peft_type": "PREFIX_TUNING"}))
    message = refused(CheckpointError, adapter, base)
    assert "no exporter recognises an adapter of type 'PREFIX_TUNING'" in message
    assert "peft_lora" in message


def test_a_task_that_can_not_be_exported_yet(adapter, base):
    configuration = json.loads((adapter / "adapter_config.json").read_text())
    configuration["task_type"] = "SEQ_2_SEQ_LM"
    (adapter / "adapter_config.json").write_text(json.dumps(configuration))
    assert "task SEQ_2_SEQ_LM can't be exported yet" in refused(CheckpointError, adapter, base)


def test_a_base_that_is_not_here_is_not_downloaded(adapter):
    message = refused(CheckpointError, adapter, "some-org/some-model")
    assert "never downloads" in message


def test_a_base_named_by_the_adapter_that_is_not_here(adapter):
    configuration = json.loads((adapter / "adapter_config.json").read_text())
    configuration["base_model_name_or_path"] = "bert-base-uncased"
    (adapter / "adapter_config.json").write_text(json.dumps(configuration))
    message = refused(CheckpointError, adapter, None)
    assert "'bert-base-uncased' is not on this machine" in message
    assert "--base" in message


def test_an_adapter_without_its_head(adapter, base):
    tensors = load_file(adapter / WEIGHTS)
    kept = {name: t for name, t in tensors.items() if "classifier" not in name}
    save_file(kept, adapter / WEIGHTS)
    assert "classification head" in refused(CheckpointError, adapter, base)


def test_a_base_with_a_part_missing_is_not_filled_with_random_numbers(adapter, base):
    tensors = load_file(base / "model.safetensors")
    del tensors["pooler.dense.bias"]
    save_file(tensors, base / "model.safetensors", metadata={"format": "pt"})
    message = refused(CheckpointError, adapter, base)
    assert "neither the base nor the adapter holds a value for bert.pooler.dense.bias" in message


def test_a_base_without_a_tokenizer(adapter, base):
    for file in base.glob("tokenizer*"):
        file.unlink()
    assert "no tokenizer" in refused(CheckpointError, adapter, base)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"quants": ("int7",)}, "no quantisation scheme 'int7'"),
        ({"quants": ()}, "no precision was asked for"),
        ({"quants": ("int8", "int8")}, "given twice"),
        ({"lowering": "folded"}, "'folded' is not one of merged, unmerged"),
        ({"via": "jax"}, "'jax' is not one of torch, optimum"),
        ({"seq_len": 0}, "at least 1"),
        ({"seq_len": 301}, "301 tokens are more than the base's 300 positions"),
        ({"name": "../up"}, "can't name a directory"),
        ({"evaluation_limit": 0}, "at least 1 example"),
        ({"labels": ("a", "b")}, "2 label names for a head with 3 outputs"),
        ({"labels": ("a", "a", "b")}, "given twice"),
    ],
)
def test_options_that_can_not_be(adapter, base, change, sentence):
    assert sentence in refused(UsageError, adapter, base, **change)


def test_neither_adapter_nor_base(tmp_path):
    with pytest.raises(UsageError, match="neither"):
        export(ExportRequest(out=tmp_path / "out"))


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("d.txt", "x", "can't be read"),
        ("d.jsonl", "", "no rows"),
        ("d.jsonl", "{", "line 1 is not JSON"),
        ("d.jsonl", "[1]", "not a JSON object"),
        ("d.jsonl", '{"text": "x"}', "row 1 has no label"),
        ("d.jsonl", '{"text": "  ", "label": 0}', "row 1 has no text"),
        ("d.jsonl", '{"text": "x", "label": "maybe"}', "has the label 'maybe', the model has no,"),
        ("d.jsonl", '{"text": "x", "label": 3}', "has the label 3"),
        ("d.csv", "words,label\nx,no\n", "row 1 has no text"),
        ("d.parquet", "PAR1", "not readable Parquet"),
    ],
)
def test_data_that_can_not_be_used(adapter, base, tmp_path, name, content, sentence):
    (tmp_path / name).write_text(content)
    assert sentence in refused(InputError, adapter, base, data=tmp_path / name)


def test_data_that_are_not_there(adapter, base, tmp_path):
    assert "no data file" in refused(InputError, adapter, base, data=tmp_path / "none.jsonl")


NEVER_MERGED = """
from exporters_peft_lora import PeftLora

class NeverMerged(PeftLora):
    name = "never_merged"
    lowerings = ("unmerged",)

EXPORTER = NeverMerged()
"""


def test_a_lowering_that_the_family_does_not_have(adapter, base, tmp_path, monkeypatch):
    mine = own_exporter(tmp_path, monkeypatch, "never_merged", NEVER_MERGED)
    message = refused(UsageError, adapter, base, exporter_dirs=(mine,), lowering="merged")
    assert "adapters of the family never_merged have no merged form" in message
    assert "Give unmerged." in message


WRONG_EXPORTER = """
import torch
from exporters_peft_lora import PeftLora

class Wrong(PeftLora):
    name = "wrong"

    def lower(self, attached, lowering):
        module = super().lower(attached, lowering)
        with torch.no_grad():
            module.classifier.bias += 2e-4
        return module

EXPORTER = Wrong()
"""


def test_a_graph_that_is_not_what_pytorch_computes_is_no_artifact(
    adapter, base, tmp_path, monkeypatch
):
    mine = own_exporter(tmp_path, monkeypatch, "wrong", WRONG_EXPORTER)
    message = refused(ExportError, adapter, base, exporter_dirs=(mine,), seq_len=16)
    assert "the fp32 graph is off PyTorch by 0.0002" in message
    assert "no artifact was written" in message


def own_exporter(tmp_path, monkeypatch, name, code):
    """A directory with one exporter, which may import ``exporters_peft_lora``."""
    from edgebench.workspace import builtin_root

    mine = tmp_path / "exporters"
    mine.mkdir()
    shutil.copy(builtin_root() / "exporters" / "peft_lora.py", tmp_path / "exporters_peft_lora.py")
    monkeypatch.syspath_prepend(str(tmp_path))
    (mine / f"{name}.py").write_text(code)
    return mine
