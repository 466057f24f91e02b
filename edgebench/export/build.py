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
from edgebench.errors import ExportError, UsageError
from edgebench.export import agreement, cache, integer_graph, store, swappable, torch_artifact
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
from edgebench.export.parity import FP32_TOLERANCE
from edgebench.export.plan import Member, Plan, adapter_entry, base_entry, directory_name
from edgebench.export.request import Progress, safe_name
from edgebench.export.sample_text import TEXTS
from edgebench.export.session import run_graph
from edgebench.export.statistics import GraphFacts, read_graph
from edgebench.export.token_data import LabelledWords
from edgebench.export.weights import load_tensors, refuse_non_finite
from edgebench.quantize import CALIBRATED, quantize

_Outputs = list[npt.NDArray[np.float32]]

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
    swaps: tuple[swappable.Swap, ...] = ()
    directions: dict[str, int] | None = None
    integer: integer_graph.Checked | None = None


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
    alone = plan.lowering in ("base", "swappable")
    if plan.members and not alone:
        attached = _attach(plan.members[0], module)
    report("tokenising", _BUILDING + 0.02)
    texts = plan.data.texts[:_CANDIDATES] if plan.data else TEXTS
    source = plan.data.source if plan.data else f"edgebench's own {len(TEXTS)} sentences"
    timing = timing_inputs(tokens, texts, request.seq_len, source)
    evaluation = _evaluation(plan, tokens)
    feeds = parity_feeds(tokens, timing, texts)
    calibration, calibration_source = _calibration(plan, tokens, texts, source)
    output = OUTPUTS[plan.task]
    report("running PyTorch for reference", _BUILDING + 0.03)
    swaps: tuple[swappable.Swap, ...] = ()
    if plan.lowering == "swappable":
        swaps = _swaps(plan, module, feeds, tokens.names, report)
    if plan.members and alone:
        attached = _with_head(plan.members, module)
    # The reference is taken before lowering: merging changes the module in place.
    forward = forward_module(attached, tokens.names, output)
    expected = reference(forward, feeds)
    branched = plan.found.exporter if plan.found and not alone else None
    directions = branched.directions(attached) if branched else {}
    rounds = directions.get("int8") and request.format == "onnx"
    if rounds and request.via != "torch":
        raise UsageError(
            "int8 directions are products of integers, which our own road alone writes",
            where=f"--via {request.via}",
            fix="Leave --via out.",
        )
    exact = integer_graph.exact_reference(forward, feeds) if rounds else None
    report("exporting the graph", _LOWERING)
    lowered = attached
    if branched:
        lowered = branched.lower(attached, request.lowering).eval()
    inputs = {}
    if swaps:
        names = [member.adapter.name for member in plan.members]
        inputs = swappable.prepare(
            attached, {n: swap.parameters for n, swap in zip(names, swaps, strict=True)}
        )
    graph = temporary / _MODEL
    _lower(plan, lowered, tokens.names, _example(feeds), graph)
    swappable.make_inputs(graph, inputs)
    report("reading the graph", _CHECKING)
    row = {name: array[:1] for name, array in timing.arrays.items()}
    facts = read_graph(_load(graph), row)
    integer = None
    if exact is not None:
        integer = integer_graph.check(
            graph, feeds, exact, lambda wanted, got: _float_form(plan, feeds, wanted, got)
        )
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
        swaps=swaps,
        directions=directions or None,
        integer=integer,
    )


def _evaluation(plan: Plan, tokens: Tokens) -> dict[str, npt.NDArray[np.int64]] | None:
    """The labelled rows that travel with the artifact; None where nothing is labelled."""
    if isinstance(plan.held_out, LabelledWords) and isinstance(plan.truth, list):
        return tokens.encode_words(plan.held_out.words, plan.truth, plan.request.seq_len)
    if plan.held_out and isinstance(plan.truth, np.ndarray):
        rows = tokens.encode(plan.held_out.texts, plan.request.seq_len)
        return {**rows, "labels": plan.truth}
    return None


def _lower(plan: Plan, module: Any, names: tuple[str, ...], example: Feed, graph: Path) -> None:
    output = OUTPUTS[plan.task]
    if plan.request.via == "optimum":
        from edgebench.export import optimum_road

        optimum_road.lower(module, plan.task, example, output, graph)
    else:
        from edgebench.export import torch_road

        torch_road.lower(forward_module(module, names, output), example, output, graph)


def _attach(member: Member, module: Any) -> Any:
    tensors = load_tensors(member.adapter.weights, "adapter")
    refuse_non_finite(tensors, "adapter", member.adapter.path)
    return member.found.exporter.attach(member.adapter, tensors, module).eval()


def _with_head(members: Sequence[Member], module: Any) -> Any:
    """The base, with what the first adapter brings itself where the base has no value for it."""
    first = members[0]
    tensors = load_tensors(first.adapter.weights, "adapter")
    return swappable.give_head(module, _head(first, tensors, module))


def _head(member: Member, tensors: Any, module: Any) -> dict[str, Any]:
    """The parameters of the base that an adapter brings: stored ones, or those that it makes."""
    made = member.found.exporter.head(member.adapter, tensors, module)
    return dict(made) or swappable.provided_tensors(member.facts.provides, tensors)


