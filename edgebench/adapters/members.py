"""What stands in a family's ``adapter_config.json`` beside ``peft_type``, and its validation.

A family is a table of members: name -> ``Integer``, ``Number``, ``Choice``, ``Flag`` or ``Roles``.
Reading is torch-free. Members that PEFT itself writes (``task_type``, ``base_model_name_or_path``,
...) are everyone's; any other that the table lacks is an error that guesses what was meant.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from edgebench.adapters.sites import ROLES
from edgebench.errors import CheckpointError

#: Members that every adapter may have.
COMMON = frozenset(
    {
        "peft_type",
        "task_type",
        "base_model_name_or_path",
        "inference_mode",
        "modules_to_save",
        "peft_version",
        "revision",
    }
)


@dataclass(frozen=True)
class Integer:
    """A whole number from ``low`` to ``high``."""

    low: int
    high: int
    default: int | None = None

    def check(self, value: Any) -> str | None:
        if isinstance(value, bool) or not isinstance(value, int):
            return "is not a whole number"
        return None if self.low <= value <= self.high else f"is not in {self.low}..{self.high}"


@dataclass(frozen=True)
class Number:
    """A finite number greater than ``above``."""

    above: float = 0.0
    default: float | None = None

    def check(self, value: Any) -> str | None:
        if isinstance(value, bool) or not isinstance(value, int | float):
            return "is not a number"
        return None if self.above < value < float("inf") else f"is not a number above {self.above}"


@dataclass(frozen=True)
class Choice:
    """One of a few words."""

    words: tuple[str, ...]
    default: str | None = None

    def check(self, value: Any) -> str | None:
        return None if value in self.words else f"is not one of {', '.join(self.words)}"


@dataclass(frozen=True)
class Flag:
    """True or false."""

    default: bool | None = None

    def check(self, value: Any) -> str | None:
        return None if isinstance(value, bool) else "is not true or false"


@dataclass(frozen=True)
class Roles:
    """A list of roles, each once (``edgebench.adapters.sites.ROLES``)."""

    allowed: tuple[str, ...] = ROLES
    default: None = None

    def check(self, value: Any) -> str | None:
        if not isinstance(value, list) or not value:
            return "is not a list of roles"
        if set(value) - set(self.allowed) or len(set(value)) != len(value):
            return f"is not a list of some of {', '.join(self.allowed)}, each once"
        return None


Member = Integer | Number | Choice | Flag | Roles


def read(config: Mapping[str, Any], table: Mapping[str, Member], where: str) -> dict[str, Any]:
    """The members of a table from a configuration, with defaults for what may be left out.

    Raises:
        CheckpointError: one is missing, unknown, or has a value that it can't have.
    """
    for name in sorted(set(config) - set(table) - COMMON):
        near = difflib.get_close_matches(name, table, n=1)
        raise CheckpointError(
            f"adapter_config.json has a member {name!r} that this family does not know",
            where=where,
            fix=f"Did you mean {near[0]}?" if near else f"Known: {', '.join(sorted(table))}.",
        )
    values = {}
    for name, member in table.items():
        value = config.get(name, member.default)
        if value is None:
            raise CheckpointError(
                f"adapter_config.json lacks the member {name!r}",
                where=where,
                fix="Save the adapter again.",
            )
        if problem := member.check(value):
            raise CheckpointError(
                f"adapter_config.json: {name} = {value!r} {problem}",
                where=where,
                fix="Correct it, or save the adapter again.",
            )
        values[name] = value
    return values
