"""The Python API: what the command line does, as functions that return dataclasses and frames.

    import edgebench as eb

    artifacts = eb.export_adapter("adapters/minilm-bbc", base="models/minilm", quants=["int8"])
    recording = eb.run(artifacts, device="local")
    eb.load_results("results").latency

No function has the name of a subpackage (``edgebench.export``, ``edgebench.results``): importing
the subpackage would put it in the function's place.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from edgebench.artifact import MANIFEST, Artifact
from edgebench.errors import ArtifactError
from edgebench.workspace import Workspace, ensure_dir

if TYPE_CHECKING:
    import pandas as pd

    from edgebench.device import DeviceSummary
    from edgebench.doctor import Report
    from edgebench.evaluate import Evaluation
    from edgebench.evaluate.directions import Direction
    from edgebench.evaluate.study import Mode
    from edgebench.export.flops import GraphCost
    from edgebench.export.listing import Family
    from edgebench.gate.options import CheckOptions
    from edgebench.gate.outcome import Result as CheckResult
    from edgebench.gate.stored import SelfTest
    from edgebench.measure import Outcome, RunOptions
    from edgebench.meters_listing import Found
    from edgebench.overhead.budget import Budgets
    from edgebench.overhead.directions import DirectionMeasurement
    from edgebench.overhead.run import Overhead
    from edgebench.provision import Setup
    from edgebench.recording import Recording
    from edgebench.results.api import Results
    from edgebench.results.attach import Terms
    from edgebench.results.attachments import Stored
    from edgebench.results.store import Store
    from edgebench.results.tables import Tables
    from edgebench.results.trace_csv import Role, TraceOptions
    from edgebench.sampling.estimate import Estimate
    from edgebench.sampling.request import SampleRequest
    from edgebench.sampling.subject import Subject
    from edgebench.surrogate.document import CalibrationDocument
    from edgebench.surrogate.fitting import Fit, FitOptions
    from edgebench.transport.known_hosts import HostKey


def export_adapter(
    adapter: str | Path | None = None,
    *,
    base: str | None = None,
    quants: Sequence[str] = ("fp32",),
    out: str | Path | None = None,
    workspace_code: bool = True,
    progress: Callable[[str, float | None], None] | None = None,
    **options: Any,
) -> list[Artifact]:
    """Export a trained adapter on its base model, one artifact a precision.

    Args:
        adapter: a PEFT checkpoint directory, or None for the base alone.
        base: a directory, or ``package:<import name>/<folder>``.
        quants: names from ``edgebench.quantize.SCHEMES``.
        out: where the artifacts go; the workspace's ``results/artifacts`` by default.
        workspace_code: load the workspace's own ``exporters/`` (they are Python code).
        options: the other members of ``edgebench.export.ExportRequest``.

    Raises:
        CheckpointError, UsageError, ExportError, StorageError: see edgebench.errors.
    """
    from edgebench.export import ExportRequest, export

    workspace = Workspace.find()
    request = ExportRequest(
        adapter=Path(adapter) if adapter is not None else None,
        base=base,
        quants=tuple(quants),
        out=Path(out) if out is not None else workspace.artifacts_dir,
        exporter_dirs=workspace.exporter_dirs(workspace_code),
        **options,
    )
    return export(request, progress)


def run(
    artifacts: Sequence[Artifact | str | Path] = (),
    *,
    device: str = "local",
    options: RunOptions | None = None,
    results: str | Path | None = None,
    wait: bool = True,
    report: Callable[[dict[str, Any]], None] | None = None,
) -> Recording:
    """Measure artifacts on a device, interleaved, and store the recording.

    Args:
        artifacts: artifact directories or loaded artifacts; none takes ``newest_artifacts``.
        device: a profile's name or path.
        results: the results directory; the workspace's by default.
        wait: wait for a device that is in use.
        report: called with each event of the run.

    Raises:
        EdgebenchError: see ``edgebench.measure.run_many``.
    """
    (outcome,) = run_on(
        [device], artifacts, options=options, results=results, wait=wait, report=report
    )
    if outcome.error is not None:
        raise outcome.error
    assert outcome.recording is not None
    return outcome.recording


def run_on(
    devices: Sequence[str],
    artifacts: Sequence[Artifact | str | Path] = (),
    *,
    options: RunOptions | None = None,
    results: str | Path | None = None,
    wait: bool = True,
    report: Callable[[dict[str, Any]], None] | None = None,
) -> list[Outcome]:
    """Measure artifacts on several devices side by side; arguments as for ``run``.

    Returns:
        One outcome a device, in their order: a recording, or the error that stopped it.
    """
    from edgebench.device import load
    from edgebench.measure import run_many

    workspace = Workspace.find()
    profiles = [load(device, workspace) for device in devices]
    for profile in profiles:
        profile.require_usable()
    chosen = [a if isinstance(a, Artifact) else Artifact.load(a) for a in artifacts]
    return run_many(
        profiles,
        chosen or newest_artifacts(artifacts_dir(results)),
        store(results),
        options,
        wait=wait,
        report=report,
    )


def measure_overhead(
    adapter: str | Path,
    *,
    base: str | None = None,
    device: str = "local",
    quants: Sequence[str] = ("fp32",),
    lowerings: Sequence[str] | None = None,
    budgets: Budgets | None = None,
    options: RunOptions | None = None,
    results: str | Path | None = None,
    wait: bool = True,
    workspace_code: bool = True,
    progress: Callable[[str, float | None], None] | None = None,
    report: Callable[[dict[str, Any]], None] | None = None,
    **export_options: Any,
) -> Overhead:
    """What an adapter costs on a device: its forms interleaved with the base alone.

    Exports what is not in the cache, runs one session, and writes ``tables/overhead.{json,csv}``
    and the other tables.

    Args:
        quants: precisions; each is compared with the base at the same one.
        lowerings: of "merged", "unmerged", "swappable"; None takes all that the family has.
        budgets: the most that it may cost (shares: 0.07 is 7 %); see ``Overhead.exit_code``.
        options: how to measure; five launches up to the 90th percentile by default.
        export_options: other members of ``edgebench.export.ExportRequest``: seq_len, data, ...

    Raises:
        EdgebenchError: as ``export_adapter`` and ``run``.
    """
    from edgebench.device import load
    from edgebench.export import ExportRequest
    from edgebench.measure import RunOptions
    from edgebench.overhead.run import measure
    from edgebench.overhead.write import write

    workspace = Workspace.find()
    profile = load(device, workspace)
    profile.require_usable()
    request = ExportRequest(
        base=base,
        quants=tuple(quants),
        out=artifacts_dir(results),
        exporter_dirs=workspace.exporter_dirs(workspace_code),
        **export_options,
    )
    found = measure(
        Path(adapter),
        profile,
        store(results),
        request=request,
        lowerings=lowerings,  # type: ignore[arg-type]  # measure names the valid ones
        budgets=budgets,
        options=options or RunOptions(percentile=90.0, accuracy=None),
        wait=wait,
        progress=progress,
        report=report,
    )
    write_tables(results)
    write(found, ensure_dir(results_dir(results) / "tables"))
    return found


def measure_directions(
    adapter: str | Path,
    *,
    base: str | None = None,
    device: str = "local",
    quant: str = "fp32",
    points: int = 8,
    of: tuple[int, int] | None = None,
    options: RunOptions | None = None,
    results: str | Path | None = None,
    wait: bool = True,
    workspace_code: bool = True,
    progress: Callable[[str, float | None], None] | None = None,
    report: Callable[[dict[str, Any]], None] | None = None,
    **export_options: Any,
) -> DirectionMeasurement:
    """What a HEST adapter's int8 and fp16 directions cost on a device, and the bound E_max.

    Exports the adapter with other numbers of directions, runs one session, and writes
    ``tables/direction-costs.json`` (``edgebench.adapters.energy_bound.read_direction_costs`` reads
    it) and the other tables.

    Args:
        points: how many artifacts to measure, 5 to 12.
        of: numbers of int8 and fp16 directions to give the bound for; None takes the adapter's.
        options: how to measure; five launches up to the median by default.
        export_options: other members of ``edgebench.export.ExportRequest``: seq_len, data, ...

    Raises:
        EdgebenchError: as ``export_adapter`` and ``run``; a ``CheckpointError`` where the adapter's
            directions have no states.
    """
    from edgebench.device import load
    from edgebench.export import ExportRequest
    from edgebench.measure import RunOptions
    from edgebench.overhead.directions import measure, write

    workspace = Workspace.find()
    profile = load(device, workspace)
    profile.require_usable()
    request = ExportRequest(
        base=base,
        quants=(quant,),
        out=artifacts_dir(results),
        exporter_dirs=workspace.exporter_dirs(workspace_code),
        **export_options,
    )
    found = measure(
        Path(adapter),
        profile,
        store(results),
        request=request,
        points=points,
        of=of,
        options=options or RunOptions(percentile=50.0, accuracy=None),
        wait=wait,
        progress=progress,
        report=report,
    )
    write_tables(results)
    write(found, ensure_dir(results_dir(results) / "tables"))
    return found


def count_flops(artifact: Artifact | str | Path, *, adapter: str | None = None) -> GraphCost:
    """The operations and bytes of an artifact's graph for one sample (docs/flops.md).

    Args:
        adapter: of a swappable artifact: which one is active; None takes the first, "none" the
            base alone.
    """
    from edgebench.overhead.run import count_artifact

    loaded = artifact if isinstance(artifact, Artifact) else Artifact.load(artifact)
    return count_artifact(loaded, adapter)


def resume(
    device: str = "local",
    *,
    results: str | Path | None = None,
    everything: bool = False,
    report: Callable[[dict[str, Any]], None] | None = None,
) -> list[Recording]:
    """Collect the runs that were left on a device, waiting for those still under way.

    Args:
        everything: those begun for other results directories too.
    """
    from edgebench.device import load
    from edgebench.measure import resume as measure_resume

    profile = load(device, Workspace.find())
    return measure_resume(profile, store(results), everything=everything, report=report)


def list_exporters(*, workspace_code: bool = True) -> list[Family]:
    """Every adapter family that can be exported here, with what it supports.

    Args:
        workspace_code: load the workspace's own ``exporters/`` (they are Python code).
    """
    from edgebench.export.listing import listing

    return listing(Workspace.find().exporter_dirs(workspace_code))


def sample(
    request: SampleRequest,
    *,
    results: str | Path | None = None,
    workspace_code: bool = True,
    progress: Callable[[str, float | None], None] | None = None,
) -> Path:
    """Calibration sampling: draw gating configurations, export and measure each.

    Args:
        request: ``edgebench.sampling.request.SampleRequest``.
        results: the results directory; the workspace's by default.

    Returns:
        the document that was written, with a flat table (.csv, .parquet) beside it.

    Raises:
        EdgebenchError: the first that an export or a run has. Finished samples are kept, and the
            same request goes on from there.
    """
    from edgebench.sampling.sample import sample as sample_all

    subject, measure, _ = _sampling(request, results, workspace_code)
    return sample_all(request, subject, measure, progress or (lambda _step, _done: None))


def estimate_sampling(
    request: SampleRequest,
    *,
    results: str | Path | None = None,
    workspace_code: bool = True,
    progress: Callable[[str, float | None], None] | None = None,
) -> Estimate:
    """How long ``sample`` will take, from one configuration exported and run on the device.

    The probe is exported to a temporary directory: one that stands in the artifact cache would say
    nothing of how long exports take.
    """
    import tempfile
    import time
    from dataclasses import replace

    from edgebench.sampling.design import everything
    from edgebench.sampling.estimate import estimate
    from edgebench.sampling.sample import design, export

    report = progress or (lambda _step, _done: None)
    subject, measure, options = _sampling(request, results, workspace_code)
    configurations = design(request, subject)
    report("exporting the largest configuration", None)
    begin = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="edgebench-probe-") as probe:
        largest = everything(subject.space)
        artifact = export(largest, replace(subject, artifacts=Path(probe)))
        exported = time.monotonic()
        report("measuring it", None)
        row = measure(artifact)["latency"]
    return estimate(
        subject.space,
        configurations,
        export_s=exported - begin,
        run_s=time.monotonic() - exported,
        call_s=row["latency_p50_ms"] / 1e3,
        calls=row["n"],
        max_run_s=options.launches * options.max_duration_s,
    )


def _sampling(
    request: SampleRequest, results: str | Path | None, workspace_code: bool
) -> tuple[Subject, Callable[[Artifact], dict[str, Any]], RunOptions]:
    from edgebench.device import load
    from edgebench.measure import RunOptions
    from edgebench.results.tables import build
    from edgebench.sampling.subject import read_subject

    workspace = Workspace.find()
    profile = load(request.device, workspace)
    profile.require_usable()
    subject = read_subject(
        request,
        profile,
        exporter_dirs=workspace.exporter_dirs(workspace_code),
        artifacts=artifacts_dir(results),
        calibration=workspace.root / "calibration",
    )
    options = RunOptions(
        launches=request.launches,
        percentile=50.0,
        max_duration_s=request.max_duration_s,
        threads=request.threads,
        accuracy=None,
        seed=request.seed,
    )

    def measure(artifact: Artifact) -> dict[str, Any]:
        recording = run([artifact], device=request.device, options=options, results=results)
        # An emulated device's rows are marked so, and whoever reads the samples leaves them out.
        tables = build([store(results).load(recording.id)], include_emulated=True)
        frames = {"latency": tables.latency, "energy": tables.energy, "power": tables.power}
        return {name: _row(frame) for name, frame in frames.items()}

    return subject, measure, options


def _row(frame: pd.DataFrame) -> dict[str, Any]:
    """The one row of a table, with None where a cell is empty and Python's own numbers."""
    found = frame.astype(object).where(frame.notna(), None).iloc[0].to_dict()
    return {k: v.item() if hasattr(v, "item") else v for k, v in found.items()}


