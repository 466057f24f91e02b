"""The exit codes are documented, stable, and those of the error tree."""

from __future__ import annotations

import re

from edgebench import errors
from tests.measure.bench import REPOSITORY

PAGE = (REPOSITORY / "docs" / "exit-codes.md").read_text()

#: Stable: scripts rely on them. An error class may be added below one of these; none may move.
CODES = {0, 1, 2, 3, 4, 5, 6, 7, 130}


def classes() -> list[type[errors.EdgebenchError]]:
    found = [each for each in vars(errors).values() if isinstance(each, type)]
    return [each for each in found if issubclass(each, errors.EdgebenchError)]


def table() -> dict[int, str]:
    rows = re.findall(r"^\| (\d+) \| (.*?) \|$", PAGE, re.MULTILINE)
    assert len({code for code, _ in rows}) == len(rows)
    return {int(code): rest for code, rest in rows}


def test_the_page_has_every_code_once():
    assert set(table()) == CODES | {errors.EdgebenchError.exit_code}


def test_the_page_names_every_error_beside_its_code():
    rows = table()
    for each in classes():
        assert f"`{each.__name__}`" in rows[each.exit_code], each
        others = [text for code, text in rows.items() if code != each.exit_code]
        assert not any(f"`{each.__name__}`" in text for text in others), each


def test_every_error_has_a_documented_code():
    specific = [each for each in classes() if each is not errors.EdgebenchError]
    assert {each.exit_code for each in specific} <= CODES - {0, 1}
    documented = {int(code) for code in re.findall(r"^    (\d+)  ", errors.__doc__, re.MULTILINE)}
    assert documented == CODES


def test_an_error_reads_as_one_sentence_with_place_and_remedy():
    error = errors.InputError("it is broken", where="a/file", fix="Mend it.")
    assert str(error) == "it is broken (a/file). Mend it."
    assert str(errors.InputError("is it broken?")) == "is it broken?"
