"""How far off is a surrogate's latency on a real Raspberry Pi, with 5 or 10 samples of it?

The latency tables of Hardware-Aware Transformers (Wang et al. 2020, arXiv:2005.14187): 2,000
transformer architectures a device, other ones on each, with encoder and decoder latency in ms, on a
Raspberry Pi (ARM Cortex-A72), a Xeon and a Titan Xp. ``--data`` names the directory with
``wmt14ende_cpu_raspberrypi_all.csv``, ``wmt14ende_cpu_xeon_all.csv`` and
``wmt14ende_gpu_titanxp_all.csv``.

The surrogate is trained on the Xeon and the Titan Xp, calibrated with k random rows of the Pi, and
compared with all its other rows; 30 draws; encoder and decoder are two surrogates of one head. With
two training devices nothing can be learned by leaving one out (one would be left), so there are no
intervals. Beside it: the scale and shift alone, and a surrogate that always says the samples'
geometric mean, which is what the other figures must beat.

The measurements' own noise, by the tables' standard deviations, is printed too: no surrogate can be
nearer to a single measured row than that.

Targets: there is no published figure for this split, so the surrogate is held against the
geometric mean alone: at most half its median error with 10 samples.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
from common import Figure, Refusal, at_most, run_benchmark, table

FILES = {
    "raspberry-pi": "wmt14ende_cpu_raspberrypi_all.csv",
    "xeon": "wmt14ende_cpu_xeon_all.csv",
    "titan-xp": "wmt14ende_gpu_titanxp_all.csv",
}
SIDES = {
    "encoder": (
        "encoder_embed_dim",
        "encoder_layer_num",
        "encoder_ffn_embed_dim_avg",
        "encoder_self_attention_heads_avg",
    ),
    "decoder": (
        "encoder_embed_dim",
        "decoder_embed_dim",
        "decoder_layer_num",
        "decoder_ffn_embed_dim_avg",
        "decoder_self_attention_heads_avg",
        "decoder_ende_attention_heads_avg",
        "decoder_arbitrary_ende_attn_avg",
    ),
}
NEW = "raspberry-pi"


def baseline(y: np.ndarray, k: int, draws: int) -> tuple[float, float]:
    """Median and mean relative error of the samples' geometric mean."""
    rng = np.random.default_rng(1)
    errors = []
    for _ in range(draws):
        order = rng.permutation(len(y))
        guess = np.exp(np.log(y[order[:k]]).mean())
        ape = np.abs(guess / y[order[k:]] - 1)
        errors.append((np.median(ape), ape.mean()))
    median, mean = np.mean(errors, axis=0)
    return float(median), float(mean)


def measure(quick: bool, data: Path | None) -> list[Figure]:
    import pandas as pd
    import torch

    from edgebench.surrogate.calibration import METHODS
    from edgebench.surrogate.evaluation import score
    from edgebench.surrogate.fitting import FitOptions, fit
    from edgebench.surrogate.training import TrainingOptions
    from edgebench.surrogate.training_table import read_tables

    if data is None or not all((data / name).is_file() for name in FILES.values()):
        raise Refusal(
            "there is no data. Give the directory with Hardware-Aware Transformers' latency tables "
            f"(github.com/mit-han-lab/hardware-aware-transformers, latency_dataset/): --data DIR, "
            f"with {', '.join(FILES.values())}."
        )
    torch.set_num_threads(1)
    draws = 2 if quick else 30
    lines: list[tuple[str, ...]] = []
    figures = []
    for side, features in SIDES.items():
        column = f"latency_mean_{side}"
        tables = {
            device: read_tables(
                [data / name], features=features, targets={"latency_ms": column}, device=device
            )
            for device, name in FILES.items()
        }
        training = type(tables[NEW])(
            features,
            np.concatenate([t.x for d, t in tables.items() if d != NEW]),
            np.concatenate([t.device for d, t in tables.items() if d != NEW]),
            np.concatenate([t.y for d, t in tables.items() if d != NEW]),
        )
        done = fit(training, FitOptions(TrainingOptions(steps=60 if quick else 1500)))
        own = pd.read_csv(data / FILES[NEW])
        noise = float((own[f"latency_std_{side}"] / own[column]).median())
        lines.append((f"{side}: a row's own deviation", "", "", f"{100 * noise:.1f}", "", ""))
        for k in (5, 10):
            ways: dict[str, Any] = {
                "surrogate": {"methods": METHODS},
                "scale and shift alone": {"methods": ("scale-shift",)},
            }
            found = {}
            for way, arguments in ways.items():
                s = score(
                    done.surrogate,
                    done.leave_out,
                    tables[NEW],
                    "latency_ms",
                    k,
                    draws=draws,
                    seed=1,
                    **arguments,
                )
                found[way] = s
                lines.append(
                    (
                        f"{side}: {way}",
                        str(k),
                        f"{s.spearman.mean():.3f}",
                        f"{100 * s.median_ape.mean():.1f}",
                        f"{100 * s.mean_ape.mean():.1f}",
                        f"{100 * s.stacked:.0f}",
                    )
                )
            median, mean = baseline(tables[NEW].y[:, 1], k, draws)
            lines.append(
                (
                    f"{side}: the samples' geometric mean",
                    str(k),
                    "",
                    f"{100 * median:.1f}",
                    f"{100 * mean:.1f}",
                    "",
                )
            )
            ours = 100 * float(found["surrogate"].median_ape.mean())
            note = f", mean APE {100 * float(found['surrogate'].mean_ape.mean()):.1f} %"
            limit = 100 * median / 2 if k == 10 else 100 * median
            name = f"median APE of the Pi's {side}, {k} samples"
            figures.append(at_most(name, ours, round(limit, 2), " %", note))
    table(("", "samples", "Spearman", "median APE %", "mean APE %", "stack %"), lines)
    return figures


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--data", type=Path)
    known, rest = parser.parse_known_args(argv)
    return run_benchmark(__doc__ or "", lambda quick: measure(quick, known.data), rest)


if __name__ == "__main__":
    raise SystemExit(main())
