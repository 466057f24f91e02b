"""The tables: the same bytes from the same recordings, and nothing that was not measured."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from edgebench.recording import Solo
from edgebench.results.api import results
from edgebench.results.columns import TABLES
from edgebench.results.store import Store
from edgebench.results.tables import build, write
from tests.results.make import MILLISECOND, make_manifest, make_recording, make_samples, make_state

FILES = [f"{table}.{kind}" for table in TABLES for kind in ("csv", "parquet")]
PERCENTILES = ("p50", "p90", "p95", "p99", "p999")


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A results directory with three sessions."""
    root = tmp_path_factory.mktemp("results")
    store = Store(root / "runs")
    store.write(make_recording(), make_samples(), make_state())
    three = make_recording(("fp32", "int8"), launches=3)
    store.write(three, make_samples(3, (9.0, 4.0), seed=1), make_state(3))
    one = make_recording(("int8",), launches=1)
    store.write(one, make_samples(1, (5.0,), rounds=5), [])
    return root


@pytest.fixture(scope="module")
def tables(root):
    return results(root).tables


def read_all(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


# --- byte for byte ------------------------------------------------------------------------------


def test_the_same_recordings_give_the_same_bytes(root, tables, tmp_path):
    paths = write(tables, tmp_path / "a")
    assert [path.name for path in paths] == FILES
    write(results(root).tables, tmp_path / "b")
    assert read_all(tmp_path / "a") == read_all(tmp_path / "b")
    assert sorted(read_all(tmp_path / "a")) == sorted(FILES)


def test_the_order_in_which_recordings_are_found_does_not_matter(root, tables, tmp_path):
    loaded, _ = Store(root / "runs").load_all()
    write(tables, tmp_path / "a")
    write(build([*reversed(loaded), loaded[0]]), tmp_path / "b")
    assert read_all(tmp_path / "a") == read_all(tmp_path / "b")


@pytest.mark.parametrize("seed", ["0", "12345"])
def test_another_process_with_another_hash_seed_gives_the_same_bytes(root, tables, tmp_path, seed):
    write(tables, tmp_path / "a")
    program = (
        "import os, pathlib, sys\n"
        "listing = os.scandir\n"
        "os.scandir = lambda path: reversed(list(listing(path)))\n"
        "from edgebench.results.api import results\n"
        "from edgebench.results.tables import write\n"
        "write(results(sys.argv[1]).tables, pathlib.Path(sys.argv[2]))\n"
    )
    subprocess.run(
        [sys.executable, "-c", program, str(root), str(tmp_path / "b")],
        env={**os.environ, "PYTHONHASHSEED": seed, "LC_ALL": "C", "TZ": "Asia/Tokyo"},
        check=True,
    )
    assert read_all(tmp_path / "a") == read_all(tmp_path / "b")


def test_a_table_that_cannot_be_written_leaves_the_old_ones(tables, tmp_path, monkeypatch):
    from edgebench.errors import StorageError
    from edgebench.results import atomic

    write(tables, tmp_path)
    before = read_all(tmp_path)
    written = []

    def fails_at_the_fourth(path, data):
        if len(written) == 3:
            raise OSError(28, "No space left on device")
        written.append(path)
        path.write_bytes(data)

    monkeypatch.setattr(atomic, "write_synced", fails_at_the_fourth)
    with pytest.raises(StorageError, match="no space left"):
        write(build([]), tmp_path)
    assert read_all(tmp_path) == before


# --- form ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", TABLES)
def test_csv_parquet_and_frame_hold_the_same_columns_and_values(tables, tmp_path, name):
    write(tables, tmp_path)
    parquet = pq.read_table(tmp_path / f"{name}.parquet")
    with (tmp_path / f"{name}.csv").open(newline="", encoding="utf-8") as stream:
        header, *rows = csv.reader(stream)
    names = [column.name for column in TABLES[name]]
    assert names == header == parquet.column_names == list(getattr(tables, name).columns)
    assert len(rows) == parquet.num_rows == 6
    kinds = {"string": str, "float": float, "integer": int, "boolean": lambda t: t == "true"}
    for row, record in zip(rows, parquet.to_pylist(), strict=True):
        for text, column in zip(row, TABLES[name], strict=True):
            value = kinds[column.kind](text) if text or column.kind == "string" else None
            assert value == (record[column.name] or "" if value == "" else record[column.name])


def test_csv_lines_end_as_rfc_4180_has_it(tables, tmp_path):
    write(tables, tmp_path)
    data = (tmp_path / "latency.csv").read_bytes()
    assert data.count(b"\r\n") == 7
    assert data.count(b"\n") == 7


def test_parquet_says_its_schema_version_and_the_unit_of_each_column(tables, tmp_path):
    write(tables, tmp_path)
    schema = pq.read_schema(tmp_path / "latency.parquet")
    assert schema.metadata[b"edgebench.schema"] == b"edgebench.tables/1"
    assert schema.field("latency_p50_ms").metadata == {b"unit": b"ms"}


def test_floats_have_at_most_nine_significant_digits(tables, tmp_path):
    write(tables, tmp_path)
    with (tmp_path / "latency.csv").open(newline="") as stream:
        for row in csv.DictReader(stream):
            for name in ("latency_p50_ms", "latency_p50_ms_lo", "latency_mean_ms"):
                assert float(row[name]) == float(f"{float(row[name]):.9g}")


def test_column_names_end_in_their_units():
    ends = {"ms": "_ms", "1/s": "_per_s", "J": "_j", "W": "_w", "MB (10^6 bytes)": "_mb"}
    for columns in TABLES.values():
        names = [column.name for column in columns]
        assert len(set(names)) == len(names)
        for column in columns:
            stem = column.name.removesuffix("_lo").removesuffix("_hi")
            assert stem.endswith(ends.get(column.unit, "")), column


# --- content ------------------------------------------------------------------------------------


def test_no_meter_means_empty_figures_and_a_reason_never_zero(tables, tmp_path):
    write(tables, tmp_path)
    for name in ("energy", "power"):
        figures = [column.name for column in TABLES[name] if column.kind == "float"]
        assert figures
        assert getattr(tables, name)[figures].isna().all(axis=None)
        assert set(getattr(tables, name)["reason"]) == {"no power source on this device"}
        for record in pq.read_table(tmp_path / f"{name}.parquet").to_pylist():
            assert {record[figure] for figure in figures} == {None}
        with (tmp_path / f"{name}.csv").open(newline="") as stream:
            for row in csv.DictReader(stream):
                assert {row[figure] for figure in figures} == {""}
                assert row["verdict"] in ("VALID", "INVALID", "UNDECIDED")


def test_a_row_is_traced_to_its_recording_and_artifact(root, tables):
    loaded, _ = Store(root / "runs").load_all()
    first = tables.latency.iloc[1]
    assert first["run_id"] == f"{loaded[0].id}-1"
    assert first["artifact_digest"] == make_manifest("int8").digest
    assert first["device_fingerprint_digest"] == "sha256:fingerprint"
    assert (first["n"], first["launches"], first["seq_len"]) == (800, 5, 128)


def test_figures_lie_within_their_intervals_and_percentiles_in_order(tables):
    frame = tables.latency
    for name in ("latency_p50_ms", "latency_p90_ms", "latency_mean_ms", "throughput_per_s"):
        known = frame[frame[f"{name}_lo"].notna()]
        assert len(known)
        assert (known[f"{name}_lo"] <= known[name]).all()
        assert (known[name] <= known[f"{name}_hi"]).all()
    full = frame[frame["latency_p99_ms"].notna()]
    assert (full["latency_p50_ms"] < full["latency_p90_ms"]).all()
    assert (full["latency_p90_ms"] < full["latency_p99_ms"]).all()


def test_figures_are_those_of_the_samples_counted(root, tables):
    loaded, _ = Store(root / "runs").load_all()
    samples = loaded[1].samples
    mine = (samples["phase"] == 2) & (samples["artifact"] == 1)
    durations = sorted(samples["duration_ns"][mine] / 1e6)
    row = tables.latency.iloc[4]
    assert row["latency_p50_ms"] == pytest.approx(durations[len(durations) // 2])
    assert row["throughput_per_s"] == pytest.approx(1000 / row["latency_mean_ms"])
    assert row["load_time_ms"] == pytest.approx((300 * 301 * 302) ** (1 / 3))


def test_p99_is_withheld_below_662_samples_with_the_reason(tables):
    row = tables.latency.iloc[3]
    assert row["n"] == 480
    assert row[["latency_p99_ms", "latency_p99_ms_lo", "latency_p99_ms_hi"]].isna().all()
    assert row["latency_p95_ms"] > 0
    assert row["verdict"] == "UNDECIDED"
    assert "p99-samples" in row["reasons"].split(";")
    assert "p99 needs 182 more samples" in row["reasons_text"]


def test_every_artifact_is_compared_with_fp32_but_never_with_itself(tables):
    session = tables.latency.iloc[:3].set_index("scheme")
    assert session["speedup_vs_reference"].isna().to_dict() == {
        "fp32": True,
        "int8": False,
        "int3": False,
    }
    assert set(session["reference_artifact_digest"]) == {make_manifest("fp32").digest}
    int3 = session.loc["int3"]
    assert int3["speedup_vs_reference_lo"] < 4.0 < int3["speedup_vs_reference_hi"]


def test_fp32_of_another_adapter_is_no_reference(tmp_path):
    recording = make_recording(("fp32", "int8"))
    other = make_manifest("fp32", adapter="other")
    entry = recording.artifacts[0].model_copy(
        update={"manifest": other.model_dump(mode="json", by_alias=True), "digest": other.digest}
    )
    int8, fp32 = recording.artifacts[1], recording.artifacts[0]
    recording = recording.model_copy(update={"artifacts": [entry, int8, fp32]})
    store = Store(tmp_path)
    store.write(recording, make_samples(rounds=5), [])
    frame = build(store.load_all()[0]).latency
    assert list(frame["reference_artifact_digest"]) == [other.digest, fp32.digest, fp32.digest]


def test_emulated_rows_stay_out_unless_asked_for(tmp_path):
    device = make_recording().device.model_copy(update={"emulated": True})
    store = Store(tmp_path / "runs")
    store.write(make_recording(device=device), make_samples(rounds=5), [])
    assert len(results(tmp_path).latency) == 0
    shown = results(tmp_path, include_emulated=True).latency
    assert len(shown) == 3
    assert shown["emulated"].all()
    assert set(shown["verdict"]) == {"INVALID"}


def test_empty_tables_have_all_their_columns(tmp_path):
    write(build([]), tmp_path)
    assert pq.read_table(tmp_path / "power.parquet").num_rows == 0
    assert (tmp_path / "power.csv").read_text().startswith("run_id,recording_id,")


def test_a_session_in_which_nothing_was_measured_still_has_its_rows(tmp_path):
    recording = make_recording(("fp32", "int8"), launches=1)
    launch = recording.launches[0].model_copy(
        update={"outcome": "crashed", "load_ns": [], "warmup": [], "stopped_by": None}
    )
    solo = [each.model_copy(update={"accuracy": None}) for each in recording.solo[:1]]
    recording = recording.model_copy(update={"launches": [launch], "solo": solo})
    store = Store(tmp_path)
    store.write(recording, {n: c[:0] for n, c in make_samples(rounds=1).items()}, [])
    frame = build(store.load_all()[0]).latency
    assert list(frame["verdict"]) == ["INVALID", "INVALID"]
    assert list(frame["n"]) == [0, 0]
    figures = [f"latency_{p}_ms" for p in PERCENTILES] + ["load_time_ms", "accuracy"]
    assert frame[figures].isna().all(axis=None)
    assert all("nothing-measured" in codes for codes in frame["reasons"])


def test_an_artifact_that_could_not_be_loaded_has_a_row_without_figures(tmp_path):
    recording = make_recording(("fp32", "int8"))
    solo = [
        recording.solo[0],
        Solo(artifact=1, outcome="out-of-memory", error="limit of 100 MB"),
    ]
    launches = [
        each.model_copy(update={"load_ns": [MILLISECOND, None], "warmup": [each.warmup[0], None]})
        for each in recording.launches
    ]
    recording = recording.model_copy(update={"solo": solo, "launches": launches})
    store = Store(tmp_path)
    store.write(recording, make_samples(5, (40.0,)), make_state())
    frame = build(store.load_all()[0]).latency
    assert list(frame["verdict"]) == ["VALID", "INVALID"]
    assert list(frame["n"]) == [40 * 4 * 5, 0]
    absent = ["load_time_ms", "warmup_steady", "memory_peak_rss_mb", "speedup_vs_reference"]
    assert frame.loc[1, absent].isna().all()
    assert frame["reasons"][1].startswith("out-of-memory;nothing-measured")


def test_a_recording_made_in_a_notebook_pivots(root):
    runs = results(root)
    table = runs.latency.query("device == 'pi4'").pivot_table(
        index="artifact", columns="seq_len", values="latency_p50_ms"
    )
    assert list(table.columns) == [128]
    assert repr(runs) == "Results(3 recordings)"


def test_a_broken_recording_is_reported_beside_the_others(root, tmp_path):
    import shutil

    shutil.copytree(root, tmp_path / "copy")
    store = Store(tmp_path / "copy" / "runs")
    (store.root / store.list()[0] / "state.jsonl").write_text("")
    runs = results(tmp_path / "copy")
    assert (len(runs.recordings), len(runs.broken)) == (2, 1)
    assert repr(runs) == "Results(2 recordings, 1 broken)"
