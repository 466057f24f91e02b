"""Which way is better, for each metric by its name: the one place that says so.

Primary metrics have names that studies publish word for word; ``PRIMARY`` holds five of them. Any
other metric is given by name and direction, or is a column of edgebench's tables, whose direction
follows from its name here. Nothing is guessed: a metric without a direction is an error.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from edgebench.errors import UsageError

Direction = Literal["maximise", "minimise"]

RETAINED_ACCURACY_AUC = (
    "Area-Under-Curve of ‘retained-accuracy vs tasks’ ↑; secondary – CPU latency overhead ↓"
)
TARGET_DEV_SCORE = (
    "Target-model dev score under 1 MB / 10 %-FLOP budget (report zero-shot and post-tune)."
)
ACCURACY = "Accuracy"
HYPERVOLUME = "4-D hyper-volume (HV) of accuracy vs (energy, latency, power) on the unseen Pixel-8."
JOULES_AT_ROUGE = "Mean Joules per sample at equal or better Rouge-L."

#: Primary metrics that are more than the mean of one score, and the plain one.
PRIMARY: dict[str, Direction] = {
    RETAINED_ACCURACY_AUC: "maximise",
    TARGET_DEV_SCORE: "maximise",
    ACCURACY: "maximise",
    HYPERVOLUME: "maximise",
    JOULES_AT_ROUGE: "minimise",
}

#: Columns of edgebench's tables, and the scores that studies report beside them.
KNOWN: dict[str, Direction] = {
    **PRIMARY,
    "accuracy": "maximise",
    "retained_accuracy": "maximise",
    "forgetting": "minimise",
    "dev_score": "maximise",
    "f1": "maximise",
    "exact_match": "maximise",
    "bleu": "maximise",
    "rouge_l": "maximise",
    "perplexity": "minimise",
    "loss": "minimise",
    "latency_p50_ms": "minimise",
    "latency_p90_ms": "minimise",
    "latency_p95_ms": "minimise",
    "latency_p99_ms": "minimise",
    "latency_p999_ms": "minimise",
    "latency_mean_ms": "minimise",
    "throughput_per_s": "maximise",
    "tokens_per_s": "maximise",
    "load_time_ms": "minimise",
    "memory_peak_rss_mb": "minimise",
    "artifact_size_mb": "minimise",
    "adapter_bytes": "minimise",
    "extra_flops": "minimise",
    "speedup_vs_reference": "maximise",
    "energy_per_inference_j": "minimise",
    "energy_per_inference_idle_subtracted_j": "minimise",
    "energy_per_token_j": "minimise",
    "power_average_w": "minimise",
    "power_peak_w": "minimise",
    "latency_overhead_percent": "minimise",
    "flop_overhead_percent": "minimise",
    "training_time_overhead_percent": "minimise",
}

#: What a figure of a table is called there, without the ends of its interval.
TABLE_FIGURES: dict[str, tuple[str, ...]] = {
    "latency": (
        "latency_p50_ms",
        "latency_p90_ms",
        "latency_p95_ms",
        "latency_p99_ms",
        "latency_mean_ms",
        "throughput_per_s",
        "tokens_per_s",
        "load_time_ms",
        "memory_peak_rss_mb",
        "artifact_size_mb",
        "accuracy",
        "perplexity",
        "speedup_vs_reference",
        "adapter_bytes",
        "extra_flops",
    ),
    "energy": (
        "energy_per_inference_j",
        "energy_per_inference_idle_subtracted_j",
        "energy_per_token_j",
    ),
    "power": ("power_average_w", "power_peak_w"),
}


def direction_of(metric: str, given: Mapping[str, Direction]) -> Direction:
    """Which way is better.

    Args:
        metric: a name, perhaps with a condition: ``f1 [zero-shot]``, ``latency_p50_ms [pi4 int8]``.
        given: what the study says itself; it goes before what is known here.

    Raises:
        UsageError: nobody says so.
    """
    plain = metric.partition(" [")[0]
    for name in (metric, plain):
        if name in given:
            return given[name]
        if name in KNOWN:
            return KNOWN[name]
    raise UsageError(
        f"whether more or less is better is not known of the metric {metric!r}",
        fix=f"Say --direction maximise or minimise, or write [metrics] {plain!r} = ... "
        "into study.toml.",
    )


def parse_direction(text: str, where: str) -> Direction:
    """``maximise`` or ``minimise``, in either spelling, or ``max`` and ``min``."""
    plain = text.strip().lower()
    if plain in ("maximise", "maximize", "max"):
        return "maximise"
    if plain in ("minimise", "minimize", "min"):
        return "minimise"
    raise UsageError(f"{text!r} is no direction", where=where, fix="Say maximise or minimise.")
