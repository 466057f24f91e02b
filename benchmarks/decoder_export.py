"""What exporting a decoder takes, in time and memory, against the model's size.

Checkpoints of random weights are made in three shapes (``make_decoder.py``), each with a LoRA
adapter, and exported by ``edgebench export`` in a process of its own: checked against PyTorch,
merged, rounded, stored. Peak memory is that process's largest resident set, as the kernel counted
it (ru_maxrss): PyTorch, ONNX Runtime and the comparison are all in it. CPU s is the processor time
of all its threads: what an export takes where the machine does something else meanwhile. File is
model.onnx and model.onnx.data together.

The exporter holds one layer at a time, so a deeper model of the same width must take no more memory
than one of its layers, and what the graph itself takes: measured between 1 and 3 layers of the 7B
shape. With --full the whole of it is made and exported (13.5 GB of disk, and half an hour): its
peak must stay under 8 GB, and its three-bit file under 3.3 GB, which is what a board with 4 GB of
memory needs.

With --fitted the schemes that read text are exported in place of the others, with edgebench's own
sentences as calibration: int8-static, and int3 and mixed fitted by error feedback; of the 7B shape
one layer (a layer takes minutes: products and inverses of matrices of 11008 x 11008).

Needs the export extra. --quick takes two shallow models of the smallest shape.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import common
import make_decoder

from edgebench.export.sample_text import TEXTS

FULL, FITTED = "--full", "--fitted"
MOST_GB = 8.0
MOST_FILE_GB = 3.3

# One layer of the 7B shape in fp32: 4 x 4096 x 4096 + 3 x 4096 x 11008 weights.
LAYER_GB = 4 * (4 * 4096 * 4096 + 3 * 4096 * 11008) / 1e9


@dataclass(frozen=True)
class Export:
    """One export: what it was of, and what it took."""

    shape: str
    layers: int
    scheme: str
    parameters: int
    seconds: float
    cpu_seconds: float
    peak_gb: float
    file_gb: float
    bits: float
    cosine: float


def measure(quick: bool) -> Sequence[common.Figure]:
    full, fitted = FULL in sys.argv, FITTED in sys.argv
    if quick:
        work: list[tuple[str, int | None]] = [("0.1b", 1), ("0.1b", 3)]
        schemes: tuple[str, ...] = ("int3",)
    else:
        work = [("0.1b", None), ("1b", None), ("7b", 1), ("7b", 3)]
        schemes = ("int4", "int3")
    if fitted:
        schemes = ("int8-static", "int3", "mixed")
        work = [("0.1b", 1), ("0.1b", 3)] if quick else [("0.1b", 1), ("0.1b", 3), ("7b", 1)]
    if full:
        work.append(("7b", None))
    directory = Path(tempfile.mkdtemp(prefix="edgebench-decoders-"))
    found: list[Export] = []
    try:
        for shape, layers in work:
            base = make_decoder.make(directory / "base", shape, layers)
            for scheme in schemes:
                found.append(_export(directory, base, shape, scheme, fitted))
                print(_line(found[-1]), flush=True)
            shutil.rmtree(base)
    finally:
        shutil.rmtree(directory, ignore_errors=True)
    print()
    head = ("shape", "layers", "scheme", "parameters", "s", "CPU s", "peak GB", "file GB", "bits")
    common.table((*head, "cosine"), [_row(export) for export in found])
    return _figures(found, full)


def _export(directory: Path, base: Path, shape: str, scheme: str, fitted: bool) -> Export:
    """Run ``edgebench export`` and wait for it, with what the kernel counted.

    Raises:
        Refusal: it failed.
    """
    out = directory / "out"
    command = [sys.executable, "-m", "edgebench", "export", str(base / "lora"), "--base", str(base)]
    command += ["-q", scheme, "--out", str(out), "--name", "made", "--seq-len", "64", "--json"]
    if fitted:
        text = directory / "text.txt"
        text.write_text("\n".join(TEXTS))
        command += ["--calibration", str(text)]
    answer = directory / "answer.json"
    started = time.monotonic()
    with answer.open("wb") as stdout, (directory / "errors").open("wb") as stderr:
        child = subprocess.Popen(
            command, stdout=stdout, stderr=stderr, env=common.environment(), cwd=directory
        )
        _, status, usage = os.wait4(child.pid, 0)
    seconds = time.monotonic() - started
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        said = (directory / "errors").read_text().strip().splitlines() or ["nothing"]
        raise common.Refusal(f"`edgebench export` ended with {child.returncode}: {said[-1]}")
    (manifest,) = json.loads(answer.read_text())
    shutil.rmtree(out)
    return Export(
        shape=shape,
        layers=manifest["base"]["layers"],
        scheme=f"{scheme} fitted" if fitted else scheme,
        parameters=manifest["base"]["parameters"],
        seconds=seconds,
        cpu_seconds=usage.ru_utime + usage.ru_stime,
        peak_gb=usage.ru_maxrss * 1024 / 1e9,
        file_gb=manifest["size_bytes"] / 1e9,
        bits=manifest["quantization"]["file_bits_per_weight"],
        cosine=manifest["parity"]["cosine_mean"],
    )


def _row(export: Export) -> tuple[str, ...]:
    return (
        export.shape,
        str(export.layers),
        export.scheme,
        f"{export.parameters / 1e6:.0f} M",
        f"{export.seconds:.0f}",
        f"{export.cpu_seconds:.0f}",
        f"{export.peak_gb:.2f}",
        f"{export.file_gb:.3f}",
        f"{export.bits:.2f}",
        f"{export.cosine:.4f}",
    )


def _line(export: Export) -> str:
    return "  ".join(_row(export))


def _figures(found: Sequence[Export], full: bool) -> list[common.Figure]:
    deepest = {(e.shape, e.scheme): e for e in sorted(found, key=lambda e: e.layers)}
    shallow = {(e.shape, e.scheme): e for e in sorted(found, key=lambda e: -e.layers)}
    shape, scheme = max(key for key in deepest if deepest[key] != shallow[key])
    few, many = shallow[shape, scheme], deepest[shape, scheme]
    figures = [
        common.at_most(
            "memory of a deeper model",
            max(many.peak_gb - few.peak_gb, 0.0),
            LAYER_GB,
            " GB",
            f" more at {many.layers} layers of {shape} than at {few.layers}, {scheme}",
        ),
        common.at_most("largest peak memory", max(e.peak_gb for e in found), MOST_GB, " GB"),
    ]
    if full:
        smallest = min((e for e in found if e.shape == "7b" and e.layers == 32), key=_file)
        note = f", {smallest.scheme} of {smallest.parameters / 1e9:.2f} G parameters"
        figures.append(
            common.at_most("file of the whole 7B", smallest.file_gb, MOST_FILE_GB, " GB", note)
        )
    return figures


def _file(export: Export) -> float:
    return export.file_gb


if __name__ == "__main__":
    arguments = [argument for argument in sys.argv[1:] if argument not in (FULL, FITTED)]
    sys.exit(common.run_benchmark(__doc__, measure, arguments))
