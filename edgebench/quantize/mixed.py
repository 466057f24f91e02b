"""Three, four or eight bits for each weight, chosen for a budget in average bits over all weights.

What a width costs is measured on calibration inputs. First, with everything else exact, each weight
alone is rounded to three bits, and the model's own outputs tell how far they move (relative squared
error). Then the other widths: rounding errors are small, so the outputs move in proportion to the
error of the weight's own product, E |(w - v) x|^2, which the inputs' second moments give without
another run. For tables, where every row is looked up alone, it is the error of the rows.

Under the budget this is a knapsack with one choice a weight. It is filled greedily: from the
cheapest width for all, always the change that lowers the error most for each bit that it costs. A
solver would give the last few hundred bits of the budget a better use, and need a library.

The budget counts every weight of the model, what stays in fp32 included.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper

from edgebench.artifact import Quantization
from edgebench.errors import InputError, UsageError
from edgebench.quantize import MIXED_BITS, bits, blocks, files
from edgebench.quantize import calibration as calibrating
from edgebench.quantize.blocks import Key, Width
from edgebench.quantize.calibration import Feed
from edgebench.quantize.feedback import output_error
from edgebench.quantize.fit import dequantize, fit
from edgebench.quantize.graph import Graph, Weight

if TYPE_CHECKING:
    from edgebench.quantize import Progress

TABLE_WIDTHS = (Width(3, 128), Width(3, 64), Width(4, 64), Width(8, 128))
MATRIX_WIDTHS = (Width(3, 128), Width(3, 32), Width(4, 128), Width(4, 32), Width(8, 128))

# Tokens of the calibration set that the second moments are taken from: widths are compared with
# each other, which needs fewer than fitting does.
_TOKENS = 4096

# Rows of the calibration set that the outputs are compared on: each weight costs one run of them.
_ROWS = 8


@dataclass(frozen=True)
class Option:
    """One way to store one weight: its size, and how far the outputs move."""

    width: Width
    bits: int
    error: float


def convert(
    source: Path,
    target: Path,
    progress: Progress,
    *,
    calibration: Sequence[Feed] | None = None,
    budget: float = MIXED_BITS,
) -> Quantization:
    """Write ``source`` in mixed widths to ``target``; see ``edgebench.quantize.quantize``.

    Args:
        calibration: inputs to choose the widths by, and to fit the matrices to.
        budget: stored bits a weight, on average over all weights of the model.

    Raises:
        UsageError: a budget that no choice of widths meets.
        InputError: no or too short a calibration set, NaN or infinite weights, or no matrix that
            could be quantised.
    """
    calibrating.check(calibration or ())
    assert calibration is not None
    progress("reading the model", None)
    model = blocks.at_opset(files.load(source), str(source), "mixed")
    graph = Graph(model)
    graph.check_finite()
    weights = [weight for weight in graph.weights() if not weight.narrow]
    if not weights:
        raise InputError(
            "no matrix of this model is wide enough for few bits",
            where=str(source),
            fix="Export it as int8 or fp32.",
        )
    options = _options(graph, weights, calibration, progress)
    counted = bits.count(model)
    total = counted.total_weights
    sizes = {blocks.key(weight): weight.n * weight.k for weight in weights}
    kept = counted.param_bits - 32 * sum(sizes.values())
    chosen = choose(options, round(budget * total) - kept, (total, kept))
    plan = {weight.node: (weight, chosen[blocks.key(weight)]) for weight in weights}
    fitted = blocks.fit_all(
        graph,
        plan,
        calibration,
        lambda name, done: progress(f"rounding {name}", 0.5 + 0.4 * done),
    )
    blocks.rewrite(graph, plan, fitted)
    progress("writing", 0.95)
    files.save(model, target, mapped=True)
    result = blocks.quantization(
        "mixed",
        model,
        fitted,
        calibration,
        budget=budget,
        widths={
            name: f"{w.bits} bits, blocks of {w.block_size}" for (name, _), w in chosen.items()
        },
    )
    progress("written", 1.0)
    return result


def choose(
    options: Mapping[Key, Sequence[Option]], budget: int, whole: tuple[int, int]
) -> dict[Key, Width]:
    """One width a weight, within ``budget`` bits together, with little error together.

    ``whole`` is the number of the model's weights and the bits of those kept, for the message.

    Raises:
        UsageError: the cheapest widths together take more.
    """
    chosen = {key: min(ways, key=lambda o: (o.bits, o.error)) for key, ways in options.items()}
    left = budget - sum(option.bits for option in chosen.values())
    if left < 0:
        total, kept = whole
        least = (kept + budget - left) / total
        raise UsageError(
            f"no choice of widths meets a budget of {(kept + budget) / total:.4g} bits a weight",
            where="--mixed-bits",
            fix=f"This model needs at least {np.ceil(100 * least) / 100:.2f}.",
        )
    while True:
        best: tuple[float, Key, Option] | None = None
        for key, ways in options.items():
            now = chosen[key]
            for way in ways:
                cost = way.bits - now.bits
                gain = now.error - way.error
                if 0 < cost <= left and gain > 0 and (best is None or gain / cost > best[0]):
                    best = (gain / cost, key, way)
        if best is None:
            return {key: option.width for key, option in chosen.items()}
        _, key, way = best
        left -= way.bits - chosen[key].bits
        chosen[key] = way


def _options(
    graph: Graph, weights: Sequence[Weight], feeds: Sequence[Feed], progress: Progress
) -> dict[Key, list[Option]]:
    """What every width of every weight takes and does."""
    only_looked_up = blocks.tables(weights)
    moments: dict[Key, NDArray[np.float64]] = {}

    def note(group: Sequence[Weight], found: calibrating.Moments) -> dict[str, Any]:
        for weight in group:
            moments.setdefault(blocks.key(weight), found.quantised)
        return {}

    progress("reading activations", 0.02)
    matrices = [weight for weight in weights if weight.kind != "Gather"]
    some = calibrating.first(feeds, _TOKENS)
    calibrating.walk(graph, calibrating.grouped(graph, matrices), some, note, {})
    outputs = _Outputs(graph, weights, feeds)
    options: dict[Key, list[Option]] = {}
    for position, weight in enumerate(weights):
        key = blocks.key(weight)
        if key in options:
            continue
        progress(f"measuring {weight.initializer}", 0.1 + 0.4 * position / len(weights))
        rows = graph.rows(weight)
        moved = 0.0
        local: list[tuple[Width, float]] = []
        for width in TABLE_WIDTHS if key in only_looked_up else MATRIX_WIDTHS:
            codes, scales = fit(rows, width.block_size, bits=width.bits)
            if key in moments:
                error = output_error(rows, codes, scales, width.block_size, moments[key])
            else:
                error = float(
                    ((rows - dequantize(codes, scales, width.block_size)) ** 2).sum(
                        dtype=np.float64
                    )
                )
            if not local:
                values = dequantize(codes, scales, width.block_size)
                moved = outputs.error(weight.initializer, blocks.stored_form(weight, values))
            local.append((width, error))
        first = local[0][1] or 1.0
        options[key] = [
            Option(width, width.stored(weight.n, weight.k), moved * error / first)
            for width, error in local
        ]
    return options


class _Outputs:
    """The model with its weights as inputs, so that one can be changed without a new session."""

    def __init__(self, graph: Graph, weights: Sequence[Weight], feeds: Sequence[Feed]) -> None:
        import onnxruntime

        model = onnx.ModelProto()
        model.CopyFrom(graph.model)
        free = {weight.initializer for weight in weights}
        self.weights = {
            name: np.asarray(onnx.numpy_helper.to_array(graph.initializers[name]), np.float32)
            for name in free
        }
        kept = [t for t in model.graph.initializer if t.name not in free]
        del model.graph.initializer[:]
        model.graph.initializer.extend(kept)
        model.graph.input.extend(
            helper.make_tensor_value_info(name, TensorProto.FLOAT, list(array.shape))
            for name, array in sorted(self.weights.items())
        )
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self._session = onnxruntime.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        takes = {value.name for value in self._session.get_inputs()}
        self._feed = {n: a[:_ROWS] for n, a in feeds[0].items() if n in takes}
        self._exact = self._run(self.weights)

    def error(self, name: str, array: NDArray[np.float32]) -> float:
        """How far the outputs move with one weight changed: relative squared error, summed."""
        moved = 0.0
        changed = self._run(self.weights | {name: array})
        for exact, now in zip(self._exact, changed, strict=True):
            energy = float((exact.astype(np.float64) ** 2).sum())
            moved += float(((exact - now).astype(np.float64) ** 2).sum()) / (energy or 1.0)
        return moved

    def _run(self, weights: Mapping[str, NDArray[np.float32]]) -> list[NDArray[np.float32]]:
        results = self._session.run(None, {**self._feed, **weights})
        return [r for r in results if isinstance(r, np.ndarray) and r.dtype == np.float32]
