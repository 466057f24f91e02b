"""The figures of an evaluation, as PDF: names that its readers look for, bytes that repeat.

Of a run: ``{run_id}_{topic}.pdf``: ``latency``, ``energy``, ``power`` where measured, a bar a
condition, and a curve for each metric that has steps (``retained-accuracy``, ``loss``). Of the
comparison: ``comparison_{topic}.pdf``, one for the primary metric and each that two runs have, and
``comparison_primary_pairN.pdf``, one for each proposed run and baseline whose values pair up.
"""

from __future__ import annotations

import io
import re
import textwrap
from collections import defaultdict
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from edgebench.errors import InputError
from edgebench.evaluate.observations import Observation, Run, finite
from edgebench.evaluate.study import Evaluation, samples
from edgebench.evaluate.values import Value

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

#: Okabe & Ito, "Color Universal Design" (2008): told apart by anybody, and by their lightness.
_COLOURS = {"proposed": "#0072B2", "baseline": "#D55E00", "other": "#8A8A8A"}
_LINES = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00")
_TOPICS = {
    "latency": ("latency_p50_ms", "p50 latency (ms)"),
    "energy": ("energy_per_inference_j", "energy an inference (J)"),
    "power": ("power_peak_w", "peak power (W)"),
}
#: Comparisons beyond these many metrics would be files that nobody opens; metrics.csv has them all.
_MAX_COMPARED = 24


def of_run(evaluation: Evaluation, run: Run) -> dict[str, bytes]:
    """File name -> PDF, of one run."""
    _require_matplotlib()
    files = {}
    for topic, (metric, label) in _TOPICS.items():
        bars = {
            name.partition(" [")[2].rstrip("]") or "measured": by_run[run.run_id]
            for name, by_run in evaluation.values.items()
            if name.partition(" [")[0] == metric and by_run[run.run_id].value is not None
        }
        if bars:
            kinds = [run.kind] * len(bars)
            drawn = _bars(bars, kinds, f"{run.run_id}: {label}", label)
            files[f"{run.run_id}_{topic}.pdf"] = _pdf(drawn)
    for topic, seen in _curves(run).items():
        files[f"{run.run_id}_{topic}.pdf"] = _pdf(_curve({run.run_id: seen}, topic))
    return files


def of_comparison(evaluation: Evaluation) -> dict[str, bytes]:
    """File name -> PDF, of the comparison."""
    _require_matplotlib()
    files: dict[str, bytes] = {}
    kinds = {run.run_id: run.kind for run in evaluation.runs}
    for metric, by_run in list(evaluation.values.items())[: _MAX_COMPARED + 1]:
        known = {run_id: value for run_id, value in by_run.items() if value.value is not None}
        primary = metric == evaluation.primary_metric
        if len(known) < 2 and not (primary and known):
            continue
        better = evaluation.directions.get(metric)
        arrow = {"maximise": "more is better", "minimise": "less is better"}.get(better or "", "")
        title = metric + (f" ({arrow})" if arrow else "")
        note = _gap_note(evaluation) if primary else ""
        drawn = _bars(known, [kinds[run_id] for run_id in known], title, metric, note)
        topic = "primary" if primary else _slug(metric)
        files[_free(f"comparison_{topic}.pdf", files)] = _pdf(drawn)
    for topic in sorted({topic for run in evaluation.runs for topic in _curves(run)}):
        curves = {
            run.run_id: _curves(run)[topic] for run in evaluation.runs if topic in _curves(run)
        }
        if len(curves) > 1:
            files[_free(f"comparison_{topic}_over-steps.pdf", files)] = _pdf(_curve(curves, topic))
    return files | _pairs(evaluation)


def _pairs(evaluation: Evaluation) -> dict[str, bytes]:
    files, number = {}, 0
    for proposed in (run for run in evaluation.runs if run.kind == "proposed"):
        for baseline in (run for run in evaluation.runs if run.kind == "baseline"):
            number += 1
            one = _by_key(samples(proposed, evaluation.primary_metric))
            other = _by_key(samples(baseline, evaluation.primary_metric))
            keys = sorted(one.keys() & other.keys())
            if keys:
                figure = _figure()
                axes = figure.add_subplot()
                for key in keys:
                    axes.plot([0, 1], [other[key], one[key]], color="#8A8A8A", linewidth=1)
                    axes.annotate(
                        key, (1, one[key]), xytext=(5, 0), textcoords="offset points", fontsize=7
                    )
                axes.plot(
                    [0] * len(keys),
                    [other[k] for k in keys],
                    "o",
                    color=_COLOURS["baseline"],
                    label=baseline.run_id,
                )
                axes.plot(
                    [1] * len(keys),
                    [one[k] for k in keys],
                    "o",
                    color=_COLOURS["proposed"],
                    label=proposed.run_id,
                )
                axes.set_xticks([0, 1], ["baseline", "proposed"])
                axes.set_xlim(-0.3, 1.5)
                axes.set_ylabel(_wrapped(evaluation.primary_metric, 40))
                axes.set_title(f"{len(keys)} pairs of the same seed or task", fontsize=10)
                axes.grid(True, axis="y", alpha=0.25)
                axes.legend(fontsize=8)
                files[f"comparison_primary_pair{number}.pdf"] = _pdf(figure)
    return files


def _by_key(seen: Sequence[Observation]) -> dict[str, float]:
    found = {}
    for one in seen:
        parts = [f"seed {one.seed}" if one.seed else "", one.task or ""]
        key = " ".join(part for part in parts if part)
        if key and finite(one.value):
            found[key] = one.value
    return found


