"""What holds for every test."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from unittest import mock

import pytest
from hypothesis import settings

# A shell that starts the tests in the background lets them ignore SIGINT, and what is ignored stays
# ignored in every child: then no Ctrl-C could be tested. With a handler here, children begin anew.
signal.signal(signal.SIGINT, signal.default_int_handler)

# A busy machine is no failure of a property.
settings.register_profile("edgebench", deadline=None)
settings.load_profile("edgebench")

#: What takes longest, longest first: begun last, one of two workers would wait for it.
SLOW = (
    "tests/standin/",
    "tests/faults/test_standin.py",
    "tests/benchmarks/",
    "tests/faults/",
    "tests/test_package.py",
    "tests/export/",
    "tests/exporters/",
    "tests/native/",
    "tests/measure/",
    "tests/quantize/",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    def rank(item: pytest.Item) -> int:
        return next((n for n, start in enumerate(SLOW) if item.nodeid.startswith(start)), len(SLOW))

    items.sort(key=rank)  # stable: the order within a file stays


@pytest.fixture(autouse=True)
def _compilers_stay() -> Iterator[None]:
    """A test that makes a BOFT adapter leaves peft's ``CC=gcc CXX=gcc``: not to those after it."""
    with mock.patch.dict(os.environ):
        yield
