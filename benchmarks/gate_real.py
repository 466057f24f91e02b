"""Does the gate hold on a real model? MiniLM against itself and against copies with more work.

``edgebench check`` itself, on this machine, at sequence length 16 and a limit of 3 %:

* *against itself*: the exported int8 MiniLM is baseline and candidate. Counted are passes,
  regressions (false alarms), undecided checks and broken environments.
* *with added work*: copies of it whose graph has some more MatMuls (fp32, of 384 rows) on the
  hidden states, in a branch that is multiplied by zero and added to the output, so that nothing
  else changes. Their true slowdown is not taken from their FLOPs: it is measured in one long
  interleaved run of its own, and printed with its interval.

The three take turns, so that all of them meet the machine in the same states. 200 checks against
itself, and an eighth as many of each slowed copy, take an hour and a half on two shared cores:
``EDGEBENCH_GATE_CHECKS`` sets how many (default 15), ``EDGEBENCH_GATE_SLOWED`` how many of each
copy (default: an eighth), and ``EDGEBENCH_GATE_KEEP`` a directory in which what was checked is
kept, so that a call that was cut off is gone on with.
``EDGEBENCH_GATE_FOREIGN_LOAD`` and ``EDGEBENCH_GATE_CANARY_SHIFT`` are given to
``--max-foreign-load`` and ``--max-canary-shift``.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from common import (
    Bench,
    Figure,
    Refusal,
    artifact,
    at_least,
    at_most,
    bench,
    environment,
    run_benchmark,
    table,
)

WIDTH = 384
#: Columns that a copy multiplies the hidden states by more: MiniLM's six layers have 27,648.
ADDED = {"about 3 %": WIDTH + 144, "about 10 %": 5 * WIDTH}
SEQ_LEN = 16
#: What each check is given as --max-regression.
LIMIT = 0.03


def slowed(source: Path, target: Path, added: int) -> Path:
    """A copy of an artifact with MatMuls of so many more columns; its answers are the same."""
    import onnx
    from onnx import helper, numpy_helper

    from edgebench.artifact import Artifact, FileEntry, sha256_file, write_manifest

    original = Artifact.load(source)
    shutil.copytree(source, target)
    model = onnx.load(original.model_path)
    graph = model.graph
    output = graph.output[0].name
    last = next(node for node in graph.node if output in node.output)
    hidden = _hidden(model)
    last.output[list(last.output).index(output)] = "edgebench_logits"
    random = np.random.default_rng(0)
    names = [hidden]
    for i, start in enumerate(range(0, added, WIDTH)):
        columns = min(WIDTH, added - start)
        weight = (random.normal(size=(WIDTH, columns)) / np.sqrt(WIDTH)).astype(np.float32)
        graph.initializer.append(numpy_helper.from_array(weight, f"edgebench_w{i}"))
        names.append(f"edgebench_h{i}")
        graph.node.append(helper.make_node("MatMul", [names[-2], f"edgebench_w{i}"], [names[-1]]))
    zero = numpy_helper.from_array(np.zeros((), dtype=np.float32), "edgebench_zero")
    graph.initializer.append(zero)
    graph.node.extend(
        [
            helper.make_node("ReduceMean", [names[-1]], ["edgebench_mean"], keepdims=0),
            helper.make_node("Mul", ["edgebench_mean", "edgebench_zero"], ["edgebench_nothing"]),
            helper.make_node("Add", ["edgebench_logits", "edgebench_nothing"], [output]),
        ]
    )
    model_path = target / original.manifest.model
    for old in target.glob("*.data"):
        old.unlink()
    onnx.save(model, model_path)
    (target / "artifact.json").unlink()
    files = {
        str(path.relative_to(target)): FileEntry(
            sha256=sha256_file(path), bytes=path.stat().st_size
        )
        for path in sorted(target.rglob("*"))
        if path.is_file()
    }
    write_manifest(target, original.manifest.model_copy(update={"files": files}))
    return target


def _hidden(model: object) -> str:
    """The output of the last layer's normalisation: [batch, seq, 384]."""
    found = [
        node.output[0]
        for node in model.graph.node  # type: ignore[attr-defined]
        if node.op_type == "LayerNormalization"
    ]
    if not found:
        raise Refusal("the artifact's graph has no LayerNormalization to take hidden states from.")
    return str(found[-1])