def _swaps(
    plan: Plan, module: Any, feeds: list[Feed], names: tuple[str, ...], report: Progress
) -> tuple[swappable.Swap, ...]:
    """What each adapter gives the graph, and what PyTorch says with it attached to a copy."""
    import copy

    swaps = []
    for member in plan.members:
        report(f"running PyTorch with {member.adapter.name}", _BUILDING + 0.03)
        tensors = load_tensors(member.adapter.weights, "adapter")
        attached = _attach(member, copy.deepcopy(module))
        expected = reference(forward_module(attached, names, OUTPUTS[plan.task]), feeds)
        parameters, ranks, flops = swappable.collect(
            member.found.exporter.factors(attached),
            swappable.provided_tensors(member.facts.provides, tensors),
            plan.request.seq_len,
        )
        swaps.append(swappable.Swap(parameters, expected, ranks, flops))
    return tuple(swaps)


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
    adapters = _adapters(plan, traced, scheme, directory, written)
    entry = adapter_entry(plan)
    if entry is not None and traced.directions:
        entry = entry.model_copy(update={"directions": traced.directions})
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
        adapter=entry,
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
        adapters=adapters,
        integer=_integer(plan, traced, written),
        files={
            file.relative_to(directory).as_posix(): nouns.FileEntry(
                sha256=nouns.sha256_file(file), bytes=file.stat().st_size
            )
            for file in sorted(directory.rglob("*"))
            if file.is_file()
        },
    )
    return nouns.write_manifest(directory, manifest)


def _integer(plan: Plan, traced: _Traced, written: _Written) -> nouns.IntegerProducts | None:
    """What the manifest says of integer products that the adapter brings."""
    if traced.integer is None:
        return None
    return nouns.IntegerProducts(
        products=traced.integer.products,
        largest_error=traced.integer.largest_error,
        in_float=traced.integer.in_float,
        rounding=agreement.differences(
            plan, traced.feeds, traced.integer.expected, written.outputs, _AS_THEY_ARE
        ),
    )


def _float_form(
    plan: Plan, feeds: Sequence[Feed], expected: _Outputs, given: _Outputs
) -> nouns.Parity:
    """The graph with floating-point products against PyTorch: it must agree as fp32 does."""
    parity = agreement.differences(
        plan, feeds, expected, given, _AS_THEY_ARE, tolerance=FP32_TOLERANCE
    )
    agreement.require(plan, parity, "fp32 graph with floating-point products")
    return parity


_AS_THEY_ARE = "with the adapter unmerged and activations as they are"


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


def _adapters(
    plan: Plan, traced: _Traced, scheme: str, directory: Path, written: _Written
) -> tuple[nouns.SwapAdapter, ...]:
    """Write each adapter's file, and compare the graph with PyTorch while it is active."""
    found = []
    asked = written.quantization.details.get("session_options", {})
    for member, swap in zip(plan.members, traced.swaps, strict=False):
        name = safe_name(member.adapter.name)
        file = f"{swappable.DIRECTORY}/{name}{swappable.SUFFIX}"
        swappable.write_file(directory / file, swap.parameters)
        outputs = run_graph(
            directory / _MODEL,
            traced.feeds,
            f"{scheme} {name}",
            session_options=asked,
            adapter=directory / file,
        )
        given = [named[0] for named in outputs]
        found.append(
            nouns.SwapAdapter(
                name=name,
                file=file,
                digest=member.adapter.digest,
                bytes=member.adapter.bytes,
                rank=member.facts.rank,
                kind=member.facts.kind,
                parameters=member.adapter.parameters,
                labels=member.adapter.labels or plan.labels,
                ranks=swap.ranks,
                extra_flops=swap.flops,
                parity=_compare(
                    plan,
                    traced,
                    scheme,
                    given,
                    swap.expected,
                    f"with the adapter {name} unmerged",
                ),
            )
        )
    return tuple(found)


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


def _parity(plan: Plan, traced: _Traced, written: _Written) -> nouns.Parity:
    """Compare with PyTorch; fp32 must agree, the error of fewer bits is recorded.

    Raises:
        ExportError: fp32 is off by more than ``FP32_TOLERANCE``.
    """
    adapter = "of the base alone"
    if plan.adapter and not traced.swaps and plan.lowering != "base":
        adapter = "with the adapter unmerged"
    elif plan.adapter:
        adapter = "of the base alone under the first adapter's head"
    scheme = written.quantization.scheme
    return _compare(plan, traced, scheme, written.outputs, traced.expected, adapter)


def _compare(
    plan: Plan,
    traced: _Traced,
    scheme: str,
    actual: Sequence[npt.NDArray[np.float32]],
    expected: Sequence[npt.NDArray[np.float32]],
    adapter: str,
) -> nouns.Parity:
    what = "graph" if plan.request.format == "onnx" else "checkpoint"
    if any(a.shape != e.shape for a, e in zip(actual, expected, strict=True)):
        raise ExportError(
            f"the {scheme} {what}'s output has another shape than PyTorch's",
            fix="It does not follow batch or sequence length; try the other --via.",
        )
    if traced.integer is not None:
        adapter += " and activations of int8 directions rounded as the graph does"
    # Rounded activations: what had to agree is said in ``integer``.
    strict = scheme == "fp32" and traced.integer is None
    tolerance = FP32_TOLERANCE if strict else None
    parity = agreement.differences(
        plan, traced.feeds, expected, actual, adapter, tolerance=tolerance
    )
    if strict:
        agreement.require(plan, parity, f"fp32 {what}")
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
