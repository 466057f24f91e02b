"""Exported artifacts that were changed afterwards, or made to reach outside themselves."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import onnx
import pytest

from edgebench.artifact import Artifact, Manifest, sha256_file, write_manifest
from edgebench.errors import ArtifactError


@pytest.fixture
def spoiled(merged: Artifact, tmp_path: Path) -> Path:
    return Path(shutil.copytree(merged.path, tmp_path / "spoiled"))


def reseal(directory: Path) -> None:
    """Make the manifest agree with the changed files, as an attacker would."""
    document = json.loads((directory / "artifact.json").read_text())
    for name in document["files"]:
        file = directory / name
        document["files"][name] = {"sha256": sha256_file(file), "bytes": file.stat().st_size}
    write_manifest(directory, Manifest.model_validate(document))


@pytest.mark.parametrize("place", ["../outside.bin", "/etc/hostname", "link"])
def test_external_data_outside_the_artifact(spoiled, place):
    (spoiled.parent / "outside.bin").write_bytes(bytes(4))
    (spoiled / "link").symlink_to(spoiled.parent / "outside.bin")
    model = onnx.load(str(spoiled / "model.onnx"))
    tensor = model.graph.initializer[0]
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.ClearField("raw_data")
    tensor.external_data.add(key="location", value=place)
    (spoiled / "model.onnx").write_bytes(model.SerializeToString())
    reseal(spoiled)
    with pytest.raises(ArtifactError, match="outside the artifact's directory"):
        Artifact.load(spoiled)


def test_a_file_that_does_not_match_its_digest(spoiled):
    content = bytearray((spoiled / "model.onnx").read_bytes())
    content[len(content) // 2] ^= 1
    (spoiled / "model.onnx").write_bytes(bytes(content))
    with pytest.raises(ArtifactError, match=r"digest of model\.onnx does not match"):
        Artifact.load(spoiled)
