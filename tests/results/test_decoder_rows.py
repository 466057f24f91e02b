"""TTFT, TPOT and tokens a second of a recording whose truth is known."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from edgebench.recording import Decoding, Greedy, Perplexity, Recording, Solo
from edgebench.results.show import render
from edgebench.results.store import Store
from edgebench.results.tables import build
from edgebench.verdict import Status, judge
from tests.results.make import (
    MILLISECOND,
    make_protocol,
    make_recording,
    make_samples,
    make_state,
)

NEW = 5
#: Milliseconds of the two artifacts: the prompt, and each further token.
TTFT, TPOT = (40.0, 10.0), (8.0, 4.0)


def solos(**changes: Any) -> list[Solo]:
    cache = {"cache": {"kind": "shared", "bytes": 3_000_000, "dtype": "float32"}}
    return [
        Solo(artifact=i, outcome="ok", peak_rss_bytes=180_000_000, execution=cache, **changes)
        for i in (0, 1)
    ]


def recorded(scenario: str, prompt_len: int = 100, **changes: Any) -> Recording:
    decoding = Decoding(
        scenario=scenario, prompt_len=prompt_len, new_tokens=NEW if scenario == "generate" else 1
    )
    protocol = make_protocol(
        scenario=scenario, seq_len=prompt_len, decoding=decoding, percentiles=[50.0, 90.0]
    )
    return make_recording(("fp32", "int8"), protocol=protocol, **{"solo": solos(), **changes})


def stored(path: Any, recording: Recording, samples: Any, tokens: Any = None) -> Any:
    store = Store(path)
    store.write(recording, samples, make_state(), tokens=tokens)
    return store.load(recording.id)


def generated() -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Calls and their tokens; single tokens of a call differ, and one in 100 is slow."""
    samples = make_samples(median_ms=TTFT, rounds=20, calls=4)
    random = np.random.default_rng(1)
    n = samples["duration_ns"].size
    steps = np.array(TPOT)[samples["artifact"]][:, None] * MILLISECOND
    times = steps * random.uniform(0.9, 1.1, size=(n, NEW - 1))
    times[random.random(times.shape) < 0.02] *= 3
    every = np.hstack([samples["duration_ns"][:, None], times.astype(np.int64)])
    samples["duration_ns"] = every.sum(1)
    samples["start_ns"] = np.cumsum(samples["duration_ns"]) - samples["duration_ns"]
    calls, numbers = np.indices(every.shape)
    tokens = {"call": calls.ravel(), "token": numbers.ravel(), "duration_ns": every.ravel()}
    return samples, tokens


@pytest.fixture(scope="module")
def generate(tmp_path_factory: pytest.TempPathFactory) -> Any:
    recording = recorded("generate")
    return stored(tmp_path_factory.mktemp("runs"), recording, *generated())


def test_tokens_come_back_as_they_were_stored(generate: Any):
    _, tokens = generated()
    for name, column in tokens.items():
        assert generate.tokens[name].tolist() == column.tolist()
    assert "tokens.parquet" in generate.recording.files


def test_generate_has_loadgens_ttft_and_tpot(generate: Any):
    rows = build([generate]).latency
    for i, row in rows.iterrows():
        assert row["ttft_p50_ms"] == pytest.approx(TTFT[i], rel=0.05)
        mean_step = TPOT[i] * 1.04  # one in 50 takes three times as long: the median has none
        assert row["tpot_p50_ms"] == pytest.approx(TPOT[i], rel=0.04)
        assert row["tpot_p50_ms_lo"] < TPOT[i] < row["tpot_p50_ms_hi"]
        assert row["tpot_p90_ms"] > row["tpot_p50_ms"]
        # The slow tokens, which a call's mean hides.
        assert row["itl_p99_ms"] > 2.6 * TPOT[i]
        total = TTFT[i] + (NEW - 1) * mean_step
        assert row["tokens_per_s"] == pytest.approx(NEW / total * 1e3, rel=0.05)
        assert row["latency_p50_ms"] == pytest.approx(total, rel=0.05)
        assert (row["prompt_len"], row["new_tokens"]) == (100, NEW)
        assert row["kv_cache_mb"] == 3
    assert rows["context_len"].isna().all()


