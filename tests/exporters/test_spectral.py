"""A HEST adapter exported: directions that are off are not in the graph."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from edgebench.adapters import spectral_files
from edgebench.errors import CheckpointError
from edgebench.export import ExportRequest, export
from tests.adapters.gated_models import LABELS, LAYERS, model
from tests.adapters.test_spectral import R, adapted
from tests.export.tiny import write_tokenizer


def checkpoint(directory: Path) -> tuple[Path, Path]:
    base, adapter = directory / "base", directory / "adapter"
    module, parts, role = adapted("bert", states=True)
    plain = model("bert")
    plain.save_pretrained(base)
    write_tokenizer(base, ["input_ids", "attention_mask", "token_type_ids"])
    with torch.no_grad():
        for part in parts.values():
            part.state_logits.zero_()
            for index in range(R):  # off, int8, fp16, off, ...
                part.state_logits[index, index % 3] = 5.0
    spectral_files.save(
        module,
        parts,
        adapter,
        kind="HEST",
        module=role,
        base_name=str(base),
        task_type="SEQ_CLS",
        labels=[str(i) for i in range(LABELS)],
    )
    return base, adapter


def test_directions_that_are_off_are_not_in_the_graph(tmp_path):
    base, adapter = checkpoint(tmp_path)
    request = ExportRequest(
        out=tmp_path / "out", adapter=adapter, base=str(base), lowering="unmerged", seq_len=16
    )
    (artifact,) = export(request)
    manifest = artifact.manifest
    assert manifest.statistics.kept_ranks == LAYERS * R * 2 // 3
    assert manifest.parity.max_abs_error <= 1e-4
    assert manifest.adapter.kind == "hest"
    with pytest.raises(CheckpointError, match="can't be folded into a weight"):
        export(ExportRequest(out=tmp_path / "out", adapter=adapter, base=str(base), seq_len=16))
