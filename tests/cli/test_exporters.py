"""``edgebench exporters``: which families there are."""

from __future__ import annotations

import json

from typer.testing import CliRunner

from edgebench.cli.main import app
from edgebench.quantize import SCHEMES


def test_the_families_are_listed_for_machines_and_for_people():
    said = CliRunner().invoke(app, ["exporters", "--json"])
    families = {family["name"]: family for family in json.loads(said.stdout)}
    assert families["himalaya"]["lowerings"] == ["unmerged"]
    assert "merged" in families["sat_lora"]["lowerings"]
    assert families["lilac"]["schemes"] == list(SCHEMES)
    for generic in ("dictionary", "representation_edit"):
        assert families[generic]["summary"].startswith("generic: ")
    table = CliRunner().invoke(app, ["exporters"])
    assert table.exit_code == 0
    assert "HIMALAYA" in table.stdout
