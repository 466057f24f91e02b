"""Recordings made up for tests: one call each, every part can be replaced."""

from __future__ import annotations

from typing import Any

import numpy as np

from edgebench.artifact import (
    Adapter,
    Base,
    Data,
    Exporter,
    FileEntry,
    Manifest,
    Parity,
    Quantization,
    Signature,
    Statistics,
    seal,
)
from edgebench.recording import (
    SAMPLE_COLUMNS,
    SCHEMA,
    Accuracy,
    ArtifactEntry,
    Clock,
    DeviceRecord,
    Launch,
    Protocol,
    Recording,
    Solo,
    StopRule,
    Warmup,
    WarmupRule,
)
from edgebench.results.ulid import new_ulid

BITS = {"fp32": 32, "int8": 8, "int3": 3}
MILLISECOND = 1_000_000
SECOND = 1_000_000_000


def make_manifest(scheme: str = "int8", *, adapter: str = "minilm-bbc") -> Manifest:
    bits = BITS[scheme]
    return seal(
        Manifest(
            schema="edgebench.artifact/1",
            name=adapter,
            task="sequence-classification",
            base=Base(
                name="minilm",
                digest="sha256:base",
                architecture="BertModel",
                hidden_size=384,
                layers=6,
                heads=12,
                parameters=22_713_216,
            ),
            adapter=Adapter(
                name=adapter,
                digest=f"sha256:{adapter}",
                kind="LORA",
                rank=8,
                bytes=300_000,
                parameters=75_000,
            ),
            exporter=Exporter(name="lora", road="torch", opset=20, ir_version=10, versions={}),
            lowering="merged",
            quantization=Quantization(
                scheme=scheme,
                storage_bits=bits,
                compute_bits=4 if bits == 3 else bits,
                activation_bits=8 if bits < 32 else 32,
                storage_bits_per_weight=bits + 0.25,
                file_bits_per_weight=bits + 1.5,
                total_weights=22_000_000,
            ),
            signature=Signature(inputs=(), outputs=()),
            statistics=Statistics(
                seq_len=128, kept_layers=6, kept_heads=72, kept_ranks=96, param_bits=704_000_000
            ),
            extra_flops=0.0,
            parity=Parity(
                reference="torch fp32",
                n=16,
                max_abs_error=0.01,
                mean_abs_error=0.001,
                cosine_min=0.99,
                cosine_mean=0.995,
                kl_mean=0.002,
                top1_agreement=1.0,
                tolerance=None,
            ),
            data=Data(inputs="inputs.npz", inputs_n=16, inputs_source="BBC News"),
            files={"model.onnx": FileEntry(sha256="0" * 64, bytes=22_800_000)},
        )
    )


def make_launch(index: int, artifacts: int, **changes: Any) -> Launch:
    fields: dict[str, Any] = {
        "index": index,
        "outcome": "ok",
        "started_ns": index * 100 * SECOND,
        "ended_ns": index * 100 * SECOND + 90 * SECOND,
        "load_ns": [(300 + index) * MILLISECOND] * artifacts,
        "warmup": [Warmup(calls=20, duration_ns=SECOND, steady=True)] * artifacts,
        "stopped_by": "enough",
        "foreign_cpu_fraction": 0.01,
        "steal_fraction": 0.0,
        "involuntary_switches": 3,
        "major_faults": 0,
    }
    return Launch(**{**fields, **changes})


def make_samples(
    launches: int = 5,
    median_ms: tuple[float, ...] = (40.0, 20.0, 10.0),
    *,
    rounds: int = 40,
    calls: int = 5,
    launch_sd: float = 0.02,
    call_sd: float = 0.01,
    seed: int = 0,
) -> dict[str, np.ndarray]:
    """Interleaved turns in balanced random rounds; the first call of each turn settles."""
    random = np.random.default_rng(seed)
    rows = []
    for launch in range(launches):
        clock = launch * 100 * SECOND + 5 * SECOND
        effect = np.exp(random.normal(0, launch_sd))
        turn = 0
        for _ in range(rounds):
            for artifact in random.permutation(len(median_ms)):
                for call in range(calls):
                    noise = np.exp(random.normal(0, call_sd))
                    duration = int(median_ms[artifact] * MILLISECOND * effect * noise)
                    rows.append((launch, artifact, turn, 1 if call == 0 else 2, clock, duration))
                    clock += duration + 2_000
                turn += 1
    table = np.array(rows, dtype=np.int64).reshape(-1, len(SAMPLE_COLUMNS))
    return {name: table[:, i].astype(t) for i, (name, t) in enumerate(SAMPLE_COLUMNS.items())}


