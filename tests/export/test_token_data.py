"""Token classification: labelled words, from the data file to the accuracy in the table."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from edgebench.errors import InputError
from edgebench.export import ExportRequest, export
from edgebench.export.base import read_base
from edgebench.export.inputs import Tokens
from edgebench.export.token_data import IGNORED, read_words
from tests.export import tiny
from tests.measure.bench import Bench

TOKENS = 16


def write_rows(file: Path, rows: list[dict]) -> Path:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


@pytest.fixture
def data(tmp_path: Path) -> Path:
    words = ["the", "quick", "fox", "of", "42", "jumps", "over", "dogs", "then", "rests"]
    rows = [
        {
            "tokens": words[i % 5 : i % 5 + 2 + i % 4],
            "labels": [tiny.LABELS[(i + j) % 3] for j in range(2 + i % 4)],
        }
        for i in range(12)
    ]
    return write_rows(tmp_path / "words.jsonl", rows)


@pytest.fixture(scope="module")
def adapter(short_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write_adapter(short_base, tmp_path_factory.mktemp("t") / "tokens", task="TOKEN_CLS")


def test_a_word_s_label_is_that_of_its_first_piece(short_base: Path):
    tokens = Tokens(read_base(str(short_base)), ("input_ids", "attention_mask"))
    rows = tokens.encode_words([["ab", "c", "d"], ["abcdefghijklm"]], [[2, 0, 1], [1]], 9)
    # [CLS] a ##b c d [SEP], then padding; the second is cut.
    assert rows["labels"][0].tolist() == [IGNORED, 2, IGNORED, 0, 1, *[IGNORED] * 4]
    assert rows["labels"][1].tolist() == [IGNORED, 1, *[IGNORED] * 7]
    assert rows["attention_mask"][0].tolist() == [1] * 6 + [0] * 3
    assert rows["input_ids"].shape == rows["labels"].shape == (2, 9)


def test_the_table_has_the_share_of_labelled_tokens(
    short_base: Path, adapter: Path, data: Path, tmp_path: Path
):
    (artifact,) = export(
        ExportRequest(
            adapter=adapter,
            base=str(short_base),
            out=tmp_path / "out",
            seq_len=TOKENS,
            data=data,
        )
    )
    manifest = artifact.manifest
    assert manifest.task == "token-classification"
    assert manifest.labels == tiny.LABELS
    assert manifest.data.evaluation_n == 12
    assert manifest.parity.max_abs_error <= 1e-4
    with np.load(artifact.path / "evaluation.npz") as stored:
        arrays = dict(stored)
    labels = arrays.pop("labels")
    session = onnxruntime.InferenceSession(str(artifact.model_path))
    answers = session.run(None, arrays)[0].argmax(-1)
    counted = labels != IGNORED
    right = int(((answers == labels) & counted).sum())
    assert counted.sum() == sum(len(json.loads(line)["tokens"]) for line in data.open())
    bench = Bench(tmp_path)
    try:
        options = ("--launches", "1", "--percentile", "50", "--precision", "90%", "--max-duration")
        done = bench.call("run", "--device", "bench", artifact, *options, "1", "--json")
        assert done.returncode == 0, done.stderr
        (row,) = json.loads(done.stdout)["latency"]
        assert row["accuracy"] == pytest.approx(right / counted.sum())
        assert row["accuracy_n"] == counted.sum()
        assert row["accuracy_lo"] <= row["accuracy"] <= row["accuracy_hi"]
    finally:
        bench.close()


def test_data_that_labels_texts_scores_no_tokens_and_the_row_says_why(
    short_base: Path, adapter: Path, tiny_data: Path, tmp_path: Path
):
    (artifact,) = export(
        ExportRequest(
            adapter=adapter,
            base=str(short_base),
            out=tmp_path / "out",
            seq_len=24,
            data=tiny_data,
            lowering="unmerged",
        )
    )
    assert artifact.manifest.parity.max_abs_error <= 1e-4
    assert artifact.manifest.data.evaluation is None
    assert "tiny.jsonl" in artifact.manifest.data.inputs_source
    bench = Bench(tmp_path)
    try:
        options = ("--launches", "1", "--percentile", "50", "--precision", "90%", "--max-duration")
        done = bench.call("run", "--device", "bench", artifact, *options, "1")
        assert "accuracy was not measured" in done.stdout
        assert "data whose words are labelled" in " ".join(done.stdout.split())
    finally:
        bench.close()


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"tokens": ["a", "b"], "labels": ["no"]}, "row 2 has 2 tokens and 1 labels"),
        ({"tokens": ["a"]}, "row 2 has 1 tokens and no labels"),
        ({"tokens": [], "labels": []}, "row 2 has no tokens"),
        ({"tokens": ["a", " "], "labels": [0, 0]}, "row 2 has no tokens"),
        ({"tokens": "a", "labels": ["no"]}, "row 2 has no tokens"),
    ],
)
def test_a_row_that_is_not_whole_is_named(tmp_path: Path, row: dict, said: str):
    whole = {"tokens": ["a"], "ner_tags": [1]}
    with pytest.raises(InputError, match=said):
        read_words(write_rows(tmp_path / "x.jsonl", [whole, row]))


def test_a_label_that_the_model_does_not_have_is_named(tmp_path: Path):
    rows = [{"tokens": ["a", "b"], "labels": ["yes", "never"]}]
    words = read_words(write_rows(tmp_path / "x.jsonl", rows))
    with pytest.raises(InputError, match="label 'never', the model has no, perhaps, yes"):
        words.indices(tiny.LABELS, 3)
    numbers = read_words(write_rows(tmp_path / "y.jsonl", [{"tokens": ["a"], "tags": [3]}]))
    with pytest.raises(InputError, match="label 3, the model has 0 to 2"):
        numbers.indices(None, 3)


def test_parquet_holds_lists_too(tmp_path: Path):
    import pyarrow
    import pyarrow.parquet

    file = tmp_path / "words.parquet"
    table = pyarrow.table({"tokens": [["a", "b"], ["c"]], "labels": [[0, 2], [1]]})
    pyarrow.parquet.write_table(table, file)
    words = read_words(file)
    assert words.indices(None, 3) == [[0, 2], [1]]
    assert words.texts == ("a b", "c")
