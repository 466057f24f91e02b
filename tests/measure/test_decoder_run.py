"""Decoders measured on this machine, and what does not fit."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from edgebench.errors import InputError
from edgebench.measure import RunOptions, run
from edgebench.recording import PHASES
from edgebench.results.tables import build
from edgebench.verdict import Code, Status, judge
from tests.measure.bench import QUICK, Bench
from tests.tiny_decoder import (
    HEAD_DIM,
    KV_HEADS,
    LAYERS,
    POSITIONS,
    PROMPT,
    decoder_artifact,
    greedy,
    tiny_decoder,
)

NEW = 4
#: One short launch of each scenario.
GENERATE = replace(QUICK, new_tokens=NEW, precision=0.9, max_duration_s=5.0)
ONE = replace(QUICK, max_duration_s=5.0)


def test_generate_keeps_every_tokens_time_and_the_tokens(bench: Bench):
    first = decoder_artifact(bench.path / "artifacts", name="shared")
    second = decoder_artifact(
        bench.path / "artifacts", name="grown", scheme="int8", cache="growing", foreign=True
    )
    options = replace(GENERATE, accuracy="all", launches=2)
    recording = run(bench.device(), [first, second], bench.store, options)
    loaded = bench.store.load(recording.id)
    assert recording.protocol.scenario == "generate"
    assert recording.protocol.decoding.model_dump() == {
        "scenario": "generate",
        "prompt_len": PROMPT,
        "new_tokens": NEW,
    }
    calls = loaded.samples["duration_ns"].size
    tokens = loaded.tokens
    assert tokens["call"].tolist() == np.repeat(np.arange(calls), NEW).tolist()
    assert tokens["token"].tolist() == list(range(NEW)) * calls
    assert (tokens["duration_ns"] > 0).all()
    # The tokens fill their call, but for what it takes to call.
    sums = np.bincount(tokens["call"], tokens["duration_ns"])
    assert (sums <= loaded.samples["duration_ns"]).all()
    assert np.median(loaded.samples["duration_ns"] - sums) < 20_000
    ids = np.load(first.path / "inputs.npz")["input_ids"]
    made, other = recording.launches[0].generated
    models = [tiny_decoder(), tiny_decoder(foreign=True)]
    for number, said in enumerate((made, other)):
        for each in said[:2]:
            row = ids[each.prompt].tolist()
            assert each.tokens == greedy(models[number], row, NEW)
    assert recording.launches[1].generated == []
    rows = build([loaded]).latency
    assert rows["greedy_agreement"].tolist() == [1.0, 1.0]
    assert (rows["perplexity"] > 1).all()
    assert (rows["perplexity_tokens"] == 4 * 11 + 8).all()
    cache_mb = 2 * LAYERS * KV_HEADS * HEAD_DIM * (PROMPT + NEW) * 4 / 1e6
    assert rows["kv_cache_mb"].tolist() == pytest.approx([cache_mb] * 2)
    assert rows["ttft_p50_ms"].notna().all()
    assert rows["tpot_p50_ms"].notna().all()
    assert judge(recording, loaded.samples, loaded.state, 0).codes.count("tokens-differ") == 0


@pytest.mark.parametrize("scenario", ["prefill", "decode"])
def test_one_token_a_call_has_no_tokens_of_its_own(bench: Bench, scenario: str):
    artifact = decoder_artifact(bench.path / "artifacts")
    options = replace(ONE, scenario=scenario, prompt_len=PROMPT + 3)
    recording = run(bench.device(), [artifact], bench.store, options)
    loaded = bench.store.load(recording.id)
    assert "tokens.parquet" not in recording.files
    assert (loaded.samples["phase"] == PHASES.index("measure")).sum() >= 11
    row = build([loaded]).latency.iloc[0]
    assert row["context_len" if scenario == "decode" else "prompt_len"] == PROMPT + 3
    name = "tpot" if scenario == "decode" else "ttft"
    assert row[f"{name}_p50_ms"] == row["latency_p50_ms"]


def test_energy_windows_make_the_same_calls(bench: Bench):
    artifact = decoder_artifact(bench.path / "artifacts")
    options = replace(GENERATE, energy="on", energy_window_s=0.2, energy_max_duration_s=0.1)
    recording = run(bench.device(), [artifact], bench.store, options)
    loaded = bench.store.load(recording.id)
    in_window = np.flatnonzero(loaded.samples["phase"] == PHASES.index("energy"))
    assert in_window.size == sum(w.calls for w in recording.launches[0].energy_windows) > 0
    kept = np.isin(loaded.tokens["call"], in_window)
    assert kept.sum() == NEW * in_window.size


def test_fp32_that_generates_other_tokens_than_pytorch_did_is_void(bench: Bench):
    artifact = decoder_artifact(bench.path / "artifacts", wrong=True)
    recording = run(bench.device(), [artifact], bench.store, GENERATE)
    loaded = bench.store.load(recording.id)
    found = judge(recording, loaded.samples, loaded.state, 0)
    assert found.status is Status.INVALID
    assert Code.TOKENS_DIFFER in found.codes
    assert build([loaded]).latency["greedy_agreement"].iloc[0] == pytest.approx(11 / 12)


def test_a_cache_that_does_not_fit_is_out_of_memory(bench: Bench):
    # 400 MB a key or value of one layer, in a process that may have 700.
    wide = decoder_artifact(
        bench.path / "artifacts", head_dim=2**20, expected=0, model=tiny_decoder()
    )
    device = bench.device("limits = { memory_mb = 700 }")
    options = replace(ONE, scenario="prefill", prompt_len=50 * PROMPT // 8)
    recording = run(device, [wide], bench.store, options)
    (solo,) = recording.solo
    assert solo.outcome == "out-of-memory"
    assert recording.launches == []


def test_a_foreign_graph_whose_names_are_others_is_named(bench: Bench):
    model = tiny_decoder()
    for value in model.graph.input:
        value.name = value.name.replace("past_key_values.0.key", "past.0.key")
    for node in model.graph.node:
        for i, name in enumerate(node.input):
            node.input[i] = name.replace("past_key_values.0.key", "past.0.key")
    artifact = decoder_artifact(bench.path / "artifacts", expected=0, model=model)
    done = bench.call("run", "--device", "bench", artifact, "--json")
    assert done.returncode == 1 or done.returncode > 2
    (error,) = json.loads(done.stdout)["errors"]
    assert "an input 'past.0.key'" in error["what"]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (RunOptions(scenario="single-stream"), "single-stream is not one of decoders"),
        (RunOptions(prompt_len=POSITIONS), f"{POSITIONS + 32} positions, the decoder has"),
        (RunOptions(scenario="decode", prompt_len=POSITIONS), "1 new make 65 positions"),
    ],
)
def test_what_a_decoder_can_not_do_is_refused(bench: Bench, options: RunOptions, said: str):
    artifact = decoder_artifact(bench.path / "artifacts")
    with pytest.raises(InputError, match=said):
        run(bench.device(), [artifact], bench.store, options)
    bench.nothing_is_left()


def test_more_tokens_than_the_artifact_brings_are_refused(bench: Bench):
    artifact = decoder_artifact(bench.path / "artifacts", max_positions=10_000)
    with pytest.raises(InputError, match="have 128 tokens, fewer than the 129 asked for"):
        run(bench.device(), [artifact], bench.store, RunOptions(prompt_len=129))


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--scenario", "decode"], 3, "the scenario decode is of decoders"),
        (["--prompt-len", "8"], 2, "--prompt-len is of decoders"),
        (["--new-tokens", "8"], 2, "--new-tokens is of the scenario generate"),
    ],
)
def test_an_encoder_asked_to_generate_is_refused(bench: Bench, arguments, code, words):
    done = bench.call("run", "--device", "bench", bench.artifact(), *arguments, "--json")
    assert done.returncode == code
    assert words in json.loads(done.stdout)["error"]["what"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--scenario", "generate", "--batch", "2"], "one prompt a call"),
        (["--seq-len", "4"], "--prompt-len"),
        (["--new-tokens", "1"], "two tokens at least"),
    ],
)
def test_an_option_that_is_not_of_decoders(bench: Bench, arguments, words):
    artifact = decoder_artifact(bench.path / "artifacts")
    done = bench.call("run", "--device", "bench", artifact, *arguments, "--json")
    assert done.returncode == 2
    assert words in json.loads(done.stdout)["error"]["what"]
