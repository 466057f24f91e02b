"""A front as a figure: two objectives, all points, those of the front joined and named."""

from __future__ import annotations

import io
from collections.abc import Sequence

from edgebench.errors import InputError
from edgebench.pareto.front import Objective, front
from edgebench.pareto.points import Points


def draw(
    points: Points, objectives: Sequence[Objective], budgets: dict[str, float]
) -> dict[str, bytes]:
    """``{"pareto.png": ..., "pareto.pdf": ...}``: a panel for each objective against the first.

    Raises:
        InputError: matplotlib is missing, or there is one objective only.
    """
    try:
        import matplotlib
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise InputError(
            "drawing needs matplotlib, which is not installed",
            fix="pip install 'edgebench[report]'.",
        ) from error
    columns = points.columns
    if len(columns) < 2:
        raise InputError("a front needs two objectives to be drawn")
    on = front(points.values, objectives)
    panels = len(columns) - 1
    figure = Figure(figsize=(4.6 * panels + 0.6, 4.4), layout="tight")
    FigureCanvasAgg(figure)
    for index in range(1, len(columns)):
        axes = figure.add_subplot(1, panels, index)
        x, y = points.values[:, index], points.values[:, 0]
        axes.scatter(x[~on], y[~on], s=28, facecolors="none", edgecolors="#8A8A8A", label="beaten")
        axes.scatter(x[on], y[on], s=36, color="#0072B2", label="on the front")
        for label, px, py in zip(
            [n for n, keep in zip(points.labels, on, strict=True) if keep],
            x[on],
            y[on],
            strict=True,
        ):
            axes.annotate(label, (px, py), xytext=(4, 4), textcoords="offset points", fontsize=7)
        if columns[index] in budgets:
            axes.axvline(budgets[columns[index]], color="#D55E00", linestyle="--", label="budget")
        axes.set_xlabel(columns[index])
        axes.set_ylabel(columns[0])
        axes.grid(True, alpha=0.25)
        axes.margins(0.14)
        axes.legend(fontsize=8, loc="best")
    files = {}
    with matplotlib.rc_context({"pdf.fonttype": 42}):
        for kind, metadata in (
            ("png", {"Software": None}),
            ("pdf", {"CreationDate": None, "Producer": None, "Creator": None}),
        ):
            sink = io.BytesIO()
            figure.savefig(sink, format=kind, dpi=150, metadata=metadata)
            files[f"pareto.{kind}"] = sink.getvalue()
    return files
