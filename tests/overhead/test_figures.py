"""Overheads from a made-up session whose truth is known."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from edgebench.artifact import Artifact, Manifest, seal
from edgebench.overhead.budget import Answer, Budgets
from edgebench.overhead.figures import Counted, Form, forms_of
from edgebench.recording import READING_COLUMNS, ArtifactEntry
from edgebench.results.encoding import Loaded
from tests.results.make import (
    make_launch,
    make_manifest,
    make_recording,
    make_samples,
    make_state,
)


def manifest(lowering: str, scheme: str = "fp32") -> Manifest:
    made = make_manifest(scheme)
    changes = {"lowering": lowering} | ({"adapter": None} if lowering == "base" else {})
    return seal(made.model_copy(update=changes))


def session(median_ms: tuple[float, ...], **changes: object) -> tuple[Loaded, list[Artifact]]:
    """A session of base, merged and unmerged, the medians of their calls in this order."""
    manifests = [manifest(lowering) for lowering in ("base", "merged", "unmerged")]
    recording = make_recording(("fp32",) * 3).model_copy(
        update={
            "artifacts": [
                ArtifactEntry(
                    name=each.name,
                    digest=each.digest,
                    size_bytes=1,
                    manifest=each.model_dump(mode="json", by_alias=True),
                )
                for each in manifests
            ],
            **changes,
        }
    )
    loaded = Loaded(
        path=Path("here"),
        recording=recording,
        samples=make_samples(median_ms=median_ms),
        state=tuple(make_state()),
        readings={name: np.zeros(0, dtype) for name, dtype in READING_COLUMNS.items()},
    )
    return loaded, [Artifact(Path("nowhere"), each) for each in manifests]


COUNTS = (1000, 1000, 1025)


def forms(median_ms: tuple[float, ...] = (40.0, 40.0, 42.0), **changes: object) -> list[Form]:
    loaded, artifacts = session(median_ms, **changes)
    counted = {a.digest: Counted(n, ()) for a, n in zip(artifacts, COUNTS, strict=True)}
    return forms_of(loaded, artifacts, counted)


def test_latency_overhead_is_that_of_interleaved_turns():
    merged, unmerged = forms()
    assert (merged.lowering, unmerged.lowering) == ("merged", "unmerged")
    assert merged.latency.lo < 0 < merged.latency.hi
    assert unmerged.latency.lo < 0.05 < unmerged.latency.hi
    # Launches differ by 2 % each; their ratios don't.
    assert unmerged.latency.hi - unmerged.latency.lo < 0.01
    assert unmerged.flops.value == unmerged.flops.lo == unmerged.flops.hi == pytest.approx(0.025)
    assert unmerged.adapter_mb.value == 0.3


def test_each_budget_has_a_line_with_its_answer():
    _, unmerged = forms()
    lines = unmerged.lines(
        Budgets(latency=0.07, flops=0.02, adapter_mb=2.5, energy=0.1, active_atoms=3)
    )
    answers = {line.what: line.answer for line in lines}
    assert answers == {
        "latency overhead": Answer.PASS,
        "energy overhead": Answer.UNDECIDED,
        "FLOP overhead": Answer.FAIL,
        "adapter MB": Answer.PASS,
        "active atoms a token": Answer.UNDECIDED,
    }
    (energy,) = [line for line in lines if line.what == "energy overhead"]
    assert energy.figure.value is None
    assert energy.figure.reason == "no power source on this device"


def test_memory_is_what_the_model_took():
    recording = make_recording(("fp32",) * 3)
    solo = [
        each.model_copy(update={"peak_rss_bytes": peak})
        for each, peak in zip(recording.solo, (160_000_000, 160_000_000, 165_000_000), strict=True)
    ]
    merged, unmerged = forms(solo=solo)
    assert merged.memory.value == 0
    assert unmerged.memory.value == pytest.approx(0.05)
    assert unmerged.memory.lo is None  # one reading


def test_an_invalid_measurement_decides_nothing():
    launches = [make_launch(index, 3, foreign_cpu_fraction=0.9) for index in range(5)]
    for form in forms((40.0, 40.0, 80.0), launches=launches):
        assert form.latency.value is None
        assert "INVALID: foreign-load" in form.latency.reason
        (line,) = form.lines(Budgets(latency=0.07))
        assert line.answer is Answer.UNDECIDED


def test_operators_without_a_formula_are_named():
    loaded, artifacts = session((40.0, 40.0, 42.0))
    counted = {a.digest: Counted(10, ()) for a in artifacts}
    counted[artifacts[2].digest] = replace(counted[artifacts[2].digest], uncounted=("Strange",))
    merged, unmerged = forms_of(loaded, artifacts, counted)
    assert merged.uncounted == ()
    assert unmerged.uncounted == ("Strange",)
