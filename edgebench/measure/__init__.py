"""Measuring: one run of artifacts on a device, from the command to the stored recording.

``options`` says what is asked for and turns it into a protocol, ``client`` speaks to the agent,
``session`` is one connection to one device, ``run`` is the whole flow, ``collect`` turns what the
device spooled into a Recording.
"""

from __future__ import annotations

from edgebench.measure.options import RunOptions
from edgebench.measure.run import Outcome, resume, run, run_many

__all__ = ["Outcome", "RunOptions", "resume", "run", "run_many"]
