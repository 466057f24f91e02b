"""The registry and what all schemes share."""

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest

from edgebench.errors import InputError, StorageError, UsageError
from edgebench.quantize import SCHEMES, check_scheme, files, quantize
from tests.quantize import models

ROOT = Path(__file__).parents[2]
HOW = {"calibration": models.calibration(), "mixed_bits": 4}


@pytest.fixture
def source(tmp_path):
    return models.save(models.transformer(), tmp_path / "source.onnx")


def test_the_schemes_are_named():
    assert SCHEMES == ("fp32", "fp16", "int8", "int8-static", "int4", "int3", "mixed")
    assert [check_scheme(name) for name in SCHEMES] == list(SCHEMES)


@pytest.mark.parametrize(("name", "near"), [("int33", "int3"), ("INT8", "int8"), ("fp23", "fp32")])
def test_an_unknown_scheme_is_refused_with_the_near_one(name, near):
    with pytest.raises(UsageError, match=f"Did you mean {near}") as caught:
        check_scheme(name)
    assert all(scheme in str(caught.value) for scheme in SCHEMES)


def test_a_far_scheme_gets_no_guess():
    with pytest.raises(UsageError) as caught:
        check_scheme("ternary-magic")
    assert "Did you mean" not in str(caught.value)


def test_importing_the_package_imports_no_runtime():
    code = (
        "import sys, edgebench.quantize as q; q.check_scheme('int3');"
        "heavy = {'torch', 'onnxruntime', 'onnx', 'numpy', 'pandas'} & set(sys.modules);"
        "sys.exit(str(heavy) if heavy else 0)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_progress_goes_from_nothing_to_done(source, tmp_path, scheme):
    seen = []
    quantize(source, tmp_path / "t.onnx", scheme, **HOW, progress=lambda *a: seen.append(a))
    fractions = [fraction for _, fraction in seen if fraction is not None]
    assert fractions == sorted(fractions) and fractions[-1] == 1.0
    assert all(what for what, _ in seen)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_the_same_input_gives_the_same_bytes_in_every_process(source, tmp_path, scheme):
    digests = set()
    for seed in ("0", "1"):
        target = tmp_path / f"{seed}.onnx"
        code = (
            "import sys, pathlib, edgebench.quantize as q;"
            "from tests.quantize import models;"
            "q.quantize(pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2]), sys.argv[3],"
            " calibration=models.calibration(), mixed_bits=4)"
        )
        subprocess.run(
            [sys.executable, "-c", code, str(source), str(target), scheme],
            check=True,
            cwd=ROOT,
            env={**os.environ, "PYTHONHASHSEED": seed},
        )
        digests.add(hashlib.sha256(target.read_bytes()).hexdigest())
    assert len(digests) == 1


@pytest.mark.parametrize("scheme", ["int3", "mixed"])
def test_the_number_of_threads_of_numpys_sums_does_not_change_a_byte(tmp_path, scheme):
    """Wide enough, and with tokens enough, that OpenBLAS shares every product among its threads."""
    source = tmp_path / "wide.onnx"
    rng = np.random.default_rng(0)
    onnx.save(models.linear(rng.normal(size=(512, 512)).astype(np.float32)), source)
    # Inputs that depend on each other, as activations do: feedback reaches far.
    x = rng.normal(size=(2, 600, 60)) @ rng.normal(size=(60, 512))
    x += 0.1 * rng.normal(size=x.shape)
    np.save(tmp_path / "x.npy", x.astype(np.float32))
    code = (
        "import sys, pathlib, numpy, edgebench.quantize as q; p = pathlib.Path(sys.argv[1]);"
        "q.quantize(p / 'wide.onnx', p / sys.argv[2], sys.argv[3],"
        " calibration=[{'X': numpy.load(p / 'x.npy')}], mixed_bits=4)"
    )
    digests = set()
    for threads in ("1", "2"):
        subprocess.run(
            [sys.executable, "-c", code, str(tmp_path), threads, scheme],
            check=True,
            cwd=ROOT,
            env={**os.environ, "OPENBLAS_NUM_THREADS": threads},
        )
        digests.add(hashlib.sha256((tmp_path / threads).read_bytes()).hexdigest())
    assert len(digests) == 1


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_broken_weight_is_refused_by_name_and_nothing_is_written(tmp_path, scheme, value):
    proto = models.transformer(layers=1)
    tensor = next(t for t in proto.graph.initializer if t.name == "0.up")
    array = onnx.numpy_helper.to_array(tensor).copy()
    array[3, 5] = value
    tensor.CopyFrom(onnx.numpy_helper.from_array(array, "0.up"))
    source = models.save(proto, tmp_path / "s.onnx")
    with pytest.raises(InputError, match=r"'0\.up' holds 1 values that are NaN or infinite"):
        quantize(source, tmp_path / "t.onnx", scheme, **HOW)
    assert [p.name for p in tmp_path.iterdir()] == ["s.onnx"]


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_file_that_is_no_model_is_refused(tmp_path, scheme):
    for content in (b"", b"not a model", b"\x08\x0a"):
        source = tmp_path / "s.onnx"
        source.write_bytes(content)
        with pytest.raises(InputError, match="ONNX model"):
            quantize(source, tmp_path / "t.onnx", scheme, **HOW)


def test_a_missing_source_is_refused(tmp_path):
    with pytest.raises(InputError, match="no model"):
        quantize(tmp_path / "none.onnx", tmp_path / "t.onnx", "fp32")


def test_the_source_is_not_overwritten(source):
    with pytest.raises(UsageError, match="same file"):
        quantize(source, source, "int8")


def test_a_directory_that_is_not_there_is_a_storage_error(source, tmp_path):
    with pytest.raises(StorageError, match="cannot be written"):
        quantize(source, tmp_path / "none" / "t.onnx", "int3")


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_disk_that_fills_leaves_nothing_behind(source, tmp_path, scheme):
    """A limit on the size of files fails a write in the middle, as a full disk does."""
    out = tmp_path / "out"
    out.mkdir()
    code = (
        "import sys, pathlib, resource, edgebench.quantize as q\n"
        "from tests.quantize import models\n"
        "from edgebench.errors import StorageError\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))\n"
        "try:\n"
        "    q.quantize(pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2]), sys.argv[3],\n"
        "        calibration=models.calibration(), mixed_bits=4)\n"
        "except StorageError as error:\n"
        "    sys.exit(error.exit_code)\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", code, str(source), str(out / "t.onnx"), scheme],
        check=False,
        cwd=ROOT,
    )
    assert result.returncode == StorageError.exit_code
    assert not list(out.iterdir())


