"""A disk that fills up while a decoder is written."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgebench.errors import StorageError
from edgebench.export import ExportRequest, export
from tests.export.conftest import left_in
from tests.export.test_storage import small_disk

__all__ = ["small_disk"]


# The tiny decoder's weights take 282 KiB in fp32: the first disk is full while they are written,
# the second while those of the next scheme are.
@pytest.mark.parametrize("small_disk", [120, 340], indirect=True)
def test_a_full_disk_ends_in_one_sentence_and_leaves_nothing(small_disk: Path, llama: Path) -> None:
    request = ExportRequest(
        base=str(llama), seq_len=16, out=small_disk, quants=("fp32", "fp16", "int3")
    )
    with pytest.raises(StorageError, match="disk is full") as caught:
        export(request)
    assert caught.value.exit_code == 5
    assert str(small_disk) in str(caught.value)
    assert left_in(small_disk) == []
