"""What is known of a decoder's export, and checked, before torch is imported."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from edgebench.artifact import sha256_file
from edgebench.errors import CheckpointError, UsageError
from edgebench.export.base import BaseModel
from edgebench.export.checkpoint import AdapterCheckpoint
from edgebench.export.data import read_texts
from edgebench.export.decoder import schemes, sensitivity
from edgebench.export.decoder.architecture import HEAD, TABLE, Architecture, read_architecture
from edgebench.export.decoder.source import Source, Tensors
from edgebench.export.exporter import LowRank
from edgebench.export.request import ExportRequest
from edgebench.export.sample_text import TEXTS

if TYPE_CHECKING:
    from edgebench.export.plan import Member

#: Models whose weights take at most this in fp32 are held whole in PyTorch for the comparison.
WHOLE_BYTES = 3 << 30


@dataclass(frozen=True)
class DecoderPlan:
    """The sizes, where the weights come from, and the prompts' texts.

    ``source`` is what the graph is written from: with the adapter where there is one form of it,
    else the base alone, and ``swaps`` are the base with each of the swappable adapters.
    """

    architecture: Architecture
    source: Source = field(repr=False)
    texts: tuple[str, ...] = field(repr=False)
    texts_source: str
    whole_bytes: int
    swaps: tuple[Source, ...] = field(default=(), repr=False)

    @property
    def swapped(self) -> frozenset[str]:
        """Names of the matrices that any swappable adapter changes."""
        return frozenset(name for source in self.swaps for name in source.branches)


def plan_decoder(
    request: ExportRequest,
    base: BaseModel,
    members: Sequence[Member],
) -> DecoderPlan:
    """Check a request for a decoder against the checkpoints' names and shapes.

    Raises:
        UsageError: an option that decoders do not have, or a length beyond the positions.
        ExportError: an architecture that is not computed here.
        CheckpointError: the adapter is more than LoRA, or does not fit.
        InputError: the file of texts can't be used.
    """
    _refuse_options(request)
    architecture = read_architecture(base)
    if request.seq_len > architecture.max_positions:
        raise UsageError(
            f"{request.seq_len} tokens are more than the base's {architecture.max_positions} "
            "positions",
            where="--seq-len",
            fix=f"Give at most {architecture.max_positions}.",
        )
    alone = Source(Tensors(base.weights, "base model"))
    adapted = tuple(_adapted(architecture, alone, member) for member in members)
    swappable = request.lowering == "swappable"
    if swappable:
        for each, member in zip(adapted, members, strict=True):
            _refuse_replaced(each, member)
    elif request.lowering == "base":
        adapted = tuple(each.without_branches() for each in adapted)
    tensors_of = adapted[0] if adapted and not swappable else alone
    if "mixed" in request.quants:
        kept = schemes.kept_parameters(architecture, tensors_of, request.lowering == "unmerged")
        sensitivity.check_budget(architecture, kept, request.mixed_bits)
    texts, source = TEXTS, f"edgebench's own {len(TEXTS)} sentences"
    if request.data is not None:
        texts = read_texts(request.data)
        source = f"{request.data.name} (sha256 {sha256_file(request.data)[:16]}…)"
    return DecoderPlan(
        architecture=architecture,
        source=tensors_of,
        texts=texts,
        texts_source=source,
        whole_bytes=WHOLE_BYTES,
        swaps=adapted if swappable else (),
    )


def _adapted(architecture: Architecture, base: Source, member: Member) -> Source:
    """The base with an adapter that was found to fit."""
    adapter = member.adapter
    branches = member.found.exporter.low_rank(adapter)
    replaced = {name: _stored_name(adapter, name) for name in member.facts.provides}
    _check_adapter(architecture, adapter, branches, replaced)
    return Source(base.base, Tensors(adapter.weights, "adapter"), branches, replaced)


def _refuse_replaced(source: Source, member: Member) -> None:
    for name in source.replaced:
        raise CheckpointError(
            f"the adapter brings {name} in full, and a decoder's adapters are swapped by their "
            "factors alone",
            where=str(member.adapter.path),
            fix="Export it merged or unmerged.",
        )


def _refuse_options(request: ExportRequest) -> None:
    if "int8-static" in request.quants and request.calibration is None:
        raise UsageError(
            "int8-static fixes the ranges of a decoder's activations by text, and none is given",
            where="--quant int8-static",
            fix="Give text of the kind that the model will see with --calibration.",
        )
    if "int8-static" in request.quants and request.lowering == "swappable":
        raise UsageError(
            "int8-static moves scale into what a decoder's matrices read, so adapters that are "
            "swapped would be given other values than they were trained on",
            where="--quant int8-static",
            fix="Give another precision, or export it merged or unmerged.",
        )
    refused = {
        "--format": (request.format != "onnx", "decoders are exported to ONNX alone"),
        "--via": (request.via != "torch", "decoders have one road, edgebench's own"),
        "--labels": (request.labels is not None, "a decoder has no labels"),
    }
    for option, (given, why) in refused.items():
        if given:
            raise UsageError(why, where=option, fix=f"Leave {option} out.")


def _check_adapter(
    architecture: Architecture,
    adapter: AdapterCheckpoint,
    branches: dict[str, LowRank],
    replaced: dict[str, str],
) -> None:
    matrices = {matrix.name: matrix for matrix in architecture.matrices}
    for name, branch in branches.items():
        matrix = matrices.get(name)
        if matrix is None or name == TABLE:
            raise CheckpointError(
                f"the adapter changes {name}, which is no matrix of this decoder",
                where=str(adapter.path),
                fix="Give its own base with --base; a tied head can't be adapted alone.",
            )
        k, n = adapter.shapes[branch.a].shape[1], adapter.shapes[branch.b].shape[0]
        if (n, k) != (matrix.n, matrix.k):
            raise CheckpointError(
                f"the adapter's factors on {name} are for a {n} x {k} weight, "
                f"the base's is {matrix.n} x {matrix.k}",
                where=str(adapter.path),
                fix="Give its own base with --base, or check the path.",
            )
    expected = architecture.expected()
    for name, stored in replaced.items():
        if architecture.tied and name in (f"{TABLE}.weight", f"{HEAD}.weight"):
            raise CheckpointError(
                f"the adapter trained {name} apart, and the base ties head and embeddings",
                where=str(adapter.path),
                fix="Save the merged model (merge_and_unload) and export that.",
            )
        shape = adapter.shapes[stored].shape
        if expected.get(name) != shape:
            raise CheckpointError(
                f"the adapter replaces {name} by a tensor {shape}, which has no place in the base",
                where=str(adapter.path),
                fix="Give its own base with --base.",
            )


def _stored_name(adapter: AdapterCheckpoint, name: str) -> str:
    """The name in the adapter's file of a parameter of the base."""
    return next(stored for stored in adapter.shapes if stored.endswith(name))