def test_ratios_are_of_ttft_tpot_and_the_whole(generate: Any):
    row = build([generate]).latency.iloc[1]
    assert row["ttft_speedup_vs_reference"] == pytest.approx(4, rel=0.03)
    assert row["tpot_speedup_vs_reference"] == pytest.approx(2, rel=0.05)
    assert 2 < row["speedup_vs_reference"] < 4


def test_prefill_counts_the_prompts_tokens(tmp_path: Any):
    loaded = stored(tmp_path, recorded("prefill"), make_samples(median_ms=TTFT))
    row = build([loaded]).latency.iloc[0]
    assert row["ttft_p50_ms"] == row["latency_p50_ms"]
    assert row["tokens_per_s"] == pytest.approx(100 / TTFT[0] * 1e3, rel=0.05)
    assert row[["tpot_p50_ms", "itl_p99_ms", "context_len", "new_tokens"]].isna().all()


def test_decode_counts_single_steps_behind_its_context(tmp_path: Any):
    loaded = stored(tmp_path, recorded("decode"), make_samples(median_ms=TPOT))
    row = build([loaded]).latency.iloc[1]
    assert row["tpot_p50_ms"] == row["latency_p50_ms"]
    assert row["tokens_per_s"] == pytest.approx(1e3 / TPOT[1], rel=0.05)
    assert (row["context_len"], row["new_tokens"]) == (100, 1)
    assert row[["ttft_p50_ms", "itl_p99_ms", "prompt_len"]].isna().all()
    assert row["tpot_speedup_vs_reference"] == row["speedup_vs_reference"]


def test_other_fp32_tokens_than_pytorchs_void_the_row_and_of_int8_are_a_figure(generate: Any):
    greedy = Greedy(prompt_len=4, tokens=[[1, 2, 3, 9]], expected=[[1, 2, 3, 4]])
    nll = Perplexity(nll_nat=[30.0, 40.0], tokens=[10, 13], duration_ns=1)
    recording = recorded("generate", solo=solos(greedy=greedy, perplexity=nll))
    verdicts = [judge(recording, generate.samples, make_state(), i) for i in (0, 1)]
    assert verdicts[0].status is Status.INVALID
    assert verdicts[0].codes == ("tokens-differ", "withheld")
    assert "token 4 of 4 after prompt 1 is 9, not 4" in verdicts[0].reasons[0].seen
    assert verdicts[1].status is Status.VALID
    rows = build([type(generate)(**{**vars(generate), "recording": recording})]).latency
    assert rows["greedy_agreement"].tolist() == [0.75, 0.75]
    assert rows["perplexity"].tolist() == pytest.approx([np.exp(70 / 23)] * 2)
    assert rows["perplexity_tokens"].tolist() == [23, 23]


def test_without_texts_perplexity_is_empty_with_a_reason(generate: Any):
    verdict = judge(generate.recording, generate.samples, make_state(), 1)
    assert verdict.status is Status.VALID
    assert "accuracy-unmeasured" in verdict.codes
    assert any("perplexity was not measured" in each.seen for each in verdict.reasons)
    assert build([generate]).latency["perplexity"].isna().all()


@pytest.mark.parametrize(
    ("scenario", "said"),
    [
        ("generate", ["prompt 100 · 5 new tokens", "TTFT ms", "TPOT ms", "tokens/s"]),
        ("prefill", ["prompt 100", "TTFT p50 ms", "p95 ms"]),
        ("decode", ["context 100", "TPOT p50 ms", "p95 ms"]),
    ],
)
def test_a_decoders_table_reads_well_in_a_hundred_columns(
    tmp_path: Any, scenario: str, said: list[str]
):
    samples, tokens = generated()
    given = tokens if scenario == "generate" else None
    loaded = stored(tmp_path, recorded(scenario), samples, given)
    stream = io.StringIO()
    tables = build([loaded])
    Console(file=stream, width=100, force_terminal=False).print(render(tables))
    lines = stream.getvalue().splitlines()
    assert max(map(len, lines)) <= 100
    for words in said:
        assert words in stream.getvalue()
    against = [line for line in lines if "against fp32: int8" in line]
    assert len(against) == (3 if scenario == "generate" else 1)
    head = next(i for i, line in enumerate(lines) if line.startswith("artifact"))
    assert "minilm-bbc-int8" in lines[head + 2]  # a row is a line
