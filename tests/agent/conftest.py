"""An agent root and a lock of its own for each test, so that tests run beside other runs."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from edgebench.agent import agent
from tests.agent.agents import ServingAgent, end_all


@pytest.fixture
def lock() -> Iterator[str]:
    """A lock's name that nobody else uses."""
    name = f"test-{uuid.uuid4().hex[:12]}"
    yield name
    Path(agent.lock_path(name)).unlink(missing_ok=True)


@pytest.fixture
def serving(tmp_path: Path, lock: str) -> Iterator[Callable[..., ServingAgent]]:
    """Makes agents below the test's root; whatever is left of them is killed."""
    agents: list[ServingAgent] = []
    root = tmp_path / "root"

    def make(**options) -> ServingAgent:
        agents.append(ServingAgent(options.pop("root", root), options.pop("lock", lock), **options))
        return agents[-1]

    yield make
    end_all(tmp_path)
    for each in agents:
        each.close()


@pytest.fixture
def served(serving: Callable[..., ServingAgent]) -> ServingAgent:
    """One agent."""
    return serving()
