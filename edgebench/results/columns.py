"""Every column of the tables: its type, its unit, and what it means.

docs/formats.md shows this list (``markdown_table``; a test compares them). Types are those of the
DataFrames and the Parquet files; in CSV a missing value is an empty cell.

Schema history (``SCHEMA``, stored in the Parquet files' metadata):
    edgebench.tables/1   first; since then more columns: adapter_swap_us, adapter_load_us
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

SCHEMA = "edgebench.tables/1"

Kind = Literal["string", "float", "integer", "boolean"]


@dataclass(frozen=True, slots=True)
class Column:
    """One column. ``unit`` is "" for names, counts and flags, "1" for ratios and shares."""

    name: str
    kind: Kind
    unit: str
    meaning: str


def _interval(name: str, unit: str, meaning: str, percent: int = 99) -> list[Column]:
    """A figure and the two ends of its interval."""
    return [
        Column(name, "float", unit, meaning),
        Column(f"{name}_lo", "float", unit, f"lower end of its {percent} % interval"),
        Column(f"{name}_hi", "float", unit, f"upper end of its {percent} % interval"),
    ]


_RUN = [
    Column("run_id", "string", "", "recording id, a hyphen, and the artifact's index there"),
    Column("recording_id", "string", "", "id of the recording that every figure is derived from"),
    Column("created_at", "string", "", "when it was measured, UTC, ISO 8601"),
    Column("device", "string", "", "name of the device profile"),
    Column("device_fingerprint_digest", "string", "", "digest of what decides its performance"),
    Column("emulated", "boolean", "", "the device was emulated: not a real figure"),
    Column("artifact", "string", "", "the artifact's name, lowering if not merged, and scheme"),
    Column("artifact_digest", "string", "", "SHA-256 of its manifest, which covers its files"),
]
_VERDICT = [
    Column("verdict", "string", "", "VALID, INVALID or UNDECIDED"),
    Column("reasons", "string", "", "codes of all reasons, joined by semicolons"),
    Column("reasons_text", "string", "", "the same in sentences: what was seen, what to do"),
]

LATENCY: tuple[Column, ...] = (
    *_RUN,
    Column("base_model", "string", "", "the backbone"),
    Column("adapter", "string", "", "the adapter; empty for the bare backbone"),
    Column("lowering", "string", "", "merged, unmerged, swappable, or base"),
    Column("scheme", "string", "", "quantisation scheme"),
    Column("storage_bits", "integer", "bit", "nominal stored width of a quantised weight"),
    Column("compute_bits", "integer", "bit", "width of the weights that the kernel computes with"),
    Column("activation_bits", "integer", "bit", "width of the activations there"),
    Column("storage_bits_per_weight", "float", "bit", "quantised weights, scales included"),
    Column("file_bits_per_weight", "float", "bit", "all weights of the model"),
    Column("artifact_size_mb", "float", "MB (10^6 bytes)", "graph and weights on disk"),
    Column("runtime", "string", "", "what executed the model"),
    Column("runtime_version", "string", "", "its version on the device"),
    Column("provider", "string", "", "its execution provider"),
    Column("native_kernel", "string", "", "edgebench's own kernel that computed; empty: none"),
    Column("threads", "integer", "", "its threads within one operator"),
    Column("scenario", "string", "", "single-stream, offline, prefill, decode or generate"),
    Column("batch", "integer", "", "samples in one call"),
    Column("seq_len", "integer", "token", "length of a call's input; of a decoder, its prompt's"),
    Column("prompt_len", "integer", "token", "prefill, generate: tokens of the prompt"),
    Column("context_len", "integer", "token", "decode: tokens in the cache before the step"),
    Column("new_tokens", "integer", "token", "decode, generate: tokens that a call gives"),
    Column("input_source", "string", "", "where the inputs came from"),
    Column("launches", "integer", "", "launches with counted calls"),
    Column("n", "integer", "", "counted calls over all launches"),
    *_interval("latency_p50_ms", "ms", "median duration of one call"),
    *_interval("latency_p90_ms", "ms", "90th percentile; empty below 64 calls"),
    *_interval("latency_p95_ms", "ms", "95th percentile; empty below 130 calls"),
    *_interval("latency_p99_ms", "ms", "99th percentile; empty below 662 calls"),
    *_interval("latency_p999_ms", "ms", "99.9th percentile; empty below 6636 calls"),
    *_interval("latency_mean_ms", "ms", "mean duration of one call"),
    *_interval("throughput_per_s", "1/s", "samples (calls times batch) per second of model time"),
    *_interval("ttft_p50_ms", "ms", "time to the first token, median; prefill and generate"),
    *_interval("ttft_p90_ms", "ms", "its 90th percentile; empty below 64 calls"),
    *_interval("ttft_p99_ms", "ms", "its 99th percentile; empty below 662 calls"),
    *_interval("tpot_p50_ms", "ms", "time an output token behind the first, a call's mean; median"),
    *_interval("tpot_p90_ms", "ms", "its 90th percentile over calls; empty below 64"),
    *_interval("tpot_p99_ms", "ms", "its 99th percentile over calls; empty below 662"),
    *_interval("itl_p99_ms", "ms", "generate: 99th percentile of single tokens behind the first"),
    *_interval("tokens_per_s", "1/s", "tokens a second: the prompt's in prefill, else generated"),
    *_interval("load_time_ms", "ms", "from opening the file to a ready session, over launches"),
    *_interval("adapter_swap_us", "us", "making another loaded adapter active; swappable only"),
    *_interval("adapter_load_us", "us", "loading one from its file, cached; swappable only"),
    Column("memory_peak_rss_mb", "float", "MB (10^6 bytes)", "peak resident memory, alone"),
    Column("memory_baseline_rss_mb", "float", "MB (10^6 bytes)", "the same before the model"),
    Column("kv_cache_mb", "float", "MB (10^6 bytes)", "a decoder's cache, a part of that peak"),
    Column("warmup_calls", "integer", "", "most calls that any launch needed to warm up"),
    Column("warmup_steady", "boolean", "", "every launch reached a steady state"),
    *_interval("accuracy", "1", "share of held-out samples classified rightly, on the device"),
    Column("accuracy_n", "integer", "", "held-out samples"),
    Column("accuracy_recording_id", "string", "", "the recording in which it was measured"),
    *_interval("perplexity", "1", "of held-out texts, on the device; interval over texts"),
    Column("perplexity_tokens", "integer", "token", "tokens of these texts"),
    Column(
        "greedy_agreement", "float", "1", "share of PyTorch's greedy tokens, to the first other"
    ),
    Column("parity_max_abs_error", "float", "1", "largest difference of a logit from PyTorch"),
    Column("parity_cosine_mean", "float", "1", "mean cosine of the logits with PyTorch's"),
    Column("parity_kl_mean", "float", "nat", "mean divergence of the class probabilities"),
    *_interval("speedup_vs_reference", "1", "reference latency / this latency, interleaved"),
    *_interval("ttft_speedup_vs_reference", "1", "the same of the time to the first token"),
    *_interval("tpot_speedup_vs_reference", "1", "the same of the time an output token"),
    Column("reference_artifact_digest", "string", "", "fp32 of the same adapter, else the first"),
    Column("kept_layers", "integer", "", "layers in the exported graph"),
    Column("kept_heads", "integer", "", "attention heads in the exported graph"),
    Column("kept_ranks", "integer", "", "adapter ranks in the exported graph"),
    Column("param_bits", "integer", "bit", "stored bits of all parameters of the graph"),
    Column("extra_flops", "float", "1", "operations that the adapter adds to one sample"),
    Column("adapter_bytes", "integer", "byte", "weight file of the adapter's checkpoint"),
    *_VERDICT,
)

_SOURCE = [
    Column("scope", "string", "", "what the meter saw: wall, board, module, soc, rail, package …"),
    Column("source", "string", "", "the meter and its channel"),
    Column("source_period_ms", "float", "ms", "time between two new values of the meter"),
    Column("source_gain_error", "float", "1", "bound of its relative error; empty: not published"),
    Column("source_offset_error_w", "float", "W", "bound of its absolute error, likewise"),
    Column("clock_bound_ms", "float", "ms", "bound of its clock's offset; empty: device's own"),
    Column("energy_windows", "integer", "", "windows of back-to-back calls behind the figures"),
    Column("energy_launches", "integer", "", "launches that they are from"),
    Column("reason", "string", "", "why the figures are empty"),
]

ENERGY: tuple[Column, ...] = (
    *_RUN,
    *_interval("energy_per_inference_j", "J", "energy of one call, idle included", 95),
    *_interval("energy_per_inference_idle_subtracted_j", "J", "the same above idle power", 95),
    *_interval("energy_per_token_j", "J", "the same over the tokens of tokens_per_s", 95),
    *_interval("idle_power_w", "W", "before and after, model loaded, nothing running", 95),
    *_SOURCE,
    Column("cross_check_source", "string", "", "another source of the same scope"),
    *_interval("cross_check_ratio", "1", "this energy over that source's", 95),
    *_VERDICT,
)

POWER: tuple[Column, ...] = (
    *_RUN,
    *_interval("power_average_w", "W", "mean power within the windows", 95),
    *_interval("power_peak_w", "W", "largest reading within the windows", 95),
    Column("power_peak_sampling_period_ms", "float", "ms", "time that one such reading covers"),
    *_interval("power_idle_w", "W", "before and after, model loaded, nothing running", 95),
    *_SOURCE,
    *_VERDICT,
)

TABLES: dict[str, tuple[Column, ...]] = {"latency": LATENCY, "energy": ENERGY, "power": POWER}


def markdown_table(name: str) -> str:
    """One table's columns as in docs/formats.md."""
    rows = ["| column | type | unit | meaning |", "|---|---|---|---|"]
    rows += [f"| `{c.name}` | {c.kind} | {c.unit} | {c.meaning} |" for c in TABLES[name]]
    return "\n".join(rows) + "\n"
