"""What an ONNX file stores: each tensor once or more, who reads it, and the ratio that results."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from export.errors import TieLostError
from export.onnx_io import load_model
from export.records import StoredTensor, TieMap, Use
from export.stamps import STORED
from export.stored import stored_bytes, stored_tensors
from export.views import name_of_view

LIMIT = 1.01
# Equal small tensors (biases at zero, shapes) are chance and cost nothing; they are not listed.
SMALLEST_DUPLICATE_BYTES = 256
MAX_PERMUTED_RANK = 5


@dataclass(frozen=True, slots=True)
class Duplicate:
    """A stored tensor whose values are those of another one, read through a view."""

    name: str
    of: str
    view: str
    bytes: int


@dataclass(frozen=True, slots=True)
class Audit:
    """The stored tensors of one artifact.

    Args:
        stored: every stored tensor with its uses.
        duplicates: tensors that equal another stored one, exactly, up to a permutation of axes.
        weight_bytes: bytes of all stored tensors.
        unique_bytes: those of the torch model where it is known, else ``weight_bytes`` less the
            duplicates.
    """

    stored: tuple[StoredTensor, ...]
    duplicates: tuple[Duplicate, ...]
    weight_bytes: int
    unique_bytes: int

    @property
    def ratio(self) -> float:
        """Stored weight bytes over unique parameter bytes."""
        return self.weight_bytes / self.unique_bytes if self.unique_bytes else 1.0

    @property
    def ties(self) -> tuple[StoredTensor, ...]:
        """The stored tensors with more than one use."""
        return tuple(tensor for tensor in self.stored if tensor.tied)


def audit_file(path: Path) -> Audit:
    """Audit an ONNX file from anywhere.

    Raises:
        BadFileError: the file is missing or corrupt.
    """
    return audit_model(load_model(path))


def audit_model(model: ir.Model, unique_bytes: int | None = None) -> Audit:
    """Audit a graph in memory.

    Args:
        unique_bytes: bytes of the torch model's unique parameters, where they are known.
    """
    stored = tuple(_stored(model))
    duplicates = tuple(find_duplicates(model))
    total = stored_bytes(model)
    unique = unique_bytes or total - sum(duplicate.bytes for duplicate in duplicates)
    return Audit(stored, duplicates, total, unique)


def enforce(audit: Audit, ties: TieMap) -> None:
    """Hold an artifact to the 1.00 rule.

    Raises:
        TieLostError: more than 1.01 times the unique bytes are stored; the tensors are named.
    """
    if audit.weight_bytes <= LIMIT * ties.unique_bytes:
        return
    if audit.duplicates:
        worst = sorted(audit.duplicates, key=lambda duplicate: -duplicate.bytes)[:3]
        named = ", ".join(f"{d.name!r} is {d.of!r} ({d.view}, {d.bytes:,} bytes)" for d in worst)
        cause = f"stored twice: {named}"
    else:
        known = {tensor.name for tensor in ties.stored}
        extra = [t for t in audit.stored if t.name not in known]
        extra.sort(key=lambda tensor: -tensor.bytes)
        named = ", ".join(f"{t.name!r} ({t.bytes:,} bytes)" for t in extra[:3])
        cause = f"stored tensors that are no parameters: {named}"
    raise TieLostError(
        f"{audit.weight_bytes:,} bytes are stored for {ties.unique_bytes:,} unique ones, "
        f"{audit.weight_bytes / ties.unique_bytes:.3f}x; {cause}"
    )


# ---- uses -------------------------------------------------------------------------------------

_RESHAPES = {"Reshape", "Squeeze", "Unsqueeze", "Flatten", "Expand"}


def _stored(model: ir.Model) -> Iterator[StoredTensor]:
    initializers = model.graph.initializers
    for name, tensor in stored_tensors(model):
        value = initializers.get(name)
        uses = tuple(_uses(value)) if value is not None else ()
        torch_name = value.metadata_props.get(STORED) if value is not None else None
        aliases = ((torch_name, "identity"),) if torch_name and torch_name != name else ()
        dtype = str(np.dtype(tensor.dtype.numpy()))
        yield StoredTensor(name, tuple(tensor.shape.numpy()), dtype, uses, aliases)


def _uses(value: ir.Value, view: tuple[str, ...] = ()) -> Iterator[Use]:
    for node, index in value.uses():
        if node.op_type == "Transpose":
            perm = node.attributes.get("perm")
            rank = len(value.shape or ())
            axes = tuple(perm.as_ints()) if perm is not None else tuple(reversed(range(rank)))
            yield from _uses(node.outputs[0], (*view, name_of_view(axes)))
        elif node.op_type == "Identity":
            yield from _uses(node.outputs[0], view)
        elif node.op_type in _RESHAPES and index == 0:
            yield from _uses(node.outputs[0], (*view, "reshape"))
        else:
            last = (*view, "transpose") if _reads_transposed(node, index) else view
            steps = [step for step in last if step != "identity"]
            yield Use(node.op_type, ">".join(steps) or "identity", node.name or "")


def _reads_transposed(node: ir.Node, index: int) -> bool:
    attribute = node.attributes.get({0: "transA", 1: "transB"}.get(index, ""))
    return (
        node.op_type in {"Gemm", "FusedMatMul"}
        and attribute is not None
        and bool(attribute.as_int())
    )


# ---- duplicates, by value ---------------------------------------------------------------------


def find_duplicates(model: ir.Model) -> Iterator[Duplicate]:
    """Find stored tensors that equal an earlier one exactly, up to a permutation of axes.

    Axes of size 1 are left out of the comparison, so a 1x1 convolution's weight is found in a
    matrix. Candidates share type, size and the sum of their bit patterns, which no permutation
    changes; then every value is compared.
    """
    kept: dict[tuple[object, ...], list[tuple[str, ir.TensorProtocol]]] = {}
    for name, tensor in stored_tensors(model):
        if tensor.nbytes < SMALLEST_DUPLICATE_BYTES:
            continue
        array = _bits(tensor)
        if (array == array.flat[0]).all():
            continue  # all zeros or all ones: a vector at its initial value, not a shared one
        key = (tensor.dtype, array.size, int(array.sum(dtype=np.uint64)))
        for other_name, other in kept.setdefault(key, []):
            view = _view_between(_bits(other), array)
            if view is not None:
                yield Duplicate(name, other_name, view, tensor.nbytes)
                break
        else:
            kept[key].append((name, tensor))


def _bits(tensor: ir.TensorProtocol) -> NDArray[np.unsignedinteger]:
    """View a tensor's values as unsigned integers, axes of size 1 dropped."""
    array = np.ascontiguousarray(tensor.numpy())
    return array.view(f"u{array.dtype.itemsize}").reshape([s for s in array.shape if s != 1])


def _view_between(
    one: NDArray[np.unsignedinteger], other: NDArray[np.unsignedinteger]
) -> str | None:
    if one.shape == other.shape and np.array_equal(one, other):
        return "identity"
    if one.ndim <= MAX_PERMUTED_RANK and sorted(one.shape) == sorted(other.shape):
        for axes in itertools.permutations(range(one.ndim)):
            permuted = one.transpose(axes)
            if permuted.shape == other.shape and np.array_equal(permuted, other):
                return name_of_view(axes)
    if math.prod(one.shape) == math.prod(other.shape) and np.array_equal(
        one.ravel(), other.ravel()
    ):
        return "reshape"
    return None