def check(place: Bench, baseline: Path, candidate: Path, *, quick: bool) -> dict[str, object]:
    """One check, as a person would type it."""
    arguments = [
        *(sys.executable, "-m", "edgebench", "check", "--device", str(place.profile)),
        *("--results", str(place.results), "--seq-len", str(SEQ_LEN), "--json"),
        *("--baseline", str(baseline), "--candidate", str(candidate)),
        *("--max-regression", f"{100 * LIMIT:g}%", "--time-limit", "20" if quick else "180"),
        *("--max-foreign-load", os.environ.get("EDGEBENCH_GATE_FOREIGN_LOAD", "5%")),
        *("--max-canary-shift", os.environ.get("EDGEBENCH_GATE_CANARY_SHIFT", "20%")),
        *(("--block-time", "0.2") if quick else ()),
    ]
    done = subprocess.run(
        arguments,
        cwd=place.directory,
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode not in (0, 1, 2, 3) or '"findings"' not in done.stdout:
        words = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        raise Refusal(f"`edgebench check` failed: {words}")
    document: dict[str, object] = json.loads(done.stdout)
    shutil.rmtree(place.results / "checks", ignore_errors=True)
    return document


def truth(place: Bench, baseline: Path, candidate: Path, *, quick: bool) -> tuple[float, ...]:
    """How many times the candidate's latency is the baseline's, from one long run, with its 99 %
    interval."""
    options = ["--seq-len", str(SEQ_LEN), "--accuracy", "none", "--percentile", "90"]
    options += ["--launches", "3" if quick else "24", "--min-count", "60" if quick else "2400"]
    options += ["--precision", "90%", "--max-duration", "20"]
    rows = place.run(*options, str(baseline), str(candidate))["latency"]
    row = rows[1]
    if row["speedup_vs_reference"] is None:
        raise Refusal("the long run has no ratio: see its reasons with `edgebench run`.")
    names = ("speedup_vs_reference", "speedup_vs_reference_hi", "speedup_vs_reference_lo")
    return tuple(1 / row[name] if row[name] else float("nan") for name in names)


class Kept:
    """What was found so far, a JSON line each in a file of these copies; in memory without."""

    def __init__(self, keep: str | None, model: Path) -> None:
        added = "-".join(map(str, ADDED.values()))
        self.file = Path(keep) / f"{model.name}-{added}.jsonl" if keep else None
        self.lines: list[dict[str, Any]] = []
        if self.file and self.file.is_file():
            self.lines = [json.loads(line) for line in self.file.read_text().splitlines()]

    def add(self, line: dict[str, Any]) -> None:
        self.lines.append(line)
        if self.file:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            with self.file.open("a") as out:
                out.write(json.dumps(line) + "\n")

    def checks(self, name: str) -> list[dict[str, Any]]:
        return [line for line in self.lines if line["against"] == name and "status" in line]

    def truth(self, name: str) -> list[float] | None:
        said = [line["ratio"] for line in self.lines if line["against"] == name and "ratio" in line]
        return said[-1] if said else None


def in_turn(wanted: dict[str, int]) -> list[str]:
    """Names, each as often as wanted, spread evenly."""
    spread = [(i / many, name) for name, many in wanted.items() for i in range(many)]
    return [name for _, name in sorted(spread)]


def measure(quick: bool) -> list[Figure]:
    model = artifact("int8")
    checks = 2 if quick else int(os.environ.get("EDGEBENCH_GATE_CHECKS", "15"))
    kept = Kept(None if quick else os.environ.get("EDGEBENCH_GATE_KEEP"), model)
    slowed_checks = int(os.environ.get("EDGEBENCH_GATE_SLOWED", max(1, checks // 8)))
    wanted = {"itself": checks} | dict.fromkeys(ADDED, slowed_checks)
    with bench() as place:
        copies = {"itself": model}
        for name, added in ADDED.items():
            copies[name] = slowed(model, place.directory / "copies" / str(added), added)
            if kept.truth(name) is None:
                ratio = truth(place, model, copies[name], quick=quick)
                kept.add({"against": name, "ratio": ratio})
        left = {name: many - len(kept.checks(name)) for name, many in wanted.items()}
        for name in in_turn(left):
            document = check(place, model, copies[name], quick=quick)
            line = {"against": name} | {k: document[k] for k in ("status", "seconds", "broken")}
            kept.add(line)
            print(
                f"{name} {len(kept.checks(name))}/{wanted[name]}: {line['status']}", file=sys.stderr
            )
    counts, rows = {}, []
    for name in wanted:
        found = counts[name] = Counter(str(line["status"]) for line in kept.checks(name))
        took = np.median([line["seconds"] for line in kept.checks(name)])
        ratio, lo, hi = kept.truth(name) or (1.0, 1.0, 1.0)
        true = "" if name == "itself" else f"{ratio:.3f} ({lo:.3f} – {hi:.3f})"
        kinds = ("pass", "regression", "undecided", "broken environment")
        said = [str(found[kind]) for kind in kinds]
        rows.append((name, true, str(found.total()), *said, f"{took:.0f}"))
    table(
        ("against", "true ratio", "checks", "pass", "regression", "undecided", "broken", "s"), rows
    )
    alarms = counts["itself"]["regression"]
    figures = [at_most(f"false alarms in {counts['itself'].total()} checks", alarms, 0)]
    for name in ADDED:
        figures.append(at_most(f"{name} slower that passed", counts[name]["pass"], 0))
    slow = counts["about 10 %"]
    found_share = 100 * slow["regression"] / slow.total()
    figures.append(at_least("about 10 % slower that was found", found_share, 99.0, " %"))
    return figures


if __name__ == "__main__":
    sys.exit(run_benchmark(__doc__, measure))
