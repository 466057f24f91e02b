"""The Pareto controller: a tree of depth 3 that picks a point of the front for a token.

It maps (token entropy in nats, position in tokens) to the measured (energy, latency, power) of a
point of the front. scikit-learn fits it (a regression tree on the three costs, each scaled by its
spread); every leaf is then moved to the nearest point of the front, so that what it answers was
measured and is not beaten. Serialised it is JSON of at most ``MAX_BYTES``; ``decide`` walks it in
plain Python, so a controller needs no library.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from edgebench.errors import InputError

MAX_BYTES = 1000
DEPTH = 3
FEATURES = ("token_entropy_nats", "position")
TARGETS = ("energy_j", "latency_ms", "power_w")
SCHEMA = "edgebench.pareto-tree/1"


@dataclass(frozen=True)
class Tree:
    """A fitted controller.

    Attributes:
        nodes: (feature, threshold, left, right) of inner nodes, (-1, point, 0, 0) of leaves.
        points: the front's points that its leaves name: (energy_j, latency_ms, power_w).
    """

    nodes: tuple[tuple[int, float, int, int], ...]
    points: tuple[tuple[float, float, float], ...]

    def decide(self, entropy_nats: float, position: float) -> tuple[float, float, float]:
        """The point for a token."""
        node = self.nodes[0]
        while node[0] >= 0:
            value = entropy_nats if node[0] == 0 else position
            node = self.nodes[node[2] if value <= node[1] else node[3]]
        return self.points[int(node[1])]

    def dumps(self) -> bytes:
        """JSON, at most ``MAX_BYTES`` long.

        Raises:
            InputError: it is longer (which a tree of depth 3 can't be).
        """
        document = {
            "schema": SCHEMA,
            "nodes": [[n[0], float(f"{n[1]:.6g}"), n[2], n[3]] for n in self.nodes],
            "points": [[float(f"{v:.6g}") for v in point] for point in self.points],
        }
        data = json.dumps(document, separators=(",", ":")).encode()
        if len(data) > MAX_BYTES:
            raise InputError(f"the tree takes {len(data)} bytes, more than {MAX_BYTES}")
        return data

    @classmethod
    def loads(cls, data: bytes) -> Tree:
        """Read what ``dumps`` wrote.

        Raises:
            InputError: it is something else.
        """
        try:
            document = json.loads(data)
            if document["schema"] != SCHEMA:
                raise ValueError(f"its schema is {document['schema']!r}")
            nodes = tuple((int(a), float(b), int(c), int(d)) for a, b, c, d in document["nodes"])
            points = tuple((float(a), float(b), float(c)) for a, b, c in document["points"])
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(f"this is no Pareto tree: {error}") from error
        for position, (feature, value, left, right) in enumerate(nodes):
            inner = 0 <= feature < len(FEATURES) and position < min(left, right)
            leaf = feature == -1 and 0 <= value < len(points)
            if not (leaf or (inner and max(left, right) < len(nodes))):
                raise InputError(f"node {position} of the Pareto tree points nowhere")
        if not nodes:
            raise InputError("the Pareto tree has no nodes")
        return cls(nodes, points)


def fit(features: Any, costs: Any, front_points: Any) -> Tree:
    """Fit a controller.

    Args:
        features: [n, 2] token entropy (nats) and position of observed tokens.
        costs: [n, 3] energy (J), latency (ms), power (W) of what was best for each of them.
        front_points: [k, 3] the measured points of the front that it may choose.

    Raises:
        InputError: shapes don't fit, or a number is not finite.
    """
    x, y, points = (np.asarray(a, dtype=float) for a in (features, costs, front_points))
    if x.ndim != 2 or x.shape[1] != 2 or y.shape != (len(x), 3) or points.shape[1:] != (3,):
        raise InputError(
            "a controller is fitted to [n, 2] features, [n, 3] costs and [k, 3] points of the front"
        )
    if not len(x) or not len(points) or not all(np.isfinite(a).all() for a in (x, y, points)):
        raise InputError("the controller's data are empty, or hold numbers that are not finite")
    try:
        from sklearn.tree import DecisionTreeRegressor
    except ImportError as error:
        raise InputError(
            "fitting a controller needs scikit-learn", fix="pip install 'edgebench[pareto]'."
        ) from error
    spread = np.where(np.ptp(points, axis=0) > 0, np.ptp(points, axis=0), 1.0)
    fitted = DecisionTreeRegressor(max_depth=DEPTH, random_state=0).fit(x, y / spread).tree_
    return _from_sklearn(fitted, points, spread)


def _from_sklearn(
    fitted: Any, points: npt.NDArray[np.float64], spread: npt.NDArray[np.float64]
) -> Tree:
    used: dict[int, int] = {}
    nodes: list[tuple[int, float, int, int]] = []
    for index in range(fitted.node_count):
        if fitted.children_left[index] < 0:
            target = fitted.value[index][:, 0]
            nearest = int(np.argmin(((points / spread - target) ** 2).sum(axis=1)))
            nodes.append((-1, float(used.setdefault(nearest, len(used))), 0, 0))
        else:
            nodes.append(
                (
                    int(fitted.feature[index]),
                    float(f"{fitted.threshold[index]:.6g}"),
                    int(fitted.children_left[index]),
                    int(fitted.children_right[index]),
                )
            )
    chosen = tuple(tuple(float(f"{v:.6g}") for v in points[index]) for index in used)
    return Tree(tuple(nodes), chosen)  # type: ignore[arg-type]


def decision_time_us(tree: Tree, features: Any, repeats: int = 2000) -> float:
    """Median time of one decision in this Python, in microseconds, the call included."""
    rows = [tuple(map(float, row)) for row in np.asarray(features, dtype=float)]
    times = []
    for index in range(repeats):
        entropy, position = rows[index % len(rows)]
        start = time.perf_counter_ns()
        tree.decide(entropy, position)
        times.append(time.perf_counter_ns() - start)
    return float(np.median(times)) / 1000
