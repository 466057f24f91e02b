"""The slow half of a decoder's export: what PyTorch says, then one artifact per scheme."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgebench import artifact as nouns
from edgebench.artifact import Artifact
from edgebench.errors import CheckpointError
from edgebench.export import cache, store
from edgebench.export.decoder import facts, parity, ranges, schemes, sensitivity, swapping
from edgebench.export.decoder.fitting import LayerFit
from edgebench.export.decoder.network import IDS, MASK, OPSET, Widths
from edgebench.export.decoder.plan import DecoderPlan
from edgebench.export.decoder.running import Ids
from edgebench.export.decoder.writer import MODEL, write
from edgebench.export.graph import IR_VERSION, signature
from edgebench.export.inputs import (
    TimingInputs,
    Tokens,
    calibration_feeds,
    save_arrays,
    timing_inputs,
)
from edgebench.export.module import Feed, quiet
from edgebench.export.plan import Plan, adapter_entry, base_entry, directory_name
from edgebench.export.request import Progress
from edgebench.quantize import calibration
from edgebench.runtimes.decoder_graph import expected_tokens

_INPUTS = "inputs.npz"
_EVALUATION = "evaluation.npz"

#: Texts that perplexity is measured on, where --evaluation-limit says nothing.
_EVALUATED = 64

#: Texts that are looked at for timing rows.
_CANDIDATES = 1024

#: Shares of an export's time: (start of the reference, start of schemes).
_REFERENCE, _SCHEMES = 0.02, 0.2


@dataclass(frozen=True)
class _Prepared:
    """What all schemes share."""

    timing: TimingInputs
    check: parity.Check
    calibration: list[Feed]
    calibration_source: str | None
    tried: list[Feed]
    tried_source: str | None
    evaluation: dict[str, Ids] | None


def build(
    plan: Plan, wanted: tuple[str, ...], temporary: Path, report: Progress
) -> dict[str, Artifact]:
    """Make and publish one artifact per scheme; all or none.

    Raises:
        CheckpointError, ExportError, InputError, OSError: see ``pipeline.export``.
    """
    assert plan.decoder is not None
    built: dict[str, tuple[Path, nouns.Manifest]] = {}
    with quiet():
        report("tokenising", 0.0)
        prepared = _prepare(plan, plan.decoder, report)
        for position, scheme in enumerate(wanted):
            share = (1 - _SCHEMES) / len(wanted)
            directory = temporary / scheme
            directory.mkdir()
            step = _within(report, scheme, _SCHEMES + share * position, share)
            built[scheme] = directory, _scheme(plan, prepared, scheme, directory, step)
    return {
        scheme: store.publish(directory, plan.request.out / directory_name(plan, manifest))
        for scheme, (directory, manifest) in built.items()
    }


def _prepare(plan: Plan, decoder: DecoderPlan, report: Progress) -> _Prepared:
    seq_len = plan.request.seq_len
    tokens = Tokens(plan.base, (IDS, MASK), padding_side="right")
    tokens.check_length(seq_len)
    if tokens.largest_id >= decoder.architecture.vocab_size:
        raise CheckpointError(
            f"the tokenizer gives ids up to {tokens.largest_id}, the base's vocabulary has "
            f"{decoder.architecture.vocab_size} tokens",
            where=str(plan.base.path),
            fix="Put the base's own tokenizer files beside config.json.",
        )
    texts = decoder.texts[:_CANDIDATES]
    timing = timing_inputs(tokens, texts, seq_len, decoder.texts_source)
    ids = timing.arrays[IDS]
    timing.arrays.setdefault(MASK, np.ones_like(ids))
    feeds, source = _calibration(plan, tokens)
    tried, tried_source = feeds, source
    if "mixed" in plan.request.quants and not tried:
        tried, tried_source = _masked(tokens, decoder.texts), decoder.texts_source
        calibration.check(tried)
    nested = _within(report, None, _REFERENCE, _SCHEMES - _REFERENCE)
    forms = swapping.forms(plan, decoder)
    answers = parity.prepare(plan, forms, ids, nested)
    if answers.generated:
        # What a device is asked to generate as well.
        for form, generated in zip(forms, answers.generated, strict=True):
            timing.arrays[expected_tokens(form.adapter)] = generated
        timing.arrays["expected_prompt_len"] = np.array(answers.opening_length, np.int64)
    return _Prepared(
        timing, answers.check, feeds, source, tried, tried_source, _evaluation(plan, tokens)
    )


def _evaluation(plan: Plan, tokens: Tokens) -> dict[str, Ids] | None:
    """Rows of the user's texts, padded under the mask, for perplexity on the device."""
    if plan.request.data is None or plan.decoder is None:
        return None
    texts = plan.decoder.texts[: plan.request.evaluation_limit or _EVALUATED]
    rows = tokens.encode(texts, plan.request.seq_len)
    return {MASK: np.ones_like(rows[IDS]), **rows}


def _calibration(plan: Plan, tokens: Tokens) -> tuple[list[Feed], str | None]:
    """What weights are fitted to: the text given, or nothing."""
    given = plan.request.calibration
    if given is None or plan.calibration is None:
        return [], None
    feeds = _masked(tokens, plan.calibration)
    calibration.check(feeds)
    rows = sum(len(feed[IDS]) for feed in feeds)
    return feeds, f"{given.name} (sha256 {nouns.sha256_file(given)[:16]}…): {rows} rows"


def _masked(tokens: Tokens, texts: tuple[str, ...]) -> list[Feed]:
    """Rows of text with a mask, which not every tokenizer gives."""
    feeds = calibration_feeds(tokens, texts)
    return [{MASK: np.ones_like(feed[IDS]), **feed} for feed in feeds]


