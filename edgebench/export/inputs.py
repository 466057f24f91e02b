"""Real tokenised inputs: rows for timing, a labelled set for accuracy, feeds for parity.

All arrays are int64 [rows, tokens], named as the model's inputs.
"""

from __future__ import annotations

from collections.abc import Container, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgebench.errors import CheckpointError, UsageError
from edgebench.export.base import BaseModel
from edgebench.export.module import Feed
from edgebench.export.token_data import IGNORED

#: Rows of inputs.npz: enough that a timing loop does not see one text over and over.
TIMING_ROWS = 64

#: Rows of a calibration set, and tokens of a row: 16,384 positions. Measured with MiniLM:
#: docs/quantization.md.
CALIBRATION_ROWS = 128
CALIBRATION_TOKENS = 128

_MASK = "attention_mask"
_SHORTEST = 8


@dataclass(frozen=True)
class TimingInputs:
    """Rows of exactly seq_len tokens, and what they are, in words."""

    arrays: dict[str, npt.NDArray[np.int64]]
    source: str


class Tokens:
    """A base model's tokenizer, reduced to what the model takes."""

    def __init__(
        self, base: BaseModel, takes: Container[str], padding_side: str | None = None
    ) -> None:
        """Load the tokenizer that stands beside the base's weights.

        Args:
            takes: names of the inputs that the model takes.
            padding_side: "right" or "left"; None leaves it to the tokenizer.

        Raises:
            CheckpointError: there is none, or it gives nothing that the model takes.
        """
        self._path = base.path
        try:
            self._tokenizer = self._reload()
        except (OSError, ValueError, KeyError) as error:
            raise CheckpointError(
                "the base model has no tokenizer that can be read",
                where=str(base.path),
                fix="Put its tokenizer files (tokenizer.json, …) beside config.json.",
            ) from error
        if self._tokenizer.pad_token is None:  # decoders often have none; the mask hides it
            self._tokenizer.pad_token = self._tokenizer.eos_token
        if padding_side is not None:
            self._tokenizer.padding_side = padding_side
        self.names = tuple(n for n in self._tokenizer.model_input_names if n in takes)
        if "input_ids" not in self.names:
            raise CheckpointError("the model does not take token ids", where=str(base.path))
        self._longest: int = min(base.max_positions or 1 << 30, self._tokenizer.model_max_length)

    @property
    def largest_id(self) -> int:
        """The largest token id that the tokenizer can give."""
        return max(self._tokenizer.get_vocab().values(), default=-1)

    def check_length(self, seq_len: int) -> None:
        """Refuse rows longer than the model's positions.

        Raises:
            UsageError: naming the longest that will do.
        """
        if seq_len > self._longest:
            raise UsageError(
                f"{seq_len} tokens are more than the base's {self._longest} positions",
                where="--seq-len",
                fix=f"Give at most {self._longest}.",
            )

    def at_most(self, length: int) -> int:
        """This many tokens, or as many as the model takes."""
        return min(length, self._longest)

    def lengths_for_parity(self, seq_len: int) -> tuple[int, ...]:
        """Sequence lengths, besides seq_len, at which the graph is checked."""
        wanted = {1, 2, 17, min(256, self._longest), min(seq_len * 2, self._longest)}
        return tuple(sorted(n for n in wanted if n != seq_len and n <= self._longest))

    def encode(self, texts: tuple[str, ...], length: int) -> dict[str, npt.NDArray[np.int64]]:
        """Texts as rows of exactly ``length`` tokens: truncated, or padded under the mask."""
        encoded = self._tokenizer(
            list(texts),
            truncation=True,
            padding="max_length",
            # Tokenizers can't truncate to fewer tokens than they add themselves ([CLS], [SEP]).
            max_length=max(length, _SHORTEST),
            return_tensors="np",
        )
        return {name: encoded[name][:, :length].astype(np.int64) for name in self.names}

    def encode_words(
        self, words: Sequence[Sequence[str]], labels: Sequence[Sequence[int]], length: int
    ) -> dict[str, npt.NDArray[np.int64]]:
        """Labelled words as rows of ``length`` tokens, with ``labels`` [rows, length].

        A word's first piece has its label, every other position ``token_data.IGNORED``. Words
        behind the last token of a row are cut off, with their labels.

        Raises:
            CheckpointError: the tokenizer does not tell words apart.
        """
        # Tokenizers of bytes (RoBERTa's) take a word for one that begins a text without this.
        tokenizer = self._reload(add_prefix_space=True)
        if not tokenizer.is_fast:
            raise CheckpointError(
                "the base's tokenizer does not say which word a token belongs to",
                where=str(self._path),
                fix="Put a tokenizer.json beside config.json, or leave --data out.",
            )
        encoded = tokenizer(
            [list(row) for row in words],
            is_split_into_words=True,
            truncation=True,
            padding="max_length",
            max_length=max(length, _SHORTEST),
            return_tensors="np",
        )
        rows = {name: encoded[name][:, :length].astype(np.int64) for name in self.names}
        truth = np.full((len(words), length), IGNORED, dtype=np.int64)
        for number, known in enumerate(labels):
            before = None
            for position, word in enumerate(encoded.word_ids(number)[:length]):
                if word is not None and word != before:
                    truth[number, position] = known[word]
                before = word
        return {**rows, "labels": truth}

    def _reload(self, **options: Any) -> Any:
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(self._path, local_files_only=True, **options)


