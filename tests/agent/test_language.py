"""The agent runs on Python 3.8 with the standard library, numpy and onnxruntime."""

from __future__ import annotations

import ast
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.agent.agents import AGENT, ServingAgent, null_plan

TREE = ast.parse(AGENT.read_text())

#: Names of the standard library that Python 3.8 has not (the "What's New" pages of 3.9 to 3.13).
NEWER = {
    *("removeprefix", "removesuffix", "randbytes", "file_digest", "to_thread", "pairwise"),
    *("batched", "lcm", "nextafter", "ulp", "bit_count", "is_relative_to", "readlink_to"),
    *("hardlink_to", "walk_up", "pidfd_open", "waitstatus_to_exitcode", "UTC", "StrEnum"),
    *(
        "ExceptionGroup",
        "BaseExceptionGroup",
        "TaskGroup",
        "aclosing",
        "chdir",
        "process_cpu_count",
    ),
    *("tomllib", "zoneinfo", "graphlib", "anext", "aiter", "cancel_futures", "encoding_warning"),
}
#: Keyword arguments that came later.
NEWER_KEYWORDS = {"strict", "slots", "kw_only", "missing_ok", "process_group", "umask", "pipesize"}
#: Types that can be subscripted since 3.9, outside annotations.
GENERIC = {"dict", "list", "tuple", "set", "frozenset", "type", "deque", "Queue", "Popen"}


def test_it_is_written_in_the_language_of_python_3_8():
    ast.parse(AGENT.read_text(), feature_version=(3, 8))


def test_it_imports_the_standard_library_numpy_and_onnxruntime_alone():
    found = set()
    for node in ast.walk(TREE):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0
            found.add(node.module.split(".")[0])
    # edgebench.runtimes travels beside the agent, where a profile asks for PyTorch.
    assert found - set(sys.stdlib_module_names) == {"numpy", "onnxruntime", "edgebench"}


def test_it_uses_nothing_newer_at_run_time():
    names = {node.attr for node in ast.walk(TREE) if isinstance(node, ast.Attribute)}
    names |= {node.id for node in ast.walk(TREE) if isinstance(node, ast.Name)}
    assert not names & NEWER
    keywords = {
        word.arg for node in ast.walk(TREE) if isinstance(node, ast.Call) for word in node.keywords
    }
    assert not keywords & NEWER_KEYWORDS


def test_new_forms_of_types_stand_in_annotations_only():
    annotations = set()
    for node in ast.walk(TREE):
        for name in ("annotation", "returns"):
            part = getattr(node, name, None)
            if isinstance(part, ast.AST):
                annotations |= {id(each) for each in ast.walk(part)}
    for node in ast.walk(TREE):
        if isinstance(node, ast.If) and getattr(node.test, "id", "") == "TYPE_CHECKING":
            annotations |= {id(each) for each in ast.walk(node)}
    for node in ast.walk(TREE):
        if isinstance(node, ast.Subscript) and id(node) not in annotations:
            value = node.value
            name = getattr(value, "id", getattr(value, "attr", ""))
            assert name not in GENERIC, f"line {node.lineno}"
            both = [getattr(side, "id", "") for side in ast.walk(node.slice)]
            assert "None" not in both


def old_python() -> str | None:
    """A Python 3.8 to 3.10 that starts: named by EDGEBENCH_OLD_PYTHON, or on the path."""
    names = [os.environ.get("EDGEBENCH_OLD_PYTHON"), "python3.8", "python3.9", "python3.10"]
    names += sorted(map(str, Path.home().glob(".pyenv/versions/3.[89].*/bin/python3")))
    for name in names:
        path = shutil.which(name) if name else None
        if path and subprocess.run([path, "-c", ""], stderr=subprocess.DEVNULL).returncode == 0:
            return path
    return None


OLD = old_python()
needs_old = pytest.mark.skipif(
    OLD is None, reason="no Python 3.8 to 3.10 on the path, and EDGEBENCH_OLD_PYTHON names none"
)


@pytest.fixture(scope="module")
def old(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The old Python with the newest ONNX Runtime that exists for it, in an environment of its own.

    One that EDGEBENCH_OLD_PYTHON names is taken as it is.
    """
    if os.environ.get("EDGEBENCH_OLD_PYTHON") == OLD:
        return OLD
    home = tmp_path_factory.mktemp("old-python")
    subprocess.run([OLD, "-m", "venv", str(home)], check=True)
    python = str(home / "bin/python")
    install = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*install, "onnxruntime"], check=True)
    return python


@needs_old
def test_an_old_python_serves(serving, old):
    served: ServingAgent = serving(python=old)
    hello = served.request("hello")
    assert hello["versions"]["python"] in subprocess.check_output([old, "-V"], text=True)
    assert {"numpy", "onnxruntime"} <= hello["versions"].keys()
    assert served.request("state")["state"]["cpu_ticks"]["total"] > 0
    assert served.close() == 0


@needs_old
def test_an_old_python_runs_a_model(serving, old, tmp_path):
    from tests.agent.agents import onnx_entry, onnx_runtime
    from tests.tiny import tiny_artifact

    served: ServingAgent = serving(python=old)
    assert "CPUExecutionProvider" in served.request("provider")["runtime"]["providers"]
    plan = null_plan(onnx_entry(tiny_artifact(tmp_path)), runtime=onnx_runtime(), accuracy="all")
    served.start(plan)
    result = served.result(plan["id"])
    assert [solo["outcome"] for solo in result["solo"]] == ["ok"], json.dumps(result)
    assert [launch["outcome"] for launch in result["launches"]] == ["ok"], json.dumps(result)
    assert result["solo"][0]["accuracy"]["correct"] == 36
