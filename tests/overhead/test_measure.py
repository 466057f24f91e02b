"""``edgebench overhead`` on this machine, from an adapter to the files, with a tiny model."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from tests.export import tiny
from tests.export.decoder import tiny as tiny_decoders
from tests.fixtures_export import require
from tests.measure.bench import Bench

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture
def bench(tmp_path: Path):
    found = Bench(tmp_path)
    yield found
    found.close()


def test_forms_are_compared_with_the_base_and_judged(bench: Bench):
    require("torch", "transformers", "peft", "onnxscript")
    base = tiny.write_bert(bench.path / "base", layers=1)
    adapter = tiny.write_adapter(base, bench.path / "adapter")
    asked = ["overhead", str(adapter), "--base", str(base), "--device", "bench", "--seq-len", "24"]
    asked += ["--launches", "1", "--percentile", "50", "--precision", "0.9", "--max-duration", "1"]
    found = bench.call(
        *asked,
        "--max-adapter-mb",
        "2.5",
        "--max-flop-overhead",
        "0.1%",
        "--max-energy-overhead",
        "5%",
    )
    assert found.returncode == 1, found.stderr
    lines = found.stdout.splitlines()
    assert [line.split()[0] for line in lines if " budget " in line] == [
        *("undecided", "pass", "pass"),  # energy, FLOPs, MB of merged
        *("undecided", "fail", "pass") * 2,
    ]
    assert any(line.startswith("no energy overhead: no power source") for line in lines)
    directory = bench.path / "results" / "tables"
    document = json.loads((directory / "overhead.json").read_text())
    forms = {form["lowering"]: form for form in document["forms"]}
    assert list(forms) == ["merged", "unmerged", "swappable"]
    assert forms["merged"]["flops"]["value"] == 0
    # With the scale folded in, a swappable branch saves the multiplication by it.
    assert 0 < forms["swappable"]["flops"]["value"] < forms["unmerged"]["flops"]["value"]
    assert all(form["memory"]["value"] is not None for form in forms.values())
    with (directory / "overhead.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert [row["budgets"] for row in rows] == ["undecided", "fail", "fail"]
    assert {row["recording_id"] for row in rows} == {document["recording_id"]}
    assert (directory / "latency.csv").is_file()
    artifacts = sorted((bench.path / "results" / "artifacts").glob("[!.]*"))
    counted = bench.call("flops", *artifacts)
    assert counted.returncode == 0, counted.stderr
    assert "million operations a sample" in counted.stdout
    wrong = bench.call(*asked, "--lowering", "folded")
    assert wrong.returncode == 2
    assert "have no folded form" in wrong.stderr


def test_a_decoders_forms_are_compared_in_one_scenario(bench: Bench):
    require("torch", "transformers", "peft")
    base = tiny_decoders.write_llama(bench.path / "llama")
    adapter = tiny_decoders.write_adapter(base, bench.path / "adapter")
    asked = ["overhead", str(adapter), "--base", str(base), "--device", "bench", "--seq-len", "24"]
    asked += ["--scenario", "prefill", "--prompt-len", "16", "-q", "int8", "--max-duration", "1"]
    asked += ["--launches", "1", "--percentile", "50", "--precision", "0.9"]
    found = bench.call(*asked, "--max-flop-overhead", "0.1%")
    assert found.returncode == 1, found.stderr
    document = json.loads((bench.path / "results" / "tables" / "overhead.json").read_text())
    forms = {form["lowering"]: form for form in document["forms"]}
    assert list(forms) == ["merged", "unmerged", "swappable"]
    assert forms["merged"]["flops"]["value"] == 0
    assert forms["unmerged"]["flops"]["value"] == forms["swappable"]["flops"]["value"] > 0
    assert not any(form["uncounted"] for form in document["forms"])
    assert all(form["latency_ms"]["value"] > 0 for form in document["forms"])
