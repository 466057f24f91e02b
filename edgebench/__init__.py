"""edgebench: publishable latency, energy and power of trained adapters on edge hardware.

Everything here is loaded when it is first used, so that ``import edgebench`` costs nothing.
"""

from __future__ import annotations

__version__ = "0.1.0"
