"""Small ONNX files, written with onnx's own helpers."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper


def matmul(weight, *, as_input=False, x="x"):
    """Build ``y = relu(x @ weight)``; the weight is a constant, or an input with a default."""
    rows, columns = weight.shape
    inputs = [helper.make_tensor_value_info(x, TensorProto.FLOAT, ["batch", rows])]
    if as_input:
        inputs.append(helper.make_tensor_value_info("weight", TensorProto.FLOAT, weight.shape))
    graph = helper.make_graph(
        [helper.make_node("MatMul", [x, "weight"], ["h"]), helper.make_node("Relu", ["h"], ["y"])],
        "matmul",
        inputs,
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", columns])],
        [numpy_helper.from_array(weight, "weight")],
    )
    opset = helper.make_opsetid("", 20)
    return helper.make_model(graph, opset_imports=[opset], ir_version=10)


def random_weight(rows, columns):
    return np.random.default_rng(0).normal(size=(rows, columns)).astype(np.float32)


def save(model, path, *, external=False):
    if external:
        onnx.save(
            model, path, save_as_external_data=True, location=f"{path.name}.data", size_threshold=0
        )
    else:
        onnx.save(model, path)
    return path
