"""The example of adding a family works as its page says."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from edgebench.errors import CheckpointError
from edgebench.export import ExportRequest, export
from edgebench.export.listing import listing
from edgebench.workspace import Workspace, builtin_root
from tests.export import tiny
from tests.fixtures_export import REPOSITORY, require

require("torch", "transformers", "peft", "onnxscript")

EXAMPLE = REPOSITORY / "examples" / "exporters" / "rank_one.py"


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    for part in ("devices", "exporters", "results"):
        (tmp_path / part).mkdir()
    shutil.copy(EXAMPLE, tmp_path / "exporters")
    return Workspace.find(tmp_path)


def write_adapter(base: Path, directory: Path) -> Path:
    import torch

    from edgebench.adapters import base as torch_side
    from edgebench.export.exporter import load_exporter
    from tests.adapters import families

    module = families.model(base)
    exporter = load_exporter(EXAMPLE)
    targets = {"targets": ["q", "v"]}
    adapter = exporter.module(targets, torch_side.sites_of(module, ["q", "v"]))  # type: ignore[attr-defined]
    with torch.no_grad():
        adapter.u.normal_()
    head = {n: p for n, p in module.named_parameters() if n.startswith("classifier")}
    torch_side.save(directory, adapter, head=head, task_type="SEQ_CLS", base_name="tiny")
    return directory


def test_the_example_is_exported_folded_and_as_a_branch(workspace: Workspace) -> None:
    base = tiny.write_bert(workspace.root / "base")
    adapter = write_adapter(base, workspace.root / "adapter")
    ranks = {"merged": 0, "unmerged": 4}
    for lowering, kept in ranks.items():
        (artifact,) = export(
            ExportRequest(
                out=workspace.artifacts_dir,
                adapter=adapter,
                base=str(base),
                lowering=lowering,  # type: ignore[arg-type]
                seq_len=16,
                exporter_dirs=workspace.exporter_dirs(),
            )
        )
        assert artifact.manifest.parity.max_abs_error <= 1e-4
        assert artifact.manifest.statistics.kept_ranks == kept
        assert artifact.manifest.exporter.name == "rank_one"
    with pytest.raises(CheckpointError, match="no exporter recognises"):
        request = ExportRequest(
            out=workspace.artifacts_dir,
            adapter=adapter,
            base=str(base),
            exporter_dirs=workspace.exporter_dirs(workspace_code=False),
        )
        export(request)


def test_it_is_listed_beside_the_built_in_ones_and_is_short(workspace: Workspace) -> None:
    names = {family.name for family in listing(workspace.exporter_dirs())}
    assert {"rank_one", "peft_lora", "himalaya"} <= names
    code = [line for line in EXAMPLE.read_text().splitlines() if line.strip()]
    assert len(code) <= 65


def test_every_built_in_family_says_what_it_is() -> None:
    families = {family.name: family for family in listing((builtin_root() / "exporters",))}
    assert not any(family.error for family in families.values())
    for name in ("peft_lora", "peft_methods", "peft_folded", "himalaya", "unihyperlora", "lilac"):
        assert families[name].summary and families[name].kinds and families[name].lowerings


def test_a_broken_file_is_listed_with_its_reason(tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text("EXPORTER = 3\n")
    (family,) = listing((tmp_path,))
    assert family.name == "broken"
    assert "defines no EXPORTER" in family.error
