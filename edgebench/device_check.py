"""What is wrong with a profile, said in one sentence that names the key and the mend.

Two steps: the document's keys and strings are looked at first (unknown keys with a guess, secrets,
NUL bytes, infinities), file by file; then pydantic validates the merged whole, and its first
finding is put into words here.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from edgebench.device_spec import (
    TRANSPORTS,
    AgentSpec,
    Expects,
    Limits,
    Profile,
    RuntimeSpec,
)
from edgebench.errors import ProfileError

Model = TypeVar("Model", bound=BaseModel)

_SECRETS = {"password", "passwd", "passphrase", "pass", "secret", "token"}
_TABLES: dict[str, type[BaseModel]] = {
    "expects": Expects,
    "runtime": RuntimeSpec,
    "limits": Limits,
    "agent": AgentSpec,
}


def closest(word: str, known: Iterable[str]) -> str | None:
    """The known word that was probably meant, or None."""
    matches = get_close_matches(word, list(known), n=1, cutoff=0.6)
    return matches[0] if matches else None


def check_document(document: Mapping[str, Any], path: Path, *, kinds: Mapping[str, Any]) -> None:
    """Check the keys and strings of one profile file, without its defaults and base.

    Args:
        document: the file, as TOML gave it, without ``extends``.
        path: the file, for the message.
        kinds: the merged document: says of which kind the transport is.

    Raises:
        ProfileError: an unknown key, a secret, a NUL byte, or a number that is not finite.
    """
    for place, value in _walk(document, ()):
        _check_value(place, value, path)
    _check_keys("", document, Profile, path)
    for table, model in _TABLES.items():
        if isinstance(document.get(table), dict):
            _check_keys(table, document[table], model, path)
    transport = document.get("transport")
    if isinstance(transport, dict):
        merged = kinds.get("transport")
        kind = merged.get("kind") if isinstance(merged, dict) else None
        _check_transport(transport, kind, path)


def validated(model: type[Model], document: Mapping[str, Any], path: Path) -> Model:
    """The document as a model, or a ProfileError that says the first thing wrong with it."""
    try:
        return model.model_validate(document)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
    key = _key(first["loc"])
    what, fix = _words(key, first)
    raise ProfileError(what, where=str(path), fix=fix or f"Correct {key} in this file.")


def _walk(value: Any, place: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Any]]:
    yield place, value
    if isinstance(value, dict):
        for key, below in value.items():
            yield from _walk(below, (*place, key))
    elif isinstance(value, list):
        for index, below in enumerate(value):
            yield from _walk(below, (*place, str(index + 1)))


def _check_value(place: tuple[str, ...], value: Any, path: Path) -> None:
    key = ".".join(place)
    if place and place[-1].lower().replace("-", "_") in _SECRETS:
        raise ProfileError(
            f"`{key}`: profiles hold no passwords or other secrets",
            where=str(path),
            fix="Remove it, and log in with an SSH key (ssh-copy-id) or an agent.",
        )
    if "\0" in key or (isinstance(value, str) and "\0" in value):
        raise ProfileError(
            f"`{key.replace(chr(0), '?')}` has a NUL character, which no device can be told",
            where=str(path),
            fix="Remove it.",
        )
    if isinstance(value, float) and not math.isfinite(value):
        raise ProfileError(
            f"`{key}` is {value}, not a finite number", where=str(path), fix="Write a number."
        )


def _check_keys(
    table: str, document: Mapping[str, Any], model: type[BaseModel], path: Path
) -> None:
    known = list(model.model_fields)
    if not table:
        known.append("extends")
    for key in document:
        if key not in known:
            raise _unknown(table, key, known, path)


def _check_transport(transport: Mapping[str, Any], kind: Any, path: Path) -> None:
    if kind is None:
        raise ProfileError(
            "`transport` does not say of which kind it is",
            where=str(path),
            fix='Write transport = { kind = "ssh", host = "..." }, or kind = "local".',
        )
    if not isinstance(kind, str) or kind not in TRANSPORTS:
        guess = closest(str(kind), TRANSPORTS)
        raise ProfileError(
            f"`transport.kind` is {kind!r}; it can be {_either(TRANSPORTS)}",
            where=str(path),
            fix=f'Did you mean "{guess}"?' if guess else "Choose one of these.",
        )
    fields = TRANSPORTS[kind].model_fields
    for key in transport:
        if key in fields:
            continue
        for other, model in TRANSPORTS.items():
            if key in model.model_fields:
                raise ProfileError(
                    f"`transport.{key}` belongs to a transport of kind {other!r}, this is {kind!r}",
                    where=str(path),
                    fix=f'Remove it, or write kind = "{other}".',
                )
        raise _unknown("transport", key, fields, path)


def _unknown(table: str, key: str, known: Iterable[str], path: Path) -> ProfileError:
    known = list(known)
    guess = closest(key, known)
    prefix = f"{table}." if table else ""
    elsewhere = [name for name, model in _tables() if key in model.model_fields]
    if guess:
        fix = f"Did you mean `{guess}`?"
    elif elsewhere and not table:
        fix = f"It belongs into the table [{elsewhere[0]}]."
    else:
        fix = f"Known keys there: {', '.join(sorted(known))}."
    return ProfileError(f"unknown key `{prefix}{key}`", where=str(path), fix=fix)


def _tables() -> Iterator[tuple[str, type[BaseModel]]]:
    yield from _TABLES.items()
    for model in TRANSPORTS.values():
        yield "transport", model


def _key(location: tuple[int | str, ...]) -> str:
    """``("transport", "ssh", "port")`` -> ``transport.port``; list places count from one."""
    parts = list(location)
    if len(parts) > 1 and parts[0] == "transport" and parts[1] in TRANSPORTS:
        del parts[1]
    if parts[:2] == ["runtime", "options"]:  # below, pydantic names the tried types too
        del parts[3:]
    return ".".join(str(part + 1) if isinstance(part, int) else part for part in parts)


_TYPES = {
    "string_type": ("a text", 'Write it in quotes: {key} = "...".'),
    "int_type": ("a whole number", "Write it without quotes and without a point."),
    "int_from_float": ("a whole number", "Write it without a point."),
    "float_type": ("a number", "Write it without quotes."),
    "bool_type": ("true or false", "Write true or false, without quotes."),
    "tuple_type": ("a list", "Write each as its own [[{key}]] table."),
    "dict_type": ("a table", "Write it as {key} = {{ ... }}."),
    "model_type": ("a table", "Write it as {key} = {{ ... }}."),
    "model_attributes_type": ("a table", "Write it as {key} = {{ ... }}."),
}
_BOUNDS = {
    "greater_than": "more than {gt}",
    "greater_than_equal": "{ge} or more",
    "less_than": "less than {lt}",
    "less_than_equal": "{le} or less",
}


def _words(key: str, error: ErrorDetails) -> tuple[str, str]:
    """What is wrong, and what to do (or "" for the general advice)."""
    kind = error["type"]
    value = error["input"]
    context: Mapping[str, Any] = error.get("ctx", {})
    leaf = key.rsplit(".", 1)[-1]
    what, fix = f"`{key}`: {error['msg']}", ""
    if key.startswith("runtime.options."):
        what = f"`{key}` must be a text, a number, true or false, not {value!r}"
    elif kind == "missing":
        what, fix = f"`{key}` is missing", f"Add a line: {_EXAMPLES.get(key, f'{leaf} = ...')}"
    elif kind in _TYPES:
        expected, fix = _TYPES[kind]
        what, fix = f"`{key}` must be {expected}, not {value!r}", fix.format(key=leaf)
    elif kind in _BOUNDS:
        what = f"`{key}` must be {_BOUNDS[kind].format(**context)}, not {value!r}"
    elif kind == "literal_error":
        what, fix = f"`{key}` is {value!r}; it can be {context['expected']}", "Choose one of these."
    elif kind == "string_too_short":
        what, fix = f"`{key}` is empty", "Say something, or leave the key out."
    elif kind in ("string_pattern_mismatch", "string_too_long"):
        what = f"`{key}` must be small letters, digits and hyphens (at most 64), not {value!r}"
    elif kind == "value_error":
        of_a_table = isinstance(value, (dict, BaseModel))
        what = f"`{key}` {context['error']}" + ("" if of_a_table else f", not {value!r}")
    return what, fix


_EXAMPLES = {
    "name": 'name = "My board"',
    "transport": 'transport = { kind = "local" }',
    "transport.host": 'host = "pi4.local"',
}


def _either(words: Iterable[str]) -> str:
    quoted = [f'"{word}"' for word in words]
    return ", ".join(quoted[:-1]) + " or " + quoted[-1]
