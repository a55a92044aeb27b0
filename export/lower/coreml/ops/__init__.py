"""What each ONNX operator becomes in Core ML: one function an operator, one table a family."""

from __future__ import annotations

from collections.abc import Callable

from export.lower.coreml.lowering import Lowering, Node
from export.lower.coreml.ops import (
    convolution,
    elementwise,
    indexing,
    linear,
    movement,
    normalization,
    pooling,
    reduction,
    resizing,
)

Lower = Callable[[Lowering, Node], None]

OPERATORS: dict[str, Lower] = {
    **elementwise.TABLE,
    **linear.TABLE,
    **convolution.TABLE,
    **pooling.TABLE,
    **movement.TABLE,
    **indexing.TABLE,
    **reduction.TABLE,
    **normalization.TABLE,
    **resizing.TABLE,
}
