"""Both roads to ONNX in one environment, the same adapter, the same outputs.

Run in the environment of constraints-optimum.txt, which has transformers 4.57 and optimum:

    .venv-optimum/bin/python -m tests.export.check_roads [ARTIFACT]

Exports a tiny adapter, merged and unmerged, by our own road and by optimum's, and compares the
graphs' logits at several batch sizes and lengths. ARTIFACT is an fp32 artifact of the bundled
adapter that our road made in another environment (transformers 5); the same adapter is exported by
optimum here and compared with it. Prints one JSON object; exits 1 where outputs differ.
"""

from __future__ import annotations

import json
import sys
import tempfile
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import numpy as np
import onnxruntime

from edgebench.artifact import Artifact
from edgebench.export import ExportRequest, export
from tests.export import tiny
from tests.fixtures_export import ADAPTER, BASE

#: Two graphs that each may be this far from PyTorch (the fp32 parity gate).
TOLERANCE = 2e-4


def logits(artifact: Artifact, feeds: list[dict[str, np.ndarray]]) -> list[np.ndarray]:
    session = onnxruntime.InferenceSession(str(artifact.model_path))
    return [session.run(["logits"], feed)[0] for feed in feeds]


def feeds_of(artifact: Artifact) -> list[dict[str, np.ndarray]]:
    """The artifact's own timing rows at several batch sizes and lengths, some tokens masked."""
    with np.load(artifact.path / "inputs.npz") as stored:
        rows = {name: stored[name] for name in stored.files}
    feeds = []
    for batch, length in ((1, 1), (2, 9), (3, artifact.manifest.statistics.seq_len), (4, 20)):
        feed = {name: array[:batch, :length].copy() for name, array in rows.items()}
        feed["attention_mask"][-1, length // 2 + 1 :] = 0
        feeds.append(feed)
    return feeds


def compare(first: Artifact, second: Artifact) -> dict[str, float | bool]:
    feeds = feeds_of(first)
    pairs = zip(logits(first, feeds), logits(second, feeds), strict=True)
    a, b = first.manifest.statistics, second.manifest.statistics
    counted = ("seq_len", "kept_layers", "kept_heads", "kept_ranks")
    return {
        "max_abs_difference": float(max(abs(x - y).max() for x, y in pairs)),
        "same_statistics": all(getattr(a, name) == getattr(b, name) for name in counted),
        "same_flops": first.manifest.extra_flops == second.manifest.extra_flops,
    }


def main() -> int:
    results: dict[str, dict[str, float | bool]] = {}
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        if len(sys.argv) > 1:
            other = Artifact.load(sys.argv[1])
            request = ExportRequest(adapter=ADAPTER, base=BASE, out=root / "out", via="optimum")
            results["minilm-merged"] = compare(other, *export(request))
        base = tiny.write_bert(root / "tiny-base")
        small = tiny.write_adapter(base, root / "tiny-adapter")
        for lowering in ("merged", "unmerged"):
            request = ExportRequest(
                adapter=small,
                base=str(base),
                out=root / "out",
                seq_len=24,
                lowering=lowering,  # type: ignore[arg-type]
            )
            (ours,) = export(request)
            (theirs,) = export(replace(request, via="optimum"))
            results[f"tiny-{lowering}"] = compare(ours, theirs)
    same = all(
        r["max_abs_difference"] <= TOLERANCE and r["same_statistics"] and r["same_flops"]
        for r in results.values()
    )
    versions = {name: version(name) for name in ("torch", "transformers", "optimum", "peft")}
    sys.stdout.write(json.dumps({"same": same, "results": results, "versions": versions}) + "\n")
    return 0 if same else 1


if __name__ == "__main__":
    sys.exit(main())
