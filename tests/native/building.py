"""Builds of ``native/`` for the tests: the real CMake project with the real compiler."""

import atexit
import functools
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest

SOURCE = Path(__file__).resolve().parents[2] / "native"


def needs(*programs):
    """Skip where a program is missing, and say which."""
    missing = [program for program in programs if shutil.which(program) is None]
    if missing:
        pytest.skip(f"not installed: {', '.join(missing)}")


def _succeed(*command):
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@functools.cache
def _configured(options):
    folder = Path(tempfile.mkdtemp(prefix="edgebench-native-"))
    atexit.register(shutil.rmtree, folder)
    _succeed("cmake", "-S", SOURCE, "-B", folder, *options)
    return folder


@functools.cache
def _built(target, options):
    folder = _configured(options)
    _succeed("cmake", "--build", folder, "--target", target, "-j", "2")
    return folder


def build(target, *options):
    """The build folder in which a target has been made, once a run of the tests."""
    needs("cmake", os.environ.get("CXX", "c++"))
    return _built(target, options)


def library():
    """The library of custom ops, built for this machine."""
    return build("edgebench_ops") / "libedgebench_ops.so"
