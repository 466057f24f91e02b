"""Which width each matrix of a decoder gets in the scheme ``mixed``, a layer in memory at a time.

What a width costs is measured on text. Each matrix alone is rounded to three bits,
and its own layer's output tells how far the hidden states move: squared error over squared length,
the mean over tokens, which is what the next norm makes of them. Other widths move them in
proportion to the error of the matrix's own product, E |(w - v) x|^2, by the second moments of its
inputs. The table moves what is looked up, the head the logits (their mean, which no softmax sees,
left out), both relative in the same way. The whole model is never run for one matrix, as
``edgebench.quantize.mixed`` does for encoders: all of it costs eight passes over a few rows.

Errors of the weights themselves would cost no pass, and say nothing: SmolLM2-135M at 3.5 bits on
average, rounded plainly, has a perplexity of 789 with widths chosen by them (``int3``: 247).

Errors of widths are taken from some of a matrix's rows. Which widths the budget then buys,
``edgebench.quantize.mixed.choose`` says for encoders and decoders alike.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from edgebench.errors import UsageError
from edgebench.export.decoder import pieces, schemes
from edgebench.export.decoder.architecture import NORM, Architecture, Linear
from edgebench.export.decoder.network import IDS, MASK
from edgebench.export.decoder.pieces import Open, States
from edgebench.export.decoder.source import Source
from edgebench.export.decoder.storage import Rows, plain
from edgebench.export.module import Feed
from edgebench.export.request import Progress
from edgebench.quantize import calibration, mixed
from edgebench.quantize.blocks import Key, Width
from edgebench.quantize.feedback import output_error
from edgebench.quantize.fit import dequantize, fit
from edgebench.quantize.mixed import Option

# Tokens that second moments are taken from, and rows that each matrix is tried on.
_TOKENS = 4096
_TRIED = 4

# Rows of a matrix that stand for all: what an error is in the mean shows in a few hundred.
_SAMPLE = 256

Moments = NDArray[np.float64]


def check_budget(a: Architecture, kept: int, budget: float) -> None:
    """Refuse a budget that no choice of widths meets, before anything is measured.

    Args:
        kept: parameters that stay in fp32.
        budget: stored bits a weight over all weights.

    Raises:
        UsageError: it is too small, or more than the widest widths take.
    """
    sizes = [[schemes.stored_bits(m, w) for w in candidates(a, m)] for m in a.matrices]
    total = a.matrix_weights + kept
    least, most = ((32 * kept + sum(pick(bits) for bits in sizes)) / total for pick in (min, max))
    if budget < least:
        raise UsageError(
            f"no choice of widths meets a budget of {budget:.4g} bits a weight",
            where="--mixed-bits",
            fix=f"This model needs at least {np.ceil(100 * least) / 100:.2f}.",
        )
    if budget > most:
        raise UsageError(
            f"a budget of {budget:.4g} bits a weight is more than eight bits everywhere take "
            f"({most:.2f})",
            where="--mixed-bits",
            fix="Give less, or export int8.",
        )


def candidates(a: Architecture, matrix: Linear) -> tuple[Width, ...]:
    """The widths to choose from, the cheapest first."""
    looked_up = matrix == a.table and not a.tied
    few = Width(3, 64) if looked_up else Width(3, 32)
    wide = [schemes.wide(matrix, bits) for bits in (4, 8)]
    found = dict.fromkeys((Width(3, 128), few, wide[0], Width(4, 32), wide[1]))
    return tuple(sorted(found, key=lambda width: schemes.stored_bits(matrix, width)))


def choose(
    options: Mapping[Key, Sequence[Option]], a: Architecture, kept: int, budget: float
) -> dict[str, Width]:
    """A width for every matrix, within the budget."""
    total = a.matrix_weights + kept
    chosen = mixed.choose(options, int(budget * total) - 32 * kept, (total, 32 * kept))
    return {name: width for (name, _), width in chosen.items()}


def measure(
    a: Architecture,
    source: Source,
    feeds: Sequence[Feed],
    *,
    unmerged: bool,
    progress: Progress,
) -> dict[Key, list[Option]]:
    """What every width of every matrix takes and does.

    Args:
        feeds: text, ids and mask [rows, tokens].
        progress: called with the share of the layers that is done.

    Raises:
        InputError: the text is too short.
    """
    calibration.check(feeds)
    return _Measured(a, source, calibration.first(feeds, _TOKENS), unmerged, progress).options


class _Measured:
    """One pass over the layers with the exact model."""

    def __init__(
        self,
        a: Architecture,
        source: Source,
        feeds: Sequence[Feed],
        unmerged: bool,
        progress: Progress,
    ) -> None:
        self.a, self.source, self.unmerged = a, source, unmerged
        self.feeds = feeds
        self.options: dict[Key, list[Option]] = {}
        progress("measuring the embeddings", 0.0)
        table = source.merged(a.table)
        self.states: States = pieces.looked_up(table, feeds)
        self._looked_up(table)
        if not a.tied:
            del table
        built = pieces.exact(a, source, unmerged)
        for index in range(a.layers):
            progress(f"measuring layer {index + 1} of {a.layers}", (index + 0.5) / (a.layers + 1))
            self._layer(Open(built, index))
        progress("measuring the head", a.layers / (a.layers + 1))
        self._head(table if a.tied else pieces.rows(source, a.head, unmerged))

    def _looked_up(self, table: Rows) -> None:
        """Relative squared error of what the calibration text looks up."""
        a = self.a
        ids = np.concatenate([feed[IDS][feed[MASK] != 0] for feed in self.feeds])
        rows = _some(table[ids])
        energy = np.maximum((rows.astype(np.float64) ** 2).sum(1), np.finfo(np.float32).tiny)
        errors = []
        for width in candidates(a, a.table):
            off = rows - _rounded(rows, width)
            errors.append((width, float(((off**2).sum(1) / energy).mean())))
        self.options[a.table.name, False] = _options(a.table, errors)

    def _layer(self, layer: Open) -> None:
        a = self.a
        moments = {x: np.zeros((layer.width(x),) * 2) for x in layer.read}
        given = pieces.layer_feeds(a, layer.index, self.feeds, self.states)
        tokens = 0
        for position, (feed, values) in enumerate(zip(self.feeds, given, strict=True)):
            self.states[position], read = layer.run(values)
            for name, value in read.items():
                x = pieces.kept(value, feed)
                moments[name] += x.T @ x
            tokens += int((feed[MASK] != 0).sum())
        some = {name: array[:_TRIED] for name, array in given[0].items()}
        mask = self.feeds[0][MASK][:_TRIED] != 0
        exact = self.states[0][:_TRIED]
        length = (exact.astype(np.float64) ** 2).sum(-1)[mask]
        for matrix, name in layer.reads.items():
            widths = candidates(a, matrix)
            rows = layer.rows(matrix)
            fewest = _dequantized(*plain(matrix.name, rows, widths[0]), widths[0])
            moved, _ = layer.run(some, {matrix: fewest})
            off = ((moved.astype(np.float64) - exact) ** 2).sum(-1)[mask]
            part, moment = _some(rows), moments[name] / tokens
            errors = [(w, _output_error(part, w, moment)) for w in widths]
            scale = float((off / length).mean()) / (errors[0][1] or 1.0)
            self.options[matrix.name, False] = _options(
                matrix, [(width, scale * error) for width, error in errors]
            )

    def _head(self, rows: Rows) -> None:
        """Relative squared error of the logits; of a tied table, beside that of its look-ups."""
        a = self.a
        weight = self.source.plain(f"{NORM}.weight")
        moment = np.zeros((a.hidden, a.hidden))
        tokens = 0
        for feed, state in zip(self.feeds, self.states, strict=True):
            x = pieces.normed(a, pieces.kept(state, feed), weight)
            moment += x.T @ x
            tokens += len(x)
        moment /= tokens
        rows = _some(rows)
        centred = rows - rows.mean(0)
        energy = float(np.einsum("nk,nk->", centred @ moment, centred)) or 1.0
        widths = candidates(a, a.head)
        errors = [(w, _output_error(rows, w, moment) / energy) for w in widths]
        before = {o.width: o.error for o in self.options.get((a.head.name, False), ())}
        self.options[a.head.name, False] = _options(
            a.head, [(width, error + before.get(width, 0.0)) for width, error in errors]
        )


def _options(matrix: Linear, errors: Iterable[tuple[Width, float]]) -> list[Option]:
    return [Option(w, schemes.stored_bits(matrix, w), error) for w, error in errors]


def _some(rows: Rows) -> Rows:
    """Rows that stand for all, evenly spread."""
    return rows[:: max(1, len(rows) // _SAMPLE)]


def _rounded(rows: Rows, width: Width) -> Rows:
    return _dequantized(*fit(rows, width.block_size, bits=width.bits), width)


def _dequantized(codes: NDArray[np.int8], scales: NDArray[np.float16], width: Width) -> Rows:
    # What is too large for fp16 scales is refused, with its name, when it is stored.
    return dequantize(codes, np.nan_to_num(scales), width.block_size)


def _output_error(rows: Rows, width: Width, moment: Moments) -> float:
    codes, scales = fit(rows, width.block_size, bits=width.bits)
    return output_error(rows, codes, np.nan_to_num(scales), width.block_size, moment)
