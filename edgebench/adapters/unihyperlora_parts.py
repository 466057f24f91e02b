"""The parts of a UniHyperLoRA file and their shapes, for ``unihyperlora`` and its exporter.

Torch-free: a checkpoint is checked before torch is imported.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edgebench.adapters.sites import LINEAR_ROLES

#: Parts stored in 8 and in 4 bits.
EIGHT = ("u", "v", "router", "a", "b", "hyper1", "hyper1_bias", "hyper2", "hyper2_bias", "head")
FOUR = ("mixer1", "mixer1_bias", "mixer2", "mixer2_bias", "delta")

_HYPER, _MIXER = 32, 14


def part_shapes(members: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Shapes of all parts, by name; no width or depth of a model is in them."""
    m, d0, rho, f = (members[n] for n in ("atoms", "width", "projector_rank", "frequencies"))
    return {
        "u": (m, d0),
        "v": (m, d0),
        "router": (m, d0),
        "a": (d0, rho),
        "b": (rho, f),
        "hyper1": (_HYPER, 1),
        "hyper1_bias": (1, _HYPER),
        "hyper2": (2 * rho, _HYPER),
        "hyper2_bias": (1, 2 * rho),
        "mixer1": (_MIXER, 1 + len(LINEAR_ROLES)),
        "mixer1_bias": (1, _MIXER),
        "mixer2": (m, _MIXER),
        "mixer2_bias": (1, m),
        "delta": (len(LINEAR_ROLES), m),
        "head": (members["labels"], d0),
    }


#: model_type -> the head's last matrix, and what stands before it without weights in the base.
HEADS: dict[str, tuple[str, tuple[str, ...]]] = {
    "bert": ("classifier", ()),
    "electra": ("classifier.out_proj", ("classifier.dense",)),
    "roberta": ("classifier.out_proj", ("classifier.dense",)),
    "xlm-roberta": ("classifier.out_proj", ("classifier.dense",)),
    "distilbert": ("classifier", ("pre_classifier",)),
    "deberta-v2": ("classifier", ("pooler.dense",)),
    # A decoder's score has no bias: there the head's is left out.
    "llama": ("score", ()),
    "mistral": ("score", ()),
    "qwen2": ("score", ()),
}
