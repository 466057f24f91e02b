"""The surrogate's benchmarks on small made-up data of the public files' form, and without any."""

from __future__ import annotations

import itertools

import numpy as np
import pandas as pd
import pytest
import surrogate_hat
import surrogate_help

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


@pytest.mark.parametrize("benchmark", [surrogate_help, surrogate_hat])
def test_without_data_it_says_what_to_give(benchmark, tmp_path, capsys):
    for arguments in ([], ["--data", str(tmp_path / "none")]):
        assert benchmark.main(arguments) == 2
        said = capsys.readouterr().err
        assert "--data" in said
        assert "github.com/" in said
        assert len(said.splitlines()) == 1
