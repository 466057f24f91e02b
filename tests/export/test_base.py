"""Where a base model is looked for, and what is read of it without torch."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from edgebench.errors import CheckpointError
from edgebench.export.base import locate, read_base
from edgebench.export.weights import find_weights, read_shapes


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """An installed package with a folder in it, which must not be imported."""
    root = tmp_path / "site" / "some_package"
    (root / "model").mkdir(parents=True)
    (root / "__init__.py").write_text("raise RuntimeError('imported')")
    monkeypatch.syspath_prepend(str(root.parent))
    return "some_package"


def test_a_package_is_found_and_not_imported(package):
    found = locate(f"package:{package}/model")
    assert found is not None
    assert found.name == "model"
    assert package not in sys.modules


@pytest.mark.parametrize("form", ["/none", "/../..", ""])
def test_a_packages_other_folders_are_not_found(package, form):
    found = locate(f"package:{package}{form}")
    assert found is None or found.name == package


def test_a_dotted_package_would_import_its_parent_and_is_not_looked_up(package):
    assert locate(f"package:{package}.model/x") is None
    assert package not in sys.modules


def test_a_model_in_the_local_cache_is_found_by_its_id(tmp_path, monkeypatch):
    entry = tmp_path / "hub" / "models--org--name"
    (entry / "refs").mkdir(parents=True)
    (entry / "refs" / "main").write_text("abc123\n")
    (entry / "snapshots" / "abc123").mkdir(parents=True)
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    monkeypatch.delenv("HF_HUB_CACHE", raising=False)
    assert locate("org/name") == entry / "snapshots" / "abc123"
    assert locate("org/other") is None
    assert locate("../org/name") is None


def test_a_base_is_read_without_torch(tiny_base):
    program = f"""
import sys
from edgebench.export.base import read_base
base = read_base({str(tiny_base)!r})
print(base.name, base.layers, base.heads, base.hidden_size, base.parameters, "torch" in sys.modules)
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    name, layers, heads, hidden, parameters, with_torch = done.stdout.split()
    assert (name, layers, heads, hidden, with_torch) == ("tiny-bert", "2", "4", "32", "False")
    assert int(parameters) == sum(t.size for t in read_base(str(tiny_base)).shapes.values())


def test_the_digest_is_of_the_content_and_not_of_the_place(tiny_base, tmp_path):
    import shutil

    copy = Path(shutil.copytree(tiny_base, tmp_path / "copy"))
    assert read_base(str(copy)).digest == read_base(str(tiny_base)).digest
    configuration = json.loads((copy / "config.json").read_text())
    configuration["layer_norm_eps"] = 1e-3
    (copy / "config.json").write_text(json.dumps(configuration))
    assert read_base(str(copy)).digest != read_base(str(tiny_base)).digest


def test_shards_are_found_through_their_index(tmp_path):
    for number in (1, 2):
        save_file({f"w{number}": torch.zeros(number, 3)}, tmp_path / f"part-{number}.safetensors")
    index = {"weight_map": {"w1": "part-1.safetensors", "w2": "part-2.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    files = find_weights(tmp_path, "model", "base model")
    shapes = {name: t.shape for name, t in read_shapes(files, "base model").items()}
    assert shapes == {"w1": (1, 3), "w2": (2, 3)}
    (tmp_path / "part-2.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"part-2\.safetensors is missing"):
        find_weights(tmp_path, "model", "base model")


@pytest.mark.parametrize("name", ["../w.safetensors", "/etc/w.safetensors"])
def test_a_shard_outside_its_directory_is_refused(tmp_path, name):
    index = {"weight_map": {"w": name}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match="is missing"):
        find_weights(tmp_path, "model", "base model")


@pytest.mark.parametrize(
    "content",
    [b"", b"\x00" * 8, b"\xff" * 8, b"\x05\0\0\0\0\0\0\0[1,2]", b"\x02\0\0\0\0\0\0\0{}"],
)
def test_a_damaged_header_is_refused(tmp_path, content):
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(CheckpointError, match="truncated or damaged"):
        read_shapes((tmp_path / "model.safetensors",), "base model")