def list_devices() -> list[DeviceSummary]:
    """Every device profile that can be named here: the workspace's and the built-in ones."""
    from edgebench.device import available

    return available(Workspace.find())


def diagnose(device: str = "local") -> Report:
    """What a device is, what is wrong with it, and how to mend it."""
    from edgebench.device import load
    from edgebench.doctor import examine

    return asyncio.run(examine(load(device, Workspace.find())))


def accept_host_keys(device: str, accept: Callable[[HostKey], bool]) -> tuple[str, ...]:
    """Ask about every unknown host key on the way to a device; see ``edgebench.provision``."""
    from edgebench.device import load
    from edgebench.provision import accept_host_keys as ask

    return ask(load(device, Workspace.find()), accept)


def setup(
    device: str,
    *,
    reinstall: bool = False,
    kernels: bool = False,
    kernels_from: str | Path | None = None,
    report: Callable[[dict[str, Any]], None] | None = None,
) -> Setup:
    """Install the runtime on a device whose host key is known, and the native kernels if asked;
    see ``edgebench.provision``."""
    from edgebench.device import load
    from edgebench.provision import setup as provision

    return provision(
        load(device, Workspace.find()),
        reinstall=reinstall,
        with_kernels=kernels,
        kernels_from=Path(kernels_from) if kernels_from is not None else None,
        report=report,
    )


