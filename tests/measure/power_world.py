"""A power sensor of this machine that is really driven by what a worker does.

A tree in the kernel's hwmon form whose power is high while a worker runs and low while it rests.
"""

from __future__ import annotations

import os
import random
import threading
from pathlib import Path

from tests.agent.agents import processes

BUSY_W, REST_W = 8.0, 2.0


class PowerWorld:
    """The tree below ``sysfs``; its readings change a hundred times a second until it is closed."""

    def __init__(self, sysfs: Path, root: Path, *, chip: str = "ina226") -> None:
        self.sysfs = sysfs
        self.root = root
        self.hwmon = sysfs / "class/hwmon/hwmon0"
        self.hwmon.mkdir(parents=True)
        files = {
            "name": chip,
            "in1_input": "5000",
            "curr1_input": "0400",
            "power1_input": f"{REST_W * 1e6:09.0f}",
            "shunt_resistor": "10000",
            "update_interval": "10",
        }
        for name, text in files.items():
            (self.hwmon / name).write_text(text + "\n")
        self._stop = threading.Event()
        self._random = random.Random(0)
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        power = os.open(self.hwmon / "power1_input", os.O_WRONLY)
        current = os.open(self.hwmon / "curr1_input", os.O_WRONLY)
        while not self._stop.wait(0.01):
            watts = BUSY_W if self._busy() else REST_W
            watts += self._random.uniform(-0.05, 0.05)  # its last digits never rest
            # In place and of one length: who has the file open sees one value or the other.
            os.pwrite(power, f"{watts * 1e6:09.0f}\n".encode(), 0)
            os.pwrite(current, f"{watts / 5 * 1e3:04.0f}\n".encode(), 0)
        os.close(power)
        os.close(current)

    def _busy(self) -> bool:
        for pid in processes("work", self.root):
            try:
                stat = Path(f"/proc/{pid}/stat").read_text()
            except (FileNotFoundError, ProcessLookupError):
                continue
            if stat.rpartition(")")[2].split()[0] == "R":
                return True
        return False

    def close(self) -> None:
        self._stop.set()
        self._thread.join()
