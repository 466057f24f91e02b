"""Tiny decoders and their adapters, written once a session."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.export.decoder import tiny
from tests.fixtures_export import require


@pytest.fixture(scope="session")
def decoders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    require("torch", "transformers", "peft")
    return tmp_path_factory.mktemp("decoders")


@pytest.fixture(scope="session")
def llama(decoders: Path) -> Path:
    """In several files."""
    return tiny.write_llama(decoders / "llama", shards=True)


@pytest.fixture(scope="session")
def adapter(decoders: Path, llama: Path) -> Path:
    return tiny.write_adapter(llama, decoders / "adapter")
