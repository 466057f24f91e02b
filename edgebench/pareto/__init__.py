"""Pareto fronts, hypervolumes, and the small tree that picks a point of a front."""

from __future__ import annotations

from edgebench.pareto.front import Objective, front
from edgebench.pareto.volume import hypervolume

__all__ = ["Objective", "front", "hypervolume"]
