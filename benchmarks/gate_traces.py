"""Record an A/A trace for benchmarks/gate.py: MiniLM against itself, in blocks like the gate's.

    python benchmarks/gate_traces.py quiet --launches 70
    python benchmarks/gate_traces.py busy --from RESULTS/checks ID

writes ``benchmarks/traces/NAME.npz``: int32 arrays [calls] ``launch``, ``artifact`` (0 or 1, the
same model twice), ``turn``, ``duration_ns`` of the counted calls, and float ``foreign_cpu``
[launches]. How the committed ones were recorded stands in ``benchmarks/traces/README.md``.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
from common import Refusal, artifact, bench


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name")
    parser.add_argument("--launches", type=int, default=70)
    parser.add_argument("--scheme", default="int8")
    parser.add_argument("--seq-len", type=int, default=16)
    parser.add_argument("--block-time", type=float, default=0.8)
    parser.add_argument("--from", nargs=2, dest="source", metavar=("STORE", "ID"))
    arguments = parser.parse_args()
    from edgebench.results.store import Store

    try:
        if arguments.source:
            loaded = Store(Path(arguments.source[0])).load(arguments.source[1])
        else:
            loaded = record(arguments)
    except Refusal as refusal:
        print(f"error: {refusal}", file=sys.stderr)
        return 2
    counted = (loaded.samples["phase"] == 2) & (loaded.samples["artifact"] < 2)
    columns = {
        name: loaded.samples[name][counted].astype(np.int32)
        for name in ("launch", "artifact", "turn", "duration_ns")
    }
    foreign = [launch.foreign_cpu_fraction or 0.0 for launch in loaded.recording.launches]
    path = Path(__file__).parent / "traces" / f"{arguments.name}.npz"
    np.savez_compressed(path, foreign_cpu=np.array(foreign), **columns)
    print(f"{path}: {len(foreign)} launches, {path.stat().st_size} bytes, {loaded.id}")
    return 0


def record(arguments: argparse.Namespace) -> object:
    from edgebench.artifact import Artifact
    from edgebench.device import load
    from edgebench.gate.metrics import METRICS
    from edgebench.gate.options import CheckOptions
    from edgebench.measure import run
    from edgebench.results.store import Store
    from edgebench.workspace import Workspace

    model = Artifact.load(artifact(arguments.scheme))
    options = CheckOptions(block_s=arguments.block_time, seq_len=arguments.seq_len)
    with bench() as place:
        device = load(str(place.profile), Workspace.find(place.directory))
        store = Store(place.results / "checks")
        session = options.session(arguments.launches, 1, (METRICS["p50"],), accuracy=False)
        return store.load(run(device, [model, model], store, session).id)


if __name__ == "__main__":
    sys.exit(main())
