"""One host process that drives many devices: run by ``fleet.py``.

    python fleet_host.py JOB.json

JOB has the profiles, the artifact, the agent to send, the store and the options. It calls
``run_many`` as ``edgebench run --device a --device b ...`` does, with two changes: the agent that
is sent is the job's, and the plan names its runtime. Prints what it took as JSON.
"""

from __future__ import annotations

import importlib
import json
import os
import resource
import sys
import time
from pathlib import Path
from typing import Any

from edgebench.agent.agent import peak_rss_bytes
from edgebench.artifact import Artifact
from edgebench.device import load
from edgebench.measure import RunOptions, run_many
from edgebench.results.store import Store
from edgebench.workspace import Workspace


def use(agent: Path, runtime: str) -> None:
    """Send another agent, and have plans ask for its runtime."""
    # By name: the package has a function called run.
    run = importlib.import_module("edgebench.measure.run")
    deploy = importlib.import_module("edgebench.measure.deploy")
    original = run._plan

    async def plan(*arguments: Any, **more: Any) -> dict[str, Any]:
        found = await original(*arguments, **more)
        found["protocol"]["runtime"]["kind"] = runtime
        return found

    vars(run).update(_plan=plan, AGENT_PATH=agent)
    vars(deploy).update(AGENT_PATH=agent)


def main() -> None:
    """One run on all devices of the job."""
    job = json.loads(Path(sys.argv[1]).read_text())
    use(Path(job["agent"]), job["runtime"])
    workspace = Workspace.find()
    devices = [load(profile, workspace) for profile in job["profiles"]]
    artifact = Artifact.load(job["artifact"])
    begin = time.perf_counter()
    outcomes = run_many(
        devices, [artifact], Store(Path(job["store"])), RunOptions(**job["options"])
    )
    wall_s = time.perf_counter() - begin
    usage = resource.getrusage(resource.RUSAGE_SELF)
    print(
        json.dumps(
            {
                "wall_s": wall_s,
                "peak_bytes": peak_rss_bytes(),
                "cpu_s": usage.ru_utime + usage.ru_stime,
                "recordings": sum(outcome.recording is not None for outcome in outcomes),
                "errors": [str(outcome.error) for outcome in outcomes if outcome.error],
                "load1": os.getloadavg()[0],
            }
        )
    )


if __name__ == "__main__":
    main()
