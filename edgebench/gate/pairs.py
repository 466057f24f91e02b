"""What is compared with what: artifacts of two sides, in pairs that may be compared."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from edgebench.artifact import MANIFEST, Artifact
from edgebench.errors import ArtifactError, InputError, UsageError
from edgebench.results.rows import artifact_label


@dataclass(frozen=True)
class Pair:
    """A benchmark: the same model before and after a change."""

    name: str
    baseline: Artifact
    candidate: Artifact


def load_side(paths: Sequence[Path], option: str) -> list[Artifact]:
    """The artifacts of one side: each path is an artifact, or a directory of artifacts.

    Raises:
        UsageError: no path. ArtifactError: one is missing, empty, broken or of another schema.
    """
    if not paths:
        raise UsageError(f"{option} is missing", fix="Name an artifact, or a directory of them.")
    found: list[Artifact] = []
    for path in paths:
        if (path / MANIFEST).is_file():
            found.append(Artifact.load(path))
            continue
        inside = sorted(each.parent for each in path.glob(f"[!.]*/{MANIFEST}"))
        if not inside:
            raise ArtifactError(
                "there is no artifact here" if path.is_dir() else "there is no such artifact",
                where=str(path),
                fix=f"Give {option} an artifact's directory, or a directory of artifacts.",
            )
        found += [Artifact.load(each) for each in inside]
    return found


def pair(baselines: Sequence[Artifact], candidates: Sequence[Artifact]) -> list[Pair]:
    """Pair the two sides: one with one as they are, several by name, lowering and precision.

    Raises:
        InputError: a side lacks a partner, has two of one name, or a pair can't be compared.
    """
    if len(baselines) == len(candidates) == 1:
        pairs = [Pair(_label(candidates[0]), baselines[0], candidates[0])]
    else:
        old, new = _by_label(baselines, "baseline"), _by_label(candidates, "candidate")
        for label in [*old, *new]:
            if label not in old or label not in new:
                side = "candidate" if label not in new else "baseline"
                raise InputError(
                    f"{label} has no partner among the {side}s",
                    where=str((old.get(label) or new[label]).path),
                    fix="Give both sides the same artifacts, or one artifact each.",
                )
        pairs = [Pair(label, old[label], new[label]) for label in new]
    for each in pairs:
        require_comparable(each)
    return pairs


def require_comparable(each: Pair) -> None:
    """Refuse two sides that would not be asked the same.

    Raises:
        InputError: with the first thing that differs.
    """
    old, new = each.baseline.manifest, each.candidate.manifest
    for what, before, after in (
        ("format", old.format, new.format),
        ("task", old.task, new.task),
        ("sequence length", old.statistics.seq_len, new.statistics.seq_len),
        ("timing inputs", old.data.inputs_source, new.data.inputs_source),
        ("number of timing inputs", old.data.inputs_n, new.data.inputs_n),
        ("model inputs", _names(each.baseline), _names(each.candidate)),
    ):
        if before != after:
            raise InputError(
                f"the two sides of {each.name} have different scenarios: {what} is {before!r} in "
                f"the baseline and {after!r} in the candidate",
                where=str(each.candidate.path),
                fix="Export both with the same options and data.",
            )


def _names(artifact: Artifact) -> list[str]:
    return [tensor.name for tensor in artifact.manifest.signature.inputs]


def _label(artifact: Artifact) -> str:
    return artifact_label(artifact.manifest)


def _by_label(artifacts: Sequence[Artifact], side: str) -> dict[str, Artifact]:
    found: dict[str, Artifact] = {}
    for artifact in artifacts:
        label = _label(artifact)
        if label in found:
            raise InputError(
                f"the {side} has two artifacts named {label}",
                where=f"{found[label].path}, {artifact.path}",
                fix="Remove one of them.",
            )
        found[label] = artifact
    return found