def load_results(path: str | Path | None = None) -> Results:
    """All recordings below a results directory, and their tables as data frames."""
    from edgebench.results.api import results

    return results(results_dir(path))


def write_tables(path: str | Path | None = None, *, include_emulated: bool = False) -> Tables:
    """Regenerate ``tables/{latency,energy,power}.{csv,parquet}`` from the recordings.

    Raises:
        RecordingError: a recording can't be read; the tables on disk stay as they were.
    """
    from edgebench.results.tables import build, write

    loaded, broken = store(path).load_all()
    if broken:
        raise broken[0]
    tables = build(loaded, include_emulated=include_emulated)
    write(tables, ensure_dir(results_dir(path) / "tables"))
    return tables


def list_meters(device: str = "local") -> list[Found]:
    """The power sources that a device and this host really have, and why others are not there."""
    from edgebench.device import load
    from edgebench.meters_listing import listing

    profile = load(device, Workspace.find())
    profile.require_usable()
    return listing(profile)


def attach_trace(
    run: str,
    trace: str | Path,
    columns: Mapping[Role, str],
    terms: Terms,
    *,
    options: TraceOptions | None = None,
    results: str | Path | None = None,
) -> Stored:
    """Align a meter's CSV to a recorded run; the tables then have its energy and power.

    Args:
        run: a recording's id, or the beginning of it.
        columns: ``time`` and one of ``power``, ``energy``, or ``current`` and ``voltage`` -> the
            column's name.
        terms: what the meter saw and how well, and how far its clock is off.
        options: units, time zone, decimal sign, delimiter.

    Raises:
        InputError: the trace can't be read, does not fit the run, or is not of this device.
    """
    from edgebench.results.attach import attach
    from edgebench.results.attachments import Attachments
    from edgebench.results.trace_csv import TraceOptions, read_trace

    recordings = store(results)
    loaded = recordings.load(run)
    read = read_trace(Path(trace), dict(columns), options or TraceOptions())
    stored = attach(
        loaded, Attachments.beside(recordings.root), read, options or TraceOptions(), terms
    )
    write_tables(results)
    return stored


