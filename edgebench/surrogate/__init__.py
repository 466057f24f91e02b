"""The hardware surrogate: energy, latency and peak power of a forward pass, differentiable in s.

    from edgebench.surrogate import load_and_prepare_surrogate, apply_calibration

    surrogate, calibration = load_and_prepare_surrogate(cfg, device)
    predictions = apply_calibration(surrogate(stats, hardware), calibration)
    energy_j, latency_ms, power_w = predictions.unbind(-1)

docs/surrogate.md has the method. torch is imported when one of these names is first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edgebench.surrogate.model import Surrogate
    from edgebench.surrogate.prepare import (
        Calibration,
        apply_calibration,
        load_and_prepare_surrogate,
    )

__all__ = ["Calibration", "Surrogate", "apply_calibration", "load_and_prepare_surrogate"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from edgebench.surrogate import model, prepare

    return model.Surrogate if name == "Surrogate" else getattr(prepare, name)
