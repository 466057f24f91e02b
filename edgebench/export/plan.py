"""The plan of an export: everything that is known, and checked, before torch is imported."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from edgebench import artifact as nouns
from edgebench.errors import CheckpointError, UsageError
from edgebench.export import cache
from edgebench.export.base import BaseModel, locate, read_base, require_tokenizer
from edgebench.export.checkpoint import AdapterCheckpoint, id2label, read_adapter
from edgebench.export.data import LabelledText, label_indices, read_data, read_texts
from edgebench.export.decoder.plan import DecoderPlan, plan_decoder
from edgebench.export.exporter import AdapterFacts, FoundExporter, Task, find_exporter
from edgebench.export.request import ExportRequest, safe_name
from edgebench.export.swappable import check_names
from edgebench.export.token_data import LabelledWords, read_words
from edgebench.workspace import builtin_root


@dataclass(frozen=True)
class Member:
    """One of the adapters that share a swappable base."""

    adapter: AdapterCheckpoint
    found: FoundExporter
    facts: AdapterFacts


@dataclass(frozen=True)
class Plan:
    """Everything that is known without torch; every check on it has passed."""

    request: ExportRequest
    name: str
    base: BaseModel
    adapter: AdapterCheckpoint | None
    found: FoundExporter | None
    facts: AdapterFacts | None
    task: Task
    labels: tuple[str, ...]
    num_labels: int | None
    data: LabelledText | LabelledWords | None
    held_out: LabelledText | LabelledWords | None
    truth: npt.NDArray[np.int64] | list[list[int]] | None
    calibration: tuple[str, ...] | None
    members: tuple[Member, ...]
    key: str
    decoder: DecoderPlan | None = None

    @property
    def lowering(self) -> Any:
        return self.request.lowering if self.adapter else "base"


def make_plan(request: ExportRequest) -> Plan:
    """Read and check everything that needs no torch.

    Raises:
        CheckpointError, InputError, UsageError: as ``export``.
    """
    adapter = read_adapter(request.adapter) if request.adapter else None
    base = _read_base(request, adapter)
    require_tokenizer(base)
    found = facts = None
    members: tuple[Member, ...] = ()
    if adapter:
        first = _member(request, adapter, base)
        found, facts = first.found, first.facts
        more = (_member(request, read_adapter(path), base) for path in request.more_adapters)
        members = (first, *more)
        _check_members(request, members)
    task, num_labels = (facts.task, facts.num_labels) if facts else _base_task(base)
    decoder = None
    if task == "text-generation":
        decoder = plan_decoder(request, base, members)
    elif num_labels is None and task != "feature-extraction":
        num_labels = len(id2label(base.config) or ()) or None
        if num_labels is None:
            raise CheckpointError(
                "neither the adapter nor the base holds a classification head",
                where=str(request.adapter or base.path),
                fix="Save the head with the adapter: modules_to_save=['classifier'].",
            )
    if base.max_positions is not None and request.seq_len > base.max_positions:
        raise UsageError(
            f"{request.seq_len} tokens are more than the base's {base.max_positions} positions",
            where="--seq-len",
            fix=f"Give at most {base.max_positions}.",
        )
    labels = _labels(request, base, adapter, num_labels)
    data, held_out, truth = _data(request, task, labels, num_labels)
    calibration = read_texts(request.calibration) if request.calibration else None
    names = [member.adapter.name for member in members] or [base.path.resolve().name]
    name = request.name or safe_name("+".join(names))
    return Plan(
        request=request,
        name=name,
        base=base,
        adapter=adapter,
        found=found,
        facts=facts,
        task=task,
        labels=labels,
        num_labels=num_labels,
        data=data,
        held_out=held_out,
        truth=truth,
        calibration=calibration,
        members=members,
        key=cache.request_key(
            request, name, base, tuple((member.adapter, member.found) for member in members)
        ),
        decoder=decoder,
    )


def _data(
    request: ExportRequest, task: Task, labels: tuple[str, ...], num_labels: int | None
) -> tuple[Any, Any, Any]:
    """The data, the part of it that the model is scored on, and the true answers to that.

    Of a token classifier these are lists, a label a word; None where whole texts are labelled.
    """
    if request.data is None or task == "text-generation":
        return None, None, None
    if task == "token-classification" and num_labels:
        words = read_words(request.data)
        if not words.labels:
            return words, None, None
        some = words.first(request.evaluation_limit)
        return words, some, some.indices(labels or None, num_labels)
    texts = read_data(request.data)
    if task != "text-classification" or not num_labels:
        return texts, None, None
    part = texts.first(request.evaluation_limit)
    truth = label_indices(part, labels or None, num_labels)
    return texts, part, np.array(truth, dtype=np.int64)


def _member(request: ExportRequest, adapter: AdapterCheckpoint, base: BaseModel) -> Member:
    found = find_exporter(request.exporter_dirs or (builtin_root() / "exporters",), adapter)
    _check_lowering(request, found)
    return Member(adapter, found, found.exporter.inspect(adapter, base))


def _check_members(request: ExportRequest, members: tuple[Member, ...]) -> None:
    """Refuse adapters that can't share one graph, as far as names and shapes tell."""
    if request.lowering == "swappable":
        check_names([safe_name(member.adapter.name) for member in members])
    first = members[0]
    for other in members[1:]:
        for what, here, there in (
            ("task", first.facts.task, other.facts.task),
            ("labels of its own", first.facts.num_labels or "no", other.facts.num_labels or "no"),
        ):
            if here != there:
                raise CheckpointError(
                    f"{other.adapter.name} ({there} {what}) can't share a graph with "
                    f"{first.adapter.name} ({here} {what})",
                    where=str(other.adapter.path),
                    fix="Adapters that share a base have one task and heads of one shape.",
                )


