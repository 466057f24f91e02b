"""What holds for every meter: its declaration, its options, and the Python of the devices."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import ClassVar

import pytest

from edgebench.meters import base
from edgebench.meters.base import (
    COMMON_MODULES,
    HOST_KINDS,
    KINDS,
    Channel,
    Meter,
    MeterError,
    Option,
    make_meter,
    meter_class,
    modules_for,
    read_number,
    read_text,
)
from edgebench.recording import MeterChannel, MeterFailure
from tests.agent.test_language import GENERIC, NEWER, NEWER_KEYWORDS, OLD
from tests.meters.bundle import meter_bundle

FOLDER = Path(base.__file__).parent
DOCS = Path(__file__).parents[2] / "docs/meters"
#: Kinds that read sysfs alone: they need nothing but files.
SYSFS_KINDS = ("rapl", "hwmon", "ina3221", "battery", "odpm")
DEVICE_KINDS = [kind for kind in KINDS if kind not in HOST_KINDS]
DEVICE_MODULES = [name for name in modules_for(DEVICE_KINDS) if (FOLDER / f"{name}.py").exists()]


def tree_of(module: str) -> ast.Module:
    return ast.parse((FOLDER / f"{module}.py").read_text())


# -- the language of the devices


@pytest.mark.parametrize("module", DEVICE_MODULES)
def test_a_file_that_travels_is_written_in_the_language_of_python_3_8(module):
    ast.parse((FOLDER / f"{module}.py").read_text(), feature_version=(3, 8))


@pytest.mark.parametrize("module", DEVICE_MODULES)
def test_a_file_that_travels_imports_the_standard_library_and_what_travels_with_it(module):
    """A driver's library may be imported inside a function alone, when the meter is opened."""
    for node in tree_of(module).body:
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0
            names = [str(node.module)]
        for name in names:
            if name.startswith("edgebench"):
                assert name.startswith("edgebench.meters."), name
                assert name.split(".")[2] in {*COMMON_MODULES, module}, name
            else:
                assert name.split(".")[0] in sys.stdlib_module_names, name


@pytest.mark.parametrize("module", DEVICE_MODULES)
def test_a_file_that_travels_uses_nothing_newer_at_run_time(module):
    tree = tree_of(module)
    names = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    names |= {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    assert not names & NEWER
    keywords = {
        word.arg for node in ast.walk(tree) if isinstance(node, ast.Call) for word in node.keywords
    }
    assert not keywords & NEWER_KEYWORDS


@pytest.mark.parametrize("module", DEVICE_MODULES)
def test_new_forms_of_types_stand_in_annotations_only(module):
    tree = tree_of(module)
    annotations = set()
    for node in ast.walk(tree):
        for name in ("annotation", "returns"):
            part = getattr(node, name, None)
            if isinstance(part, ast.AST):
                annotations |= {id(each) for each in ast.walk(part)}
    for node in ast.walk(tree):
        if id(node) in annotations:
            continue
        if isinstance(node, ast.Subscript):
            name = getattr(node.value, "id", getattr(node.value, "attr", ""))
            assert name not in GENERIC, f"line {node.lineno}"
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr):
            sides = {getattr(side, "value", ...) for side in (node.left, node.right)}
            assert None not in sides, f"line {node.lineno}"


