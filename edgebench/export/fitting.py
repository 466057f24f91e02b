"""Whether an adapter fits a base, from the shapes in their files alone."""

from __future__ import annotations

from collections.abc import Iterable

from edgebench.errors import CheckpointError
from edgebench.export.base import BaseModel
from edgebench.export.checkpoint import AdapterCheckpoint

_FIX = "Give its own base with --base, or check the path."


def check_linear_shapes(
    adapter: AdapterCheckpoint,
    base: BaseModel,
    changed: Iterable[tuple[str, int, int]],
    *,
    transposed: bool = False,
) -> None:
    """Compare every change of a linear module with the weight that it changes.

    Args:
        changed: module, d_in and d_out of each.
        transposed: whether a weight may be stored [d_in, d_out], as GPT-2's Conv1D does.

    Raises:
        CheckpointError: the base lacks a module, or has it in another size.
    """
    where = _where(adapter)
    found = [(module, d_in, d_out, base_weight(base, module)) for module, d_in, d_out in changed]
    wrong = [
        (module, d_in, d_out, weight)
        for module, d_in, d_out, weight in found
        if weight is not None
        and weight != (d_out, d_in)
        and not (transposed and weight == (d_in, d_out))
    ]
    for _, d_in, _, weight in wrong:
        if weight[-1] == base.hidden_size != d_in:
            raise CheckpointError(
                f"the adapter expects hidden size {d_in}, the base has {base.hidden_size}",
                where=where,
                fix=_FIX,
            )
    for module, d_in, d_out, weight in wrong:
        raise CheckpointError(
            f"the adapter's factors on {module} are for a {d_out} x {d_in} weight, "
            f"the base's is {' x '.join(map(str, weight))}",
            where=where,
            fix=_FIX,
        )
    check_present(adapter, base, [module for module, _, _, _ in found])


def check_present(adapter: AdapterCheckpoint, base: BaseModel, modules: Iterable[str]) -> None:
    """Look for every module that an adapter changes.

    Raises:
        CheckpointError: the base lacks one.
    """
    missing = [module for module in modules if base_weight(base, module) is None]
    if missing:
        raise CheckpointError(
            f"the adapter changes {missing[0]}, which the base does not have"
            + (f" (and {len(missing) - 1} more)" if len(missing) > 1 else ""),
            where=_where(adapter),
            fix=_FIX,
        )


def _where(adapter: AdapterCheckpoint) -> str:
    return f'adapter_config.json: base_model "{adapter.base_name}"'


def base_weight(base: BaseModel, module: str) -> tuple[int, ...] | None:
    """The shape of a module's weight in the base's file.

    A checkpoint of the bare encoder stores ``encoder.…`` for what the model with a head calls
    ``bert.encoder.…``, and the other way round.
    """
    names = [f"{module}.weight", f"{module.partition('.')[2]}.weight"]
    names.append(f"{base.config.get('base_model_prefix', base.architecture)}.{module}.weight")
    for name in names:
        if name in base.shapes:
            return base.shapes[name].shape
    suffix = f".{names[0]}"
    return next((t.shape for n, t in base.shapes.items() if n.endswith(suffix)), None)