def make_state(launches: int = 5, **changes: Any) -> list[dict[str, Any]]:
    """Healthy state lines: before, ten during each launch, after."""

    def line(t_ns: int, when: str, launch: int | None) -> dict[str, Any]:
        return {
            "t_ns": t_ns,
            "when": when,
            "launch": launch,
            "temperature_c": {"cpu": 50.0},
            "frequency_khz": {"0": 1_800_000, "1": 600_000},
            "frequency_max_khz": {"0": 1_800_000, "1": 1_800_000},
            "governor": {"0": "performance", "1": "performance"},
            "load1": 1.0,
            "memory_available_bytes": 2_000_000_000,
            "swap_in_pages": 7,
            "swap_out_pages": 0,
            "cpu_ticks": {"total": 1000, "busy": 500, "steal": 0},
            "throttled": 0,
            **changes,
        }

    during = [
        line(launch * 100 * SECOND + 5 * SECOND + tick * SECOND // 4, "during", launch)
        for launch in range(launches)
        for tick in range(1, 11)
    ]
    return [line(0, "before", None), *during, line(launches * 100 * SECOND, "after", None)]


def make_recording(
    schemes: tuple[str, ...] = ("fp32", "int8", "int3"), *, launches: int = 5, **changes: Any
) -> Recording:
    manifests = [make_manifest(scheme) for scheme in schemes]
    fields: dict[str, Any] = {
        "schema": SCHEMA,
        "id": new_ulid(),
        "created_at": "2026-01-02T03:04:05Z",
        "edgebench_version": "0.1.0",
        "device": DeviceRecord(
            name="pi4",
            profile={"limits": {"temperature_c": 75}},
            fingerprint={"cpu": "Cortex-A72"},
            fingerprint_digest="sha256:fingerprint",
            emulated=False,
        ),
        "protocol": make_protocol(launches),
        "artifacts": [
            ArtifactEntry(
                name=manifest.name,
                digest=manifest.digest,
                size_bytes=22_800_000,
                manifest=manifest.model_dump(mode="json", by_alias=True),
            )
            for manifest in manifests
        ],
        "solo": [
            Solo(
                artifact=index,
                outcome="ok",
                load_ns=300 * MILLISECOND,
                peak_rss_bytes=180_000_000,
                baseline_rss_bytes=60_000_000,
                accuracy=Accuracy(correct=433, n=445, duration_ns=10 * SECOND),
            )
            for index in range(len(schemes))
        ],
        "launches": [make_launch(index, len(schemes)) for index in range(launches)],
        "clock": Clock(offset_ns=0, bound_ns=1000, method="same machine"),
        "versions": {"onnxruntime": "1.31.1", "python": "3.11.2"},
        "agent": {},
        "power_absent": "no power source on this device",
        "host": {},
        "files": {},
    }
    return Recording(**{**fields, **changes})


def make_protocol(launches: int = 5, **changes: Any) -> Protocol:
    fields: dict[str, Any] = {
        "scenario": "single-stream",
        "batch": 1,
        "seq_len": 128,
        "launches": launches,
        "calls_per_turn": 5,
        "seed": 0,
        "stop": StopRule(
            min_count=133, min_duration_s=1, max_duration_s=60, relative_half_width=0.01
        ),
        "warmup": WarmupRule(window=10, tolerance=0.02, max_s=10),
        "deadline_s": 600,
        "accuracy": "all",
        "input_source": "BBC News",
        "runtime": {"kind": "onnxruntime", "provider": "CPUExecutionProvider", "threads": 4},
        "memory_limit_bytes": None,
    }
    return Protocol(**{**fields, **changes})
