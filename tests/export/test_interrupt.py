"""Ctrl-C, at several moments, in real processes: the directory is as it was."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
from pathlib import Path

from tests.export.conftest import left_in

PROGRAM = """
import sys
from pathlib import Path
from edgebench.export import ExportRequest, export

adapter, base, data, out = sys.argv[1:]
request = ExportRequest(adapter=Path(adapter), base=base, data=Path(data), seq_len=24,
                        out=Path(out), quants=("fp32", "int8"))
try:
    export(request, lambda step, done: print(step, flush=True))
except KeyboardInterrupt:
    sys.exit(130)
"""

#: A step, and how long after its beginning the signal comes.
MOMENTS = {
    "loading PyTorch": 0.5,
    "exporting the graph": 1.0,
    "int8: comparing with PyTorch": 0.0,
}


def interrupt(process: subprocess.Popen[str], moment: str, delay_s: float) -> None:
    assert process.stdout is not None
    for line in process.stdout:
        if line.strip() == moment:
            break
    try:
        process.wait(delay_s)
    except subprocess.TimeoutExpired:
        # Python drops a Ctrl-C that falls into a finaliser of some library: people press again.
        for _ in range(3):
            process.send_signal(signal.SIGINT)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(10)
                break


def test_ctrl_c_leaves_nothing_behind(short_base, short_adapter, tiny_data, tmp_path):
    # All at once: most of each one's time is importing torch.
    processes: dict[str, tuple[subprocess.Popen[str], Path]] = {}
    for number, moment in enumerate(MOMENTS):
        out = tmp_path / str(number)
        command = [sys.executable, "-c", PROGRAM, short_adapter, short_base, tiny_data, out]
        process = subprocess.Popen(
            list(map(str, command)), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        processes[moment] = process, out
    for moment, (process, out) in processes.items():
        interrupt(process, moment, MOMENTS[moment])
        _, errors = process.communicate(timeout=60)
        assert process.returncode == 130, (moment, errors)
        assert left_in(out) == [], moment
