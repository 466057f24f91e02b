"""What a person sees."""

from __future__ import annotations

import io
import json

import pytest
from rich.console import Console

from edgebench.results.show import plus_minus, render, to_records
from edgebench.results.store import Store
from edgebench.results.tables import build
from tests.results.make import make_protocol, make_recording, make_samples, make_state


def shown(tables, width: int = 100) -> str:
    stream = io.StringIO()
    Console(file=stream, width=width, force_terminal=False).print(render(tables))
    return stream.getvalue()


@pytest.fixture(scope="module")
def tables(tmp_path_factory):
    store = Store(tmp_path_factory.mktemp("runs"))
    store.write(make_recording(), make_samples(), make_state())
    store.write(
        make_recording(("fp32", "int8"), launches=3),
        make_samples(3, (2.0, 3.0), rounds=20),
        make_state(throttled=0x50000),
    )
    return build(store.load_all()[0])


def test_without_a_terminal_it_is_plain_text_within_a_hundred_columns(tables):
    text = shown(tables)
    assert "\x1b" not in text
    assert max(map(len, text.splitlines())) <= 100


def test_the_headline_names_conditions_recording_and_verdicts(tables):
    text = shown(tables)
    assert "device pi4 · single-stream · batch 1 · seq 128 · 5 launches, interleaved" in text
    assert f"recording {tables.latency['recording_id'][0]}" in text
    assert "VALID" in text
    assert "INVALID under-voltage-since-boot" in text


def test_ratios_are_stated_against_fp32_with_their_uncertainty(tables):
    line = next(line for line in shown(tables).splitlines() if line.startswith("against fp32"))
    assert line.startswith("against fp32: int8 2.0")
    assert "× ± 0.01" in line
    assert "faster, int3" in line
    assert "as fast" in shown(tables).split("against fp32")[2]


def test_a_withheld_percentile_is_a_dash_and_says_how_many_samples_it_needs(tables):
    text = shown(tables, width=200)
    assert "—" in text
    assert "UNDECIDED p99 needs 422 more samples (240 of 662)." in text


def test_absent_power_is_said_once_a_session_and_has_no_column(tables):
    text = shown(tables)
    assert text.count("no energy, no power: no power source on this device") == 2
    assert "J/call" not in text


def test_every_reason_says_what_to_do_next(tables):
    assert "reboot, then measure again" in " ".join(shown(tables).split())


def test_no_recordings_is_said_in_words():
    assert shown(build([])) == "no recordings\n"


@pytest.mark.parametrize(
    ("value", "lo", "hi", "text"),
    [
        (163.14, 161.9, 164.3, "163.1 ± 1.2"),
        (41.234, 41.2, 41.9, "41.23 ± 0.67"),
        (1234.6, 1200.0, 1300.0, "1235 ± 65"),
        (0.0031, 0.0030, 0.0032, "0.00310 ± 0.00010"),
        (5.0, 5.0, 5.0, "5.000 ± 0.000"),
        (5.12345, None, None, "5.123 ± ?"),
        (None, None, None, "—"),
    ],
)
def test_a_figure_has_two_digits_of_its_uncertainty(value, lo, hi, text):
    assert plus_minus({"x": value, "x_lo": lo, "x_hi": hi}, "x") == text


def test_records_are_json_with_nulls(tables):
    for frame in (tables.latency, tables.energy, tables.power):
        records = json.loads(json.dumps(to_records(frame), allow_nan=False))
        assert len(records) == 5
        assert list(records[0]) == list(frame.columns)
    assert to_records(tables.latency)[3]["latency_p99_ms"] is None
    assert to_records(tables.power)[0]["power_peak_w"] is None


def test_rows_that_share_a_scheme_are_told_apart(tmp_path):
    store = Store(tmp_path)
    recording = make_recording(("fp32", "int8"))
    entries = [
        entry.model_copy(
            update={
                "digest": f"sha256:{lowering}",
                "manifest": {**recording.artifacts[1].manifest, "lowering": lowering},
            }
        )
        for lowering, entry in zip(("merged", "unmerged"), recording.artifacts, strict=True)
    ]
    store.write(recording.model_copy(update={"artifacts": entries}), make_samples(), make_state())
    text = shown(build(store.load_all()[0]))
    assert "against minilm-bbc-int8: minilm-bbc-unmerged-int8" in text


def test_an_interval_wider_than_its_figure_does_not_round_the_figure_away() -> None:
    row = {"latency_p50_ms": 0.0412, "latency_p50_ms_lo": 0.0, "latency_p50_ms_hi": 850.0}
    assert plus_minus(row, "latency_p50_ms") == "0.0412 ± ?"
    row["latency_p50_ms_hi"] = 0.3
    assert plus_minus(row, "latency_p50_ms") == "0.041 ± 0.259"


def test_the_highest_percentile_that_was_asked_for_is_shown(tmp_path) -> None:
    store = Store(tmp_path)
    protocol = make_protocol(percentiles=[50.0, 90.0, 95.0])
    store.write(make_recording(protocol=protocol), make_samples(rounds=10), make_state())
    text = shown(build(store.load_all()[0]))
    assert "p95 ms" in text
    assert "p99 ms" not in text
