"""The passes that coremltools may run, chosen so that none stores a weight a second time.

coremltools' default pipeline folds a transpose of a constant into a second constant, norms into
filters, and signs into products; on a tied weight each makes a copy. The lowering has done by
itself what those passes are for: each stored tensor is one constant, every use names it, shapes
are constants, activations and biases are single operators. So this is a list of what is allowed,
in order; what is not here does not run, in coremltools' later stages neither.
"""

from __future__ import annotations

from typing import Any

ALLOWED = (
    "common::dead_code_elimination",  # first: a value nobody reads needs no operator
    "common::noop_elimination",  # reshapes to the same shape, products with 1
    "common::cast_optimization",
    "common::merge_consecutive_reshapes",
    "common::merge_consecutive_transposes",
    "common::dead_code_elimination",
)


def pipeline(ct: Any) -> Any:
    """The list as coremltools wants it."""
    chosen = ct.PassPipeline(list(ALLOWED), "weightspace")
    return chosen