def _curves(run: Run) -> dict[str, list[Observation]]:
    """topic -> observations with steps, for metrics that have at least two steps."""
    found: dict[str, list[Observation]] = defaultdict(list)
    for seen in run.observations:
        if seen.step is not None and finite(seen.value):
            name = f"{seen.metric}_{seen.condition}" if seen.condition else seen.metric
            found[_slug(name)].append(seen)
    return {t: seen for t, seen in found.items() if len({one.step for one in seen}) > 1}


def _curve(curves: dict[str, list[Observation]], topic: str) -> Figure:
    """The mean over seeds and tasks at each step, and their range."""
    figure = _figure()
    axes = figure.add_subplot()
    for index, (run_id, seen) in enumerate(curves.items()):
        steps: dict[float, list[float]] = defaultdict(list)
        for one in seen:
            steps[one.step or 0.0].append(one.value)
        xs = sorted(steps)
        means = [sum(steps[x]) / len(steps[x]) for x in xs]
        colour = _LINES[index % len(_LINES)]
        axes.plot(xs, means, marker="o", markersize=3, color=colour, label=run_id)
        if any(len(steps[x]) > 1 for x in xs):
            lowest, highest = [min(steps[x]) for x in xs], [max(steps[x]) for x in xs]
            axes.fill_between(xs, lowest, highest, color=colour, alpha=0.15, linewidth=0)
        axes.annotate(
            f"{means[-1]:.3g}",
            (xs[-1], means[-1]),
            xytext=(4, 0),
            textcoords="offset points",
            fontsize=8,
        )
    axes.margins(x=0.1)
    axes.set_xlabel("tasks seen" if topic == "retained-accuracy" else "step")
    axes.set_ylabel(topic)
    axes.set_title(f"{topic}: mean and range over seeds and tasks", fontsize=10)
    axes.grid(True, alpha=0.25)
    axes.legend(fontsize=8)
    return figure


def _bars(
    values: dict[str, Value], kinds: Sequence[str], title: str, label: str, note: str = ""
) -> Figure:
    """One bar a name with its interval and its figure written on it."""
    figure = _figure(height=1.3 + 0.5 * max(len(values), 3))
    axes = figure.add_subplot()
    names = list(values)
    heights = [value.value or 0.0 for value in values.values()]
    below = [
        max(h - (h if v.lo is None else v.lo), 0.0)
        for h, v in zip(heights, values.values(), strict=True)
    ]
    above = [
        max((h if v.hi is None else v.hi) - h, 0.0)
        for h, v in zip(heights, values.values(), strict=True)
    ]
    axes.barh(range(len(names)), heights, color=[_COLOURS[kind] for kind in kinds], height=0.6)
    if any(below) or any(above):
        axes.errorbar(
            heights, range(len(names)), xerr=[below, above], fmt="none", ecolor="#222222", capsize=3
        )
    for position, (height, value) in enumerate(zip(heights, values.values(), strict=True)):
        edge = height + above[position]
        text = f"{height:.4g}" + (f"  n={value.n}" if value.n > 1 else "")
        axes.annotate(
            text,
            (edge, position),
            xytext=(4, 0),
            textcoords="offset points",
            fontsize=8,
            verticalalignment="center",
        )
    axes.set_yticks(range(len(names)), [_wrapped(name, 34) for name in names], fontsize=8)
    axes.invert_yaxis()
    axes.margins(x=0.18)
    axes.set_xlabel(_wrapped(label, 70), fontsize=9)
    axes.set_title(_wrapped(title, 80) + (f"\n{note}" if note else ""), fontsize=10)
    axes.grid(True, axis="x", alpha=0.25)
    _legend(axes, kinds)
    return figure


def _legend(axes: Axes, kinds: Sequence[str]) -> None:
    from matplotlib.patches import Patch

    shown = list(dict.fromkeys(kinds))
    axes.legend(
        handles=[Patch(color=_COLOURS[kind], label=kind) for kind in shown],
        fontsize=8,
        loc="upper left",
        bbox_to_anchor=(1.01, 1.0),
        borderaxespad=0.0,
    )


def _gap_note(evaluation: Evaluation) -> str:
    if evaluation.gap.percent is None:
        return f"no gap: {evaluation.gap.reason}"
    return f"best proposed against best baseline: {evaluation.gap.percent:+.2f} %"


def _figure(height: float = 4.2) -> Figure:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8.0, height), layout="tight")
    FigureCanvasAgg(figure)
    return figure


def _pdf(figure: Figure) -> bytes:
    import matplotlib

    metadata: dict[str, Any] = {"CreationDate": None, "Producer": None, "Creator": None}
    sink = io.BytesIO()
    with matplotlib.rc_context({"pdf.fonttype": 42}):
        figure.savefig(sink, format="pdf", metadata=metadata)
    return sink.getvalue()


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:60] or "metric"


def _free(name: str, taken: dict[str, bytes]) -> str:
    stem, number = name.removesuffix(".pdf"), 2
    while name in taken:
        name, number = f"{stem}-{number}.pdf", number + 1
    return name


def _wrapped(text: str, width: int) -> str:
    return textwrap.fill(text, width)


def _require_matplotlib() -> None:
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise InputError(
            "figures need matplotlib, which is not installed",
            fix="pip install 'edgebench[report]', or say --no-figures.",
        ) from error
