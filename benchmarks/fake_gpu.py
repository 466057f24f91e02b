"""A GPU that is not there, for trying ``gpu_energy.py``: NVML's answers follow the script's load.

The script writes when its load begins and ends into a file; the fake ``pynvml`` of every process
(``tests/meters/fake_nvml.py``) draws power accordingly. Its figures say nothing about any GPU.
"""

from __future__ import annotations

import bisect
import math
import os
import struct
import sys
import time
from collections.abc import Callable
from pathlib import Path

from common import ROOT

IDLE_W, LOADED_W = 60.0, 310.0
#: Where the load stands: (time in ns, power in W), one record a change.
LOAD_FILE = "EDGEBENCH_FAKE_GPU_LOAD"
_CHANGE = struct.Struct("<qd")


class Load:
    """What the fake GPU draws at a moment, from the file of changes."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.changes: list[tuple[int, float]] = []

    def watts(self, t_ns: int) -> float:
        if self.path.stat().st_size != _CHANGE.size * len(self.changes):
            data = self.path.read_bytes()
            whole = len(data) - len(data) % _CHANGE.size
            self.changes = list(_CHANGE.iter_unpack(data[:whole]))
        position = bisect.bisect_right(self.changes, (t_ns, math.inf))
        return self.changes[position - 1][1] if position else IDLE_W


def world() -> object:
    """The world of this process's ``pynvml``: a Volta, whose sensor is the quickest known."""
    from tests.meters.fake_nvml import Gpu, World

    load = Load(Path(os.environ[LOAD_FILE]))
    gpu = Gpu(
        name="a GPU that is not there",
        capability=(7, 0),
        architecture=5,
        period_s=0.02,
        window_s=0.01,
    )
    made = World([gpu], real_time=True)
    begin_ns = time.perf_counter_ns()
    gpu.power_w = lambda second: load.watts(begin_ns + round(second * 1e9))
    return made


def install(directory: Path) -> Callable[[bool], None]:
    """Let ``import pynvml`` find the fake, here and in processes that are started.

    Returns:
        what to call when the load begins (True) and ends (False).
    """
    from tests.meters.fake_nvml import as_package

    path = directory / "load"
    path.touch()
    package = as_package(directory / "pynvml", "fake_gpu:world")
    paths = [str(package), str(ROOT), str(Path(__file__).parent)]
    os.environ[LOAD_FILE] = str(path)
    os.environ["PYTHONPATH"] = os.pathsep.join([*paths, os.environ.get("PYTHONPATH", "")])
    sys.path[:0] = paths

    def mark(loaded: bool) -> None:
        with path.open("ab") as stream:
            watts = LOADED_W if loaded else IDLE_W
            stream.write(_CHANGE.pack(time.perf_counter_ns(), watts))

    return mark
