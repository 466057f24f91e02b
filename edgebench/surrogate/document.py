"""The calibration file: ``calibration/<device>_<k>samples.json``.

Schema history:
    edgebench.calibration/1   first
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from edgebench.errors import InputError
from edgebench.results.atomic import replace_files

SCHEMA = "edgebench.calibration/1"

#: Every warning that a calibration can carry: name -> what it means and what to do.
WARNINGS = {
    "device-unlike-training": (
        "the samples are further from what the training devices predict than 95 % of those of "
        "training devices that were left out were; measure more samples, or train on a device of "
        "this kind"
    ),
    "features-outside-training": (
        "a sample's features lie outside the range of the training table; predictions there are "
        "extrapolations"
    ),
    "sample-set-aside": (
        "a sample is several times off what the others say, so it was not used; look at its "
        "recording, and measure it again"
    ),
    "too-few-samples": (
        "with fewer than three samples there is a scale, and no slope or stack; measure more"
    ),
    "no-interval": (
        "no device could be left out in training (fewer than three, or too few rows), so it is not "
        "known how far off predictions of a new device are"
    ),
}


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class StackPart(_Part):
    """One space of a stack; see ``stack.py``."""

    share: float
    intercept: float
    theta: list[float]


class StackDocument(_Part):
    """A stack: its level g in the metric's unit, and the two spaces."""

    level: float
    linear: StackPart
    log: StackPart


class Interval(_Part):
    """A prediction interval: ŷ·exp(±log_half_width) for a new forward pass on this device."""

    coverage: float
    log_half_width: float


class MetricCalibration(_Part):
    """One metric's calibration. ``alpha`` and ``beta`` (in its unit) come after the stack, if any.

    ``loo_log_rms`` has each method's error when each sample is left out in turn (root mean square
    of the natural logarithm of the ratio), by which the method was chosen.
    """

    method: Literal["stack", "scale-shift"]
    alpha: float
    beta: float
    loo_log_rms: dict[str, float]
    sources: list[str]
    stack: StackDocument | None = None
    interval: Interval | None = None


class CalibrationDocument(BaseModel):
    """A calibration. Members that ``edgebench sample`` wrote beside these are kept as they are."""

    model_config = ConfigDict(extra="allow", frozen=True)

    schema_: str
    device: str
    features: list[str]
    surrogate_digest: str
    n_samples: int
    metrics: dict[str, MetricCalibration]
    warnings: list[str]
    samples: list[dict[str, Any]]


def to_json(document: CalibrationDocument) -> dict[str, Any]:
    """As it is written: ``schema_`` is ``schema`` there."""
    data = document.model_dump(mode="json")
    return {"schema": data.pop("schema_"), **data}


def write(path: Path, document: CalibrationDocument) -> None:
    """Write the file, at once or not at all."""
    text = json.dumps(to_json(document), indent=2, allow_nan=False) + "\n"
    replace_files(path.parent, {path.name: text.encode()})


def read(path: Path) -> CalibrationDocument:
    """Read a calibration.

    Raises:
        InputError: it is missing, broken, of another version, or holds samples alone.
    """
    try:
        data = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(
            f"the calibration can't be read: {error}",
            where=str(path),
            fix="Make it with `edgebench surrogate calibrate`.",
        ) from error
    if not isinstance(data, dict) or "metrics" not in data:
        raise InputError(
            "the file has no fitted calibration",
            where=str(path),
            fix="Fit one to its samples with `edgebench surrogate calibrate`.",
        )
    if data.get("schema") != SCHEMA:
        raise InputError(
            f"the calibration is of schema {data.get('schema')!r}, this edgebench reads {SCHEMA!r}",
            where=str(path),
            fix="Fit it again with `edgebench surrogate calibrate`.",
        )
    data["schema_"] = data.pop("schema")
    try:
        return CalibrationDocument.model_validate(data)
    except ValidationError as error:
        first = error.errors()[0]
        raise InputError(
            f"the calibration is broken: {'.'.join(map(str, first['loc']))}: {first['msg']}",
            where=str(path),
            fix="Fit it again with `edgebench surrogate calibrate`.",
        ) from error
