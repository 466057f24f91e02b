"""edgebench: publishable latency, energy and power of trained adapters on edge hardware.

Everything here is loaded when it is first used, so that ``import edgebench`` costs nothing.

    export_adapter, run, run_on, resume, diagnose, list_devices, list_meters, load_results,
    write_tables, attach_trace, plot_power, fit_surrogate, calibrate_surrogate,
    predict_with_surrogate, evaluate_surrogate
        what the commands do
    Artifact, Recording, Device, RunOptions
        what they take and return
    EdgebenchError
        what they raise
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from edgebench.api import (
        attach_trace,
        calibrate_surrogate,
        check,
        count_flops,
        diagnose,
        evaluate_runs,
        evaluate_surrogate,
        export_adapter,
        fit_surrogate,
        list_devices,
        list_meters,
        load_results,
        measure_directions,
        measure_overhead,
        plot_power,
        predict_with_surrogate,
        resume,
        run,
        run_on,
        self_test,
        write_tables,
    )
    from edgebench.artifact import Artifact
    from edgebench.device import Device
    from edgebench.errors import EdgebenchError
    from edgebench.gate.options import CheckOptions
    from edgebench.measure.options import RunOptions
    from edgebench.recording import Recording

_HOMES = {
    "Artifact": "edgebench.artifact",
    "Device": "edgebench.device",
    "EdgebenchError": "edgebench.errors",
    "Recording": "edgebench.recording",
    "CheckOptions": "edgebench.gate.options",
    "RunOptions": "edgebench.measure.options",
    "attach_trace": "edgebench.api",
    "calibrate_surrogate": "edgebench.api",
    "check": "edgebench.api",
    "count_flops": "edgebench.api",
    "diagnose": "edgebench.api",
    "evaluate_runs": "edgebench.api",
    "evaluate_surrogate": "edgebench.api",
    "export_adapter": "edgebench.api",
    "fit_surrogate": "edgebench.api",
    "list_devices": "edgebench.api",
    "list_meters": "edgebench.api",
    "load_results": "edgebench.api",
    "measure_directions": "edgebench.api",
    "measure_overhead": "edgebench.api",
    "plot_power": "edgebench.api",
    "predict_with_surrogate": "edgebench.api",
    "resume": "edgebench.api",
    "run": "edgebench.api",
    "run_on": "edgebench.api",
    "self_test": "edgebench.api",
    "write_tables": "edgebench.api",
}

__all__ = [
    "Artifact",
    "CheckOptions",
    "Device",
    "EdgebenchError",
    "Recording",
    "RunOptions",
    "__version__",
    "attach_trace",
    "calibrate_surrogate",
    "check",
    "count_flops",
    "diagnose",
    "evaluate_runs",
    "evaluate_surrogate",
    "export_adapter",
    "fit_surrogate",
    "list_devices",
    "list_meters",
    "load_results",
    "measure_directions",
    "measure_overhead",
    "plot_power",
    "predict_with_surrogate",
    "resume",
    "run",
    "run_on",
    "self_test",
    "write_tables",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'edgebench' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
