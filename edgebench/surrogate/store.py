"""A surrogate on disk: ``surrogate.json`` and one safetensors file, named by its digest.

The JSON is replaced last and at once, so a reader finds the old surrogate or the new one.

Schema history:
    edgebench.surrogate/1   first
    edgebench.surrogate/2   ``worked``: the metrics that add up over work
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.numpy import load, save

from edgebench.errors import InputError
from edgebench.results.atomic import replace_files
from edgebench.surrogate.fitting import Fit
from edgebench.surrogate.leave_out import Errors, LeaveOut
from edgebench.surrogate.model import Heads, Surrogate
from edgebench.surrogate.network import SurrogateNet
from edgebench.surrogate.stack import SPACES, Scale

SCHEMA = "edgebench.surrogate/2"
READ = ("edgebench.surrogate/1", SCHEMA)
NAME = "surrogate.json"


def write(directory: Path, fit: Fit) -> str:
    """Write a fitted surrogate; its digest."""
    content = save(_arrays(fit))
    digest = hashlib.sha256(content).hexdigest()
    weights = f"surrogate-{digest[:12]}.safetensors"
    surrogate = fit.surrogate
    document = {
        "schema": SCHEMA,
        "digest": digest,
        "weights": weights,
        "features": list(surrogate.features),
        "devices": list(surrogate.devices),
        "metrics": list(surrogate.metrics),
        "sources": {
            name: [surrogate.devices[i] for i in head.sources]
            for name, head in zip(surrogate.metrics, surrogate.heads, strict=True)
        },
        "width": surrogate.net.heads.in_features,
        "tag_width": surrogate.net.tags.shape[1],
        "worked": list(surrogate.net.worked),
        "n_rows": fit.n_rows,
        "lowest": {
            name: head.lowest for name, head in zip(surrogate.metrics, surrogate.heads, strict=True)
        },
        "spread": {
            name: {space: head.scales[space].spread for space in SPACES}
            for name, head in zip(surrogate.metrics, surrogate.heads, strict=True)
        },
        "leave_out": summary(fit.leave_out),
    }
    text = json.dumps(document, indent=2, allow_nan=False) + "\n"
    replace_files(directory, {weights: content, NAME: text.encode()})  # renamed in this order
    for old in directory.glob("surrogate-*.safetensors"):
        if old.name != weights:
            old.unlink(missing_ok=True)
    surrogate.digest = digest
    return digest


def summary(leave_out: LeaveOut, coverage: float = 0.9) -> dict[str, Any]:
    """What leaving each device out showed: metric -> samples -> device -> figures."""
    return {
        metric: {
            str(k): {
                device: {
                    "spearman_mean": round(float(errors.spearman[device].mean()), 4),
                    "median_ape_percent": round(
                        100 * float(np.median(np.abs(np.expm1(-errors.log_errors[device])))), 2
                    ),
                    "mean_ape_percent": round(
                        100 * float(np.mean(np.abs(np.expm1(-errors.log_errors[device])))), 2
                    ),
                    "coverage_of_90_percent_interval": round(errors.coverage(coverage)[device], 4),
                }
                for device in errors.log_errors
            }
            for k, errors in sizes.items()
        }
        for metric, sizes in leave_out.by_metric.items()
    }


def read(directory: Path) -> Fit:
    """Read a surrogate.

    Raises:
        InputError: it is missing, broken, or of another version.
    """
    path = directory / NAME if directory.is_dir() or directory.suffix != ".json" else directory
    try:
        document = json.loads(path.read_text("utf-8"))
        if not isinstance(document, dict) or document.get("schema") not in READ:
            raise InputError(
                f"this is not a surrogate that this edgebench reads ({', '.join(READ)})",
                where=str(path),
                fix="Fit it again with `edgebench surrogate fit`.",
            )
        weights = path.parent / Path(document["weights"]).name
        content = weights.read_bytes()
        if hashlib.sha256(content).hexdigest() != document["digest"]:
            raise InputError(
                "the surrogate's weights are not those that belong to it",
                where=str(weights),
                fix="Fit it again with `edgebench surrogate fit`.",
            )
        return _assemble(document, load(content))
    except FileNotFoundError as error:
        raise InputError(
            "there is no surrogate here",
            where=str(error.filename or path),
            fix="Make one with `edgebench surrogate fit TABLE --out DIRECTORY`.",
        ) from error
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
        raise InputError(
            f"the surrogate can't be read: {type(error).__name__}: {error}",
            where=str(path),
            fix="Fit it again with `edgebench surrogate fit`.",
        ) from error


def _arrays(fit: Fit) -> dict[str, Any]:
    arrays: dict[str, Any] = {
        f"net/{name}": value.detach().cpu().numpy().copy()
        for name, value in fit.surrogate.net.state_dict().items()
    }
    for name, head in zip(fit.surrogate.metrics, fit.surrogate.heads, strict=True):
        for space in SPACES:
            scale = head.scales[space]
            for part in ("level", "mix", "feature_weight"):
                value = getattr(scale, part)
                arrays[f"scale/{name}/{space}/{part}"] = np.ascontiguousarray(value)
    for name, sizes in fit.leave_out.by_metric.items():
        for k, errors in sizes.items():
            for part in ("log_errors", "loo", "spearman"):
                for device, values in getattr(errors, part).items():
                    key = f"leave_out/{name}/{k}/{part}/{device}"
                    arrays[key] = np.ascontiguousarray(values, dtype=np.float32)
    arrays["range/low"] = np.ascontiguousarray(fit.range_[0])
    arrays["range/high"] = np.ascontiguousarray(fit.range_[1])
    return arrays


def _assemble(document: dict[str, Any], arrays: dict[str, Any]) -> Fit:
    devices, metrics = document["devices"], document["metrics"]
    net = SurrogateNet(
        len(document["features"]),
        len(devices),
        len(metrics),
        width=document["width"],
        tag_width=document["tag_width"],
        worked=document.get("worked", ()),
    )
    prefix = "net/"
    net.load_state_dict(
        {
            k.removeprefix(prefix): torch.from_numpy(v)
            for k, v in arrays.items()
            if k.startswith(prefix)
        }
    )
    heads = []
    for name in metrics:
        scales = {}
        for space in SPACES:
            at = f"scale/{name}/{space}"
            scales[space] = Scale(
                level=arrays[f"{at}/level"],
                spread=document["spread"][name][space],
                mix=arrays[f"{at}/mix"],
                feature_weight=arrays[f"{at}/feature_weight"],
            )
        own = tuple(devices.index(device) for device in document["sources"][name])
        heads.append(Heads(own, scales, document["lowest"][name]))
    surrogate = Surrogate(net.eval(), document["features"], devices, metrics, heads)
    surrogate.digest = document["digest"]
    found: dict[str, dict[int, dict[str, dict[str, Any]]]] = {}
    for key, values in arrays.items():
        if key.startswith("leave_out/"):
            _, name, k, part, device = key.split("/", 4)
            sizes = found.setdefault(name, {}).setdefault(int(k), {})
            sizes.setdefault(part, {})[device] = values.astype(np.float64)
    leave_out = LeaveOut(
        {
            name: {k: Errors(k, **parts) for k, parts in sorted(sizes.items())}
            for name, sizes in found.items()
        }
    )
    return Fit(
        surrogate, leave_out, (arrays["range/low"], arrays["range/high"]), document["n_rows"]
    )
