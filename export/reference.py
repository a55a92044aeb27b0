"""ONNX's own reference operators, on a few nodes at a time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx
from numpy.typing import NDArray


def run_reference(
    nodes: Sequence[onnx.NodeProto],
    inputs: Mapping[str, NDArray[np.generic]],
    outputs: Sequence[str],
    opsets: Mapping[str, int],
) -> list[NDArray[np.generic]] | None:
    """Compute nodes, in their order; None where the reference cannot.

    What it cannot is no failure: it lacks operators, and its errors have no common base.
    """
    from onnx.reference import ReferenceEvaluator

    graph = onnx.helper.make_graph(
        nodes,
        "part",
        [onnx.helper.make_value_info(name, onnx.TypeProto()) for name in inputs],
        [onnx.helper.make_value_info(name, onnx.TypeProto()) for name in outputs],
    )
    ids = [onnx.helper.make_opsetid(domain, version) for domain, version in opsets.items()]
    try:
        evaluator = ReferenceEvaluator(onnx.helper.make_model(graph, opset_imports=ids))
        with np.errstate(all="ignore"):
            found = evaluator.run(None, dict(inputs))
    except Exception:
        return None
    return [np.asarray(array) for array in found]
