"""A device whose disk fills up: said in one word, whatever was being written."""

from __future__ import annotations

import json
import os
import subprocess

import pytest

from edgebench.agent import agent
from tests.agent.agents import Refused, endless, null_plan

pytestmark = pytest.mark.skipif(os.getuid() != 0, reason="mounting a small disk needs root")


@pytest.fixture
def small_disk(tmp_path):
    """Mounts a tmpfs of some KiB at the agent's root."""
    mounted = []

    def mount(kib: int):
        root = tmp_path / "root"
        root.mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={kib}k", "x", root], check=True)
        mounted.append(root)
        return root

    yield mount
    for root in mounted:
        subprocess.run(["umount", "-l", root], check=True)


def fill(root) -> None:
    """Take all the space that is left."""
    with open(root / "filler", "wb", buffering=0) as stream, pytest.raises(OSError):
        while True:
            stream.write(b"x" * 4096)


def test_a_run_that_does_not_fit_is_refused_and_leaves_nothing(small_disk, serving):
    root = small_disk(2048)
    with pytest.raises(Refused, match="2 MiB free, the run needs 4 MiB") as caught:
        serving().start(null_plan(), disk_bytes=4_000_000)
    assert caught.value.code == "disk-full"
    assert os.listdir(root / "runs") == []


def test_a_disk_that_is_full_at_the_start_is_refused_whatever_is_asked(small_disk, serving):
    root = small_disk(64)
    served = serving()
    fill(root)
    with pytest.raises(Refused) as caught:
        served.start(null_plan())
    assert caught.value.code == "disk-full"
    assert served.request("runs")["runs"] == []


def test_a_disk_that_fills_up_during_a_run_is_reported_from_the_reserve(small_disk, serving):
    root = small_disk(1024)
    served = serving()
    plan = null_plan(launches=3, stop=endless(max_duration_s=1.0))
    run_dir = served.start(plan)
    assert (run_dir / "reserve").stat().st_size == agent.RESERVE_BYTES
    served.until(plan["id"], "launch")
    fill(root)
    result = served.result(plan["id"])
    assert result["status"] == "disk-full"
    assert "No space left" in result["error"]
    assert not (run_dir / "reserve").exists()
    assert [solo["outcome"] for solo in result["solo"]] == ["ok"]
    served.request("forget", run=plan["id"])


def test_samples_that_do_not_fit_are_reported_as_a_full_disk(small_disk, serving):
    """The worker's own file: 40 bytes a call, written when the launch ends."""
    small_disk(1024)
    served = serving()
    plan = null_plan(stop=endless(min_count=50_000, min_duration_s=0.0))
    run_dir = served.start(plan)
    result = served.result(plan["id"])
    assert result["status"] == "disk-full", result
    assert "No space left" in result["error"]
    assert result["samples"] == result["launches"] == []
    assert json.loads((run_dir / "partial.json").read_text())["launches"] == []
