"""How far off is a surrogate's latency on a new setting of one machine, with 5 samples of it?

MiniLM with the bundled adapter, at least 60 gating configurations drawn over s = (seq_len,
kept_layers, kept_heads, kept_ranks, param_bits) by `edgebench sample`, each exported for real and
measured on this machine at two numbers of threads and several precisions. Each of these settings is
taken as a "device". They are *not* different boards: one machine, one runtime, configured
differently.

One device is left out, the surrogate is trained on the others and calibrated with 5 random samples
of the one that was left out (30 draws; 10 samples beside it), and its latency for other
configurations is compared with what was measured. The error of a draw is the mean absolute
percentage error (MAE in percent); a device's is the mean over draws. Three questions:

- ``left out``: as above. The configurations that are predicted were measured on the other devices,
  and the surrogate was trained with them;
- ``new configurations``: the same, but those that are predicted were measured nowhere: in five
  folds, a fifth of the configurations is taken out of training too;
- ``new precision``: both thread counts of a precision are left out together.

Beside them the scale and shift alone, and the samples' geometric mean, which is what the others
must beat. `half-width` is the median half-width of the measured medians' own intervals: no
surrogate can be known to be nearer than that.

The recorded tables are in ``data/local``; ``--data DIR`` names others. ``--measure`` makes new ones
in DIR: it exports n configurations (``--n 60``) at each precision (``--scheme``, several), and runs
them for about 5 s each on a quiet machine. ``--export`` makes the exports alone, which need none.
Both stop after ``--minutes`` and go on when the same command is given again; neither evaluates.
Exports and recordings stand in the user's cache directory.

``--promise`` trains gates of MiniLM on BBC News against three latency budgets through a surrogate
that has 5 samples of the device, exports the hard gates, and measures the artifact here: how far is
the measured latency from the promised one? Give it alone; it needs MiniLM and a quiet machine.

Targets: the papers' 3.1 % of latency with five samples, for the first two questions; 90 % intervals
that hold 80 to 98 %; an artifact within 10 % of the promise.
"""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import local_samples
import numpy as np
from common import Figure, Refusal, at_most, cache_dir, run_benchmark, table

RECORDED = Path(__file__).parent / "data" / "local"
METRIC = "latency_ms"
PUBLISHED = 3.1
FOLDS = 5


@dataclass(frozen=True)
class Effort:
    """How much is done: steps of a training, draws of samples."""

    steps: int = 1500
    leave_out_steps: int = 700
    draws: int = 30

    @classmethod
    def of(cls, quick: bool) -> Effort:
        return cls(40, 30, 2) if quick else cls()


def read(data: Path) -> Any:
    """The tables of a directory as one; INVALID rows are left out.

    Raises:
        Refusal: there are fewer than three devices.
    """
    from edgebench.surrogate.training_table import read_tables

    names = local_samples.tags(data)
    if len(names) < 3:
        raise Refusal(
            f"{data} has tables of {len(names)} devices, and leaving one out takes three. Make "
            "them: python benchmarks/surrogate_local.py --data DIR --measure"
        )
    return read_tables([data / f"{name}.csv" for name in names])


def describe(data: Path, whole: Any) -> None:
    """Print what each device's table holds."""
    import pandas as pd

    lines = []
    for tag in local_samples.tags(data):
        frame = pd.read_csv(data / f"{tag}.csv")
        half = (frame["latency_ms_hi"] - frame["latency_ms_lo"]) / 2 / frame["latency_ms"]
        valid = frame["verdict"] != "INVALID"
        low, high = frame.loc[valid, METRIC].min(), frame.loc[valid, METRIC].max()
        lines.append(
            (
                tag,
                f"{int(valid.sum())}/{len(frame)}",
                f"{low:.2f} to {high:.2f}",
                f"{100 * half[valid].median():.1f}",
            )
        )
    print("one machine, configured differently:")
    table(("device", "valid rows", "p50 ms", "half-width %"), lines)
    print(f"{len(whole.x)} rows, {whole.n_left_out} INVALID ones left out\n")


