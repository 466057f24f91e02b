"""Looking for external data in an ONNX file without the onnx package."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import onnx
import pytest

from edgebench.artifact import _surely_self_contained, check_external_data
from edgebench.errors import ArtifactError
from tests.tiny import tiny_artifact, tiny_model


def test_an_artifact_is_loaded_without_onnx_and_numpy(tmp_path: Path) -> None:
    artifact = tiny_artifact(tmp_path)
    script = (
        "import sys; from edgebench.artifact import Artifact; Artifact.load(sys.argv[1]);"
        "print(sorted({'onnx', 'numpy'} & sys.modules.keys()))"
    )
    command = [sys.executable, "-c", script, str(artifact.path)]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "[]\n"


def test_a_model_that_names_external_data_is_looked_into(tmp_path: Path) -> None:
    model = tiny_model()
    path = tmp_path / "model.onnx"
    path.write_bytes(model.SerializeToString())
    assert _surely_self_contained(path)
    tensor = model.graph.initializer[0]
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../weights")
    path.write_bytes(model.SerializeToString())
    assert not _surely_self_contained(path)
    with pytest.raises(ArtifactError, match="outside"):
        check_external_data(path)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"not a model",
        onnx.ModelProto(ir_version=10).SerializeToString(),
        tiny_model().SerializeToString()[:-5],
        tiny_model().SerializeToString() + b"\x3a\x7f",
        b"\xff" * 64,
        b"\x3a\x00",
    ],
    ids=["empty", "text", "no graph", "cut", "overlong", "endless number", "empty graph"],
)
def test_what_is_not_surely_a_model_is_left_to_onnx(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(content)
    assert not _surely_self_contained(path)
