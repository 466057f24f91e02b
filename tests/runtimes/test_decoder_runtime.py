"""The decoder's driver: the cache changes nothing but the time."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from edgebench.agent.agent import OnnxRuntime
from edgebench.runtimes import (
    decoder_adapters,
    decoder_driver,
    decoder_graph,
    decoder_runtime,
)
from edgebench.runtimes.decoder_graph import DecoderError
from edgebench.runtimes.decoder_runtime import DecoderRuntime
from tests.agent.agents import onnx_runtime
from tests.agent.test_language import NEWER, NEWER_KEYWORDS
from tests.tiny_decoder import (
    HEAD_DIM,
    KV_HEADS,
    LAYERS,
    PROMPT,
    VOCABULARY,
    greedy,
    tiny_decoder,
)

IDS = np.random.default_rng(1).integers(0, VOCABULARY, size=(3, PROMPT))
NEW = 9


def opened(
    path: Path, model: onnx.ModelProto, scenario: str, *, cache: str = "shared", **rule: int
) -> DecoderRuntime:
    onnx.save(model, path / "model.onnx")
    runtime = OnnxRuntime(str(path / "model.onnx"), onnx_runtime())
    spec = {"layers": LAYERS, "kv_heads": KV_HEADS, "head_dim": HEAD_DIM, "cache": cache}
    told: dict[str, Any] = {"scenario": scenario, "prompt_len": PROMPT, "new_tokens": 1}
    return DecoderRuntime(runtime, {**spec, "vocab_size": VOCABULARY}, {**told, **rule})


@pytest.fixture(params=["shared", "growing", "foreign"])
def kind(request: pytest.FixtureRequest) -> dict[str, Any]:
    cache = "growing" if request.param == "foreign" else request.param
    return {"model": tiny_decoder(foreign=request.param == "foreign"), "cache": cache}


def test_tokens_generated_with_a_cache_are_those_without_one(tmp_path: Path, kind: dict[str, Any]):
    runtime = opened(tmp_path, **kind, scenario="generate", new_tokens=NEW)
    prompts = runtime.prompts({"input_ids": IDS})
    times = np.zeros((6, NEW), np.int64)
    runtime.rows(times)
    for call in range(6):  # each prompt again, over a cache that the others have used
        runtime.call(prompts[call % 3])
    expected = [greedy(kind["model"], row.tolist(), NEW) for row in IDS]
    assert [each["tokens"] for each in runtime.generated()] == expected
    assert len({tuple(tokens) for tokens in expected}) == 3
    assert (times > 0).all()


def test_prefill_and_decode_give_the_first_and_the_second_token(
    tmp_path: Path, kind: dict[str, Any]
):
    expected = [greedy(kind["model"], row.tolist(), 2) for row in IDS]
    prefill = opened(tmp_path, **kind, scenario="prefill")
    for prompt in prefill.prompts({"input_ids": IDS}):
        prefill.call(prompt)
    assert [each["tokens"] for each in prefill.generated()] == [[row[0]] for row in expected]
    decode = opened(tmp_path, **kind, scenario="decode")
    (prompt,) = decode.prompts({"input_ids": IDS})
    for _ in range(4):  # the same step each time, behind the same context
        decode.call(prompt)
        assert decode.generated() == [{"prompt": 0, "tokens": [expected[0][1]]}]


def test_the_expected_tokens_are_found_or_the_difference_is(tmp_path: Path, kind: dict[str, Any]):
    runtime = opened(tmp_path, **kind, scenario="prefill")
    expected = np.array([greedy(kind["model"], row[:5].tolist(), 4) for row in IDS])
    arrays = {"input_ids": IDS, "expected_tokens": expected, "expected_prompt_len": np.array(5)}
    found = runtime.check(arrays)
    assert found == {"prompt_len": 5, "tokens": expected.tolist(), "expected": expected.tolist()}
    assert runtime.check({"input_ids": IDS}) is None
    expected[1, 2] += 1
    other = runtime.check(arrays)
    assert other["tokens"] != other["expected"] == expected.tolist()


def test_perplexity_is_that_of_the_graphs_own_logits(tmp_path: Path, kind: dict[str, Any]):
    runtime = opened(tmp_path, **kind, scenario="prefill")
    mask = np.ones_like(IDS)
    mask[1, 5:] = 0
    found = runtime.perplexity({"input_ids": IDS, "attention_mask": mask}, "all")
    assert found["tokens"] == [PROMPT - 1, 4, PROMPT - 1]
    session = runtime.session
    feed: dict[str, Any] = {
        "input_ids": IDS[1:2, :5],
        "attention_mask": mask[1:2, :5],
        "position_ids": np.arange(5)[None],
        "logits_to_keep": np.array([5]),
    }
    empty = np.zeros((1, KV_HEADS, 0, HEAD_DIM), np.float32)
    names = [item.name for item in session.get_inputs()]
    logits = session.run(["logits"], {n: feed.get(n, empty) for n in names})[0][0]
    chances = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    expected = -np.log([chances[i, IDS[1, i + 1]] for i in range(4)]).sum()
    assert found["nll_nat"][1] == pytest.approx(expected, rel=1e-4)
    assert runtime.perplexity({"input_ids": IDS}, 2)["tokens"] == [PROMPT - 1] * 2


def test_a_prompt_longer_than_a_row_is_rows_in_a_row(tmp_path: Path):
    model = tiny_decoder()
    runtime = opened(tmp_path, model, "prefill", prompt_len=PROMPT + 3)
    prompts = runtime.prompts({"input_ids": IDS})
    assert [ids.tolist() for _, ids in prompts] == [
        [IDS.reshape(-1)[:11].tolist()],
        [IDS.reshape(-1)[11:22].tolist()],
    ]
    with pytest.raises(DecoderError, match="a prompt of 25 tokens was asked for"):
        opened(tmp_path, model, "prefill", prompt_len=25).prompts({"input_ids": IDS})


def test_the_cache_is_counted_for_the_longest_sequence(tmp_path: Path):
    runtime = opened(tmp_path, tiny_decoder(), "generate", new_tokens=NEW)
    runtime.prompts({"input_ids": IDS})
    bytes_ = 2 * LAYERS * KV_HEADS * HEAD_DIM * (PROMPT + NEW) * 4
    cache = {"kind": "shared", "bytes": bytes_, "dtype": "float32"}
    assert runtime.execution()["cache"] == cache


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("attention_mask", "use_cache_branch", "an input 'use_cache_branch'"),
        ("past_key_values.1.key", "past.1.key", "an input 'past.1.key'"),
        ("present.1.value", "cache.1.value", "past_key_values.1.value and no present.1.value"),
        ("logits", "scores", "no logits"),
    ],
)
def test_wrong_names_in_a_foreign_graph_are_named(tmp_path: Path, old: str, new: str, said: str):
    model = tiny_decoder()
    for node in model.graph.node:
        for part in (node.input, node.output):
            for i, name in enumerate(part):
                part[i] = new if name == old else name
    for value in (*model.graph.input, *model.graph.output):
        value.name = new if value.name == old else value.name
    with pytest.raises(DecoderError, match=said):
        opened(tmp_path, model, "prefill")


def test_a_graph_with_another_number_of_layers_is_refused(tmp_path: Path):
    onnx.save(tiny_decoder(), tmp_path / "model.onnx")
    runtime = OnnxRuntime(str(tmp_path / "model.onnx"), onnx_runtime())
    spec = {"layers": 3, "kv_heads": KV_HEADS, "head_dim": HEAD_DIM, "cache": "shared"}
    with pytest.raises(DecoderError, match="3 layers need 6"):
        DecoderRuntime(runtime, spec, {"scenario": "prefill", "prompt_len": 1, "new_tokens": 1})


@pytest.mark.parametrize(
    "module", [decoder_adapters, decoder_driver, decoder_graph, decoder_runtime]
)
def test_it_is_written_for_python_3_8(module: Any):
    text = Path(module.__file__).read_text()
    tree = ast.parse(text, feature_version=(3, 8))
    names = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    assert not names & NEWER
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    assert not {word.arg for node in calls for word in node.keywords} & NEWER_KEYWORDS
    imported = {
        node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module
    }
    assert {name.split(".")[0] for name in imported} <= {"__future__", "typing", "edgebench"}
