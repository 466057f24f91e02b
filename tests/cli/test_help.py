"""``--help``: understandable, and quick because it imports nothing heavy."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from edgebench.cli.main import app
from tests.measure.bench import REPOSITORY

HEAVY = ("torch", "transformers", "pandas", "numpy", "onnxruntime", "scipy", "pydantic", "pyarrow")
HEAVY += ("onnx", "asyncssh", "peft")
COMMANDS = sorted(command.name for command in app.registered_commands)


def python(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "COLUMNS": "100"}
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


#: Runs the command line, then says on stderr what has been imported.
TOLD = """
import json, sys
from edgebench.cli.main import main
try:
    main()
except SystemExit as done:
    print(json.dumps({"code": done.code, "modules": sorted(sys.modules)}), file=sys.stderr)
"""


def test_these_are_the_commands():
    assert {"devices", "doctor", "export", "resume", "run", "table"} <= set(COMMANDS)


def imported(told: dict) -> set[str]:
    return {name.split(".")[0] for name in told["modules"]} & set(HEAVY)


def test_help_is_printed_without_any_heavy_import():
    done = python(TOLD, "--help")
    told = json.loads(done.stderr.splitlines()[-1])
    assert told["code"] == 0
    assert done.stdout.startswith("Usage: edgebench ")
    assert imported(told) == set()


@pytest.mark.parametrize("name", COMMANDS)
def test_help_of_a_command_imports_what_typer_needs_alone(name):
    done = python(TOLD, name, "--help")
    told = json.loads(done.stderr.splitlines()[-1])
    assert told["code"] == 0
    assert done.stdout.startswith(f"Usage: edgebench {name} ")
    # Typer itself takes pydantic to look at a command's parameters.
    assert imported(told) <= {"pydantic"}


@pytest.mark.parametrize("name", COMMANDS)
def test_help_describes_the_command_and_every_option(name):
    text = python(TOLD, name, "--help").stdout
    summary = text.split("\n\n")[1]
    assert len(summary.split()) >= 4
    lines = text.split("Options:")[1].splitlines()
    options = [i for i, line in enumerate(lines) if line.strip().startswith("-")]
    assert options
    for i in options:
        # Its description stands beside the option, or below it where the option is long.
        described = len(lines[i].strip().split("  ")) > 1 or (
            i + 1 < len(lines) and lines[i + 1].startswith(" " * 20)
        )
        assert described, lines[i]


def test_help_names_every_exit_code():
    from tests.cli.test_exit_codes import CODES

    text = " ".join(python(TOLD, "--help").stdout.split())
    for code in CODES:
        assert f" {code} " in text.split("Exit codes:")[1]


def test_no_command_prints_help_and_fails():
    done = python(TOLD)
    assert "Usage: edgebench" in done.stdout + done.stderr
    assert json.loads(done.stderr.splitlines()[-1])["code"] == 2


def test_version():
    import edgebench

    assert python(TOLD, "--version").stdout == f"edgebench {edgebench.__version__}\n"


def test_importing_the_package_imports_nothing_heavy():
    done = python("import sys, json, edgebench; print(json.dumps(sorted(sys.modules)))")
    assert {name.split(".")[0] for name in json.loads(done.stdout)} & set(HEAVY) == set()
