"""The same request gives the same digest, and is answered from disk the second time."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

from edgebench.export import ExportRequest, cache, export
from edgebench.export.plan import make_plan

pytestmark = pytest.mark.filterwarnings("ignore")


def test_the_same_request_elsewhere_gives_the_same_digest(merged, export_short, tmp_path):
    again = export_short(tmp_path)
    assert again.path != merged.path
    assert again.digest == merged.digest


def test_a_repeated_request_imports_no_torch(merged, short_base, short_adapter, tiny_data):
    program = f"""
import sys
from pathlib import Path
from edgebench.export import ExportRequest, export
(artifact,) = export(ExportRequest(adapter=Path({str(short_adapter)!r}), base={str(short_base)!r},
    data=Path({str(tiny_data)!r}), seq_len=24, out=Path({str(merged.path.parent)!r})))
heavy = sorted({{"torch", "transformers", "peft", "onnxruntime"}} & set(sys.modules))
print(artifact.digest, heavy)
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout.split(maxsplit=1) == [merged.digest, "[]\n"]
    assert done.stderr == ""


def test_an_artifact_that_was_changed_is_exported_again(merged, export_short, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(merged.path.parent, out)
    inputs = out / merged.path.name / "inputs.npz"
    inputs.write_bytes(inputs.read_bytes()[:-1] + b"?")
    again = export_short(out)
    assert again.path == out / merged.path.name
    assert again.digest == merged.digest  # loaded and verified
    assert [p.name for p in out.iterdir() if p.name.startswith(".tmp-")] == []


def test_whatever_decides_the_result_is_in_the_key(
    merged, short_base, short_adapter, tiny_data, tmp_path
):
    """Base, adapter, data and options; so a change of any is exported afresh."""
    first = ExportRequest(
        adapter=short_adapter, base=str(short_base), data=tiny_data, out=tmp_path, seq_len=24
    )
    retokenised = tmp_path / short_base.name
    shutil.copytree(short_base, retokenised)
    (retokenised / "tokenizer_config.json").write_text("{}")
    retrained = tmp_path / short_adapter.name
    shutil.copytree(short_adapter, retrained)
    weights = bytearray((retrained / "adapter_model.safetensors").read_bytes())
    weights[-1] ^= 1
    (retrained / "adapter_model.safetensors").write_bytes(bytes(weights))
    reordered = tmp_path / tiny_data.name
    reordered.write_text("\n".join(reversed(tiny_data.read_text().splitlines())))
    others = [
        {"base": str(retokenised)},
        {"adapter": retrained},
        {"data": reordered},
        {"data": None},
        {"lowering": "unmerged"},
        {"seq_len": 25},
        {"name": "other"},
        {"labels": ("a", "b", "c"), "data": None},
        {"evaluation_limit": 3},
    ]
    keys = [make_plan(first).key, *(make_plan(replace(first, **other)).key for other in others)]
    assert len(set(keys)) == len(keys)
    assert make_plan(replace(first, out=tmp_path / "x", quants=("int8",))).key == keys[0]


def test_the_index_is_safe_to_delete_and_to_damage(merged, tmp_path):
    (tmp_path / cache.INDEX).mkdir()
    index = tmp_path / cache.INDEX / "k.json"
    for content in (b"", b"[1]", b"\xff", json.dumps({"fp32": "../elsewhere"}).encode(), b'{"a":1'):
        index.write_bytes(content)
        assert cache.find(tmp_path, "k", ("fp32",)) == {}
    assert cache.find(tmp_path, "another", ("fp32",)) == {}


def test_the_index_finds_only_artifacts_of_the_scheme(merged):
    cache.remember(merged.path.parent, "k", {"int8": merged})
    assert cache.find(merged.path.parent, "k", ("int8",)) == {}


def test_evaluation_rows_keep_the_order_of_the_data(merged):
    with np.load(merged.path / "evaluation.npz") as stored:
        assert stored["labels"].tolist() == [0, 1, 2] * 4
        assert stored["input_ids"].shape == (12, 24)
    assert merged.manifest.data.evaluation_n == 12


def test_progress_rises_to_one_and_names_its_steps(short_base, short_adapter, tiny_data, merged):
    seen: list[tuple[str, float | None]] = []
    request = ExportRequest(
        adapter=short_adapter,
        base=str(short_base),
        data=tiny_data,
        seq_len=24,
        out=merged.path.parent,
        quants=("int8", "fp32"),
    )
    artifacts = export(request, lambda step, done: seen.append((step, done)))
    assert [a.manifest.quantization.scheme for a in artifacts] == ["int8", "fp32"]
    assert artifacts[1].path == merged.path  # found, not made again
    assert not any("fp32" in step for step, _ in seen)
    shares = [done for _, done in seen if done is not None]
    assert shares == sorted(shares)
    assert shares[-1] == 1
    assert any("int8" in step for step, _ in seen)
