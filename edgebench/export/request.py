"""What to export: one frozen value that says everything, and its validation."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from edgebench.artifact import Format
from edgebench.errors import UsageError
from edgebench.export.exporter import Lowering
from edgebench.export.torch_artifact import PRECISIONS
from edgebench.quantize import CALIBRATED, MIXED_BITS, SCHEMES, check_scheme

#: Called with the name of a step and the share of the whole that is done (0 to 1), or None.
Progress = Callable[[str, float | None], None]

Road = Literal["torch", "optimum"]


@dataclass(frozen=True)
class ExportRequest:
    """One adapter on one base, exported at one or more precisions.

    Attributes:
        out: directory that receives one artifact directory per scheme.
        adapter: PEFT checkpoint directory; None exports the base alone (lowering "base").
        more_adapters: further ones for the same base, where the lowering is "swappable".
        base: base model: a directory, ``package:<import name>/<folder>``, or a model id in the
            local Hugging Face cache. May be None where ``adapter_config.json`` names one of these.
            Nothing is ever downloaded.
        quants: names of schemes, each once: ``edgebench.quantize.SCHEMES``, or for the format
            "torch" those of ``edgebench.export.torch_artifact.PRECISIONS``.
        lowering: "merged" folds the adapter into the base's weights; "unmerged" keeps its branch;
            "swappable" writes one base and a file for each adapter; "base" leaves the update out
            and keeps the adapter's head, to compare with.
        seq_len: tokens per row of the timing and evaluation inputs. The graph takes any length.
        name: artifact name; by default the adapter's (or the base's) directory name.
        data: JSON Lines, CSV or Parquet file with a ``text`` and a ``label`` column.
        labels: label names in the order of the logits, where the checkpoint does not keep them.
        via: "torch" (our own road) or "optimum".
        evaluation_limit: evaluate on only the first this many labelled rows.
        format: "onnx" for ONNX Runtime, or "torch": a checkpoint that PyTorch runs.
        calibration: text that weights of few bits are fitted to: one text a line, or JSON
            Lines or CSV with a column ``text``. None takes the texts of the timing inputs.
        mixed_bits: budget of the scheme "mixed", in stored bits a weight over all weights.
        exporter_dirs: directories of exporter files, the first to look in first; None means the
            built-in ones. Exporter files are code: the caller decides whose may run.
    """

    out: Path
    adapter: Path | None = None
    base: str | None = None
    quants: tuple[str, ...] = ("fp32",)
    lowering: Lowering = "merged"
    seq_len: int = 128
    name: str | None = None
    data: Path | None = None
    labels: tuple[str, ...] | None = None
    via: Road = "torch"
    evaluation_limit: int | None = None
    format: Format = "onnx"
    calibration: Path | None = None
    mixed_bits: float = MIXED_BITS
    exporter_dirs: tuple[Path, ...] | None = None
    more_adapters: tuple[Path, ...] = ()


_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


def validate(request: ExportRequest) -> None:
    """Refuse a request that can't be carried out, before anything is read.

    Raises:
        UsageError: an option is out of range, unknown, or contradicts another.
    """
    if not request.quants:
        raise UsageError("no precision was asked for", where="--quant", fix="Try --quant fp32.")
    _one_of("--format", request.format, ("onnx", "torch"))
    for scheme in request.quants:
        _check_precision(scheme, request.format)
    if len(set(request.quants)) != len(request.quants):
        raise UsageError(
            "a precision is given twice", where="--quant", fix="Give each scheme once."
        )
    _one_of("--lowering", request.lowering, ("merged", "unmerged", "swappable", "base"))
    _one_of("--via", request.via, ("torch", "optimum"))
    _check_swappable(request)
    if request.format == "torch" and request.via != "torch":
        raise UsageError(
            f"--via {request.via} is a road to ONNX, and --format torch writes none",
            where="--via",
            fix="Leave --via out.",
        )
    if request.seq_len < 1:
        raise UsageError(
            f"the sequence length must be at least 1, not {request.seq_len}", where="--seq-len"
        )
    if request.evaluation_limit is not None and request.evaluation_limit < 1:
        raise UsageError(
            f"the evaluation needs at least 1 example, not {request.evaluation_limit}",
            where="--evaluation-limit",
        )
    if request.name is not None and not _NAME.fullmatch(request.name):
        raise UsageError(
            f"{request.name!r} can't name a directory",
            where="--name",
            fix="Use letters, digits, '.', '_' and '-', beginning with a letter or digit.",
        )
    if request.adapter is None and request.base is None:
        raise UsageError(
            "neither an adapter nor a base model is given", fix="Give an adapter, --base, or both."
        )
    if request.calibration is not None and not CALIBRATED.intersection(request.quants):
        raise UsageError(
            "no precision that was asked for uses calibration text",
            where="--calibration",
            fix=f"Those that do: {', '.join(sorted(CALIBRATED))}.",
        )
    if not 0 < request.mixed_bits <= 32:
        raise UsageError(
            f"the budget must be between 0 and 32 bits a weight, not {request.mixed_bits:g}",
            where="--mixed-bits",
            fix="Try 3.5.",
        )
    if request.labels is not None and len(set(request.labels)) != len(request.labels):
        raise UsageError("a label is given twice", where="--labels")


def _check_swappable(request: ExportRequest) -> None:
    if request.lowering == "swappable":
        if request.adapter is None:
            raise UsageError("a swappable base needs an adapter", fix="Give one or more.")
        if request.format != "onnx" or request.via != "torch":
            raise UsageError(
                "swappable adapters are ONNX Runtime's, and written by our own road alone",
                where="--lowering swappable",
                fix="Leave --format and --via out.",
            )
    elif request.more_adapters:
        raise UsageError(
            f"{1 + len(request.more_adapters)} adapters for one base that is {request.lowering}",
            where="--lowering",
            fix="Give one adapter, or --lowering swappable.",
        )


def _check_precision(scheme: str, form: Format) -> None:
    if form == "torch" and scheme not in PRECISIONS:
        raise UsageError(
            f"the format torch has no precision {scheme!r}",
            where="--quant",
            fix=f"It has {', '.join(PRECISIONS)}; quantised schemes are --format onnx.",
        )
    if form == "onnx" and scheme in PRECISIONS and scheme not in SCHEMES:
        raise UsageError(
            f"the format onnx has no precision {scheme!r}",
            where="--quant",
            fix=f"Add --format torch for it; for ONNX choose from {', '.join(SCHEMES)}.",
        )
    if form == "onnx":
        check_scheme(scheme)


def safe_name(text: str) -> str:
    """A directory's name as an artifact name: anything unusual becomes a hyphen."""
    cleaned = re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip("-.")
    return cleaned[:100] or "model"


def _one_of(option: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise UsageError(
            f"{value!r} is not one of {', '.join(known)}", where=option, fix=f"Try {known[0]}."
        )
