"""What each operator of an ML Program computes, by its documentation in coremltools, in torch.

No rows here: control flow, lists, states, recurrent and random operators, crops of boxes, and
non-maximum suppression.
"""

from __future__ import annotations

from runtimes.coreml_ops import (
    constants,
    elementwise,
    indexing,
    linear,
    movement,
    normalization,
    resizing,
)
from runtimes.coreml_ops.call import Operator

OPERATORS: dict[str, Operator] = {
    **elementwise.OPERATORS,
    **linear.OPERATORS,
    **normalization.OPERATORS,
    **movement.OPERATORS,
    **indexing.OPERATORS,
    **resizing.OPERATORS,
    **constants.OPERATORS,
}
