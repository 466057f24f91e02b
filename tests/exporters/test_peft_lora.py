"""The built-in exporter file, and how exporter files are found."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from edgebench.errors import CheckpointError
from edgebench.export.base import BaseModel
from edgebench.export.checkpoint import AdapterCheckpoint
from edgebench.export.exporter import exporter_files, find_exporter, load_exporter
from edgebench.export.weights import TensorInfo
from edgebench.workspace import builtin_root

BUILT_IN = builtin_root() / "exporters"


def base(**shapes: tuple[int, ...]) -> BaseModel:
    tensors = {name: TensorInfo("F32", shape) for name, shape in shapes.items()}
    config = {"hidden_size": 384, "model_type": "bert"}
    return BaseModel("b", Path("b"), config, tensors, (), "sha256:0")


def adapter(
    rank: int = 8, d_in: int = 384, d_out: int = 384, **config: object
) -> AdapterCheckpoint:
    query = "base_model.model.bert.encoder.layer.0.attention.self.query"
    shapes = {
        f"{query}.lora_A.weight": TensorInfo("F32", (rank, d_in)),
        f"{query}.lora_B.weight": TensorInfo("F32", (d_out, rank)),
        "base_model.model.classifier.weight": TensorInfo("F32", (5, d_in)),
        "base_model.model.classifier.bias": TensorInfo("F32", (5,)),
    }
    options = {"peft_type": "LORA", "task_type": "SEQ_CLS", **config}
    return AdapterCheckpoint("a", Path("a"), options, shapes, (), "sha256:1", None)


@pytest.fixture
def peft_lora():
    return load_exporter(BUILT_IN / "peft_lora.py")


QUERY = "encoder.layer.0.attention.self.query.weight"


@pytest.mark.parametrize("prefix", ["", "bert.", "model.bert."])
def test_a_weight_is_found_whether_the_base_was_saved_bare_or_with_a_head(peft_lora, prefix):
    facts = peft_lora.inspect(adapter(), base(**{prefix + QUERY: (384, 384)}))
    assert (facts.kind, facts.rank, facts.task, facts.num_labels) == (
        "lora",
        8,
        "text-classification",
        5,
    )
    assert facts.provides == {"classifier.weight", "classifier.bias"}


def test_a_hidden_size_that_does_not_fit_is_named(peft_lora):
    with pytest.raises(CheckpointError, match="expects hidden size 768, the base has 384"):
        peft_lora.inspect(adapter(d_in=768, d_out=768), base(**{QUERY: (384, 384)}))


def test_an_output_size_that_does_not_fit_is_named(peft_lora):
    with pytest.raises(CheckpointError, match="are for a 128 x 384 weight, the base's is 384 x"):
        peft_lora.inspect(adapter(d_out=128), base(**{QUERY: (384, 384)}))


def test_a_transposed_weight_fits(peft_lora):
    peft_lora.inspect(adapter(d_out=1152), base(**{QUERY: (384, 1152)}))


def test_an_adapter_without_factors_is_refused(peft_lora):
    headed = {n: t for n, t in adapter().shapes.items() if "lora" not in n}
    with pytest.raises(CheckpointError, match="no LoRA factors"):
        peft_lora.inspect(replace(adapter(), shapes=headed), base(**{QUERY: (384, 384)}))


@pytest.mark.parametrize(
    ("kind", "known"), [("LORA", True), ("ADALORA", True), ("IA3", False), (None, False)]
)
def test_it_recognises_its_own_family(peft_lora, kind, known):
    assert peft_lora.recognises({"peft_type": kind}) is known


def test_the_first_directorys_file_wins_and_underscores_are_left_alone(tmp_path):
    mine = tmp_path / "exporters"
    mine.mkdir()
    shutil.copy(BUILT_IN / "peft_lora.py", mine / "peft_lora.py")
    (mine / "_helpers.py").write_text("raise RuntimeError")
    files = exporter_files((mine, BUILT_IN))
    assert mine / "peft_lora.py" in files
    assert BUILT_IN / "peft_lora.py" not in files
    found = find_exporter((mine, BUILT_IN), adapter())
    assert found.file == mine / "peft_lora.py"


def test_only_the_directories_given_are_run(tmp_path):
    with pytest.raises(CheckpointError, match=r"no exporter .*Exporters found: none"):
        find_exporter((tmp_path,), adapter())


@pytest.mark.parametrize("code", ["def", "import no_such_module_here", "EXPORTER = 3", ""])
def test_a_file_that_is_no_exporter_is_named(tmp_path, code):
    (tmp_path / "mine.py").write_text(code)
    with pytest.raises(CheckpointError, match=r"mine\.py"):
        find_exporter((tmp_path,), adapter())
