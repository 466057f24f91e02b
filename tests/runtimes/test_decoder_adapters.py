"""Changing a decoder's adapter: what is bound is what computes, over one cache."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

from edgebench.agent.agent import OnnxRuntime
from edgebench.export import swappable
from edgebench.runtimes.decoder_graph import DecoderError
from edgebench.runtimes.decoder_runtime import DecoderRuntime
from tests.agent.agents import onnx_runtime
from tests.tiny_decoder import HEAD_DIM, KV_HEADS, LAYERS, PROMPT, VOCABULARY, greedy, tiny_decoder
from tests.tiny_swappable import SWAPPED, adapter_files, factors, model

IDS = np.random.default_rng(1).integers(0, VOCABULARY, size=(3, PROMPT))
NEW = 6


def opened(
    path: Path,
    active: str | None,
    *,
    cache: str = "shared",
    files: dict[str, str] | None = None,
    graph: onnx.ModelProto | None = None,
) -> DecoderRuntime:
    onnx.save(graph or model(), path / "model.onnx")
    runtime = OnnxRuntime(str(path / "model.onnx"), onnx_runtime())
    spec = {"layers": LAYERS, "kv_heads": KV_HEADS, "head_dim": HEAD_DIM, "cache": cache}
    spec["vocab_size"] = VOCABULARY
    rule = {"scenario": "generate", "prompt_len": PROMPT, "new_tokens": NEW}
    return DecoderRuntime(runtime, spec, rule, files or adapter_files(path), active)


def expected(active: str | None) -> list[list[int]]:
    given = factors()[active] if active else None
    return [greedy(model(), row.tolist(), NEW, given) for row in IDS]


def test_the_base_is_the_graph_without_branches_and_each_adapter_another():
    alone = [greedy(tiny_decoder(), row.tolist(), NEW) for row in IDS]
    assert expected(None) == alone
    assert len({str(expected(name)) for name in (None, "news", "mood")}) == 3


@pytest.mark.parametrize("cache", ["shared", "growing"])
@pytest.mark.parametrize("active", [None, "news", "mood"])
def test_calls_compute_with_the_active_adapter(tmp_path: Path, active: str | None, cache: str):
    """Run options would leave it out: a call with bound inputs ignores them."""
    runtime = opened(tmp_path, active, cache=cache)
    prompts = runtime.prompts({"input_ids": IDS})
    runtime.adapter_times()  # changes nothing for the calls
    for prompt in prompts:
        runtime.call(prompt)
    assert [each["tokens"] for each in runtime.generated()] == expected(active)


def test_an_adapter_that_is_bound_takes_the_other_ones_place(tmp_path: Path):
    runtime = opened(tmp_path, "news")
    prompts = runtime.prompts({"input_ids": IDS})
    for name in ("mood", "news", None, "mood"):
        runtime.adapters.bind(runtime.driver.binding, name)
        for prompt in prompts:
            runtime.call(prompt)
        assert [each["tokens"] for each in runtime.generated()] == expected(name)


def test_the_expected_tokens_are_the_active_adapters(tmp_path: Path):
    arrays = {"input_ids": IDS, "expected_tokens": np.array(expected(None))}
    arrays["expected_tokens.mood"] = np.array(expected("mood"))
    found = opened(tmp_path, "mood").check(arrays)
    assert found["tokens"] == found["expected"] == expected("mood")
    found = opened(tmp_path, None).check(arrays)
    assert found["tokens"] == found["expected"] == expected(None)
    assert opened(tmp_path, "news").check(arrays) is None


def test_perplexity_is_the_active_adapters(tmp_path: Path):
    nll = [
        sum(opened(tmp_path, name).perplexity({"input_ids": IDS}, "all")["nll_nat"])
        for name in (None, "news")
    ]
    assert nll[0] != pytest.approx(nll[1], rel=1e-3)


def test_swapping_is_timed_in_binding_and_loading_in_reading(tmp_path: Path):
    found = opened(tmp_path, "news").adapter_times()
    assert set(found) == {"adapter_swap_ns", "adapter_load_ns"}
    assert all(value > 0 for value in found.values())


def test_a_runtime_without_adapters_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    files = adapter_files(tmp_path)
    monkeypatch.delattr(onnxruntime, "AdapterFormat")
    with pytest.raises(DecoderError, match="can't swap adapters"):
        opened(tmp_path, "news", files=files)


def test_an_adapter_for_another_graph_is_named(tmp_path: Path):
    file = tmp_path / "other.onnx_adapter"
    swappable.write_file(file, {"q9.lora_A": np.zeros((4, 1), np.float32)})
    with pytest.raises(DecoderError, match=r"other is for an input 'q9.lora_A'"):
        opened(tmp_path, None, files={"other": str(file)})


def test_an_input_whose_default_is_no_factor_is_named(tmp_path: Path):
    graph = model()
    size = graph.graph.input[-1].type.tensor_type.shape.dim[0]
    assert graph.graph.input[-1].name == f"{SWAPPED[-1]}.lora_B"
    size.Clear()
    size.dim_value = 3
    for tensor in graph.graph.initializer:
        if tensor.name == f"{SWAPPED[-1]}.lora_B":
            full = np.zeros((3, KV_HEADS * HEAD_DIM), np.float32)
            tensor.CopyFrom(onnx.numpy_helper.from_array(full, tensor.name))
        if tensor.name == f"{SWAPPED[-1]}.lora_A":
            full = np.zeros((tensor.dims[0], 3), np.float32)
            tensor.CopyFrom(onnx.numpy_helper.from_array(full, tensor.name))
    with pytest.raises(DecoderError, match=r"'k1.lora_B' has a default and is no factor"):
        opened(tmp_path, None, graph=graph)
