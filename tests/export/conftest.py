"""Tiny models and adapters, written once a session, and the bundled adapter's artifacts."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

import pytest

from edgebench.artifact import Artifact
from edgebench.export import ExportRequest, export
from edgebench.quantize import SCHEMES
from tests.export import tiny
from tests.fixtures_export import minilm_artifacts, require

__all__ = ["minilm_artifacts"]


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    require("torch", "transformers", "peft", "onnxscript")
    return tmp_path_factory.mktemp("models")


@pytest.fixture(scope="session")
def tiny_base(models: Path) -> Path:
    return tiny.write_bert(models / "tiny-bert")


@pytest.fixture(scope="session")
def short_base(models: Path) -> Path:
    """One layer, for tests that are about something else."""
    return tiny.write_bert(models / "short-bert", layers=1)


@pytest.fixture(scope="session")
def short_adapter(models: Path, short_base: Path) -> Path:
    return tiny.write_adapter(short_base, models / "short-adapter")


@pytest.fixture(scope="session")
def tiny_adapter(models: Path, tiny_base: Path) -> Path:
    return tiny.write_adapter(tiny_base, models / "tiny-adapter")


@pytest.fixture(scope="session")
def tiny_data(models: Path) -> Path:
    return tiny.write_data(models / "tiny.jsonl")


@pytest.fixture(scope="session")
def second(models: Path, short_base: Path) -> Path:
    """Another rank, another alpha, other modules, and a head of its own."""
    import peft

    config = peft.LoraConfig(
        task_type="SEQ_CLS",
        r=2,
        lora_alpha=7,
        target_modules=["key", "intermediate.dense"],
        init_lora_weights=False,
    )
    return tiny.write_adapter(short_base, models / "second", config)


@pytest.fixture(scope="session")
def ada(models: Path, short_base: Path) -> Path:
    import peft

    config = peft.AdaLoraConfig(
        task_type="SEQ_CLS",
        target_modules=["query", "value"],
        target_r=4,
        init_r=4,
        total_step=10,
        tinit=1,
        tfinal=1,
    )
    return tiny.write_adapter(short_base, models / "ada", config)


@pytest.fixture(scope="session")
def swappable(
    models: Path, short_base: Path, short_adapter: Path, second: Path, ada: Path
) -> dict[str, Artifact]:
    """scheme -> artifact with three adapters."""
    artifacts = export(
        ExportRequest(
            adapter=short_adapter,
            more_adapters=(second, ada),
            base=str(short_base),
            out=models / "swappable",
            seq_len=24,
            lowering="swappable",
            quants=SCHEMES,
            mixed_bits=8,
        )
    )
    return dict(zip(SCHEMES, artifacts, strict=True))


class ExportShort(Protocol):
    def __call__(self, out: Path, **changes: object) -> Artifact: ...


@pytest.fixture(scope="session")
def merged(export_short: ExportShort, models: Path) -> Artifact:
    return export_short(models / "out")


@pytest.fixture(scope="session")
def unmerged(
    export_short: ExportShort, models: Path, tiny_base: Path, tiny_adapter: Path
) -> Artifact:
    """Two layers."""
    changes = {"base": str(tiny_base), "adapter": tiny_adapter, "lowering": "unmerged"}
    return export_short(models / "out", **changes)


@pytest.fixture(scope="session")
def export_short(short_base: Path, short_adapter: Path, tiny_data: Path) -> ExportShort:
    """Export the adapter of one layer, some of the request changed; the first artifact."""

    def run(out: Path, **changes: object) -> Artifact:
        request: dict[str, object] = {
            "adapter": short_adapter,
            "base": str(short_base),
            "data": tiny_data,
            "seq_len": 24,
            **changes,
        }
        return export(ExportRequest(out=out, **request))[0]  # type: ignore[arg-type]

    return run


def left_in(out: Path) -> list[str]:
    """What an export left in a directory, hidden files too."""
    return sorted(path.name for path in out.iterdir()) if out.is_dir() else []