def _scheme(
    plan: Plan, prepared: _Prepared, scheme: str, directory: Path, report: Progress
) -> nouns.Manifest:
    """Store, check and describe one artifact in its hidden directory."""
    assert plan.decoder is not None
    a = plan.decoder.architecture
    widths, unmerged = schemes.widths(scheme), plan.lowering == "unmerged"
    calibrated = bool(prepared.calibration) and scheme in schemes.FITTED
    more: dict[str, Any] = {}
    storing = _within(report, None, 0.0, 0.7)
    if scheme == "mixed":
        widths, more = _choose(plan, prepared, _within(report, None, 0.0, 0.3))
        storing = _within(report, None, 0.3, 0.4)
    source, storage = plan.decoder.source, None
    if scheme == "int8-static":
        found = ranges.find(
            a,
            source,
            prepared.calibration,
            unmerged=unmerged,
            progress=_within(report, None, 0.0, 0.4),
        )
        source, storage, more = found.smoothed(source), found.storage, found.details
        storing = _within(report, None, 0.4, 0.3)
    fitted = None
    if calibrated:
        fitted = LayerFit(
            a,
            source,
            widths,
            prepared.calibration,
            unmerged=unmerged,
            progress=storing,
        )
    written = write(
        directory,
        a,
        source,
        widths,
        bits=16 if scheme == "fp16" else 32,
        unmerged=unmerged,
        progress=storing,
        fitted=fitted,
        storage=storage,
        swapped=plan.decoder.swapped,
    )
    swapping.write_files(directory, plan, plan.decoder)
    report("comparing with PyTorch", 0.7)
    read = calibrated or scheme == "int8-static"
    details = schemes.details(
        scheme,
        prepared.calibration_source if read else None,
        calibration.check(prepared.calibration) if read else 0,
    )
    details |= more
    # The second ones change no sum where a CPU needs them not.
    options = details.get("session_options", {}) | details.get(
        "session_options_x86_without_vnni", {}
    )
    nested = _within(report, None, 0.7, 0.25)
    compared, *adapters = prepared.check(written, directory, scheme, options, nested)
    report("writing", 0.95)
    save_arrays(directory / _INPUTS, prepared.timing.arrays)
    evaluated = 0
    if prepared.evaluation is not None:
        save_arrays(directory / _EVALUATION, prepared.evaluation)
        evaluated = len(prepared.evaluation[IDS])
    seq_len = plan.request.seq_len
    manifest = nouns.Manifest(
        schema=nouns.SCHEMA,
        name=plan.name,
        task=plan.task,
        base=base_entry(plan),
        adapter=adapter_entry(plan),
        exporter=nouns.Exporter(
            name=plan.found.exporter.name if plan.found else "base",
            road="direct",
            opset=OPSET,
            ir_version=IR_VERSION,
            versions=cache.versions(plan.request.via),
        ),
        lowering=plan.lowering,
        quantization=facts.quantization(written.model, scheme, details),
        signature=signature(written.model),
        statistics=facts.statistics(written.model, seq_len),
        extra_flops=facts.branch_flops(written.model, seq_len),
        parity=compared,
        data=nouns.Data(
            inputs=_INPUTS,
            inputs_n=len(prepared.timing.arrays[IDS]),
            inputs_source=prepared.timing.source,
            evaluation=_EVALUATION if evaluated else None,
            evaluation_n=evaluated,
            evaluation_source=plan.decoder.texts_source if evaluated else None,
        ),
        model=MODEL,
        adapters=swapping.entries(plan, plan.decoder, adapters, seq_len),
        decoder=nouns.Decoder(
            layers=a.layers,
            kv_heads=a.kv_heads,
            head_dim=a.head_dim,
            vocab_size=a.vocab_size,
            max_positions=a.max_positions,
            eos_token_ids=a.eos_token_ids,
            cache="shared",
        ),
        files=_files(directory),
    )
    return nouns.write_manifest(directory, manifest)


def _choose(plan: Plan, prepared: _Prepared, report: Progress) -> tuple[Widths, dict[str, Any]]:
    """The widths of the scheme mixed, and what the manifest says of them."""
    assert plan.decoder is not None
    a, source = plan.decoder.architecture, plan.decoder.source
    unmerged, budget = plan.lowering == "unmerged", plan.request.mixed_bits
    options = sensitivity.measure(a, source, prepared.tried, unmerged=unmerged, progress=report)
    kept = schemes.kept_parameters(a, source, unmerged)
    chosen = sensitivity.choose(options, a, kept, budget)
    said = {name: f"{w.bits} bits, blocks of {w.block_size}" for name, w in chosen.items()}
    details = {"budget": budget, "chosen_on": prepared.tried_source, "widths": said}
    return lambda matrix, _looked_up: chosen[matrix.name], details


def _files(directory: Path) -> dict[str, nouns.FileEntry]:
    found = sorted(f for f in directory.rglob("*") if f.is_file())
    return {
        file.relative_to(directory).as_posix(): nouns.FileEntry(
            sha256=nouns.sha256_file(file), bytes=file.stat().st_size
        )
        for file in found
    }


def _within(report: Progress, scheme: str | None, start: float, share: float) -> Progress:
    """A part's progress as progress of the whole, its steps named after the scheme."""

    def nested(step: str, done: float | None) -> None:
        name = f"{scheme}: {step}" if scheme else step
        report(name, None if done is None else start + share * min(done, 1.0))

    return nested
