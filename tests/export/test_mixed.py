"""``edgebench export -q mixed`` on the command line, from the adapter to the manifest."""

from __future__ import annotations

import contextlib
import io
import json
from pathlib import Path

import pytest

from edgebench.artifact import Artifact
from edgebench.cli.main import main
from edgebench.quantize import files
from tests.export import tiny


def call(*arguments: object) -> tuple[int, str, str]:
    out, err, code = io.StringIO(), io.StringIO(), 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main([str(word) for word in arguments])
        except SystemExit as done:
            code = int(done.code or 0)
    return code, out.getvalue(), err.getvalue()


def test_a_budget_in_bits_is_met_and_said_in_the_manifest(
    models: Path, tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(files, "MAPPED_BYTES", 1000)  # as in a model of a real size
    base = tiny.write_bert(models / "wide-bert", hidden=128, layers=1)
    adapter = tiny.write_adapter(base, models / "wide-adapter")
    text = tmp_path / "calibration.txt"
    text.write_text(
        "\n".join(f"{'the quick brown fox jumps over 7 dogs ' * 4}{i}" for i in range(40))
    )
    command = ["export", adapter, "--base", base, "--data", tiny_data, "-q", "mixed"]
    command += ["--calibration", text, "--out", tmp_path / "out"]
    code, out, err = call(*command, "--mixed-bits", "6", "--json")
    assert code == 0, err
    found = sorted((tmp_path / "out").glob("*/artifact.json"))
    made = [Artifact.load(path.parent).manifest for path in found]
    assert made
    for manifest in made:
        assert {"model.onnx", "model.onnx.data"} <= manifest.files.keys()
        assert manifest.quantization.scheme == "mixed"
        assert manifest.quantization.storage_bits_per_weight <= 6
    assert json.loads(out)
    # Too little for what stays in fp32: one sentence that says how much would do.
    code, _, err = call(*command, "--mixed-bits", "3.2")
    assert code == 2
    assert "no choice of widths meets a budget of 3.2 bits a weight" in err
    assert "needs at least" in err