def timing_inputs(
    tokens: Tokens, texts: tuple[str, ...], seq_len: int, source: str
) -> TimingInputs:
    """``TIMING_ROWS`` rows without padding, as far as the texts allow.

    A text with enough tokens is a row by itself, truncated. If there are too few, texts are joined
    to their successors (from the first text on, around the end) until they fill a row.
    """
    rows = tokens.encode(texts, seq_len)
    whole = np.flatnonzero(_full(rows))[:TIMING_ROWS]
    arrays = {name: array[whole] for name, array in rows.items()}
    said = [f"{len(whole)} texts, each truncated"]
    missing = TIMING_ROWS - len(whole)
    if missing:
        joined = tokens.encode(_joined(texts, missing, seq_len), seq_len)
        arrays = {name: np.concatenate([arrays[name], joined[name]]) for name in arrays}
        said = said if len(whole) else []
        said.append(f"{missing} rows of texts joined and truncated")
        if missing > len(texts):
            said.append("some of them the same")
        if padded := int((~_full(joined)).sum()):
            said.append(f"{padded} of them padded")
    return TimingInputs(arrays, f"{source}: {', '.join(said)} to {seq_len} tokens")


def calibration_feeds(tokens: Tokens, texts: tuple[str, ...]) -> list[Feed]:
    """Rows for fitting weights, in batches of 16: no text twice, short ones joined to fill a row.

    Fewer than ``CALIBRATION_ROWS`` rows where the texts end; the last may be padded under the mask.
    """
    length = tokens.at_most(CALIBRATION_TOKENS)
    rows: list[str] = []
    words: list[str] = []
    for text in texts:
        words += text.split()
        if len(words) >= length:  # a word has at least one token
            rows.append(" ".join(words))
            words = []
        if len(rows) == CALIBRATION_ROWS:
            break
    else:
        if words:
            rows.append(" ".join(words))
    if not rows:
        return []
    arrays = tokens.encode(tuple(rows), length)
    return [
        {name: array[start : start + 16] for name, array in arrays.items()}
        for start in range(0, len(rows), 16)
    ]


def parity_feeds(tokens: Tokens, timing: TimingInputs, texts: tuple[str, ...]) -> list[Feed]:
    """The timing rows in batches of 16, then other batch sizes and lengths, some rows padded."""
    rows = len(next(iter(timing.arrays.values())))
    seq_len = next(iter(timing.arrays.values())).shape[1]
    feeds: list[Feed] = [
        {name: array[start : start + 16] for name, array in timing.arrays.items()}
        for start in range(0, rows, 16)
    ]
    for position, length in enumerate(tokens.lengths_for_parity(seq_len)):
        batch = position % 4 + 1
        chosen = tuple(texts[(position + i) % len(texts)] for i in range(batch))
        # Every other row is cut to a few words, so that padding under the mask is checked as well.
        cut = (" ".join(text.split()[:5]) if i % 2 else text for i, text in enumerate(chosen))
        feeds.append(tokens.encode(tuple(cut), length))
    return feeds


def save_arrays(path: Path, arrays: dict[str, npt.NDArray[np.int64]]) -> None:
    """Write arrays as a compressed .npz (its entries carry no time: the same bytes every time)."""
    with path.open("wb") as stream:
        np.savez_compressed(stream, **arrays)  # type: ignore[arg-type]


def _full(rows: dict[str, npt.NDArray[np.int64]]) -> npt.NDArray[np.bool_]:
    if _MASK not in rows:
        return np.ones(len(rows["input_ids"]), dtype=bool)
    return np.asarray(rows[_MASK].all(axis=1))


def _joined(texts: tuple[str, ...], count: int, seq_len: int) -> tuple[str, ...]:
    """``count`` long texts, the i-th beginning with text i and going on with its successors."""
    rows = []
    for first in range(count):
        words: list[str] = []
        following = 0
        # A word has at least one token; four laps end it where there are hardly any words.
        while len(words) < seq_len and following < max(4 * len(texts), seq_len):
            words += texts[(first + following) % len(texts)].split()
            following += 1
        rows.append(" ".join(words))
    return tuple(rows)
