"""The names that a surrogate goes by: its inputs, its heads, and the columns they come from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from edgebench.errors import InputError

#: The statistics vector s of a forward pass (`edgebench.artifact.Statistics`), in this order.
STATISTICS = ("seq_len", "kept_layers", "kept_heads", "kept_ranks", "param_bits")

#: The heads of a surrogate, in the order of its predictions.
METRICS = ("energy_j", "latency_ms", "power_w")

#: Head -> the columns it may be read from, the first that a table has.
TARGETS: dict[str, tuple[str, ...]] = {
    "energy_j": ("energy_j", "energy_per_inference_j"),
    "latency_ms": ("latency_ms", "latency_p50_ms"),
    "power_w": ("power_w", "power_peak_w"),
}

DEVICE = "device"


def check_metrics(names: Sequence[str]) -> tuple[str, ...]:
    """Heads in their fixed order.

    Raises:
        InputError: one is not a head that a surrogate can have.
    """
    unknown = sorted(set(names) - set(METRICS))
    if unknown:
        raise InputError(
            f"a surrogate has no head {', '.join(unknown)}",
            fix=f"Its heads are {', '.join(METRICS)}.",
        )
    return tuple(name for name in METRICS if name in names)


def target_columns(have: Sequence[str], given: Mapping[str, str], where: str) -> dict[str, str]:
    """Head -> column of a table, for the heads that the table has.

    Args:
        have: the table's columns.
        given: head -> column, where it is not one of ``TARGETS``.

    Raises:
        InputError: a named column is not there, or none is.
    """
    check_metrics(tuple(given))
    for head, column in given.items():
        if column not in have:
            raise InputError(
                f"the table has no column {column!r} for {head}",
                where=where,
                fix=f"It has {', '.join(have)}.",
            )
    found = dict(given)
    for head in METRICS:
        known = next((c for c in TARGETS[head] if c in have), None)
        if head not in found and known is not None:
            found[head] = known
    if not found:
        wanted = ", ".join(c for each in TARGETS.values() for c in each)
        raise InputError(
            "the table has no latency, energy or power",
            where=where,
            fix=f"A column must be one of {wanted}, or be named with --target HEAD=COLUMN.",
        )
    return {head: found[head] for head in METRICS if head in found}
