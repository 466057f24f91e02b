"""A swappable decoder on this machine: which adapter ran, its tokens, what changing it takes."""

from __future__ import annotations

import io
import json
from dataclasses import replace

import numpy as np
import pytest
from rich.console import Console

from edgebench.errors import ArtifactError
from edgebench.measure import RunOptions, run
from edgebench.results.show import render
from edgebench.results.tables import build
from tests.measure.bench import QUICK, Bench
from tests.tiny_decoder import decoder_artifact, greedy
from tests.tiny_swappable import factors, model, swappable_decoder

NEW = 4
ONE = replace(QUICK, launches=1, percentile=50.0, accuracy="all")


def test_an_adapter_is_measured_beside_others_and_its_tokens_are_its_own(bench: Bench):
    ours = swappable_decoder(bench.path / "artifacts", name="swap")
    plain = decoder_artifact(bench.path / "artifacts", name="plain", scheme="int8")
    options = replace(ONE, scenario="generate", new_tokens=NEW, adapter="mood")
    recording = run(bench.device(), [ours, plain], bench.store, options)
    assert [entry.active_adapter for entry in recording.artifacts] == ["mood", None]
    tables = build([bench.store.load(recording.id)], include_emulated=True)
    row, other = tables.latency.iloc[0], tables.latency.iloc[1]
    assert (row["adapter"], row["lowering"]) == ("mood", "swappable")
    assert (row["kept_ranks"], row["extra_flops"]) == (8, 100.0)
    assert row["greedy_agreement"] == 1
    assert row["adapter_swap_us"] > 0
    assert row["adapter_load_us"] > 0
    assert np.isnan(other["adapter_swap_us"])
    assert row["ttft_p50_ms"] > 0
    ids = np.load(ours.path / "inputs.npz")["input_ids"]
    first = recording.launches[0].generated[0][0]
    assert first.tokens == greedy(model(), ids[first.prompt].tolist(), NEW, factors()["mood"])
    stream = io.StringIO()
    Console(file=stream, width=200).print(render(tables))
    assert "fp32 with mood: a swap takes " in stream.getvalue()
    assert row["perplexity"] != pytest.approx(other["perplexity"], rel=1e-3)


@pytest.mark.parametrize("scenario", ["prefill", "decode"])
def test_the_base_alone_is_measured_by_the_name_none(bench: Bench, scenario: str):
    ours = swappable_decoder(bench.path / "artifacts")
    recording = run(
        bench.device(), [ours], bench.store, replace(ONE, scenario=scenario, adapter="none")
    )
    row = build([bench.store.load(recording.id)], include_emulated=True).latency.iloc[0]
    assert recording.artifacts[0].active_adapter == "none"
    assert row["greedy_agreement"] == 1
    assert row["kept_ranks"] == 0
    assert row["adapter_swap_us"] > 0


def test_an_adapter_that_is_not_there_is_named(bench: Bench):
    ours = swappable_decoder(bench.path / "artifacts")
    with pytest.raises(ArtifactError, match=r"no adapter 'nobody'"):
        run(bench.device(), [ours], bench.store, RunOptions(adapter="nobody"))
    done = bench.call("run", "--device", "bench", ours, "--adapter", "nobody", "--json")
    assert done.returncode == 3
    error = json.loads(done.stdout)["error"]
    assert "news, mood; none runs the base alone" in error["fix"]
