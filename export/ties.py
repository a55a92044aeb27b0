"""Which parameters a torch model stores once, and what reads each of them.

Ties are found by identity, never by value: two names are one stored tensor when they are the same
memory, read with the same strides or with two of them swapped.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.fx import Node

from export.errors import CaptureError
from export.records import StoredTensor, TieMap, Use
from export.views import Permutation, compose, invert, name_of_view, permutation_of_view


def unique_parameters(module: nn.Module) -> int:
    """Count a module's parameters, each storage once.

    Raises:
        CaptureError: two parameters overlap in memory without being views of one another.
    """
    return tie_map(module).unique_parameters


def tie_map(
    model: nn.Module | ExportedProgram, example_inputs: Sequence[Any] | None = None
) -> TieMap:
    """List the stored tensors of any torch model with the names and the uses that share them.

    Args:
        model: a module, or a program of ``torch.export``.
        example_inputs: positional inputs of the module; with them the uses are read from the
            traced program. Without them a module's ties are those of its parameter names alone,
            so that one parameter used twice by ``forward`` shows no uses.

    Raises:
        CaptureError: two parameters overlap in memory without being views of one another.
    """
    if isinstance(model, ExportedProgram):
        named = [(name, parameter) for name, parameter in model.named_parameters()]
        return _with_uses(_stored_tensors(named), model)
    named = list(model.named_parameters(remove_duplicate=False))
    stored = _stored_tensors(named)
    if example_inputs is None:
        return TieMap(tuple(stored))
    was_training = model.training
    try:
        with torch.no_grad():
            program = torch.export.export(model.eval(), tuple(example_inputs), strict=False)
    finally:
        model.train(was_training)
    return _with_uses(stored, program)


# ---- parameters that are one memory -----------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Extent:
    """Where a parameter lies in its storage."""

    name: str
    tensor: Tensor
    start: int
    stop: int

    @property
    def layout(self) -> Permutation:
        """Axes from the largest stride to the smallest; size-1 axes stay where they are."""
        return _memory_order(self.tensor)


def _memory_order(tensor: Tensor) -> Permutation:
    """Order the axes by stride so that permuting by it gives a contiguous tensor.

    Axes of size 1 have no meaningful stride: they keep their places.
    """
    wide = [axis for axis in range(tensor.dim()) if tensor.shape[axis] != 1]
    ranked = iter(sorted(wide, key=tensor.stride, reverse=True))
    return tuple(next(ranked) if axis in wide else axis for axis in range(tensor.dim()))


def _stored_tensors(named: Sequence[tuple[str, Tensor]]) -> list[StoredTensor]:
    storages: dict[Any, list[_Extent]] = {}
    for name, tensor in named:
        begin = int(tensor.storage_offset())
        extent = _Extent(name, tensor, begin, begin + tensor.numel())
        if not tensor.permute(_memory_order(tensor)).is_contiguous():
            raise CaptureError(
                f"parameter {name!r} is a view with gaps or repeats in its memory; "
                "assign a contiguous copy of it first"
            )
        storages.setdefault(_storage(tensor), []).append(extent)
    stored = [tensor for extents in storages.values() for tensor in _split(extents)]
    order = {name: place for place, (name, _) in enumerate(named)}
    return sorted(stored, key=lambda tensor: order[tensor.name])


def _storage(tensor: Tensor) -> Any:
    # Meta tensors have no memory; the storage object itself tells them apart.
    storage = tensor.untyped_storage()
    address = storage.data_ptr()
    return (str(tensor.device), address) if address else (str(tensor.device), storage._cdata)


def _split(extents: list[_Extent]) -> Iterator[StoredTensor]:
    """Group the parameters of one storage into stored tensors; refuse partial overlaps."""
    groups: list[list[_Extent]] = []
    for extent in sorted(extents, key=lambda e: (e.start, e.stop)):
        if groups and groups[-1][0].stop > extent.start:
            first = groups[-1][0]
            same_memory = (first.start, first.stop) == (extent.start, extent.stop)
            if not same_memory or not _is_permuted_view(first.tensor, extent.tensor):
                raise CaptureError(
                    f"parameters {first.name!r} and {extent.name!r} overlap in memory without "
                    "being the same tensor or a transpose of it; give one of them its own memory"
                )
            groups[-1].append(extent)
        else:
            groups.append([extent])
    for group in groups:
        yield _as_stored(group)


def _is_permuted_view(one: Tensor, other: Tensor) -> bool:
    def shape_in_memory(tensor: Tensor) -> list[int]:
        ordered = tensor.permute(_memory_order(tensor))
        return [size for size in ordered.shape if size != 1]

    return (
        one.dtype == other.dtype
        and one.dim() == other.dim()
        and shape_in_memory(one) == shape_in_memory(other)
    )


def _as_stored(group: list[_Extent]) -> StoredTensor:
    """Name the group after its first contiguous member; the others become aliases."""
    owner = next((extent for extent in group if extent.tensor.is_contiguous()), group[0])
    aliases = tuple(
        (extent.name, name_of_view(_permutation_between(owner.tensor, extent.tensor)))
        for extent in group
        if extent is not owner
    )
    dtype = str(owner.tensor.dtype).removeprefix("torch.")
    return StoredTensor(owner.name, tuple(owner.tensor.shape), dtype, aliases=aliases)


def _permutation_between(owner: Tensor, alias: Tensor) -> Permutation:
    """Find the permutation p for which ``owner.permute(p)`` is the alias."""
    to_memory, from_memory = _memory_order(owner), invert(_memory_order(alias))
    return tuple(to_memory[axis] for axis in from_memory)


# ---- uses in the traced program ---------------------------------------------------------------

_SAME = {"detach", "alias", "clone", "contiguous", "lift_fresh_copy", "detach_"}
_RESHAPES = {"view", "reshape", "_unsafe_view", "unsqueeze", "squeeze", "flatten", "expand"}


def _with_uses(stored: list[StoredTensor], program: ExportedProgram) -> TieMap:
    owner_of = {tensor.name: (tensor.name, "identity") for tensor in stored}
    for tensor in stored:
        owner_of.update({alias: (tensor.name, view) for alias, view in tensor.aliases})
    uses: dict[str, list[Use]] = {tensor.name: [] for tensor in stored}
    parameters = program.graph_signature.inputs_to_parameters
    for node in program.graph.nodes:
        name = parameters.get(node.name) if node.op == "placeholder" else None
        if name in owner_of:
            owner, view = owner_of[name]
            rank = node.meta["val"].dim()
            uses[owner] += _follow(node, (permutation_of_view(view, rank),))
    return TieMap(tuple(replace(tensor, uses=tuple(uses[tensor.name])) for tensor in stored))


_Chain = tuple[Permutation | str, ...]


def _follow(node: Node, chain: _Chain) -> Iterator[Use]:
    """Walk through view operators to the operators that compute with the value."""
    for user in node.users:
        if user.op != "call_function":
            continue
        op = getattr(user.target, "_opname", None) or str(user.target).split(".")[-1]
        if op in _SAME:
            yield from _follow(user, chain)
        elif (permutation := _permutation_by(user, op)) is not None:
            yield from _follow(user, _compose(chain, permutation))
        elif op in _RESHAPES:
            step = () if chain[-1] == "reshape" else ("reshape",)
            rank = user.meta["val"].dim()
            yield from _follow(user, (*chain, *step, tuple(range(rank)))[-8:])
        else:
            yield Use(op.removesuffix("_"), _describe(chain), _module_path(user))


def _permutation_by(node: Node, op: str) -> Permutation | None:
    source = node.args[0]
    rank = source.meta["val"].dim() if isinstance(source, Node) else 0
    axes = list(range(rank))
    if op in {"t", "numpy_T", "adjoint", "mT"}:
        axes = axes[::-1] if rank <= 2 or op == "numpy_T" else [*axes[:-2], axes[-1], axes[-2]]
        return tuple(axes)
    if op in {"transpose", "swapaxes"}:
        one, other = (int(axis) % rank for axis in node.args[1:3])  # type: ignore[arg-type]
        axes[one], axes[other] = axes[other], axes[one]
        return tuple(axes)
    if op == "permute":
        return tuple(int(axis) % rank for axis in node.args[1])  # type: ignore[union-attr,arg-type]
    return None


def _compose(chain: _Chain, permutation: Permutation) -> _Chain:
    last = chain[-1]
    assert not isinstance(last, str)  # every reshape is followed by its identity
    return (*chain[:-1], compose(last, permutation))


def _describe(chain: _Chain) -> str:
    steps = [step if isinstance(step, str) else name_of_view(step) for step in chain]
    return ">".join(step for step in steps if step != "identity") or "identity"


def _module_path(node: Node) -> str:
    stack = node.meta.get("nn_module_stack") or {}
    paths = [str(path) for path, _ in stack.values()]
    return (paths[-1] if paths and paths[-1] else node.name).removeprefix("L['self'].")