def left_out(whole: Any, device: str, effort: Effort) -> dict[str, Any]:
    """Scores of a device that the surrogate was not trained on: question -> Score."""
    from edgebench.surrogate.evaluation import score
    from edgebench.surrogate.fitting import FitOptions, fit
    from edgebench.surrogate.leave_out import LeaveOut
    from edgebench.surrogate.training import TrainingOptions

    training, own = whole.without(device), whole.of(device)
    options = TrainingOptions(steps=effort.steps)
    done = fit(
        training, FitOptions(options, leave_out_steps=effort.leave_out_steps, draws=effort.draws)
    )
    found = {}
    for k in (5, 10):
        every = {"draws": effort.draws, "seed": 1}
        found[f"left out, {k}"] = score(done.surrogate, done.leave_out, own, METRIC, k, **every)
        found[f"scale and shift alone, {k}"] = score(
            done.surrogate, done.leave_out, own, METRIC, k, methods=("scale-shift",), **every
        )
    nothing = LeaveOut({})
    alone = FitOptions(options, leave_out=False)
    scheme = device.split("-")[1]
    others = training.where(np.array([tag.split("-")[1] != scheme for tag in training.device]))
    if len(others.devices) > 1:
        far = fit(others, alone).surrogate
        for k in (5, 10):
            found[f"new precision, {k}"] = score(far, nothing, own, METRIC, k, **every)
    fold_of = folds(whole.x)
    for fold in range(FOLDS):
        inside = np.array([fold_of[key(row)] == fold for row in training.x])
        part = fit(training.where(~inside), alone).surrogate
        test = np.flatnonzero([fold_of[key(row)] == fold for row in own.x])
        for k in (5, 10):
            found[f"new configurations, {k}, {fold}"] = score(
                part,
                nothing,
                own,
                METRIC,
                k,
                draws=max(effort.draws // FOLDS, 1),
                seed=fold,
                test=test,
            )
    return found


def key(row: Any) -> tuple[float, ...]:
    """A configuration, whatever its precision: s without param_bits."""
    return tuple(float(v) for v in row[:4])


def folds(x: Any) -> dict[tuple[float, ...], int]:
    """Configuration -> its fold."""
    every = sorted({key(row) for row in x})
    order = np.random.default_rng(0).permutation(len(every))
    return {every[i]: int(place) % FOLDS for place, i in enumerate(order)}


def geometric_mean(y: Any, k: int, draws: int) -> float:
    """Mean absolute relative error of always saying the samples' geometric mean."""
    rng = np.random.default_rng(1)
    errors = []
    for _ in range(draws):
        order = rng.permutation(len(y))
        guess = np.exp(np.log(y[order[:k]]).mean())
        errors.append(np.abs(guess / y[order[k:]] - 1).mean())
    return float(np.mean(errors))


def evaluate(quick: bool, data: Path) -> list[Figure]:
    import torch

    torch.set_num_threads(1)
    effort = Effort.of(quick)
    whole = read(data)
    describe(data, whole)
    every: dict[str, dict[str, dict[str, float]]] = {}
    for device in whole.devices[:1] if quick else whole.devices:
        print(f"  leaving out {device}", file=sys.stderr)
        scores = left_out(whole, device, effort)
        merged: dict[str, dict[str, list[float]]] = {}
        for name, s in scores.items():
            question = ", ".join(name.split(", ")[:2])
            into = merged.setdefault(question, {})
            for what in ("mean_ape", "median_ape", "spearman", "coverage"):
                into.setdefault(what, []).extend(getattr(s, what).tolist())
        found = {q: {w: float(np.mean(v)) for w, v in m.items()} for q, m in merged.items()}
        y = whole.of(device).y[:, 1]
        for k in (5, 10):
            nan = float("nan")
            mean = geometric_mean(y, k, effort.draws)
            found[f"the samples' mean, {k}"] = {
                "mean_ape": mean, "median_ape": nan, "spearman": nan, "coverage": nan,
            }  # fmt: skip
        for question, values in found.items():
            every.setdefault(question, {})[device] = values
    lines = []
    over: dict[str, dict[str, float]] = {}
    for question, by_device in every.items():
        over[question] = {
            what: float(np.mean([values[what] for values in by_device.values()]))
            for what in next(iter(by_device.values()))
        }
        for device, values in [*by_device.items(), ("mean", over[question])]:
            cells = [f"{100 * values[w]:.1f}" for w in ("mean_ape", "median_ape")]
            cells += [f"{values['spearman']:.3f}", f"{100 * values['coverage']:.0f}"]
            cells = ["" if cell == "nan" else cell for cell in cells]
            lines.append((f"{question} samples", device, *cells))
    table(("question", "device", "MAE %", "median %", "Spearman", "in 90 % interval"), lines)

    def figure(question: str, name: str) -> Figure:
        found = over[question]
        note = (
            f", median {100 * found['median_ape']:.1f} %, Spearman {found['spearman']:.3f}, "
            f"{len(every[question])} devices"
        )
        return at_most(name, 100 * found["mean_ape"], PUBLISHED, " %", note)

    covered = 100 * over["left out, 5"]["coverage"]
    return [
        figure("left out, 5", "latency MAE, 5 samples"),
        figure("new configurations, 5", "latency MAE, 5 samples, new configurations"),
        Figure("coverage of 90 % intervals", f"{covered:.1f} %", "80 to 98 %", 80 <= covered <= 98),
    ]


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--measure", action="store_true")
    parser.add_argument("--export", action="store_true")
    parser.add_argument("--promise", action="store_true")
    parser.add_argument("--n", type=int, default=60)
    parser.add_argument("--scheme", action="append")
    parser.add_argument("--minutes", type=float, default=9.0)
    parser.add_argument("--device", default="local-int8-1t")
    given, rest = parser.parse_known_args(argv)

    def measure(quick: bool) -> list[Figure]:
        data = given.data or RECORDED
        place = local_samples.Place(cache_dir() / "surrogate-local")
        schemes = tuple(given.scheme or local_samples.SCHEMES)
        limit_s = 60 * given.minutes
        again = Refusal("the time is up; what was done is kept. Give the command again.")
        if given.export:
            local_samples.require_minilm()
            end = time.monotonic() + limit_s
            if not local_samples.export_all(place.prepare(), given.n, schemes, end):
                raise again
            raise SystemExit(0)
        if given.measure:
            if given.data is None:
                raise Refusal("--measure writes new tables: name a directory for them, --data DIR.")
            local_samples.require_minilm()
            if not local_samples.measure_all(place.prepare(), data, given.n, schemes, limit_s):
                raise again
            print(f"the tables are in {data}; leave one out with --data {data}")
            raise SystemExit(0)
        if given.promise:
            import local_promise

            local_samples.require_minilm()
            return local_promise.promise(quick, read(data), given.device, place.prepare())
        return evaluate(quick, data)

    return run_benchmark(__doc__ or "", measure, rest)


if __name__ == "__main__":
    raise SystemExit(main())
