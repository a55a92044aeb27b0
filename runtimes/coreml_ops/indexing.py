"""Operators that read and write at indices, and those that make indices."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from runtimes.coreml_ops.call import ArgumentError, Call, Operator


def _gather(call: Call) -> Tensor:
    x, indices = call.tensor(), call.tensor("indices").long()
    batch, axis = call.integer("batch_dims", 0), call.axis("axis", x.dim(), 0)
    if not batch <= axis or batch > indices.dim():
        raise ArgumentError(f"it has {batch} batch dimensions and axis {axis}")
    lead = x.shape[:batch]
    count = lead.numel()
    between = axis - batch  # axes that stand before those of the indices in the output
    moved = x.movedim(axis, batch)
    rest = moved.shape[batch + 1 :]
    flat = moved.reshape(count, moved.shape[batch], *rest)
    picked = flat[torch.arange(count).unsqueeze(1), indices.reshape(count, -1)]
    inner = indices.shape[batch:]
    y = picked.reshape(*lead, *inner, *rest)
    start = batch + len(inner)
    return y.movedim(tuple(range(start, start + between)), tuple(range(batch, batch + between)))


def _gather_along_axis(call: Call) -> Tensor:
    x = call.tensor()
    axis = call.axis("axis", x.dim(), 0)
    return torch.gather(x, axis, _from_start(call.tensor("indices"), x.shape[axis]))


def _gather_nd(call: Call) -> Tensor:
    return _pick(call.tensor(), call.tensor("indices"), call.integer("batch_dims", 0))


def _pick(x: Tensor, indices: Tensor, batch: int = 0) -> Tensor:
    """Index the first axes of ``x``, after those of the batch, by the last axis of ``indices``."""
    lead = x.shape[:batch]
    flat = x.reshape(lead.numel(), *x.shape[batch:])
    deep = indices.shape[-1]
    each = indices.long().reshape(lead.numel(), -1, deep)
    rows = torch.arange(lead.numel()).unsqueeze(1).expand(each.shape[:2])
    picked = flat[(rows, *each.unbind(-1))]
    return picked.reshape(*indices.shape[:-1], *x.shape[batch + deep :])


def _from_start(indices: Tensor, size: int) -> Tensor:
    """Count negative indices from the start.

    Raises:
        IndexError: one lies outside.
    """
    indices = indices.long()
    indices = torch.where(indices < 0, indices + size, indices)
    if indices.numel() and (int(indices.min()) < 0 or int(indices.max()) >= size):
        raise IndexError(f"it reads outside of {size} values")
    return indices


# ---- writing ----------------------------------------------------------------------------------

_REDUCED = {"mul": "prod", "div": "prod", "max": "amax", "min": "amin", "add": "sum", "sub": "sum"}


def _scatter(places: Callable[[Call, Tensor], Tensor]) -> Operator:
    """Write updates to places, counted along the memory of the data."""

    def scatter(call: Call) -> Tensor:
        data, updates, mode = call.tensor("data"), call.tensor("updates"), call.text("mode", "add")
        order = torch.arange(data.numel()).reshape(data.shape)
        at = places(call, order)
        if at.shape != updates.shape:
            raise ArgumentError(f"it writes {list(updates.shape)} to {list(at.shape)}")
        flat, at, updates = data.reshape(-1), at.reshape(-1), updates.reshape(-1)
        if mode == "update":
            found = flat.clone()
            found[at] = updates
        elif mode in _REDUCED:
            found = _reduced(flat, at, updates, mode)
        else:
            raise ArgumentError(f"it has mode {mode!r}, which is not known")
        return found.reshape(data.shape)

    return scatter


def _reduced(flat: Tensor, at: Tensor, updates: Tensor, mode: str) -> Tensor:
    if mode == "div":
        divisor = torch.ones_like(flat).scatter_reduce(0, at, updates, "prod")
        return torch.div(flat, divisor, rounding_mode=None if flat.is_floating_point() else "trunc")
    return flat.scatter_reduce(0, at, -updates if mode == "sub" else updates, _REDUCED[mode])


def _places_along_one(call: Call, order: Tensor) -> Tensor:
    axis = call.axis("axis", order.dim(), 0)
    indices = call.tensor("indices")
    places = order.index_select(axis, _from_start(indices, order.shape[axis]).reshape(-1))
    return places.reshape(*order.shape[:axis], *indices.shape, *order.shape[axis + 1 :])


def _places_along_axis(call: Call, order: Tensor) -> Tensor:
    axis = call.axis("axis", order.dim(), 0)
    return order.gather(axis, _from_start(call.tensor("indices"), order.shape[axis]))


def _places_at(call: Call, order: Tensor) -> Tensor:
    return _pick(order, call.tensor("indices"))


# ---- making indices ---------------------------------------------------------------------------


def _one_hot(call: Call) -> Tensor:
    indices = call.tensor("indices")
    axis = call.axis("axis", indices.dim() + 1, -1)
    size = call.integer("one_hot_vector_size")
    hot = indices.unsqueeze(-1) == torch.arange(size)
    on = call.tensor("on_value") if call.has("on_value") else torch.tensor(1, dtype=torch.int32)
    off = call.tensor("off_value") if call.has("off_value") else torch.zeros_like(on)
    return torch.where(hot, on, off).movedim(-1, axis)


def _topk(call: Call) -> Tensor | tuple[Tensor, ...]:
    x = call.tensor()
    axis, count = call.axis("axis", x.dim(), -1), call.integer("k", 1)
    values, indices = torch.sort(x, dim=axis, descending=not call.flag("ascending"), stable=True)
    count = x.shape[axis] if count == -1 else count
    values, indices = (each.narrow(axis, 0, count) for each in (values, indices))
    return (values, indices.int()) if call.flag("return_indices", True) else values


def _argsort(call: Call) -> Tensor:
    x = call.tensor()
    axis, descending = call.axis("axis", x.dim(), -1), not call.flag("ascending")
    return torch.argsort(x, dim=axis, descending=descending, stable=True).int()


def _non_zero(call: Call) -> Tensor:
    return call.tensor().nonzero().int()


OPERATORS: dict[str, Operator] = {
    "gather": _gather,
    "gather_along_axis": _gather_along_axis,
    "gather_nd": _gather_nd,
    "scatter": _scatter(_places_along_one),
    "scatter_along_axis": _scatter(_places_along_axis),
    "scatter_nd": _scatter(_places_at),
    "one_hot": _one_hot,
    "topk": _topk,
    "argsort": _argsort,
    "non_zero": _non_zero,
}
