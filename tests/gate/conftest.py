"""A workspace of its own for each test."""

from __future__ import annotations

from tests.measure.conftest import bench  # noqa: F401 - a fixture
