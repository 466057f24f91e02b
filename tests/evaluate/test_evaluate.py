"""The evaluation step, from files to files."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from edgebench.api import evaluate_runs
from edgebench.cli.main import main
from edgebench.errors import InputError, UsageError
from edgebench.evaluate.directions import (
    ACCURACY,
    HYPERVOLUME,
    JOULES_AT_ROUGE,
    RETAINED_ACCURACY_AUC,
    TARGET_DEV_SCORE,
)
from tests.evaluate.study import BASELINE, PROPOSED, aggregated, by_seed, scores, tables

RUNS = [PROPOSED, BASELINE]


def run(root: Path, runs: list[str] = RUNS, **options: object) -> dict[str, object]:
    evaluate_runs(root, runs, figures=False, **options)  # type: ignore[arg-type]
    return aggregated(root)


def test_the_contract_word_for_word(tmp_path: Path) -> None:
    scores(tmp_path, PROPOSED, by_seed("Accuracy", [0.9, 0.92]))
    scores(tmp_path, BASELINE, by_seed("Accuracy", [0.8, 0.84]))
    document = run(tmp_path, primary_metric=ACCURACY)
    assert document["primary_metric"] == "Accuracy"
    assert document["metrics"]["Accuracy"] == {
        PROPOSED: pytest.approx(0.91),
        BASELINE: pytest.approx(0.82),
    }
    assert document["best_proposed"] == {"run_id": PROPOSED, "value": pytest.approx(0.91)}
    assert document["best_baseline"] == {"run_id": BASELINE, "value": pytest.approx(0.82)}
    assert document["gap"] == pytest.approx((0.91 - 0.82) / 0.82 * 100)
    own = json.loads((tmp_path / PROPOSED / "metrics.json").read_text())
    assert own["metrics"]["Accuracy"] == pytest.approx(0.91)
    assert own["details"]["Accuracy"]["n"] == 2


def test_less_is_better_turns_the_sign_of_the_gap(tmp_path: Path) -> None:
    scores(tmp_path, PROPOSED, [{"metric": "loss", "value": 0.5}])
    scores(tmp_path, BASELINE, [{"metric": "loss", "value": 1.0}])
    assert run(tmp_path, primary_metric="loss")["gap"] == pytest.approx(50.0)


def test_of_several_runs_the_best_of_each_kind_counts_and_others_are_only_listed(
    tmp_path: Path,
) -> None:
    values = {"proposed-a": 3.0, "proposed-b": 2.0, "baseline-c": 4.0, "comparative-d": 5.0}
    values["ablation-e"] = 0.1
    for name, value in values.items():
        scores(tmp_path, name, [{"metric": "loss", "value": value}])
    document = run(tmp_path, list(values), primary_metric="loss")
    assert document["best_proposed"] == {"run_id": "proposed-b", "value": 2.0}
    assert document["best_baseline"] == {"run_id": "baseline-c", "value": 4.0}
    assert document["metrics"]["loss"]["ablation-e"] == 0.1


@pytest.mark.parametrize(
    ("proposed", "baseline", "word"),
    [
        (0.5, 0.0, "zero"),
        (0.5, -1.0, "negative"),
        (math.nan, 0.5, "no proposed"),
        (0.5, math.nan, "no baseline"),
    ],
)
def test_a_gap_that_has_no_meaning_is_null_with_a_reason(
    tmp_path: Path, proposed: float, baseline: float, word: str
) -> None:
    scores(tmp_path, PROPOSED, [{"metric": "f1", "value": proposed}])
    scores(tmp_path, BASELINE, [{"metric": "f1", "value": baseline}])
    document = run(tmp_path, primary_metric="f1")
    assert document["gap"] is None
    assert word in document["gap_reason"]


def test_one_nan_among_the_seeds_leaves_no_mean(tmp_path: Path) -> None:
    scores(tmp_path, PROPOSED, by_seed("f1", [0.5, "nan", 0.7]))
    scores(tmp_path, BASELINE, by_seed("f1", [0.5, 0.6, 0.7]))
    document = run(tmp_path, primary_metric="f1")
    assert document["metrics"]["f1"][PROPOSED] is None
    own = json.loads((tmp_path / PROPOSED / "metrics.json").read_text())
    assert "1 of 3" in own["reasons"]["f1"]


def test_one_run_only_has_no_gap(tmp_path: Path) -> None:
    scores(tmp_path, PROPOSED, by_seed("f1", [0.5]))
    document = run(tmp_path, [PROPOSED], primary_metric="f1")
    assert document["best_baseline"] == {"run_id": None, "value": None}
    assert document["gap"] is None


def test_equal_values_have_a_gap_of_zero(tmp_path: Path) -> None:
    for name in RUNS:
        scores(tmp_path, name, by_seed("f1", [0.5] * 6))
    assert run(tmp_path, primary_metric="f1")["gap"] == 0.0
    assert "all pairs are equal" in (tmp_path / "comparison" / "significance.csv").read_text()


def test_a_metric_that_a_run_lacks_is_null(tmp_path: Path) -> None:
    scores(tmp_path, PROPOSED, [*by_seed("f1", [0.5]), *by_seed("bleu", [20])])
    scores(tmp_path, BASELINE, by_seed("f1", [0.4]))
    assert run(tmp_path, primary_metric="f1")["metrics"]["bleu"] == {PROPOSED: 20.0, BASELINE: None}


def test_the_primary_metric_is_never_guessed_among_several(tmp_path: Path) -> None:
    for name in RUNS:
        scores(tmp_path, name, by_seed("bleu", [0.5]))
    with pytest.raises(UsageError, match="not said"):
        run(tmp_path)
    (tmp_path / "study.toml").write_text('primary_metric = "bleu"\n')
    assert run(tmp_path)["primary_metric"] == "bleu"


def test_an_unknown_metric_needs_a_direction(tmp_path: Path) -> None:
    for name in RUNS:
        scores(tmp_path, name, by_seed("zorp", [0.5]))
    with pytest.raises(UsageError, match="more or less"):
        run(tmp_path, primary_metric="zorp")
    assert run(tmp_path, primary_metric="zorp", directions={"zorp": "minimise"})["gap"] == 0.0


def test_retained_accuracy_is_the_area_over_tasks(tmp_path: Path) -> None:
    rows = [(1, 1.0), (2, 0.8), (4, 0.6)]
    for name in RUNS:
        scores(
            tmp_path,
            name,
            [{"metric": "retained_accuracy", "value": v, "step": s} for s, v in rows],
        )
    values = run(tmp_path, primary_metric=RETAINED_ACCURACY_AUC)["metrics"][RETAINED_ACCURACY_AUC]
    assert values[PROPOSED] == pytest.approx((0.9 * 1 + 0.7 * 2) / 3)


def test_a_dev_score_over_its_budget_is_no_figure(tmp_path: Path) -> None:
    def of(size: float) -> list[dict[str, object]]:
        return [
            {"metric": "dev_score", "value": 0.8, "condition": "post-tune"},
            {"metric": "dev_score", "value": 0.7, "condition": "zero-shot"},
            {"metric": "adapter_bytes", "value": size},
            {"metric": "flop_overhead_percent", "value": 9.0},
        ]

    scores(tmp_path, PROPOSED, of(0.97e6))
    scores(tmp_path, BASELINE, of(33e6))
    document = run(tmp_path, primary_metric=TARGET_DEV_SCORE)
    assert document["metrics"][TARGET_DEV_SCORE] == {PROPOSED: 0.8, BASELINE: None}
    assert document["metrics"]["dev_score [zero-shot]"][PROPOSED] == 0.7


def test_joules_count_only_at_equal_or_better_rouge(tmp_path: Path) -> None:
    def of(energy: float, rouge: float) -> list[dict[str, object]]:
        return [
            {"metric": "energy_per_inference_j", "value": energy},
            {"metric": "rouge_l", "value": rouge},
        ]

    scores(tmp_path, "proposed-good", of(4.0, 0.31))
    scores(tmp_path, "proposed-cheap", of(1.0, 0.29))
    scores(tmp_path, BASELINE, of(8.0, 0.30))
    runs = ["proposed-good", "proposed-cheap", BASELINE]
    document = run(tmp_path, runs, primary_metric=JOULES_AT_ROUGE)
    assert document["best_proposed"] == {"run_id": "proposed-good", "value": 4.0}
    assert document["gap"] == pytest.approx(50.0)


def _point(root: Path, name: str, *points: tuple[float, float, float, float]) -> None:
    tables(
        root,
        name,
        latency=[{"accuracy": a, "latency_p50_ms": ms} for a, _, ms, _ in points],
        energy=[{"energy_per_inference_j": j} for _, j, _, _ in points],
        power=[{"power_peak_w": w} for _, _, _, w in points],
    )


def test_the_hypervolume_is_of_a_set_and_within_the_budgets(tmp_path: Path) -> None:
    # Half of each cost's budget at accuracy .8: .8 / 8 of the box; the second adds accuracy
    # at less of everything else; the third is over the latency budget and adds nothing.
    _point(tmp_path, PROPOSED, (0.8, 3, 40, 5.5), (0.9, 4.5, 60, 8.25), (0.99, 1, 81, 1))
    _point(tmp_path, BASELINE, (0.8, 3, 40, 5.5))
    values = run(tmp_path, primary_metric=HYPERVOLUME)["metrics"][HYPERVOLUME]
    assert values[BASELINE] == pytest.approx(0.8 / 8)
    assert values[PROPOSED] == pytest.approx(0.8 / 8 + 0.1 / 64)


def test_a_row_that_is_invalid_gives_no_figure(tmp_path: Path) -> None:
    row = {"latency_p50_ms": 5.0}
    tables(tmp_path, PROPOSED, latency=[{**row, "verdict": "INVALID", "reasons": "throttled"}])
    tables(tmp_path, BASELINE, latency=[row])
    document = run(tmp_path, primary_metric="latency_p50_ms")
    assert document["metrics"]["latency_p50_ms"] == {PROPOSED: None, BASELINE: 5.0}


def test_of_several_conditions_one_must_be_chosen(tmp_path: Path) -> None:
    rows = [{"latency_p50_ms": 5.0}, {"latency_p50_ms": 9.0, "scheme": "fp32"}]
    for name in RUNS:
        tables(tmp_path, name, latency=rows)
    assert run(tmp_path, primary_metric="latency_p50_ms")["gap"] is None
    chosen = run(tmp_path, primary_metric="latency_p50_ms", scheme="fp32")
    assert chosen["best_proposed"] == {"run_id": PROPOSED, "value": 9.0}


def test_rows_of_a_shared_table_are_found_by_the_artifacts_name(tmp_path: Path) -> None:
    rows = [
        {"artifact": f"{PROPOSED}-int8", "latency_p50_ms": 4.0},
        {"artifact": f"{BASELINE}-int8", "latency_p50_ms": 8.0},
    ]
    tables(tmp_path, ".", latency=rows)
    assert run(tmp_path, primary_metric="latency_p50_ms")["gap"] == pytest.approx(50.0)


def test_bad_input_is_one_sentence(tmp_path: Path) -> None:
    scores(tmp_path, PROPOSED, by_seed("f1", [0.5]))
    with pytest.raises(InputError, match="nothing was found"):
        run(tmp_path, primary_metric="f1")
    with pytest.raises(UsageError, match="named twice"):
        run(tmp_path, [PROPOSED, PROPOSED], primary_metric="f1")
    with pytest.raises(UsageError, match="both"):
        run(tmp_path, ["proposed-baseline"], primary_metric="f1")
    with pytest.raises(UsageError, match="directory name"):
        run(tmp_path, ["../proposed"], primary_metric="f1")
    (tmp_path / PROPOSED / "scores.csv").write_text("metric,value\nf1,high\n")
    with pytest.raises(InputError, match="'high' is no number"):
        run(tmp_path, [PROPOSED], primary_metric="f1")
    assert not (tmp_path / "comparison").exists()


def test_the_call_of_a_study_with_figures(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, values in {PROPOSED: [0.9, 0.91, 0.92], BASELINE: [0.8, 0.82, 0.81]}.items():
        rows = by_seed("Accuracy", values)
        rows += [{"metric": "loss", "value": 1 / s, "step": s} for s in (1, 2, 3)]
        scores(tmp_path, name, rows)
        tables(tmp_path, name, latency=[{"latency_p50_ms": 5, "latency_p50_ms_lo": 4}])
    _cli(tmp_path)
    said = capsys.readouterr().out
    assert "FAIL" in said and "pass" not in said
    assert "3 pairs: fewer than 6" in said
    aggregated(tmp_path)
    names = {path.name for path in tmp_path.rglob("*.pdf")}
    assert {
        f"{PROPOSED}_latency.pdf",
        f"{PROPOSED}_loss.pdf",
        "comparison_primary.pdf",
        "comparison_primary_pair1.pdf",
        "comparison_latency-p50-ms.pdf",
        "comparison_loss_over-steps.pdf",
    } <= names
    assert all(path.read_bytes().startswith(b"%PDF") for path in tmp_path.rglob("*.pdf"))


def _cli(root: Path) -> None:
    with pytest.raises(SystemExit) as done:
        main(
            [
                "evaluate",
                f"results_dir={root}",
                f"run_ids={json.dumps(RUNS)}",
                "primary_metric=Accuracy",
                "mode=trial",
                "--budget",
                "latency_p50_ms=4",
            ]
        )
    assert done.value.code == 0
