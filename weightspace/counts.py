"""What a module computes for one sample: positions, and multiply-adds."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from weightspace.layers.structured import Structured


def positions_of(
    module: nn.Module, layers: Mapping[str, nn.Module], example_inputs: Sequence[Tensor]
) -> dict[str, int]:
    """Run a module once, and count where each of some layers is applied to one sample.

    Args:
        layers: parts of the module, by any name.
        example_inputs: what the module runs on; the first axis is the batch.

    Returns:
        Rows of each linear layer and output positions of each convolution, over all calls; what
        is never called is absent.
    """
    positions: Counter[str] = Counter()

    def count(name: str, layer: nn.Module, output: Tensor) -> None:
        features = output.shape[1 if hasattr(layer, "stride") else -1]  # convolutions have one
        positions[name] += output.numel() // features // len(example_inputs[0])

    hooks = [
        layer.register_forward_hook(lambda part, _, output, name=name: count(name, part, output))
        for name, layer in layers.items()
    ]
    modes = {part: part.training for part in module.modules()}
    try:
        with torch.no_grad():
            module.eval()(*example_inputs)
    finally:
        for part, training in modes.items():
            part.training = training
        for hook in hooks:
            hook.remove()
    return dict(positions)


def multiply_adds(module: nn.Module, example_inputs: Sequence[Tensor]) -> int:
    """Count the multiply-adds of linear layers and convolutions, structured ones included.

    Products of two activations, as in attention, are not counted, nor are norms.

    Args:
        example_inputs: what the module runs on; the first axis is the batch.
    """
    layers = {str(place): layer for place, layer in enumerate(_outermost(module))}
    total = 0
    for name, positions in positions_of(module, layers, example_inputs).items():
        layer = layers[name]
        if isinstance(layer, Structured):
            total += layer.multiply_adds(positions)
        else:
            total += positions * layer.get_parameter("weight").numel()
    return total


def _outermost(module: nn.Module) -> list[nn.Module]:
    """List what is counted as one: a structured layer, not the layers that it is made of."""
    if isinstance(module, Structured | nn.Linear | nn.Conv2d):
        return [module]
    return [layer for child in module.children() for layer in _outermost(child)]
