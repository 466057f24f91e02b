"""Backbones at their published shapes, exported with a LoRA adapter: one table.

    python benchmarks/backbones.py --write docs/backbones.md
    python benchmarks/backbones.py bert-base llama-3.2-1b --quant fp32 --quant int8 --quant int3

``examples/make_backbone.py`` makes each one with random weights and an adapter with random factors
(rank 8, on queries and values); ``edgebench export`` does the rest, in a process of its own, and
the table holds what its manifest says: parameters, the largest difference from PyTorch, the size of
graph and weights, the cosine of few-bit logits with fp32's. Memory is the largest that the export
held at once. What is made is deleted. Sizes and differences are a model's of this shape; random
weights have no quality, so nothing is said about any.

Rows are kept in ``--rows`` (JSON Lines): a backbone that is there already is not exported again.
``--quick`` exports one layer of the smallest. Exit code 1 where an export failed.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from common import MET, ROOT, SHORT, environment

sys.path.insert(0, str(ROOT / "examples"))

from make_backbone import SHAPES

BEGIN, END = "<!-- backbones:begin -->", "<!-- backbones:end -->"
SCHEMES = ("fp32", "int8", "int3")
#: What is exported where nothing is named: all but those that need more than 16 GB.
NAMES = (
    "tinybert-4l-312",
    "minilm-l6",
    "minilm-l12",
    "distilbert-base",
    "bert-base",
    "roberta-base",
    "deberta-v3-base",
    "deberta-v2-xlarge",
    "smollm2-135m",
    "tinyllama-1.1b",
    "llama-3.2-1b",
)
#: Fewer layers where all of them would take this machine's memory, and the row says so.
FEWER = {"deberta-v2-xlarge": 4}

Row = dict[str, Any]


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("backbones", nargs="*", metavar="BACKBONE")
    parser.add_argument("--quant", action="append", choices=SCHEMES)
    parser.add_argument("--head", choices=("sequence", "token"), default="sequence")
    parser.add_argument("--rows", type=Path, default=ROOT / "build" / "backbones.jsonl")
    parser.add_argument("--write", type=Path, help="put the table between the marks in this page")
    parser.add_argument("--quick", action="store_true", help="shows that it works")
    given = parser.parse_args(argv)
    if unknown := set(given.backbones) - set(SHAPES):
        parser.error(f"no backbone {unknown.pop()!r}: {', '.join(SHAPES)}")
    schemes = given.quant or list(SCHEMES)
    if given.quick:
        rows = [measure("tinybert-4l-312", 1, given.quant or ["fp32", "int8"], given.head)]
    else:
        rows = _read(given.rows)
        done = {row["backbone"] for row in rows if "problem" not in row}
        for name in given.backbones or [name for name in NAMES if name not in done]:
            row = measure(name, FEWER.get(name), schemes, given.head)
            rows = [old for old in rows if old["backbone"] != name] + [row]
            given.rows.parent.mkdir(parents=True, exist_ok=True)
            given.rows.write_text("".join(json.dumps(each) + "\n" for each in rows))
    order = list(SHAPES)
    table = markdown(sorted(rows, key=lambda row: order.index(row["backbone"])))
    print(table)
    if given.write:
        page = given.write.read_text()
        head, rest = page.split(BEGIN)
        given.write.write_text(f"{head}{BEGIN}\n{table}\n{END}{rest.split(END)[1]}")
    failed = sum("problem" in row for row in rows)
    met = rows and not failed
    print(f"\nexports that failed: {failed} (target at most 0) {'ok' if met else 'SHORT'}")
    return MET if met else SHORT


def measure(name: str, layers: int | None, schemes: Iterable[str], head: str) -> Row:
    """Make one backbone and its adapter, export them, and read the manifests."""
    published = SHAPES[name][1].get("num_hidden_layers", SHAPES[name][1].get("n_layers"))
    row: Row = {"backbone": name, "layers": layers or published, "published_layers": published}
    with tempfile.TemporaryDirectory(prefix="edgebench-backbone-") as scratch:
        base, adapter = f"{scratch}/{name}", f"{scratch}/{name}-lora"
        make = [sys.executable, str(ROOT / "examples" / "make_backbone.py"), name]
        make += ["--out", base, "--lora", adapter, "--head", head]
        make += [] if layers is None else ["--layers", str(layers)]
        _call(make, scratch)
        export = [sys.executable, "-m", "edgebench", "export", adapter, "--base", base]
        export += [word for scheme in schemes for word in ("-q", scheme)]
        export += ["--out", f"{scratch}/artifacts", "--json"]
        started = time.monotonic()
        done, peak = _call(export, scratch)
        row |= {"seconds": round(time.monotonic() - started), "peak_gb": peak}
        document = json.loads(done)
        if "error" in document:
            return row | {"problem": document["error"]["what"]}
        for manifest in document:
            row |= {"base": manifest["base"]["name"], "parameters": manifest["base"]["parameters"]}
            row[manifest["quantization"]["scheme"]] = {
                "mb": manifest["size_bytes"] / 1e6,
                "max_abs_error": manifest["parity"]["max_abs_error"],
                "cosine_mean": manifest["parity"]["cosine_mean"],
            }
    return row


def markdown(rows: Iterable[Row]) -> str:
    """The table; what was not exported is a dash."""
    lines = [
        "| backbone | layers | parameters, M | fp32: max error | MB fp32 | int8 | int3 "
        "| cosine int8 | int3 | export, s | GB |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        layers = f"{row['layers']}"
        if row["layers"] != row["published_layers"]:
            layers += f" of {row['published_layers']}"
        if "problem" in row:
            lines.append(f"| {row['backbone']} | {layers} | failed: {row['problem']} " + 8 * "| ")
            continue
        sizes = [f"{row[s]['mb']:.1f}" if s in row else "–" for s in SCHEMES]
        cosines = [f"{row[s]['cosine_mean']:.4f}" if s in row else "–" for s in SCHEMES[1:]]
        fp32 = f"{row['fp32']['max_abs_error']:.1e}" if "fp32" in row else "–"
        cells = [
            row["base"],
            layers,
            f"{row['parameters'] / 1e6:.1f}",
            fp32,
            *sizes,
            *cosines,
            f"{row['seconds']}",
            f"{row['peak_gb']:.1f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _call(command: list[str], scratch: str) -> tuple[str, float]:
    """A command's output, and the most memory that it held, in GB; a refusal is output too."""
    report = Path(scratch) / "memory.txt"
    wrapped = [sys.executable, "-c", _WATCH, str(report), *command]
    done = subprocess.run(
        wrapped, env=environment(), capture_output=True, text=True, check=False, cwd=scratch
    )
    print(done.stderr, end="", file=sys.stderr)
    if done.returncode and not re.match(r"\s*\{\s*\"error\"", done.stdout):
        said = (done.stderr.strip().splitlines() or [f"it ended with {done.returncode}"])[-1]
        return json.dumps({"error": {"what": said}}), float(report.read_text())
    return done.stdout, float(report.read_text())


#: Runs a command and notes its largest resident memory (getrusage: kilobytes on Linux).
_WATCH = """
import resource, subprocess, sys
code = subprocess.run(sys.argv[2:]).returncode
peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024 / 1e9
open(sys.argv[1], "w").write(str(peak))
sys.exit(code % 256)
"""


def _read(file: Path) -> list[Row]:
    if not file.is_file():
        return []
    return [json.loads(line) for line in file.read_text().splitlines() if line]


if __name__ == "__main__":
    raise SystemExit(main())
