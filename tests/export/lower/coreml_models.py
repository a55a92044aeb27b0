"""ONNX graphs of one node, and what a saved package stores."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort

from export.lower.coreml import write_mlpackage
from runtimes.coreml_reference import open_session


class Given:
    """An array that is given when the model runs; its first axis may vary if ``dynamic``."""

    def __init__(self, array, *, dynamic=False):
        self.array = np.asarray(array)
        self.dynamic = dynamic


def one_node(kind, *inputs, outputs=1, opset=21, **attributes):
    """A model of one node; gives it and what to feed it. Other inputs than Given are constant."""
    feeds, names, constants, graph_inputs = {}, [], [], []
    for place, given in enumerate(inputs):
        if given is None:
            names.append("")
        elif isinstance(given, Given):
            name = f"x{place}"
            element = onnx.helper.np_dtype_to_tensor_dtype(given.array.dtype)
            shape = ["batch" if given.dynamic else given.array.shape[0], *given.array.shape[1:]]
            graph_inputs.append(onnx.helper.make_tensor_value_info(name, element, shape))
            feeds[name] = given.array
            names.append(name)
        else:
            name = f"c{place}"
            constants.append(onnx.numpy_helper.from_array(np.asarray(given), name))
            names.append(name)
    results = [f"y{place}" for place in range(outputs)]
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node(kind, names, results, name="node", **attributes)],
        "one",
        graph_inputs,
        [onnx.ValueInfoProto(name=name) for name in results],
        constants,
    )
    opsets = [onnx.helper.make_opsetid("", opset)]
    proto = onnx.helper.make_model(graph, opset_imports=opsets, ir_version=10)
    proto = onnx.shape_inference.infer_shapes(proto)
    return ir.from_proto(proto), feeds


def parsed(text, **weights):
    """A model from ONNX's text format, opset 21, with float32 arrays as its weights."""
    proto = onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["" : 21]> {text}')
    for name, array in weights.items():
        proto.graph.initializer.append(onnx.numpy_helper.from_array(np.asarray(array), name))
    return ir.from_proto(onnx.shape_inference.infer_shapes(proto))


def with_onnx_runtime(model, feeds):
    """What ONNX Runtime computes, by name; its fusions take some graphs for what they are not."""
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(ir.to_proto(model).SerializeToString(), options)
    return dict(zip((o.name for o in session.get_outputs()), session.run(None, feeds), strict=True))


def with_core_ml(model, feeds, path, precision="float32", options=None):
    """What the saved package computes, by name."""
    write_mlpackage(model, path, precision, options=options)
    session = open_session(path)
    outputs = session.run(feeds)
    session.close()
    return outputs


def blobs_of(path):
    """The blobs of weight.bin read by the layout of the format."""
    data = (path / "Data/com.apple.CoreML/weights/weight.bin").read_bytes()
    count, version = np.frombuffer(data, "<u4", 2)
    assert version == 2
    blobs, place = [], 64
    for _ in range(count):
        sentinel, kind = np.frombuffer(data, "<u4", 2, place)
        size, start = np.frombuffer(data, "<u8", 2, place + 8)
        assert sentinel == 0xDEADBEEF
        dtype = {1: np.float16, 2: np.float32}[int(kind)]
        blobs.append(np.frombuffer(data[start : start + size], dtype))
        place = -(-int(start + size) // 64) * 64
    assert place >= len(data) - 64
    return blobs