def plot_power(
    run: str,
    out: str | Path | None = None,
    *,
    channel: str | None = None,
    results: str | Path | None = None,
) -> list[Path]:
    """Draw a run's power over time as PNG and PDF, one pair a channel with readings.

    Args:
        out: a directory; ``figures/<id>`` below the results by default.

    Raises:
        InputError: the run has no readings, or matplotlib is not installed.
    """
    from edgebench.report.power_trace import draw

    loaded = store(results).load(run)
    directory = Path(out) if out is not None else results_dir(results) / "figures" / loaded.id
    return draw(loaded, directory, channel=channel)


def check(
    candidates: Sequence[str | Path],
    baselines: Sequence[str | Path] = (),
    *,
    history: str | Path | None = None,
    device: str = "local",
    options: CheckOptions | None = None,
    results: str | Path | None = None,
    wait: bool = True,
    report: Callable[[dict[str, Any]], None] | None = None,
) -> CheckResult:
    """Is a candidate slower than its baseline, or than its history, by more than is allowed?

    Args:
        candidates, baselines: artifact directories, or directories of artifacts.
        history: a results directory with earlier recordings, in the place of baselines.

    Raises:
        UsageError: both or neither of baselines and history.
        EdgebenchError: see ``edgebench.gate.check.check``.
    """
    from edgebench.device import load
    from edgebench.errors import UsageError
    from edgebench.gate.check import check as check_pairs
    from edgebench.gate.history import check_history
    from edgebench.gate.pairs import load_side, pair

    if bool(baselines) == (history is not None):
        raise UsageError("give either --baseline or --history")
    new = load_side([Path(path) for path in candidates], "--candidate")
    profile = load(device, Workspace.find())
    profile.require_usable()
    where = results_dir(results)
    if history is not None:
        if not Path(history).is_dir():
            raise UsageError(f"there is no directory {history}", fix="Name a results directory.")
        return check_history(profile, new, Path(history), where, options, wait=wait, report=report)
    old = load_side([Path(path) for path in baselines], "--baseline")
    return check_pairs(profile, pair(old, new), where, options, wait=wait, report=report)


