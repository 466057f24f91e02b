"""The documents say what the code does: their tables are made from the code's own lists."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgebench import reasons
from edgebench.percentiles import min_samples
from edgebench.recording import SAMPLE_COLUMNS, Recording
from edgebench.results import columns

DOCS = Path(__file__).parents[2] / "docs"


@pytest.mark.parametrize("table", columns.TABLES)
def test_every_column_is_documented_as_it_is(table):
    assert columns.markdown_table(table) in (DOCS / "formats.md").read_text()


def test_every_reason_is_documented_as_it_is():
    assert reasons.markdown_table() in (DOCS / "measurement.md").read_text()


def test_the_sample_counts_are_documented_as_they_are():
    counts = " | ".join(str(min_samples(p)) for p in (0.5, 0.9, 0.95, 0.99, 0.999))
    assert f"| samples needed | {counts} |" in (DOCS / "measurement.md").read_text()


def test_every_member_of_a_recording_is_documented():
    text = (DOCS / "formats.md").read_text()
    for name, field in Recording.model_fields.items():
        assert f"`{field.alias or name}`" in text
    for name, kind in SAMPLE_COLUMNS.items():
        assert f"| `{name}` | {kind} |" in text
