"""Which adapter families there are, and what each supports; torch is not imported."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from edgebench.errors import CheckpointError
from edgebench.export.exporter import exporter_files, load_exporter
from edgebench.quantize import SCHEMES


@dataclass(frozen=True)
class Family:
    """One exporter file.

    Attributes:
        name: the family; of a file that can't be loaded, the file's.
        kinds: values of ``peft_type`` in adapter_config.json that it recognises.
        lowerings, tasks, schemes: what it can be exported to.
        summary: one line.
        file: where it is.
        error: why it can't be loaded, or "".
    """

    name: str
    kinds: tuple[str, ...]
    lowerings: tuple[str, ...]
    tasks: tuple[str, ...]
    schemes: tuple[str, ...]
    summary: str
    file: Path
    error: str = ""


def listing(directories: tuple[Path, ...]) -> list[Family]:
    """The families of these directories of exporter files, in the order of looking."""
    found = []
    for file in exporter_files(directories):
        try:
            exporter = load_exporter(file)
        except CheckpointError as error:
            found.append(Family(file.stem, (), (), (), (), "", file, str(error)))
            continue
        found.append(
            Family(
                name=exporter.name,
                kinds=exporter.kinds,
                lowerings=exporter.lowerings,
                tasks=exporter.tasks,
                # A scheme works on the graph, whatever family it came from.
                schemes=SCHEMES,
                summary=exporter.summary,
                file=file,
            )
        )
    return found