@pytest.mark.skipif(OLD is None, reason="no Python 3.8 to 3.10 here")
def test_an_old_python_looks_for_every_kind_on_a_device(tmp_path):
    """Of files alone, as on a device: each kind is there or says why it isn't."""
    kinds = [kind for kind in DEVICE_KINDS if KINDS[kind][0] in DEVICE_MODULES]
    bundle = meter_bundle(tmp_path, kinds)
    done = subprocess.run(
        [str(OLD), "-m", "edgebench.meters.sampler", "probe", *kinds],
        cwd=bundle,
        env={"PYTHONPATH": str(bundle), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=True,
    )
    found = json.loads(done.stdout)
    assert {entry["spec"]["kind"] for entry in found} == set(kinds)
    for entry in found:
        error = entry.get("error")
        assert error is None or error["code"] not in {"bad-option", "bad-reading", "io"}, entry
        assert error is None or error["fix"] or entry["spec"]["kind"] not in SYSFS_KINDS, entry


# -- kinds


@pytest.mark.parametrize("kind", KINDS)
def test_a_kind_is_a_class_that_knows_its_name(kind):
    found = meter_class(kind)
    assert issubclass(found, Meter)
    assert found.kind == kind
    assert (FOLDER / f"{KINDS[kind][0]}.py").exists()
    for option in found.options_taken.values():
        assert option.meaning


def test_an_unknown_kind_is_refused_with_those_there_are():
    with pytest.raises(MeterError) as caught:
        make_meter({"kind": "dowsing-rod"})
    assert caught.value.code == "bad-option"
    assert caught.value.fix.startswith("Kinds: nvml, rapl, hwmon")


def test_a_device_gets_the_files_of_its_kinds_and_the_common_ones():
    assert modules_for(["hwmon"]) == [*COMMON_MODULES, "hwmon"]
    assert modules_for(["ina226", "ina219"]) == [*COMMON_MODULES, "ina_i2c"]
    for module in COMMON_MODULES:
        assert (FOLDER / f"{module}.py").exists()


@pytest.mark.parametrize("kind", SYSFS_KINDS)
def test_a_bundle_of_one_kind_is_enough(tmp_path, kind):
    bundle = meter_bundle(tmp_path, [kind])
    spec = {"kind": kind, "scope": "board", "sysfs": str(tmp_path / "none")}
    done = subprocess.run(
        [sys.executable, "-m", "edgebench.meters.sampler", "open"],
        cwd=bundle,
        env={"PYTHONPATH": str(bundle)},
        input=json.dumps([spec]),
        capture_output=True,
        text=True,
        check=True,
    )
    (entry,) = json.loads(done.stdout)
    assert entry["error"]["code"] == "no-device"


# -- options


class Well(Meter):
    """A meter of nothing."""

    kind: ClassVar[str] = "well"
    options_taken: ClassVar[dict[str, Option]] = {
        "depth": Option((int, float), "in metres", required=True),
        "name": Option((str,), "its name"),
        "dry": Option((bool,), "whether it is"),
    }


def test_options_of_the_right_type_are_kept():
    well = Well({"depth": 3, "dry": True}, "rail")
    assert (well.options, well.scope) == ({"depth": 3, "dry": True}, "rail")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"depth": 3, "width": 2}, "a well meter has no key 'width'"),
        ({"depth": "deep"}, "depth of a well meter must be int or float, not 'deep'"),
        ({"depth": True}, "depth of a well meter must be int or float, not True"),
        ({"depth": 3, "dry": 1}, "dry of a well meter must be bool, not 1"),
        ({"name": "x"}, "a well meter needs depth: in metres"),
    ],
)
def test_options_that_do_not_fit_are_refused_in_words(options, words):
    with pytest.raises(MeterError) as caught:
        Well(options, "rail")
    assert (caught.value.code, caught.value.message) == ("bad-option", words)


def test_a_scope_that_only_the_profile_can_know_is_asked_for():
    with pytest.raises(MeterError, match="can't be known"):
        Well({"depth": 3})


# -- what goes into a recording


def test_a_channel_is_what_a_recording_keeps():
    channel = Channel("x", "power", "rail", "y", period_s=0.1, resolution=0.001, lag_s=0.2)
    kept = MeterChannel.model_validate(channel.document())
    assert kept.model_dump() == channel.document()
    assert set(Channel.FIELDS) == set(MeterChannel.model_fields)


def test_an_error_is_what_a_recording_keeps():
    error = MeterError("permission", "no", "ask")
    assert MeterFailure.model_validate(error.document()).message == "no"


# -- small files


def test_the_text_of_a_kernel_file_is_stripped(tmp_path):
    file = tmp_path / "name"
    file.write_bytes(b"raspberrypi,4\0\n")
    assert read_text(str(file)) == "raspberrypi,4"


def test_a_file_that_is_missing_or_no_number_is_named(tmp_path):
    with pytest.raises(MeterError) as caught:
        read_text(str(tmp_path / "none"))
    assert (caught.value.code, "none" in caught.value.message) == ("no-device", True)
    (tmp_path / "text").write_text("abc")
    with pytest.raises(MeterError) as caught:
        read_number(str(tmp_path / "text"))
    assert (caught.value.code, "'abc'" in caught.value.message) == ("bad-reading", True)
    with pytest.raises(MeterError) as caught:
        read_text(str(tmp_path))
    assert caught.value.code == "io"


# -- their pages


@pytest.mark.parametrize("kind", SYSFS_KINDS)
def test_the_table_of_a_page_is_one_that_its_meter_takes(kind):
    page = (DOCS / f"{kind}.md").read_text()
    (block,) = re.findall(r"```toml\n(.*?)```", page, re.DOTALL)
    (table,) = tomllib.loads(block)["meters"]
    assert make_meter(table).kind == kind
    for option in meter_class(kind).options_taken:
        assert f"| `{option}` |" in page
    assert "**Never run on the real thing.**" in page
