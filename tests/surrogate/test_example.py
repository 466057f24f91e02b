"""The example: gates that get a gradient through the surrogate, and move to meet a budget."""

from __future__ import annotations

import importlib.util
import sys

import pytest

from tests.fixtures_export import REPOSITORY, require

require("torch", "safetensors")


@pytest.fixture(scope="module")
def example():
    path = REPOSITORY / "examples" / "surrogate_gates.py"
    spec = importlib.util.spec_from_file_location("surrogate_gates", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules["surrogate_gates"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    yield module
    del sys.modules["surrogate_gates"]


def test_gates_meet_a_latency_budget_through_the_surrogate(example, tmp_path):
    surrogate = example.made_up_surrogate(tmp_path, steps=150)
    found = example.train(surrogate, "made-up-a", budget_ms=20.0, steps=220)
    assert found.first_gradient > 0  # every gate of every kind, at the first step
    assert found.latency_before_ms > 35
    assert found.latency_after_ms < 21
    assert found.layers_after < 0.8 * found.layers_before
    assert found.accuracy > 0.6  # it has learned something with what it kept


def test_without_a_tight_budget_gates_stay_open(example, tmp_path):
    surrogate = example.made_up_surrogate(tmp_path, steps=60)
    found = example.train(surrogate, "made-up-a", budget_ms=500.0, steps=5)
    assert found.layers_after == pytest.approx(found.layers_before, rel=0.05)
