"""The evaluation step of a study: metrics of each run, the comparison, figures and tests.

docs/evaluate.md says what it reads and writes.
"""

from __future__ import annotations

from edgebench.evaluate.output import write
from edgebench.evaluate.study import Evaluation, Request, evaluate

__all__ = ["Evaluation", "Request", "evaluate", "write"]
