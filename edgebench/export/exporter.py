"""The Exporter: what one adapter family must say about itself, and how its file is found.

A family is one Python file in a directory of exporters (a workspace's ``exporters/`` first, then
the built-in ones). The file defines ``EXPORTER``, an object with this interface. It is loaded by
path; there is no registration. A file whose name begins with an underscore is left alone, and of
two files with one name the first directory's wins.
"""

from __future__ import annotations

import hashlib
import importlib.util
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from edgebench.artifact import sha256_file
from edgebench.errors import CheckpointError
from edgebench.export.base import BaseModel
from edgebench.export.checkpoint import AdapterCheckpoint

Task = Literal[
    "text-classification", "token-classification", "feature-extraction", "text-generation"
]


@dataclass(frozen=True)
class LowRank:
    """A linear module's low-rank branch, y += scale * (x A^T) B^T: the names of its tensors in the
    adapter's files, A [r, d_in] and B [d_out, r]."""

    a: str
    b: str
    scale: float


#: How an adapter may stand in the graph: folded into the weights; a branch of its own; as inputs of
#: the graph, so that one base takes any of several; or not at all ("base"), but for the head that
#: it brings: what its cost is measured against, so every family has it.
Lowering = Literal["merged", "unmerged", "swappable", "base"]


@dataclass(frozen=True)
class AdapterFacts:
    """What a family reads off a checkpoint's names and shapes.

    Attributes:
        kind: family name for the manifest, e.g. "lora".
        rank: the rank, where all modules share one.
        task: what the model with this adapter does.
        num_labels: outputs of the head that the adapter brings; None where it brings none.
        provides: names of base parameters that the adapter brings itself, so that the base may
            lack them.
        active_atoms: of a family whose tokens choose atoms of a dictionary, the most that one
            token uses; None for other families.
    """

    kind: str
    rank: int | None
    task: Task
    num_labels: int | None
    provides: frozenset[str]
    active_atoms: float | None = None


class Exporter(ABC):
    """One adapter family."""

    #: Name of the family's file, for the manifest.
    name: str

    #: The lowerings that make sense for this family; a request for another one is refused. One
    #: whose update can't be folded into the weights leaves "merged" out.
    lowerings: tuple[Lowering, ...] = ("merged", "unmerged")

    #: For ``edgebench exporters``: the values of ``peft_type`` that it recognises, the tasks that
    #: it exports, and one line of what it is.
    kinds: tuple[str, ...] = ()
    tasks: tuple[Task, ...] = ("text-classification", "token-classification", "feature-extraction")
    summary: str = ""

    @abstractmethod
    def recognises(self, config: Mapping[str, Any]) -> bool:
        """Whether this ``adapter_config.json`` is of this family."""

    @abstractmethod
    def inspect(self, adapter: AdapterCheckpoint, base: BaseModel) -> AdapterFacts:
        """Check from shapes alone that the adapter fits the base. Imports no torch.

        Raises:
            CheckpointError: it does not fit; the message says how.
        """

    def low_rank(self, adapter: AdapterCheckpoint) -> dict[str, LowRank]:
        """The adapter as low-rank branches of linear modules, by module: all that there is to it.

        What a decoder's export needs, which never holds the model as a module. Imports no torch.

        Raises:
            CheckpointError: the adapter, or this family, is more than that.
        """
        raise CheckpointError(
            f"adapters of the family {self.name} can't be put on a decoder yet",
            where=str(adapter.path),
            fix="LoRA can.",
        )

    @abstractmethod
    def attach(self, adapter: AdapterCheckpoint, tensors: Mapping[str, Any], module: Any) -> Any:
        """Put the adapter's tensors on a base ``torch.nn.Module``; the branch stays separate.

        Raises:
            CheckpointError: tensors are missing, or have no place.
        """

    def head(self, adapter: AdapterCheckpoint, tensors: Mapping[str, Any], module: Any) -> Any:
        """Parameters of the base's head that the adapter makes, and does not store, by name."""
        return {}

    def directions(self, attached: Any) -> dict[str, int]:
        """The adapter's directions by how they are computed: "off", "int8", "fp16", "fp32".

        Of those in "int8" activations are rounded too (``edgebench.adapters.integer``), which the
        parity check then takes into account. Empty for a family that has no directions.
        """
        return {}

    @abstractmethod
    def lower(self, attached: Any, lowering: Lowering) -> Any:
        """The transformers module to export, from what ``attach`` returned (may change it).

        It is asked only for those of ``lowerings`` that are "merged" or "unmerged".
        """

    def factors(self, attached: Any) -> dict[str, tuple[Any, Any]]:
        """What "swappable" needs, from what ``attach`` returned: the update of each linear module
        by its name in the base, as arrays A [d_in, r] and B [r, d_out] with y = W x + (x A) B.

        Raises:
            CheckpointError: this adapter's update has not that form.
        """
        raise NotImplementedError(f"{self.name} has no swappable form")


@dataclass(frozen=True)
class FoundExporter:
    """An exporter and the file that it came from."""

    exporter: Exporter
    file: Path
    digest: str


def exporter_files(directories: tuple[Path, ...]) -> tuple[Path, ...]:
    """The exporter files of these directories, each name once, in the order of looking."""
    files: dict[str, Path] = {}
    for directory in directories:
        for file in sorted(directory.glob("*.py")):
            if not file.name.startswith("_"):
                files.setdefault(file.name, file)
    return tuple(files.values())


def find_exporter(directories: tuple[Path, ...], adapter: AdapterCheckpoint) -> FoundExporter:
    """The first exporter that recognises an adapter.

    Raises:
        CheckpointError: none does, or an exporter file can't be loaded.
    """
    files = exporter_files(directories)
    for file in files:
        exporter = load_exporter(file)
        if exporter.recognises(adapter.config):
            return FoundExporter(exporter, file, "sha256:" + sha256_file(file))
    kind = adapter.config.get("peft_type", "unknown")
    known = ", ".join(file.stem for file in files) or "none"
    raise CheckpointError(
        f"no exporter recognises an adapter of type {kind!r}",
        where=str(adapter.path),
        fix=f"Exporters found: {known}. Write exporters/<family>.py for it.",
    )


def load_exporter(file: Path) -> Exporter:
    """Run an exporter file and return its ``EXPORTER``.

    Raises:
        CheckpointError: the file is not an exporter.
    """
    tag = hashlib.sha256(str(file.resolve()).encode()).hexdigest()[:12]
    spec = importlib.util.spec_from_file_location(f"edgebench_exporter_{file.stem}_{tag}", file)
    if spec is None or spec.loader is None:
        raise CheckpointError("the exporter file can't be loaded", where=str(file))
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except (SyntaxError, ImportError) as error:
        raise CheckpointError(
            f"the exporter file can't be loaded: {error}", where=str(file), fix="Mend or remove it."
        ) from error
    exporter = getattr(module, "EXPORTER", None)
    if not isinstance(exporter, Exporter):
        raise CheckpointError(
            "the exporter file defines no EXPORTER with the Exporter interface",
            where=str(file),
            fix="See exporters/peft_lora.py for the form.",
        )
    return exporter