def _check_lowering(request: ExportRequest, found: FoundExporter) -> None:
    lowerings = found.exporter.lowerings
    if request.lowering not in (*lowerings, "base"):
        raise UsageError(
            f"adapters of the family {found.exporter.name} have no {request.lowering} form",
            where="--lowering",
            fix=f"Give {' or '.join(lowerings)}.",
        )


def base_entry(plan: Plan) -> nouns.Base:
    """The manifest's account of the base."""
    base = plan.base
    # A base that has a published model's shape alone says so wherever its name stands.
    random = " (random weights)" if base.config.get("edgebench_random_weights") else ""
    return nouns.Base(
        name=base.name + random,
        digest=base.digest,
        architecture=base.architecture,
        hidden_size=base.hidden_size,
        layers=base.layers,
        heads=base.heads,
        parameters=base.parameters,
    )


def adapter_entry(plan: Plan) -> nouns.Adapter | None:
    """The manifest's account of the adapter."""
    if plan.adapter is None or plan.facts is None or plan.lowering == "base":
        return None
    return nouns.Adapter(
        name=plan.adapter.name,
        digest=plan.adapter.digest,
        kind=plan.facts.kind,
        rank=plan.facts.rank,
        bytes=plan.adapter.bytes,
        parameters=plan.adapter.parameters,
        active_atoms=plan.facts.active_atoms,
    )


def directory_name(plan: Plan, manifest: nouns.Manifest) -> str:
    """``<name>[-<lowering>][-torch]-<scheme>-<first 12 digits of the digest>``."""
    parts = [plan.name, manifest.quantization.scheme, manifest.digest.partition(":")[2][:12]]
    if manifest.format != "onnx":
        parts.insert(1, manifest.format)
    if plan.lowering != "merged":
        parts.insert(1, plan.lowering)
    return "-".join(parts)


def _read_base(request: ExportRequest, adapter: AdapterCheckpoint | None) -> BaseModel:
    if request.base is not None:
        return read_base(request.base)
    named = adapter.base_name if adapter else ""
    if not named or locate(named) is None:
        raise CheckpointError(
            f"the adapter's base model {named!r} is not on this machine"
            if named
            else "the adapter does not name its base model",
            where=f"{request.adapter}/adapter_config.json",
            fix="Give it with --base: a directory, or package:<import name>/<folder>. "
            "edgebench never downloads a model.",
        )
    return read_base(named)


def _base_task(base: BaseModel) -> tuple[Task, int | None]:
    """What a base alone does, from the class that saved it (``architectures`` in config.json)."""
    architectures = base.config.get("architectures") or [""]
    for ending, task in _ENDINGS.items():
        if str(architectures[0]).endswith(ending):
            labels = () if task == "text-generation" else id2label(base.config)
            return task, len(labels or ()) or None
    return "feature-extraction", None


_ENDINGS: dict[str, Task] = {
    "ForSequenceClassification": "text-classification",
    "ForTokenClassification": "token-classification",
    "ForCausalLM": "text-generation",
}


def _labels(
    request: ExportRequest,
    base: BaseModel,
    adapter: AdapterCheckpoint | None,
    num_labels: int | None,
) -> tuple[str, ...]:
    """Label names: the request's, the adapter's own, or the base's; () where nobody says."""
    own = adapter.labels if adapter else None
    labels = request.labels or own or (None if own or adapter else id2label(base.config)) or ()
    if num_labels is None:
        return ()
    if labels and len(labels) != num_labels:
        raise UsageError(
            f"{len(labels)} label names for a head with {num_labels} outputs",
            where="--labels" if request.labels else str(request.adapter or base.path),
            fix=f"Give {num_labels} names, in the order of the outputs.",
        )
    return labels