def self_test(
    artifact: str | Path | None = None,
    *,
    device: str = "local",
    options: CheckOptions | None = None,
    results: str | Path | None = None,
    wait: bool = True,
    report: Callable[[dict[str, Any]], None] | None = None,
) -> SelfTest:
    """Check an artifact against itself, to learn what the gate is worth on a device.

    Args:
        artifact: an artifact's directory; None takes the canary.

    Raises:
        EdgebenchError: see ``edgebench.gate.selftest.self_test``.
    """
    from edgebench.device import load
    from edgebench.gate.selftest import self_test as measure

    profile = load(device, Workspace.find())
    profile.require_usable()
    chosen = Artifact.load(artifact) if artifact is not None else None
    return measure(profile, chosen, results_dir(results), options, wait=wait, report=report)


def evaluate_runs(
    results_dir: str | Path,
    run_ids: Sequence[str],
    *,
    primary_metric: str | None = None,
    directions: Mapping[str, Direction] | None = None,
    budgets: Mapping[str, float] | None = None,
    device: str | None = None,
    scheme: str | None = None,
    wandb_project: str | None = None,
    mode: str = "full",
    figures: bool = True,
) -> tuple[Evaluation, list[Path]]:
    """Compare the runs of a study and write metrics, comparison, tests and figures.

    Args:
        results_dir: holds a directory a run; see docs/evaluate.md.
        run_ids: ids that say ``proposed``, or ``comparative`` or ``baseline``.
        primary_metric, directions, budgets, device, scheme, wandb_project, mode: see
            ``edgebench.evaluate.Request``.
        figures: draw the PDF figures (needs matplotlib).

    Returns:
        what the runs say, and the files written.

    Raises:
        UsageError, InputError, StorageError: see ``edgebench.evaluate.study`` and ``output``.
    """
    from edgebench.evaluate import Request, evaluate, write

    evaluation = evaluate(
        Request(
            results_dir=Path(results_dir),
            run_ids=tuple(run_ids),
            primary_metric=primary_metric,
            directions=directions or {},
            budgets=budgets or {},
            device=device,
            scheme=scheme,
            wandb_project=wandb_project,
            mode=cast("Mode", mode),
        )
    )
    return evaluation, write(evaluation, figures=figures)


def results_dir(path: str | Path | None = None) -> Path:
    """The results directory: the one given, or the workspace's."""
    return Path(path) if path is not None else Workspace.find().results_dir


