"""The slow half of an export: PyTorch to ONNX once, then one artifact per scheme.

For the format "torch" the graph is made all the same: layers, heads, ranks and the adapter's cost
are read off it, so that they mean the same in both formats.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgebench import artifact as nouns
from edgebench.artifact import Artifact
from edgebench.errors import ExportError
from edgebench.export import cache, store, torch_artifact
from edgebench.export.graph import IR_VERSION, OPSET, signature
from edgebench.export.inputs import (
    TimingInputs,
    Tokens,
    calibration_feeds,
    parity_feeds,
    save_arrays,
    timing_inputs,
)
from edgebench.export.module import OUTPUTS, Feed, build_base, forward_module, quiet, reference
from edgebench.export.parity import FP32_TOLERANCE, compare
from edgebench.export.plan import Plan, adapter_entry, base_entry, directory_name
from edgebench.export.request import Progress
from edgebench.export.sample_text import TEXTS
from edgebench.export.session import run_graph
from edgebench.export.statistics import GraphFacts, read_graph
from edgebench.export.weights import load_tensors, refuse_non_finite
from edgebench.quantize import CALIBRATED, quantize

_MODEL = "model.onnx"
_INPUTS = "inputs.npz"
_EVALUATION = "evaluation.npz"

#: Texts of the data that are looked at for timing rows.
_CANDIDATES = 1024

#: Data of fewer words than this are too few to fit weights to by themselves.
_FEW_WORDS = 1000

#: Shares of an export's time, measured with MiniLM on two cores: (start of step, start of schemes).
_LOADING, _BUILDING, _LOWERING, _CHECKING, _SCHEMES = 0.02, 0.25, 0.35, 0.65, 0.72


@dataclass(frozen=True)
class _Written:
    """A model in its artifact's directory, and what it answers to the traced feeds."""

    model: str
    quantization: nouns.Quantization
    signature: nouns.Signature
    statistics: nouns.Statistics
    outputs: list[npt.NDArray[np.float32]]


@dataclass(frozen=True)
class _Traced:
    """The exported fp32 graph, the module that it was made of, and what PyTorch says about it."""

    module: Any
    graph: Path
    facts: GraphFacts
    timing: TimingInputs
    evaluation: dict[str, npt.NDArray[np.int64]] | None
    feeds: list[Feed]
    calibration: list[Feed]
    calibration_source: str
    expected: list[npt.NDArray[np.float32]]
    output: str


def build(
    plan: Plan, schemes: tuple[str, ...], temporary: Path, report: Progress
) -> dict[str, Artifact]:
    """Make and publish one artifact per scheme; all or none.

    Raises:
        CheckpointError, ExportError, InputError, OSError: see ``pipeline.export``.
    """
    report("loading PyTorch", _LOADING)
    built: dict[str, tuple[Path, nouns.Manifest]] = {}
    with quiet():
        traced = _trace(plan, temporary, report)
        for position, scheme in enumerate(schemes):
            start = _SCHEMES + (1 - _SCHEMES) * position / len(schemes)
            share = (1 - _SCHEMES) / len(schemes)
            directory = temporary / scheme
            directory.mkdir()
            step = _within(report, scheme, start, share)
            built[scheme] = directory, _scheme(plan, traced, scheme, directory, step)
    # Only now does anything get its name: a scheme that fails leaves none of the others behind.
    return {
        scheme: store.publish(directory, plan.request.out / directory_name(plan, manifest))
        for scheme, (directory, manifest) in built.items()
    }


