"""What is known of a decoder's export, and checked, before torch is imported."""

from __future__ import annotations

from dataclasses import dataclass, field

from edgebench.artifact import sha256_file
from edgebench.errors import CheckpointError, UsageError
from edgebench.export.base import BaseModel
from edgebench.export.checkpoint import AdapterCheckpoint
from edgebench.export.data import read_texts
from edgebench.export.decoder import schemes, sensitivity
from edgebench.export.decoder.architecture import HEAD, TABLE, Architecture, read_architecture
from edgebench.export.decoder.source import Source, Tensors
from edgebench.export.exporter import AdapterFacts, FoundExporter, LowRank
from edgebench.export.request import ExportRequest
from edgebench.export.sample_text import TEXTS

#: Models whose weights take at most this in fp32 are held whole in PyTorch for the comparison.
WHOLE_BYTES = 3 << 30


@dataclass(frozen=True)
class DecoderPlan:
    """The sizes, where the weights come from, and the prompts' texts."""

    architecture: Architecture
    source: Source = field(repr=False)
    texts: tuple[str, ...] = field(repr=False)
    texts_source: str
    whole_bytes: int


def plan_decoder(
    request: ExportRequest,
    base: BaseModel,
    adapter: AdapterCheckpoint | None,
    found: FoundExporter | None,
    facts: AdapterFacts | None,
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
    branches: dict[str, LowRank] = {}
    replaced: dict[str, str] = {}
    tensors = None
    if adapter and found and facts:
        branches = found.exporter.low_rank(adapter)
        replaced = {name: _stored_name(adapter, name) for name in facts.provides}
        _check_adapter(architecture, adapter, branches, replaced)
        tensors = Tensors(adapter.weights, "adapter")
    tensors_of = Source(Tensors(base.weights, "base model"), tensors, branches, replaced)
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
        "--lowering": (
            request.lowering not in ("merged", "unmerged"),
            f"decoders have no {request.lowering} form yet",
        ),
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
