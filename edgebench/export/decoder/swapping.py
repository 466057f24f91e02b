"""Swappable adapters of a decoder: their files, and what each computes beside the base.

An adapter's factors are inputs of the graph (``network.Network.swapped``), and its file holds them
under the inputs' names, with the scale in B and in fp32 (``edgebench.export.swappable``). The base
is written once, a layer at a time; an adapter is small and is held whole.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edgebench import artifact as nouns
from edgebench.errors import ExportError
from edgebench.export import swappable
from edgebench.export.decoder.plan import DecoderPlan
from edgebench.export.decoder.source import Array, Source
from edgebench.export.plan import Member, Plan
from edgebench.export.request import safe_name


@dataclass(frozen=True)
class Form:
    """What one graph can be made to compute: as it stands, or with one of its adapters.

    Attributes:
        adapter: name of the swappable adapter that is active; None leaves the inputs' defaults.
        member: whose update PyTorch attaches for the comparison.
        source: the checkpoints as this form combines them.
        what: the same in words.
    """

    adapter: str | None
    member: Member | None
    source: Source
    what: str


def forms(plan: Plan, decoder: DecoderPlan) -> tuple[Form, ...]:
    """Everything that an artifact of this plan is compared with PyTorch as; first as it stands."""
    if decoder.swaps:
        adapted = (
            Form(name, member, source, f"with the adapter {name} unmerged")
            for (name, member), source in zip(named(plan), decoder.swaps, strict=True)
        )
        return (Form(None, None, decoder.source, "of the base alone"), *adapted)
    if plan.members and plan.lowering != "base":
        return (Form(None, plan.members[0], decoder.source, "with the adapter unmerged"),)
    own = ", with what the adapter trained in full" if decoder.source.replaced else ""
    return (Form(None, None, decoder.source, f"of the base alone{own}"),)


def named(plan: Plan) -> list[tuple[str, Member]]:
    """The adapters under the names that a run chooses them by."""
    return [(safe_name(member.adapter.name), member) for member in plan.members]


def file_name(adapter: str) -> str:
    """Where an adapter's file stands in the artifact."""
    return f"{swappable.DIRECTORY}/{adapter}{swappable.SUFFIX}"


def parameters(source: Source, decoder: DecoderPlan) -> dict[str, Array]:
    """What an adapter gives the graph's inputs: A [k, rank] and B [rank, n] by name."""
    found = {}
    for matrix in decoder.architecture.matrices:
        branch = source.branch(matrix)
        if branch is not None:
            found[swappable.down_name(matrix.name)] = branch.down
            found[swappable.up_name(matrix.name)] = branch.up
    return found


def write_files(directory: Path, plan: Plan, decoder: DecoderPlan) -> None:
    """Write every adapter's file, and read it back.

    Raises:
        ExportError: a file does not hold what was written.
        OSError: the directory can't be written, or is full.
    """
    for (name, _), source in zip(named(plan), decoder.swaps, strict=False):
        given = parameters(source, decoder)
        file = directory / file_name(name)
        swappable.write_file(file, given)
        back = swappable.AdapterFile(file)
        if set(back) != set(given) or any(
            not np.array_equal(back[key], array) for key, array in given.items()
        ):
            raise ExportError(
                f"ONNX Runtime's adapter file of {name} does not hold what was written to it",
                where=plan.name,
                fix="Report this with the versions in use.",
            )


def entries(
    plan: Plan, decoder: DecoderPlan, parities: Sequence[nouns.Parity], tokens: int
) -> tuple[nouns.SwapAdapter, ...]:
    """The manifest's account of the adapters.

    Args:
        parities: of each, active.
        tokens: that its FLOPs are counted for.
    """
    found = []
    for (name, member), source, parity in zip(named(plan), decoder.swaps, parities, strict=False):
        ranks, flops = 0, 0.0
        for matrix in decoder.architecture.matrices:
            if matrix.name in source.branches:
                rank = member.adapter.shapes[source.branches[matrix.name].a].shape[0]
                ranks += rank
                # As ``facts.branch_flops``: two products and an addition.
                flops += tokens * (2 * rank * (matrix.k + matrix.n) + matrix.n)
        found.append(
            nouns.SwapAdapter(
                name=name,
                file=file_name(name),
                digest=member.adapter.digest,
                bytes=member.adapter.bytes,
                rank=member.facts.rank,
                kind=member.facts.kind,
                parameters=member.adapter.parameters,
                ranks=ranks,
                extra_flops=flops,
                parity=parity,
            )
        )
    return tuple(found)