def _trace(plan: Plan, temporary: Path, report: Progress) -> _Traced:
    request = plan.request
    provided = plan.facts.provides if plan.facts else frozenset[str]()
    module = build_base(plan.base, plan.task, plan.num_labels, provided)
    report("building the model", _BUILDING)
    refuse_non_finite(module.state_dict(), "base model", plan.base.path)
    tokens = Tokens(plan.base, inspect.signature(module.forward).parameters)
    tokens.check_length(request.seq_len)
    attached = module
    if plan.adapter and plan.found:
        tensors = load_tensors(plan.adapter.weights, "adapter")
        refuse_non_finite(tensors, "adapter", plan.adapter.path)
        attached = plan.found.exporter.attach(plan.adapter, tensors, module).eval()
    report("tokenising", _BUILDING + 0.02)
    texts = plan.data.texts[:_CANDIDATES] if plan.data else TEXTS
    source = plan.data.source if plan.data else f"edgebench's own {len(TEXTS)} sentences"
    timing = timing_inputs(tokens, texts, request.seq_len, source)
    evaluation = None
    if plan.held_out and plan.truth is not None:
        rows = tokens.encode(plan.held_out.texts, request.seq_len)
        evaluation = {**rows, "labels": plan.truth}
    feeds = parity_feeds(tokens, timing, texts)
    calibration, calibration_source = _calibration(plan, tokens, texts, source)
    output = OUTPUTS[plan.task]
    report("running PyTorch for reference", _BUILDING + 0.03)
    # The reference is taken before lowering: merging changes the module in place.
    expected = reference(forward_module(attached, tokens.names, output), feeds)
    report("exporting the graph", _LOWERING)
    lowered = attached
    if plan.found:
        lowered = plan.found.exporter.lower(attached, request.lowering).eval()
    graph = temporary / _MODEL
    example = _example(feeds)
    if request.via == "optimum":
        from edgebench.export import optimum_road

        optimum_road.lower(lowered, plan.task, example, output, graph)
    else:
        from edgebench.export import torch_road

        torch_road.lower(forward_module(lowered, tokens.names, output), example, output, graph)
    report("reading the graph", _CHECKING)
    row = {name: array[:1] for name, array in timing.arrays.items()}
    facts = read_graph(_load(graph), row)
    return _Traced(
        module=lowered,
        graph=graph,
        facts=facts,
        timing=timing,
        evaluation=evaluation,
        feeds=feeds,
        calibration=calibration,
        calibration_source=calibration_source,
        expected=expected,
        output=output,
    )


def _calibration(
    plan: Plan, tokens: Tokens, texts: tuple[str, ...], source: str
) -> tuple[list[Feed], str]:
    """What weights of few bits are fitted to, and where it came from."""
    given = plan.request.calibration
    if given is not None and plan.calibration is not None:
        texts, source = plan.calibration, f"{given.name} (sha256 {nouns.sha256_file(given)[:16]}…)"
    elif plan.data and sum(len(text.split()) for text in texts) < _FEW_WORDS:
        texts, source = (*texts, *TEXTS), f"{source}, and edgebench's own {len(TEXTS)} sentences"
    feeds = calibration_feeds(tokens, texts)
    rows = sum(len(next(iter(feed.values()))) for feed in feeds)
    return feeds, f"{source}: {rows} rows"


def _scheme(
    plan: Plan,
    traced: _Traced,
    scheme: str,
    directory: Path,
    report: Callable[[str, float | None], None],
) -> nouns.Manifest:
    """Quantise, check and describe one artifact in its hidden directory."""
    write = _write_torch if plan.request.format == "torch" else _write_onnx
    written = write(plan, traced, scheme, directory, report)
    quantization = written.quantization
    parity = _parity(plan, traced, written)
    report("writing", 0.9)
    save_arrays(directory / _INPUTS, traced.timing.arrays)
    if traced.evaluation is not None:
        save_arrays(directory / _EVALUATION, traced.evaluation)
    onnx = plan.request.format == "onnx"
    rows = len(next(iter(traced.timing.arrays.values())))
    manifest = nouns.Manifest(
        schema=nouns.SCHEMA,
        name=plan.name,
        task=plan.task,
        labels=plan.labels,
        base=base_entry(plan),
        adapter=adapter_entry(plan),
        exporter=nouns.Exporter(
            name=plan.found.exporter.name if plan.found else "base",
            road=plan.request.via,
            opset=OPSET if onnx else None,
            ir_version=IR_VERSION if onnx else None,
            versions=cache.versions(plan.request.via),
        ),
        lowering=plan.lowering,
        quantization=quantization,
        signature=written.signature,
        statistics=written.statistics,
        extra_flops=traced.facts.branch_flops,
        parity=parity,
        data=nouns.Data(
            inputs=_INPUTS,
            inputs_n=rows,
            inputs_source=traced.timing.source,
            evaluation=_EVALUATION if traced.evaluation is not None else None,
            evaluation_n=0 if plan.truth is None else len(plan.truth),
            evaluation_source=plan.held_out.source if plan.held_out else None,
        ),
        format=plan.request.format,
        model=written.model,
        files={
            file.relative_to(directory).as_posix(): nouns.FileEntry(
                sha256=nouns.sha256_file(file), bytes=file.stat().st_size
            )
            for file in sorted(directory.rglob("*"))
            if file.is_file()
        },
    )
    return nouns.write_manifest(directory, manifest)


