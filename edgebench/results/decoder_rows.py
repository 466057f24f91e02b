"""The columns that decoders alone have: TTFT, TPOT, tokens a second, perplexity.

Definitions are MLPerf LoadGen's (docs/measurement.md): TTFT is the time from handing over the
prompt to having the first token; TPOT of a call is (its whole time - TTFT) / (its tokens - 1). In
``decode`` a call is one step, so its duration is one TPOT.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from edgebench import generation, stats
from edgebench.recording import PHASES, Decoding, Recording, Solo
from edgebench.results.encoding import Loaded

Row = dict[str, Any]
Floats = npt.NDArray[np.float64]

_NS_PER_MS = 1e6
_PERCENTILES = {"p50": 0.5, "p90": 0.9, "p99": 0.99}


def tokens_per_call(recording: Recording) -> int | None:
    """Tokens that throughput and energy count: of the prompt in prefill, else those generated."""
    decoding = recording.protocol.decoding
    if decoding is None:
        return None
    return decoding.prompt_len if decoding.scenario == "prefill" else decoding.new_tokens


def protocol_row(decoding: Decoding | None) -> Row:
    """Lengths, each where the scenario has it."""
    if decoding is None:
        return {}
    step = decoding.scenario == "decode"
    return {
        "prompt_len": None if step else decoding.prompt_len,
        "context_len": decoding.prompt_len if step else None,
        "new_tokens": None if decoding.scenario == "prefill" else decoding.new_tokens,
    }


def figures(loaded: Loaded, index: int, reference: int) -> Row:
    """TTFT, TPOT and their ratios; nothing where the recording is not of decoders.

    Args:
        index, reference: the artifact, and the one that it is compared with.
    """
    decoding = loaded.recording.protocol.decoding
    if decoding is None:
        return {}
    every = _per_call(loaded, decoding)
    samples = loaded.samples
    chosen = (samples["phase"] == PHASES.index("measure")) & _whole(every)
    mine = chosen & (samples["artifact"] == index)
    row: Row = {}
    # The clock problems of a broken device are the verdict's business; no figure is taken then.
    if np.any(samples["duration_ns"][samples["artifact"] == index] <= 0):
        return row
    for name, durations in every.items():
        kept = durations[mine]
        for percent, p in _PERCENTILES.items():
            estimate = stats.percentile_over_launches(kept, samples["launch"][mine], p)
            row |= _estimate(f"{name}_{percent}_ms", estimate, _NS_PER_MS)
        ratio = stats.speedup(
            durations[chosen],
            samples["launch"][chosen],
            samples["artifact"][chosen],
            samples["turn"][chosen],
            of=index,
            against=reference,
        )
        row |= _estimate(f"{name}_speedup_vs_reference", ratio)
    steps, launch = _steps(loaded, mine)
    row |= _estimate("itl_p99_ms", stats.percentile_over_launches(steps, launch, 0.99), _NS_PER_MS)
    calls = samples["duration_ns"][mine]
    mean = stats.mean_over_launches(calls, samples["launch"][mine])
    if mean is not None:
        count = tokens_per_call(loaded.recording)
        assert count is not None
        row |= _estimate("tokens_per_s", stats.throughput(mean, count))
    return row


def _per_call(loaded: Loaded, decoding: Decoding) -> dict[str, Floats]:
    """TTFT and TPOT [n] of every call (ns), those that the scenario has; NaN where one is lost."""
    durations = loaded.samples["duration_ns"].astype(np.float64)
    if decoding.scenario == "prefill":
        return {"ttft": durations}
    if decoding.scenario == "decode":
        return {"tpot": durations}
    tokens = loaded.tokens
    first, rest = np.zeros(durations.size), np.zeros(durations.size)
    later = tokens["token"] > 0
    first[tokens["call"][~later]] = tokens["duration_ns"][~later]
    np.add.at(rest, tokens["call"][later], tokens["duration_ns"][later])
    return {"ttft": _positive(first), "tpot": _positive(rest / (decoding.new_tokens - 1))}


def _steps(loaded: Loaded, mine: npt.NDArray[np.bool_]) -> tuple[Floats, npt.NDArray[np.int64]]:
    """Times of single tokens behind the first, of some calls of ``generate``, and their launch."""
    tokens = loaded.tokens
    kept = (tokens["token"] > 0) & mine[tokens["call"]] & (tokens["duration_ns"] > 0)
    steps = tokens["duration_ns"][kept].astype(np.float64)
    return steps, loaded.samples["launch"][tokens["call"][kept]].astype(np.int64)


def _positive(values: Floats) -> Floats:
    return np.where(values > 0, values, np.nan)


def _whole(figures: dict[str, Floats]) -> npt.NDArray[np.bool_]:
    """Calls whose figures are all there; a broken clock leaves none."""
    whole = [np.isfinite(each) & (each > 0) for each in figures.values()]
    return np.asarray(np.logical_and.reduce(whole), dtype=np.bool_)


def solo_row(solo: Solo) -> Row:
    """Perplexity, the cache's size, and the agreement with the reference's tokens, alone."""
    row: Row = {}
    cache = solo.execution.get("cache")
    if cache:
        row["kv_cache_mb"] = cache["bytes"] / 1e6
    if solo.perplexity is not None:
        estimate = generation.perplexity(solo.perplexity.nll_nat, solo.perplexity.tokens)
        row |= _estimate("perplexity", estimate)
        row["perplexity_tokens"] = sum(solo.perplexity.tokens)
    if solo.greedy is not None:
        row["greedy_agreement"] = generation.agreement(solo.greedy)
    return row


def _estimate(name: str, estimate: stats.Estimate | None, unit: float = 1.0) -> Row:
    if estimate is None:
        return {}
    return {
        name: estimate.value / unit,
        f"{name}_lo": estimate.lo / unit,
        f"{name}_hi": estimate.hi / unit,
    }
