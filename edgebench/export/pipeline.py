"""The export itself: from a request to artifacts, in the order that fails earliest.

What can be checked from files and shapes is checked before torch is imported. The graph is made
once; each scheme then has its own hidden directory until its parity with PyTorch is known.
"""

from __future__ import annotations

import importlib.util

from edgebench.artifact import Artifact
from edgebench.errors import UsageError
from edgebench.export import build, cache, store
from edgebench.export.decoder import build as build_decoder
from edgebench.export.plan import make_plan
from edgebench.export.request import ExportRequest, Progress, validate


def export(request: ExportRequest, progress: Progress | None = None) -> list[Artifact]:
    """Export an adapter on its base at every precision asked for.

    The same request gives artifacts of the same digest. One that has been done before is answered
    from disk, without importing torch, after its digests have been verified.

    Args:
        request: what to export, and where to.
        progress: called with each step's name and the share of the whole that is done.

    Returns:
        One verified artifact per scheme, in the order of ``request.quants``.

    Raises:
        UsageError: the request contradicts itself, or optimum is wanted and not installed.
        CheckpointError: adapter or base are missing, damaged, or do not fit each other.
        InputError: the data can't be used.
        ExportError: the model can't be lowered, or its graph is not what PyTorch computes.
        StorageError: ``out`` can't be written, or the disk is full.
    """
    report = progress or (lambda _step, _done: None)
    validate(request)
    if request.via == "optimum":
        from edgebench.export import optimum_road

        optimum_road.require()
    report("reading the checkpoints", 0.0)
    plan = make_plan(request)
    artifacts = cache.find(request.out, plan.key, request.quants)
    missing = tuple(scheme for scheme in request.quants if scheme not in artifacts)
    if missing:
        _require_libraries()
        with store.staging(request.out) as temporary:
            make = build_decoder.build if plan.decoder else build.build
            artifacts |= make(plan, missing, temporary, report)
            cache.remember(request.out, plan.key, artifacts)
    report("done", 1.0)
    return [artifacts[scheme] for scheme in request.quants]


def _require_libraries() -> None:
    missing = [name for name in _LIBRARIES if importlib.util.find_spec(name) is None]
    if missing:
        raise UsageError(
            f"exporting needs {', '.join(missing)}, which this environment does not have",
            fix="pip install 'edgebench[export]' (on this machine; devices need none of it).",
        )


_LIBRARIES = ("torch", "transformers", "peft", "onnx", "onnxscript", "onnxruntime")
