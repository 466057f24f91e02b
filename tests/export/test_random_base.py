"""A base of random weights says so in the manifest."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from edgebench.export.base import BaseModel
from edgebench.export.plan import base_entry


@pytest.mark.parametrize(("marked", "name"), [(True, "b (random weights)"), (False, "b")])
def test_a_base_of_random_weights_is_named_so(marked, name):
    config = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    if marked:
        config["edgebench_random_weights"] = True
    base = BaseModel("b", Path("b"), config, {}, (), "sha256:0")
    assert base_entry(SimpleNamespace(base=base)).name == name