def artifacts_dir(path: str | Path | None = None) -> Path:
    """Where artifacts are, below a results directory."""
    return results_dir(path) / "artifacts"


def store(path: str | Path | None = None) -> Store:
    """The store of recordings below a results directory."""
    from edgebench.results.store import Store

    return Store(results_dir(path) / "runs")


def newest_artifacts(directory: Path) -> list[Artifact]:
    """The newest artifact, and its siblings: same adapter, base, lowering and length.

    Of several exports at one precision the newest counts. Order: precision, the widest first.

    Raises:
        ArtifactError: there is none.
    """
    found = sorted(
        (path.parent for path in directory.glob(f"[!.]*/{MANIFEST}")),
        key=lambda path: (path.stat().st_mtime_ns, path.name),
        reverse=True,
    )
    if not found:
        raise ArtifactError(
            "there is no artifact yet",
            where=str(directory),
            fix="Make one with `edgebench export ADAPTER --base MODEL`, or name its directory.",
        )
    newest = Artifact.load(found[0])
    chosen = {newest.manifest.quantization.scheme: newest}
    for path in found[1:]:
        artifact = Artifact.load(path, verify=False)
        if _family(artifact) == _family(newest):
            chosen.setdefault(artifact.manifest.quantization.scheme, Artifact.load(path))
    return sorted(
        chosen.values(),
        key=lambda artifact: (-artifact.manifest.quantization.storage_bits, artifact.name),
    )


def _family(artifact: Artifact) -> tuple[object, ...]:
    manifest = artifact.manifest
    adapter = manifest.adapter.digest if manifest.adapter else None
    return (adapter, manifest.base.digest, manifest.lowering, manifest.statistics.seq_len)


def fit_surrogate(
    tables: Sequence[str | Path],
    out: str | Path = "surrogate",
    *,
    features: Sequence[str] | None = None,
    targets: Mapping[str, str] | None = None,
    options: FitOptions | None = None,
    report: Callable[[str, float], None] | None = None,
) -> Fit:
    """Fit a hardware surrogate to measured tables, and write it.

    Args:
        tables: CSV, Parquet, JSON with samples, or results directories.
        features: input columns; the statistics vector s by default.
        targets: head (``energy_j``, ``latency_ms``, ``power_w``) -> column.

    Raises:
        InputError: a table can't be read or used. StorageError: it can't be written.
    """
    from edgebench.surrogate.columns import STATISTICS
    from edgebench.surrogate.workflow import fit_surrogate as work

    paths = [Path(table) for table in tables]
    return work(
        paths,
        Path(out),
        features=tuple(features or STATISTICS),
        targets=targets,
        options=options,
        report=report,
    ).fit


def calibrate_surrogate(
    samples: Sequence[str | Path],
    surrogate: str | Path = "surrogate",
    out: str | Path | None = None,
    *,
    device: str | None = None,
    targets: Mapping[str, str] | None = None,
) -> tuple[Path, CalibrationDocument]:
    """Fit a calibration to a device's samples, and write it; see `edgebench.surrogate.workflow`."""
    from edgebench.surrogate.workflow import calibrate_surrogate as work

    return work(
        Path(surrogate),
        [Path(sample) for sample in samples],
        Path(out) if out is not None else None,
        device=device,
        targets=targets,
    )


def predict_with_surrogate(
    device: str,
    rows: Sequence[Mapping[str, float]],
    surrogate: str | Path = "surrogate",
    *,
    calibration: str | Path | None = None,
) -> list[dict[str, Any]]:
    """Predict rows of features on a device, with 90 % intervals where they are known."""
    from edgebench.surrogate.workflow import predict_rows

    return predict_rows(
        Path(surrogate),
        device,
        rows,
        calibration=Path(calibration) if calibration is not None else None,
    )


def evaluate_surrogate(
    tables: Sequence[str | Path],
    surrogate: str | Path = "surrogate",
    *,
    sizes: Sequence[int] = (5, 10),
    draws: int = 30,
    seed: int = 0,
    targets: Mapping[str, str] | None = None,
) -> list[dict[str, Any]]:
    """How well a surrogate predicts devices, each calibrated with a few of its own rows."""
    from edgebench.surrogate.workflow import evaluate_surrogate as work

    return work(
        Path(surrogate),
        [Path(table) for table in tables],
        sizes=sizes,
        draws=draws,
        seed=seed,
        targets=targets,
    )
