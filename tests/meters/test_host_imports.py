"""Drivers are imported only when they are used."""

from __future__ import annotations

import subprocess
import sys

CODE = """
import sys
import edgebench.meters.sampler
from edgebench.meters.base import HOST_KINDS, meter_class
for kind in HOST_KINDS:
    meter_class(kind)
drivers = {"serial", "pyjoulescope_driver", "joulescope", "numpy", "kasa"}
print(sorted(drivers & set(sys.modules)))
"""


def test_naming_the_meters_of_the_host_imports_no_driver() -> None:
    done = subprocess.run(
        [sys.executable, "-c", CODE], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.strip() == "[]"
