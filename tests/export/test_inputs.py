"""Rows for timing, labelled rows, and data files."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest

from edgebench.errors import InputError
from edgebench.export.base import read_base
from edgebench.export.data import LabelledText, label_indices, read_data
from edgebench.export.inputs import TIMING_ROWS, Tokens, parity_feeds, timing_inputs
from edgebench.export.sample_text import TEXTS

ROWS = [{"text": "one, two", "label": "no"}, {"text": "three\nfour", "label": "yes"}]


@pytest.fixture(scope="module")
def tokens(tiny_base) -> Tokens:
    return Tokens(read_base(str(tiny_base)), {"input_ids", "token_type_ids", "attention_mask"})


@pytest.mark.parametrize("suffix", ["jsonl", "csv", "parquet"])
def test_every_form_reads_the_same(tmp_path, suffix):
    file = tmp_path / f"d.{suffix}"
    if suffix == "jsonl":
        file.write_text("\n".join(json.dumps(row) for row in ROWS))
    elif suffix == "csv":
        pd.DataFrame(ROWS).to_csv(file, index=False)
    else:
        pd.DataFrame(ROWS).to_parquet(file)
    data = read_data(file)
    assert data.texts == ("one, two", "three\nfour")
    assert data.labels == ("no", "yes")
    assert str(tmp_path) not in data.source


def test_a_limit_takes_the_first_rows_and_says_so(tmp_path):
    file = tmp_path / "d.jsonl"
    file.write_text("\n".join(json.dumps(row) for row in ROWS))
    data = read_data(file)
    assert data.first(1).texts == ("one, two",)
    assert data.first(1).source.endswith(", 1 of 2 rows")
    assert data.first(None).source.endswith(", 2 of 2 rows")
    assert data.first(9).texts == data.texts


def test_labels_may_be_names_or_numbers():
    names = ("no", "yes")
    assert label_indices(LabelledText((), ("yes", "no"), ""), names, 2) == [1, 0]
    assert label_indices(LabelledText((), (1, "0"), ""), names, 2) == [1, 0]
    assert label_indices(LabelledText((), ("0", "1"), ""), ("1", "0"), 2) == [1, 0]
    with pytest.raises(InputError, match="their names are not known"):
        label_indices(LabelledText((), ("yes",), ""), None, 2)


@pytest.mark.parametrize("seq_len", [4, 24, 300])
def test_rows_are_full_at_every_length(tokens, seq_len):
    timing = timing_inputs(tokens, TEXTS, seq_len, "ours")
    for array in timing.arrays.values():
        assert array.shape == (TIMING_ROWS, seq_len)
        assert array.dtype == np.int64
    assert timing.arrays["attention_mask"].all()
    assert "padded" not in timing.source


def test_texts_that_are_long_enough_stand_alone_and_others_are_joined(tokens):
    alone = timing_inputs(tokens, ("a b c d e f g h i j",) * 70, 8, "s")
    assert alone.source == "s: 64 texts, each truncated to 8 tokens"
    some = timing_inputs(tokens, ("a b c d e f g h i j", "k"), 8, "s")
    assert some.source == (
        "s: 1 texts, each truncated, 63 rows of texts joined and truncated, some of them the same "
        "to 8 tokens"
    )
    assert some.arrays["attention_mask"].all()


def test_parity_covers_other_batches_lengths_and_padding(tokens):
    timing = timing_inputs(tokens, TEXTS, 24, "s")
    feeds = parity_feeds(tokens, timing, TEXTS)
    shapes = {feed["input_ids"].shape for feed in feeds}
    assert {batch for batch, _ in shapes} >= {1, 2, 3, 4, 16}
    assert {length for _, length in shapes} >= {1, 2, 17, 24, 256}
    assert any(not feed["attention_mask"].all() for feed in feeds)


def test_our_own_sentences_are_enough_for_different_rows():
    assert len(set(TEXTS)) == len(TEXTS) >= TIMING_ROWS
    assert all(text.endswith(".") for text in TEXTS)