def _write_onnx(
    plan: Plan, traced: _Traced, scheme: str, directory: Path, report: Progress
) -> _Written:
    """Quantise the graph, and run it with the session options that its scheme names."""
    target = directory / _MODEL
    report("quantising", 0.0)
    quantization = quantize(
        traced.graph,
        target,
        scheme,
        calibration=traced.calibration,
        mixed_bits=plan.request.mixed_bits,
        progress=_within(report, None, 0.0, 0.5),
    )
    if scheme in CALIBRATED:
        details = quantization.details | {"calibration": traced.calibration_source}
        quantization = quantization.model_copy(update={"details": details})
    report("comparing with PyTorch", 0.5)
    asked = quantization.details.get("session_options", {})
    outputs = run_graph(target, traced.feeds, scheme, session_options=asked)
    model = _load(target)
    return _Written(
        model=_MODEL,
        quantization=quantization,
        signature=signature(model),
        statistics=traced.facts.statistics(model),
        outputs=[named[0] for named in outputs],
    )


def _write_torch(
    plan: Plan, traced: _Traced, scheme: str, directory: Path, report: Progress
) -> _Written:
    """Store the checkpoint in one data type, and run it as a device will."""
    report("storing", 0.0)
    torch_artifact.write(plan, traced.module, scheme, directory)
    report("comparing with PyTorch", 0.5)
    outputs, stored = torch_artifact.run(directory, traced.feeds, scheme)
    of_graph = signature(_load(traced.graph))
    dtype = torch_artifact.PRECISIONS[scheme]
    return _Written(
        model=torch_artifact.MODEL,
        quantization=torch_artifact.quantization(scheme, stored["weights"], stored["bits"]),
        signature=of_graph.model_copy(
            update={
                "outputs": tuple(o.model_copy(update={"dtype": dtype}) for o in of_graph.outputs)
            }
        ),
        statistics=traced.facts.counted(stored["bits"]),
        outputs=outputs,
    )


def _of_tokens(
    outputs: Sequence[npt.NDArray[Any]], feeds: Sequence[Feed]
) -> list[npt.NDArray[Any]]:
    """Outputs a position without those of padding, [tokens, d]: they mean nothing, and differ more.

    Outputs a text, [batch, d], stay as they are.
    """
    kept = []
    for output, feed in zip(outputs, feeds, strict=True):
        mask = feed.get("attention_mask")
        padded = mask is not None and output.ndim > 2 and output.shape[:2] == mask.shape
        kept.append(output[np.asarray(mask, dtype=bool)] if padded else output)
    return kept


def _parity(plan: Plan, traced: _Traced, written: _Written) -> nouns.Parity:
    """Compare with PyTorch; fp32 must agree, the error of fewer bits is recorded.

    Raises:
        ExportError: fp32 is off by more than ``FP32_TOLERANCE``.
    """
    scheme, actual = written.quantization.scheme, written.outputs
    what = "graph" if plan.request.format == "onnx" else "checkpoint"
    if any(a.shape != e.shape for a, e in zip(actual, traced.expected, strict=True)):
        raise ExportError(
            f"the {scheme} {what}'s output has another shape than PyTorch's",
            fix="It does not follow batch or sequence length; try the other --via.",
        )
    adapter = "with the adapter unmerged" if plan.adapter else "of the base alone"
    parity = compare(
        _of_tokens(traced.expected, traced.feeds),
        _of_tokens(actual, traced.feeds),
        reference=f"PyTorch in fp32, eval mode, {adapter}: {traced.output}",
        logits=plan.task != "feature-extraction",
        tolerance=FP32_TOLERANCE if scheme == "fp32" else None,
    )
    # Written so that a NaN fails too.
    if scheme == "fp32" and not parity.max_abs_error <= FP32_TOLERANCE:
        raise ExportError(
            f"the fp32 {what} is off PyTorch by {parity.max_abs_error:.2g}, "
            f"more than {FP32_TOLERANCE:g}, so no artifact was written",
            where=plan.name,
            fix="Try the other --via, and report this with the versions in use.",
        )
    return parity


def _example(feeds: list[Feed]) -> Feed:
    """Two rows of 17 tokens from the longest feed: both axes at least 2, and unlike each other."""
    rows = max(feeds, key=lambda feed: next(iter(feed.values())).size)
    return {name: np.ascontiguousarray(array[:2, :17]) for name, array in rows.items()}


def _load(file: Path) -> Any:
    import onnx

    return onnx.load(str(file), load_external_data=True)


def _within(report: Progress, scheme: str | None, start: float, share: float) -> Progress:
    """A part's progress as progress of the whole, its steps named after the scheme."""

    def nested(step: str, done: float | None) -> None:
        name = f"{scheme}: {step}" if scheme else step
        report(name, None if done is None else start + share * min(done, 1.0))

    return nested
