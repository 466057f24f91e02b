"""A swappable decoder over SSH: driver and adapters travel, and a cut while it generates loses no
token."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from edgebench.measure import resume, run
from tests.faults.far import Far, once
from tests.measure.bench import QUICK
from tests.tiny_swappable import swappable_decoder

NEW = 6


def test_a_cut_while_it_generates_loses_no_token(far: Far) -> None:
    artifact = swappable_decoder(far.path / "artifacts")
    options = replace(QUICK, launches=2, min_duration_s=0.8, new_tokens=NEW, adapter="mood")
    report = once("progress", far.cut)
    recording = run(far.device(), [artifact], far.store, options, report=report)
    assert recording.status == "done"
    assert [launch.outcome for launch in recording.launches] == ["ok", "ok"]
    assert "reconnecting" in {found["event"] for found in report.events}
    far.is_whole(recording.id)
    loaded = far.store.load(recording.id)
    calls = loaded.samples["duration_ns"].size
    assert loaded.tokens["call"].tolist() == np.repeat(np.arange(calls), NEW).tolist()
    spooled = [np.load(far.copies[-1] / f"tokens-{launch:03d}.npy") for launch in (0, 1)]
    assert loaded.tokens["duration_ns"].tolist() == np.vstack(spooled).reshape(-1).tolist()
    assert recording.artifacts[0].active_adapter == "mood"
    with np.load(artifact.path / "inputs.npz") as arrays:
        expected = arrays["expected_tokens.mood"].tolist()
    assert recording.solo[0].greedy.tokens == recording.solo[0].greedy.expected == expected
    assert all(launch.adapter_swap_ns[0] > 0 for launch in recording.launches)
    bundle = next((far.root / "bundles").glob("*"))
    assert {path.name for path in (bundle / "edgebench" / "runtimes").glob("*.py")} == {
        "__init__.py",
        "decoder_adapters.py",
        "decoder_driver.py",
        "decoder_graph.py",
        "decoder_runtime.py",
    }
    assert resume(far.device(), far.store) == []
    far.settled()
