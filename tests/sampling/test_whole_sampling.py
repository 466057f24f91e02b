"""`edgebench sample` on this machine, from the command to the document: killed, and gone on."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from edgebench.surrogate.training_table import read_tables
from tests.agent.agents import wait_until
from tests.export.tiny import write_adapter, write_bert
from tests.measure.bench import Bench, kill


@pytest.fixture
def words(bench: Bench, tmp_path: Path) -> list[str]:
    """A sampling of two configurations of a tiny model, in short launches."""
    base = write_bert(tmp_path / "base")
    adapter = write_adapter(base, tmp_path / "adapter")
    words = ["sample", "--device", "bench", "--base", str(base), "--adapter", str(adapter)]
    words += ["--n", "2", "-q", "fp32", "--min-seq-len", "8", "--max-seq-len", "24"]
    return [*words, "--launches", "1", "--again", "0"]


def test_a_sampling_that_is_killed_goes_on_where_it_was(bench: Bench, words: list[str]) -> None:
    part = bench.path / "calibration" / ".bench_2samples.part"
    process = bench.start(*words)
    wait_until(part.exists, "the first sample")
    (first,) = json.loads(part.read_text())["done"].values()
    kill(process)
    document_file = bench.path / "calibration" / "bench_2samples.json"
    assert not document_file.exists()

    done = bench.call(*words)
    assert done.returncode == 0, done.stderr
    assert "p50 ms" in done.stdout
    samples = json.loads(document_file.read_text())["samples"]
    assert samples[first["sample"]] == first  # the very recording: it was not measured again
    ids = [sample["recording_id"] for sample in samples]
    assert len(set(ids)) == 2
    assert set(ids) <= set(bench.store.list())
    assert all(sample["latency_ms"] > 0 for sample in samples)
    assert not part.exists()
    if any(sample["verdict"] != "INVALID" for sample in samples):  # a busy machine may spoil both
        table = read_tables([document_file.with_suffix(".csv")])
        assert table.devices == ("bench",)


def test_a_dry_run_says_how_long_and_leaves_nothing(bench: Bench, words: list[str]) -> None:
    done = bench.call(*words, "--dry-run", "--json")
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert said["export_s"] > 0
    assert said["run_s"] > said["call_s"] > 0
    assert said["total_s"] >= 2 * said["export_s"]
    assert not (bench.path / "calibration").exists()
    # A probe in the artifact cache would take no time to export when it is asked again.
    assert not list((bench.path / "results").glob("artifacts/*"))
