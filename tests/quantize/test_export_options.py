"""What an export asks of its request before weights are fitted: calibration text, and a budget."""

from pathlib import Path

import numpy as np
import pytest

from edgebench.errors import InputError, UsageError
from edgebench.export.data import read_texts
from edgebench.export.inputs import CALIBRATION_ROWS, calibration_feeds
from edgebench.export.request import ExportRequest, validate


class Words:
    """A tokenizer that counts a word as a token, and marks what is padding."""

    def at_most(self, length):
        return min(length, 100)

    def encode(self, texts, length):
        counts = [min(len(text.split()), length) for text in texts]
        mask = np.array([[int(i < count) for i in range(length)] for count in counts])
        return {"input_ids": 7 * mask, "attention_mask": mask}


def request(**options):
    return ExportRequest(out=Path("out"), base="base", **options)


def rows(feeds):
    return [int(row.sum()) for feed in feeds for row in feed["attention_mask"]]


@pytest.mark.parametrize("quant", ["fp32", "int8", "fp16"])
def test_calibration_text_that_nothing_uses_is_refused(quant):
    with pytest.raises(UsageError, match="uses calibration text"):
        validate(request(quants=(quant,), calibration=Path("text.txt")))
    validate(request(quants=(quant, "int3"), calibration=Path("text.txt")))


@pytest.mark.parametrize("budget", [0, -1, 33, float("nan"), float("inf")])
def test_a_budget_that_is_none_is_refused(budget):
    with pytest.raises(UsageError, match="budget must be between 0 and 32"):
        validate(request(quants=("mixed",), mixed_bits=budget))


def test_fp16_is_a_precision_of_both_formats_and_bf16_of_one():
    for form in ("onnx", "torch"):
        validate(request(quants=("fp16",), format=form))
    with pytest.raises(UsageError, match="the format onnx has no precision 'bf16'"):
        validate(request(quants=("bf16",)))
    with pytest.raises(UsageError, match="the format torch has no precision 'mixed'"):
        validate(request(quants=("mixed",), format="torch"))


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("t.txt", "one two\n\n  three \n"),
        ("t", "one two\nthree"),
        ("t.jsonl", '{"text": "one two"}\n{"text": "three", "label": 1}\n{"other": 1}\n'),
        ("t.csv", "id,text\n1,one two\n2,three\n"),
    ],
)
def test_texts_are_read_with_or_without_labels(tmp_path, name, content):
    (tmp_path / name).write_text(content)
    assert read_texts(tmp_path / name) == ("one two", "three")


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("t.txt", b"", "holds no text"),
        ("t.txt", b" \n\n", "holds no text"),
        ("t.csv", b"words\nx\n", "holds no text"),
        ("t.jsonl", b"{", "line 1 is not JSON"),
        ("t.txt", b"\xff\xfe\x00", "not UTF-8"),
    ],
)
def test_a_file_without_text_is_refused(tmp_path, name, content, sentence):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=sentence):
        read_texts(tmp_path / name)


def test_a_file_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(InputError, match="can't be read: No such file"):
        read_texts(tmp_path / "none.txt")


def test_a_long_text_is_a_row_and_short_ones_are_joined():
    long, short = "word " * 150, "word " * 60
    assert rows(calibration_feeds(Words(), (long, short, short, short))) == [100, 100, 60]


def test_no_text_is_used_twice_and_rows_end_at_the_limit():
    many = ("word " * 100,) * (CALIBRATION_ROWS + 50)
    feeds = calibration_feeds(Words(), many)
    assert rows(feeds) == [100] * CALIBRATION_ROWS
    assert max(len(feed["input_ids"]) for feed in feeds) == 16
    assert calibration_feeds(Words(), ()) == []
