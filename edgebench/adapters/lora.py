"""LoRA: y = W x + (alpha / r) B A x, with A in R^{r x d_in} and B in R^{d_out x r}.

Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", arXiv:2106.09685. AdaLoRA
(arXiv:2303.10512) stores P diag(L) Q in the same places (``lora_B``, ``lora_E``, ``lora_A``).

A PEFT checkpoint names the factors ``base_model.model.<module>.lora_A.weight`` and so on, and a
module trained in full (``modules_to_save``, such as a classification head)
``base_model.model.<module>.<parameter>``. This module reads those names and shapes; it needs no
torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

PREFIX = "base_model.model."
_MARK = ".lora_"


@dataclass(frozen=True)
class Factors:
    """The low-rank factors on one linear module."""

    module: str
    rank: int
    d_in: int
    d_out: int

    def flops(self, tokens: int) -> int:
        """FLOPs of the branch over ``tokens`` tokens: B (A x), scaled, added to W x."""
        return tokens * (2 * self.rank * (self.d_in + self.d_out) + 2 * self.d_out)


def linear_factors(shapes: Mapping[str, tuple[int, ...]]) -> tuple[Factors, ...]:
    """The factor pairs on linear modules, in checkpoint order (embeddings and convolutions not).

    A is stored [r, d_in], B [d_out, r].
    """
    found = []
    for name, shape in shapes.items():
        module, mark, factor = name.removeprefix(PREFIX).partition(_MARK)
        if not mark or factor.removesuffix(".weight") != "A" or len(shape) != 2:
            continue
        other = shapes.get(name.replace(f"{_MARK}A", f"{_MARK}B"))
        if other is not None and len(other) == 2 and other[1] == shape[0]:
            found.append(Factors(module, rank=shape[0], d_in=shape[1], d_out=other[0]))
    return tuple(found)


def adapted_modules(names: Mapping[str, object]) -> tuple[str, ...]:
    """Every module that has low-rank factors of any kind, in checkpoint order."""
    modules = (name.removeprefix(PREFIX).partition(_MARK) for name in names)
    return tuple(dict.fromkeys(module for module, mark, _ in modules if mark))


def replaced_parameters(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    """Parameters that were trained in full and replace the base's own, with their shapes."""
    return {n.removeprefix(PREFIX): s for n, s in shapes.items() if ".lora_" not in n}
