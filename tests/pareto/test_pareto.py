"""Fronts, volumes and the controller."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from edgebench.cli.main import main
from edgebench.errors import InputError
from edgebench.pareto import front, hypervolume, tree
from tests.evaluate.study import tables

POINTS = hnp.arrays(float, st.tuples(st.integers(1, 12), st.just(3)), elements=st.floats(0, 1))


@given(POINTS)
def test_a_point_is_on_the_front_unless_another_beats_it(points: np.ndarray) -> None:
    on = front(points, ["maximise", "minimise", "maximise"])
    values = points * [1, -1, 1]
    for index, value in enumerate(values):
        beaten = any((other >= value).all() and (other > value).any() for other in values)
        assert on[index] == (not beaten)


def _inclusion_exclusion(points: np.ndarray) -> float:
    total = 0.0
    for mask in range(1, 2 ** len(points)):
        chosen = points[[bool(mask >> i & 1) for i in range(len(points))]]
        total += (-1) ** (len(chosen) + 1) * float(np.prod(chosen.min(axis=0)))
    return total


@settings(max_examples=25, deadline=None)
@given(
    hnp.arrays(
        float, st.tuples(st.integers(1, 6), st.just(4)), elements=st.floats(0.0078125, 1, width=32)
    )
)
def test_the_volume_is_exact_in_four_dimensions(points: np.ndarray) -> None:
    found = hypervolume(points, ["maximise"] * 4, reference=[0.0] * 4)
    assert found == pytest.approx(_inclusion_exclusion(points), rel=1e-9, abs=1e-12)


def test_the_volume_of_a_set_is_not_the_product_of_one_points_margins() -> None:
    ways = ["maximise", "minimise"]
    both = hypervolume([[0.9, 8], [0.5, 2]], ways, reference=[0, 10])  # type: ignore[arg-type]
    assert both == pytest.approx(0.9 * 2 + 0.5 * 6)


def test_over_a_budget_a_point_adds_nothing() -> None:
    ways = ["maximise", "minimise"]
    assert hypervolume([[0.9, 11]], ways, reference=[0, 10]) == 0.0  # type: ignore[arg-type]


def test_what_was_not_measured_is_refused() -> None:
    with pytest.raises(InputError, match="not finite"):
        hypervolume([[1.0, np.nan]], ["maximise"] * 2, reference=[0, 0])


def _controller() -> tuple[tree.Tree, np.ndarray]:
    rng = np.random.default_rng(0)
    features = np.column_stack([rng.uniform(0, 5, 500), rng.integers(0, 512, 500)])
    points = np.array([[1.0, 10, 2], [2.0, 20, 4], [6.0, 70, 9]])
    best = (features[:, 0] > 2).astype(int) + (features[:, 1] > 256)
    return tree.fit(features, points[best], points), points


def test_the_controller_is_small_and_answers_only_points_of_the_front() -> None:
    fitted, points = _controller()
    data = fitted.dumps()
    assert len(data) <= 1000
    again = tree.Tree.loads(data)
    seen = {again.decide(e, p) for e in (0.0, 1.9, 2.1, 5.0) for p in (0, 255, 257, 511)}
    assert seen == {tuple(point) for point in points}
    assert again.decide(0.1, 0) == (1.0, 10.0, 2.0)
    assert again.decide(4.9, 500) == (6.0, 70.0, 9.0)


@pytest.mark.parametrize(
    "nodes",
    [[], [[0, 1.0, 0, 0]], [[0, 1.0, 1, 9]], [[-1, 3, 0, 0]], [[5, 0, 1, 1], [-1, 0, 0, 0]]],
)
def test_a_tree_that_leads_nowhere_is_refused(nodes: list[list[float]]) -> None:
    document = {"schema": tree.SCHEMA, "nodes": nodes, "points": [[1, 2, 3]]}
    with pytest.raises(InputError):
        tree.Tree.loads(json.dumps(document).encode())


def _results(root: Path) -> None:
    tables(
        root,
        "study",
        latency=[
            {"accuracy": 0.9, "latency_p50_ms": 40},
            {"accuracy": 0.8, "latency_p50_ms": 20},
            {"accuracy": 0.7, "latency_p50_ms": 30},
            {"accuracy": 0.99, "latency_p50_ms": 1, "verdict": "INVALID", "reasons": "throttled"},
            {"accuracy": 0.6, "latency_p50_ms": 10},
        ],
        energy=[{"energy_per_inference_j": j} for j in (3, 2, 2.5, 1)],
        power=[{"power_peak_w": w} for w in (5, 4, 4.5, 1, 2)],
    )


def test_the_commands(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _results(tmp_path)
    tokens = tmp_path / "tokens.csv"
    rows = [
        f"{e},{p},{2 + (e > 1)},{20 + 20 * (e > 1)},{4 + (e > 1)}" for e in (0, 2) for p in (1, 9)
    ]
    names = "token_entropy_nats,position,energy_j,latency_ms,power_w"
    tokens.write_text("\n".join([names, *rows]) + "\n")
    out = tmp_path / "front"
    with pytest.raises(SystemExit) as done:
        main(["pareto", str(tmp_path / "study"), "--out", str(out), "--controller", str(tokens),
              "--budget", "latency_p50_ms=80"])  # fmt: skip
    said = capsys.readouterr()
    assert done.value.code == 0
    assert "2 of 3 points are on the front" in said.out
    assert "INVALID: throttled" in said.err
    assert "no energy_per_inference_j" in said.err
    written = {path.name for path in out.iterdir()}
    assert written == {"pareto.csv", "pareto.png", "pareto.pdf", "controller.json"}
    with pytest.raises(SystemExit) as done:
        main(["hypervolume", str(tmp_path / "study"), "--share", "--json",
              "--budget", "latency_p50_ms=80", "--budget", "energy_per_inference_j=6",
              "--budget", "power_peak_w=11"])  # fmt: skip
    assert done.value.code == 0
    found = json.loads(capsys.readouterr().out)
    shares = [(0.9, 3 / 6, 40 / 80, 6 / 11), (0.8, 4 / 6, 60 / 80, 7 / 11)]
    assert found["hypervolume"] == pytest.approx(_inclusion_exclusion(np.array(shares)))


def test_a_volume_without_a_budget_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _results(tmp_path)
    with pytest.raises(SystemExit) as done:
        main(["hypervolume", str(tmp_path / "study")])
    assert done.value.code == 2
    assert "--budget energy_per_inference_j=LIMIT" in capsys.readouterr().err
