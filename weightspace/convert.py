"""Puts structured layers in the place of trained dense ones, as near to them as they can be."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import get_args

import torch
from torch import Tensor, nn

from weightspace.counts import positions_of
from weightspace.layers import Structured, TiedFFN
from weightspace.structures import STRUCTURES, Dense, Kind, Sizes, Stand, form_of, kind_of


@dataclass(frozen=True, slots=True)
class Converted:
    """A layer that was replaced.

    Args:
        parameters_before: of the dense layer, its bias included.
        multiply_adds_before: of the dense layer, for one sample.
        error: ``||W - What|| / ||W||`` of the weight.
        sizes: what, beside the dense layer's own, decides the shapes of what is stored.
    """

    name: str
    kind: Kind
    layer: str
    parameters_before: int
    parameters_after: int
    multiply_adds_before: int
    multiply_adds_after: int
    error: float
    sizes: dict[str, float]


@dataclass(frozen=True, slots=True)
class Left:
    """A layer that stays as it is, and why."""

    name: str
    reason: str


@dataclass(frozen=True, slots=True)
class Conversion:
    """What became of the layers that were named."""

    layers: tuple[Converted, ...]
    left: tuple[Left, ...]


def dense_layers(module: nn.Module) -> dict[str, Dense]:
    """Find the linear layers, convolutions and untied feed-forward layers of a module, by name.

    A subclass of them is none: what it adds would be lost. Nor is a part of a structured layer.
    """
    inside = {part for layer in module.modules() if isinstance(layer, Structured)
              for part in layer.modules()}  # fmt: skip
    return {
        name: layer
        for name, layer in module.named_modules()
        if isinstance(layer, Dense)
        and type(layer) in get_args(Dense)
        and layer is not module
        and layer not in inside
        and not (isinstance(layer, TiedFFN) and layer.out_weight is None)
    }


def approximate(dense: Dense, structure: str, share: float) -> Stand:
    """Approximate one trained layer.

    Raises:
        ValueError: the structure is not known, or cannot stand in for this layer.
    """
    _require(structure, share)
    if not all(parameter.isfinite().all() for parameter in dense.parameters()):
        raise ValueError("its weights are not all finite numbers")
    return form_of(structure, dense).fit(dense, share)


def approximate_layers(
    module: nn.Module,
    structure: str,
    names: Iterable[str],
    share: float,
    example_inputs: Sequence[Tensor],
    tell: Callable[[str], None] = lambda words: None,
) -> tuple[dict[str, Stand], Conversion]:
    """Approximate layers of a trained module, which stays as it is.

    Args:
        structure: a key of ``STRUCTURES``.
        names: of layers that ``dense_layers`` lists.
        share: parameters of a new weight over those of the dense one.
        example_inputs: what the module runs on to count positions; the first axis is the batch.
        tell: is told of each layer before its turn.

    Returns:
        What can stand in for each layer, by name, and what that would change.

    Raises:
        ValueError: the structure, a name or the share is none.
    """
    _require(structure, share)
    dense, readers = dense_layers(module), _readers(module)
    positions = positions_of(module, dense, example_inputs)
    found: dict[str, Stand] = {}
    layers, left = [], []
    for name in names:
        if name not in dense:
            raise ValueError(f"{name!r} is no dense layer of the model")
        tell(f"approximating {name}")
        try:
            own = {f"{name}.{key}" for key, _ in dense[name].named_parameters()}
            if others := readers[_address(dense[name].weight)] - own:
                raise ValueError(f"its weight is {min(others)} too; apart they would be larger")
            if name not in positions:
                raise ValueError("the model does not call it; it may read its weight itself")
            layer = approximate(dense[name], structure, share)
            if parameters_of(layer) >= parameters_of(dense[name]):
                raise ValueError(f"{type(layer).__name__} would save nothing")
        except ValueError as error:
            left.append(Left(name, str(error)))
        else:
            found[name] = layer
            sizes = form_of(structure, dense[name]).sizes_of(layer)
            layers.append(_compare(name, dense[name], layer, sizes, positions[name]))
    return found, Conversion(tuple(layers), tuple(left))


def convert(
    module: nn.Module,
    structure: str,
    names: Iterable[str],
    share: float,
    example_inputs: Sequence[Tensor],
    tell: Callable[[str], None] = lambda words: None,
) -> Conversion:
    """Replace layers of a trained module by their approximations, in place.

    Args and errors are those of ``approximate_layers``.

    Returns:
        What became of each layer; those that cannot be replaced are left as they are.
    """
    found, done = approximate_layers(module, structure, names, share, example_inputs, tell)
    replace_layers(module, found)
    return done


def replace_layers(module: nn.Module, layers: Mapping[str, nn.Module]) -> None:
    """Put layers in the places of those that have their names."""
    for name, layer in layers.items():
        module.set_submodule(name, layer)


def weight_error(dense: Dense, layer: Stand) -> float:
    """Measure how far a layer's weight is from a dense one, relative to the latter's norm."""
    with torch.no_grad():
        wanted, found = _weight(dense).double(), _weight(layer).double()
        size = wanted.norm().clamp_min(torch.finfo(wanted.dtype).tiny)
        return float((wanted - found).norm() / size)


def parameters_of(module: nn.Module) -> int:
    """Count a module's parameters, a shared one once."""
    return sum(parameter.numel() for parameter in module.parameters())


def _require(structure: str, share: float) -> None:
    if structure not in STRUCTURES:
        raise ValueError(f"structure {structure!r} is not known; there are {', '.join(STRUCTURES)}")
    if not 0 < share < 1:
        raise ValueError(f"share {share:g} is not between 0 and 1")


def _compare(name: str, dense: Dense, layer: Stand, sizes: Sizes, positions: int) -> Converted:
    return Converted(
        name=name,
        kind=kind_of(dense),
        layer=type(layer).__name__,
        parameters_before=parameters_of(dense),
        parameters_after=parameters_of(layer),
        multiply_adds_before=_multiply_adds(dense, positions),
        multiply_adds_after=_multiply_adds(layer, positions),
        error=weight_error(dense, layer),
        sizes=dict(sizes),
    )


def _weight(layer: Dense | Stand) -> Tensor:
    """Evaluate a layer's weight; for a feed-forward layer both, beside each other."""
    if isinstance(layer, Structured):
        return layer.dense_weight()
    if not isinstance(layer, TiedFFN):
        return layer.weight
    back = layer.weight if layer.out_weight is None else layer.out_weight.t()
    return torch.cat([layer.weight, back])


def _multiply_adds(layer: Dense | Stand, positions: int) -> int:
    if isinstance(layer, Structured):
        return layer.multiply_adds(positions)
    return positions * _weight(layer).numel()


def _readers(module: nn.Module) -> dict[int, set[str]]:
    """List the parameter names of each storage, by its address."""
    readers: dict[int, set[str]] = {}
    for name, parameter in module.named_parameters(remove_duplicate=False):
        readers.setdefault(_address(parameter), set()).add(name)
    return readers


def _address(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()