def test_an_ir_version_that_the_runtime_cannot_read_is_refused(tmp_path):
    proto = models.transformer(layers=1)
    proto.ir_version = 14
    source = models.save(proto, tmp_path / "s.onnx")
    with pytest.raises(InputError, match="IR version 14"):
        quantize(source, tmp_path / "t.onnx", "fp32")


@pytest.mark.parametrize("scheme", SCHEMES)
def test_external_data_are_read_and_written(source, tmp_path, scheme, monkeypatch):
    apart = tmp_path / "apart"
    apart.mkdir()
    onnx.save(
        onnx.load(source), apart / "s.onnx", save_as_external_data=True, location="weights.bin"
    )
    inline, external = tmp_path / "inline", tmp_path / "external"
    inline.mkdir()
    external.mkdir()
    first = quantize(apart / "s.onnx", inline / "t.onnx", scheme, **HOW)
    monkeypatch.setattr(files, "INLINE_LIMIT_BYTES", 10_000)
    monkeypatch.setattr(files, "MAPPED_BYTES", 10_000)
    second = quantize(apart / "s.onnx", external / "t.onnx", scheme, **HOW)
    assert first == second
    assert [p.name for p in inline.iterdir()] == ["t.onnx"]
    assert sorted(p.name for p in external.iterdir()) == ["t.onnx", "t.onnx.data"]
    ids = np.arange(12).reshape(2, 6)
    here, there = (models.session(d / "t.onnx") for d in (inline, external))
    assert np.array_equal(models.run(here, input_ids=ids), models.run(there, input_ids=ids))


def test_missing_external_data_are_refused(source, tmp_path):
    apart = tmp_path / "apart"
    apart.mkdir()
    onnx.save(onnx.load(source), apart / "s.onnx", save_as_external_data=True, location="w.bin")
    (apart / "w.bin").unlink()
    with pytest.raises(InputError, match="weights cannot be read"):
        quantize(apart / "s.onnx", tmp_path / "t.onnx", "fp32")


@pytest.mark.parametrize("scheme", SCHEMES)
def test_no_note_of_the_exporter_travels_along(tmp_path, scheme):
    proto = models.transformer(layers=1)
    for node in proto.graph.node:
        node.doc_string = "/home/someone/secret.py"
        node.metadata_props.add(key="stack_trace", value="/home/someone/secret.py")
    source = models.save(proto, tmp_path / "s.onnx")
    quantize(source, tmp_path / "t.onnx", scheme, **HOW)
    assert b"secret" not in (tmp_path / "t.onnx").read_bytes()
