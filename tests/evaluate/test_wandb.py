"""Offline runs of Weights & Biases, written by its own package."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from edgebench.api import evaluate_runs
from edgebench.errors import InputError
from edgebench.evaluate import wandb_runs
from tests.evaluate.study import BASELINE, PROPOSED, by_seed, scores

SCRIPT = """
import sys, wandb
run = wandb.init(project="p", id="abc", dir=sys.argv[1], config={"seed": 3}, mode="offline")
for step in range(5):
    run.log({"Accuracy": 0.5 + 0.1 * step, "text": "x" * 9000}, step=step)
run.summary["f1"] = 0.7
run.finish()
"""


@pytest.fixture(scope="module")
def offline(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("wandb")
    subprocess.run(
        [sys.executable, "-c", SCRIPT, str(directory)],
        check=True,
        env={**os.environ, "WANDB_SILENT": "true", "WANDB_CONFIG_DIR": str(directory)},
        capture_output=True,
        timeout=120,
    )
    (path,) = wandb_runs.offline_files(directory)
    return path


def test_an_offline_run_is_read_with_its_history_summary_and_seed(offline: Path) -> None:
    assert offline.stat().st_size > 40_000  # more than one block of the log
    found = wandb_runs.read_offline(offline)
    history = [(o.step, o.value, o.seed) for o in found if o.metric == "Accuracy"]
    assert history == [(step, pytest.approx(0.5 + 0.1 * step), "3") for step in range(5)]
    assert [(o.value, o.step) for o in found if o.metric == "f1"] == [(0.7, None)]


def test_a_run_that_was_cut_off_gives_what_is_there(offline: Path, tmp_path: Path) -> None:
    cut = tmp_path / "offline-run-1-abc" / "run-abc.wandb"
    cut.parent.mkdir()
    data = offline.read_bytes()
    cut.write_bytes(data[: len(data) // 2])
    assert 0 < len(wandb_runs.read_offline(cut)) < 5


def test_it_is_part_of_a_study_in_full_and_left_out_in_trial(offline: Path, tmp_path: Path) -> None:
    scores(tmp_path, BASELINE, by_seed("Accuracy", [0.8]))
    kept = tmp_path / PROPOSED / "wandb" / offline.parent.name
    kept.mkdir(parents=True)
    (kept / offline.name).write_bytes(offline.read_bytes())
    runs = [PROPOSED, BASELINE]
    found, _ = evaluate_runs(tmp_path, runs, primary_metric="Accuracy", figures=False)
    assert found.proposed.value == pytest.approx(0.9)  # the last step's
    with pytest.raises(InputError, match="nothing was found"):
        evaluate_runs(tmp_path, runs, primary_metric="Accuracy", figures=False, mode="trial")


def test_another_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "run-x.wandb"
    path.write_bytes(b"something else")
    with pytest.raises(InputError, match="no run of Weights"):
        wandb_runs.read_offline(path)


class _Run:
    id, name = "abc", PROPOSED

    def __init__(self) -> None:
        self.config = {"seed": 1}
        self.summary = {"f1": 0.5, "_step": 3}

    def scan_history(self) -> list[dict[str, object]]:
        return [{"_step": 0, "loss": 2.0}, {"_step": 1, "loss": 1.0, "note": "x"}]


def test_a_projects_runs_are_found_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """The service can't be reached from here: its documented API is played."""
    import wandb

    class Api:
        def runs(self, project: str) -> list[_Run]:
            assert project == "me/study"
            return [_Run()]

    monkeypatch.setattr(wandb, "Api", Api)
    found = wandb_runs.read_project("me/study", PROPOSED)
    assert [(o.metric, o.value, o.step) for o in found] == [
        ("loss", 2.0, 0.0),
        ("loss", 1.0, 1.0),
        ("f1", 0.5, None),
    ]
    assert wandb_runs.read_project("me/study", "another") == []
