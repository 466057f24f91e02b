"""The same request gives the same digest, and is answered from disk the second time."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest

from edgebench.export import cache

pytestmark = pytest.mark.filterwarnings("ignore")


def test_the_same_request_elsewhere_gives_the_same_digest(merged, export_tiny, tmp_path):
    again = export_tiny(tmp_path)
    assert again.path != merged.path
    assert again.digest == merged.digest


def test_a_repeated_request_imports_no_torch(merged, tiny_base, tiny_adapter, tiny_data):
    program = f"""
import sys, time
from pathlib import Path
from edgebench.export import ExportRequest, export
(artifact,) = export(ExportRequest(adapter=Path({str(tiny_adapter)!r}), base={str(tiny_base)!r},
    data=Path({str(tiny_data)!r}), seq_len=24, out=Path({str(merged.path.parent)!r})))
heavy = sorted({{"torch", "transformers", "peft", "onnxruntime"}} & set(sys.modules))
print(artifact.digest, heavy)
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout.split(maxsplit=1) == [merged.digest, "[]\n"]
    assert done.stderr == ""


def test_an_artifact_that_was_changed_is_exported_again(merged, export_tiny, tmp_path):
    first = export_tiny(tmp_path)
    inputs = first.path / "inputs.npz"
    inputs.write_bytes(inputs.read_bytes()[:-1] + b"?")
    again = export_tiny(tmp_path)
    assert again.path == first.path
    assert again.digest == merged.digest  # loaded and verified
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".tmp-")] == []


def test_other_labelled_data_make_another_artifact(merged, export_tiny, tiny_data, tmp_path):
    rows = tiny_data.read_text().splitlines()
    (tmp_path / tiny_data.name).write_text("\n".join(reversed(rows)) + "\n")
    other = export_tiny(tmp_path / "out", data=tmp_path / tiny_data.name)
    assert other.digest != merged.digest


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


def test_progress_rises_to_one_and_names_its_steps(tiny_base, tiny_adapter, tiny_data, merged):
    from edgebench.export import ExportRequest, export

    seen: list[tuple[str, float | None]] = []
    request = ExportRequest(
        adapter=tiny_adapter,
        base=str(tiny_base),
        data=tiny_data,
        seq_len=24,
        out=merged.path.parent,
        evaluation_limit=6,
        quants=("int8", "fp32"),
    )
    artifacts = export(request, lambda step, done: seen.append((step, done)))
    assert [a.manifest.quantization.scheme for a in artifacts] == ["int8", "fp32"]
    shares = [done for _, done in seen if done is not None]
    assert shares == sorted(shares)
    assert shares[-1] == 1
    assert any("int8" in step for step, _ in seen)
