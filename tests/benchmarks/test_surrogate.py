"""The surrogate's benchmarks on small made-up data of the public files' form, and without any."""

from __future__ import annotations

import itertools

import numpy as np
import pandas as pd
import pytest
import surrogate_hat
import surrogate_help
import surrogate_local

from tests.fixtures_export import require

require("torch", "safetensors")


@pytest.fixture
def architectures(tmp_path):
    """300 architectures, each device's latency a sum over operations."""
    rng = np.random.default_rng(0)
    every = list(itertools.product(surrogate_help.OPERATIONS, repeat=6))
    names = []
    for i in rng.choice(len(every), 300, replace=False):
        a, b, c, d, e, f = every[i]
        names.append(f"|{a}~0|+|{b}~0|{c}~1|+|{d}~0|{e}~1|{f}~2|")
    counts = surrogate_help.features(names)[:, -5:]
    frame = pd.DataFrame({"architecture": names})
    for device in (*surrogate_help.TRAIN, *surrogate_help.TEST):
        costs = np.array([0.0, 0.0, 1.0, 3.0, 0.5]) * rng.uniform(0.5, 1.5, 5)
        frame[device] = rng.uniform(1, 4) * (3 + counts @ costs)
    path = tmp_path / "help.parquet"
    frame.to_parquet(path)
    return path


def closing(text):
    return text.rpartition("\n\n")[2].splitlines()


def test_help_runs_to_its_closing_lines(architectures, capsys):
    code = surrogate_help.main(["--quick", "--data", str(architectures)])
    lines = closing(capsys.readouterr().out)
    assert len(lines) == 6
    assert code == any(line.endswith(" SHORT") for line in lines)
    # Additive devices of one family: whatever the noise of a short training, this is easy.
    value = float(lines[2].split(": ")[1].split(",")[0])
    assert value > 0.9


def test_an_architecture_is_read_as_it_is_written():
    text = "|avg_pool_3x3~0|+|nor_conv_1x1~0|skip_connect~1|+|none~0|nor_conv_3x3~1|none~2|"
    (row,) = surrogate_help.features([text])
    assert row.sum() == 12
    names = [n for n, v in zip(surrogate_help.FEATURES, row, strict=True) if v]
    assert names[:3] == ["edge0_avg_pool_3x3", "edge1_nor_conv_1x1", "edge2_skip_connect"]
    assert dict(zip(surrogate_help.OPERATIONS, row[-5:], strict=True))["none"] == 2


def test_hat_runs_to_its_closing_lines(tmp_path, capsys):
    rng = np.random.default_rng(0)
    columns = sorted({name for side in surrogate_hat.SIDES.values() for name in side})
    for speed, name in zip((30.0, 2.0, 1.0), surrogate_hat.FILES.values(), strict=True):
        frame = pd.DataFrame(rng.uniform(1, 8, (60, len(columns))), columns=columns)
        for side, features in surrogate_hat.SIDES.items():
            frame[f"latency_mean_{side}"] = speed * (2 + frame[list(features)].sum(axis=1))
            frame[f"latency_std_{side}"] = 0.01
        frame.to_csv(tmp_path / name, index=False)
    code = surrogate_hat.main(["--quick", "--data", str(tmp_path)])
    lines = closing(capsys.readouterr().out)
    assert len(lines) == 4
    assert code == any(line.endswith(" SHORT") for line in lines)


@pytest.fixture
def local(tmp_path):
    """40 configurations on four settings of a made-up machine; one row of the first is INVALID."""
    rng = np.random.default_rng(0)
    layers, tokens = rng.integers(1, 7, 40), 8 * rng.integers(2, 17, 40)
    heads, ranks = layers * rng.integers(1, 13, 40), rng.integers(0, 97, 40)
    for scheme, speed in (("fp32", 1.0), ("int8", 0.4)):
        for threads in (1, 2):
            ms = speed * (0.1 + layers * tokens / 50 + heads * tokens / 900) / threads
            frame = pd.DataFrame(
                {
                    "device": f"local-{scheme}-{threads}t",
                    "seq_len": tokens,
                    "kept_layers": layers,
                    "kept_heads": heads,
                    "kept_ranks": ranks,
                    "param_bits": 32 * (1e7 + 1e6 * layers) / (1 if scheme == "fp32" else 4),
                    "latency_ms": ms,
                    "latency_ms_lo": 0.99 * ms,
                    "latency_ms_hi": 1.01 * ms,
                    "verdict": "VALID",
                    "emulated": False,
                }
            )
            frame.loc[0, "verdict"] = "INVALID" if (scheme, threads) == ("fp32", 1) else "VALID"
            frame.to_csv(tmp_path / f"local-{scheme}-{threads}t.csv", index=False)
    return tmp_path


def test_local_leaves_each_setting_out(local, capsys):
    code = surrogate_local.main(["--quick", "--data", str(local)])
    said = capsys.readouterr().out
    assert "local-fp32-1t       39/40" in said
    assert "159 rows, 1 INVALID ones left out" in said
    lines = closing(said)
    assert [line.partition(":")[0] for line in lines] == [
        "latency MAE, 5 samples",
        "latency MAE, 5 samples, new configurations",
        "coverage of 90 % intervals",
    ]
    assert all("(target at most 3.10 %)" in line for line in lines[:2])
    assert code == any(line.endswith(" SHORT") for line in lines)


def test_local_configurations_that_are_new_were_not_trained_on(local):
    whole = surrogate_local.read(local)
    fold_of = surrogate_local.folds(whole.x)
    sizes = [list(fold_of.values()).count(fold) for fold in range(surrogate_local.FOLDS)]
    assert min(sizes) >= 7
    # The four settings of a configuration are in one fold.
    a, b = whole.of("local-fp32-2t").x, whole.of("local-int8-1t").x
    assert [fold_of[surrogate_local.key(row)] for row in a] == [
        fold_of[surrogate_local.key(row)] for row in b
    ]


def test_local_takes_three_devices(local, capsys):
    for path in sorted(local.glob("*.csv"))[:2]:
        path.unlink()
    assert surrogate_local.main(["--quick", "--data", str(local)]) == 2
    assert "leaving one out takes three" in capsys.readouterr().err


def test_local_measures_into_a_directory_that_is_named(capsys):
    assert surrogate_local.main(["--measure"]) == 2
    assert "--data DIR" in capsys.readouterr().err


@pytest.mark.parametrize("benchmark", [surrogate_help, surrogate_hat])
def test_without_data_it_says_what_to_give(benchmark, tmp_path, capsys):
    for arguments in ([], ["--data", str(tmp_path / "none")]):
        assert benchmark.main(arguments) == 2
        said = capsys.readouterr().err
        assert "--data" in said
        assert "github.com/" in said
        assert len(said.splitlines()) == 1
