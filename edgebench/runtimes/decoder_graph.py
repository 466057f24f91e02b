"""The names of a decoder's graph: its token inputs, its key-value cache, its logits.

This file is sent to the device beside the agent, so it runs on Python 3.8 and imports nothing of
ours. Names are those that Hugging Face's exporters and onnxruntime-genai write.
"""

from __future__ import annotations

import re
from typing import Any, Iterator, Mapping, Optional, Tuple

IDS, MASK, POSITIONS = "input_ids", "attention_mask", "position_ids"
#: How many positions from the end get logits; the second name is Hugging Face's older one.
KEEP = ("logits_to_keep", "num_logits_to_keep")
LOGITS = "logits"
PAST = re.compile(r"past_key_values\.(\d+)\.(key|value)$")
PRESENT = re.compile(r"present(?:_key_values)?\.(\d+)\.(key|value)$")

#: ONNX Runtime's names of the element types that caches and logits have.
TYPES = {"tensor(float)": "float32", "tensor(float16)": "float16"}


class DecoderError(Exception):
    """The graph can't be driven as a decoder; the message says why."""


class Graph:
    """The names of a decoder's graph, found among its inputs and outputs."""

    def __init__(self, session: Any, layers: int) -> None:
        """
        Raises:
            DecoderError: an input is not known here, or a part is missing.
        """
        inputs = {item.name: item for item in session.get_inputs()}
        outputs = {item.name: item for item in session.get_outputs()}
        pasts = {found.groups(): name for name, found in matches(PAST, inputs)}
        presents = {found.groups(): name for name, found in matches(PRESENT, outputs)}
        self.keep = next((name for name in KEEP if name in inputs), None)
        small = {IDS, MASK, POSITIONS, self.keep}
        unknown = sorted(set(inputs) - small - set(pasts.values()))
        if unknown:
            raise DecoderError(
                f"the graph has an input {unknown[0]!r}; a decoder's are {IDS}, {MASK}, "
                f"{POSITIONS}, {KEEP[0]} and past_key_values.<layer>.key and .value"
            )
        for name, there in ((IDS, inputs), (LOGITS, outputs)):
            if name not in there:
                raise DecoderError(f"the graph has no {name}, only {', '.join(sorted(there))}")
        if len(pasts) != 2 * layers:
            raise DecoderError(
                f"the graph has {len(pasts)} inputs past_key_values.<layer>.key and .value, and "
                f"{layers} layers need {2 * layers}"
            )
        for place, name in sorted(pasts.items()):
            if place not in presents:
                raise DecoderError(f"the graph has {name} and no present.{'.'.join(place)}")
        #: (past, present) of every layer's key and value.
        self.pairs = [(name, presents[place]) for place, name in sorted(pasts.items())]
        self.takes = [name for name in (MASK, POSITIONS) if name in inputs]
        self.logits_type = element_type(outputs[LOGITS])
        self.cache_type = element_type(inputs[self.pairs[0][0]]) if self.pairs else "float32"
        width = outputs[LOGITS].shape[-1]
        self.vocabulary = width if isinstance(width, int) else None


def expected_tokens(adapter: Optional[str]) -> str:
    """The array of an artifact's inputs with the reference's tokens, of one swappable adapter."""
    return f"expected_tokens.{adapter}" if adapter else "expected_tokens"


def matches(pattern: Any, names: Mapping[str, Any]) -> Iterator[Tuple[str, Any]]:
    """The names that a pattern matches, with what it found."""
    for name in names:
        found = pattern.match(name)
        if found:
            yield name, found


def element_type(item: Any) -> str:
    """numpy's name of an input's or output's element type."""
    if item.type not in TYPES:
        raise DecoderError(f"{item.name} is a {item.type}; {' and '.join(TYPES)} are known here")
    return TYPES[item.type]
