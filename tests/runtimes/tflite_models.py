"""Small .tflite files, written with the schema's own bindings."""

from __future__ import annotations

from pathlib import Path

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as schema

_TYPES = {
    "float32": schema.TensorType.FLOAT32,
    "float16": schema.TensorType.FLOAT16,
    "int32": schema.TensorType.INT32,
    "int64": schema.TensorType.INT64,
    "bool": schema.TensorType.BOOL,
}


class Builder:
    """One graph: add tensors and operators, name its inputs and outputs, save it."""

    def __init__(self):
        self.graph = schema.SubGraphT()
        self.graph.name = "main"
        self.graph.tensors, self.graph.operators = [], []
        self.model = schema.ModelT()
        self.model.version = 3
        self.model.description = "test"
        self.model.subgraphs = [self.graph]
        self.model.operatorCodes = []
        self.model.buffers = [schema.BufferT()]  # by convention the first is empty
        self.model.signatureDefs = []

    def tensor(self, shape, dtype="float32", *, name=None, buffer=0):
        """Add a tensor; None in the shape is a dynamic dimension, of size 1 until resized."""
        tensor = schema.TensorT()
        tensor.shape = [1 if size is None else size for size in shape]
        if None in shape:
            tensor.shapeSignature = [-1 if size is None else size for size in shape]
        tensor.type = _TYPES[dtype]
        tensor.buffer = buffer
        tensor.name = f"t{len(self.graph.tensors)}" if name is None else name
        tensor.hasRank = True
        self.graph.tensors.append(tensor)
        return len(self.graph.tensors) - 1

    def buffer(self, array):
        buffer = schema.BufferT()
        buffer.data = np.frombuffer(np.ascontiguousarray(array).tobytes(), np.uint8)
        self.model.buffers.append(buffer)
        return len(self.model.buffers) - 1

    def constant(self, array, buffer=None):
        """Add a constant; give the buffer of another to store its bytes only once."""
        buffer = self.buffer(array) if buffer is None else buffer
        return self.tensor(array.shape, array.dtype.name, buffer=buffer)

    def op(self, kind, inputs, shape, options=None, *, dtype="float32", name=None, version=1):
        output = self.tensor(shape, dtype, name=name)
        operator = schema.OperatorT()
        operator.opcodeIndex = self._code(kind, version)
        operator.inputs, operator.outputs = list(inputs), [output]
        if options is not None:
            operator.builtinOptions = options
            union = type(options).__name__.removesuffix("T")
            operator.builtinOptionsType = getattr(schema.BuiltinOptions, union)
        self.graph.operators.append(operator)
        return output

    def _code(self, kind, version):
        code = schema.OperatorCodeT()
        if kind.startswith("custom:"):
            code.builtinCode = schema.BuiltinOperator.CUSTOM
            code.customCode = kind.removeprefix("custom:")
        else:
            code.builtinCode = getattr(schema.BuiltinOperator, kind)
        code.deprecatedBuiltinCode = min(code.builtinCode, 127)
        code.version = version
        self.model.operatorCodes.append(code)
        return len(self.model.operatorCodes) - 1

    def signature(self, inputs, outputs, *, key="serving_default", subgraph=0):
        """Add a signature: names to tensors, in the order given."""
        signature = schema.SignatureDefT()
        signature.signatureKey = key
        signature.subgraphIndex = subgraph
        signature.inputs = [_named(*item) for item in inputs.items()]
        signature.outputs = [_named(*item) for item in outputs.items()]
        self.model.signatureDefs.append(signature)

    def save(self, path: Path, inputs, outputs):
        self.graph.inputs, self.graph.outputs = list(inputs), list(outputs)
        builder = flatbuffers.Builder(1024)
        builder.Finish(self.model.Pack(builder), b"TFL3")
        path.write_bytes(bytes(builder.Output()))
        return path


def _named(name, tensor):
    entry = schema.TensorMapT()
    entry.name, entry.tensorIndex = name, tensor
    return entry


def fully_connected():
    options = schema.FullyConnectedOptionsT()
    options.keepNumDims = True
    return options


def sum_of_two(path):
    """Write ``sum = x + y`` over two float32 [2, 3], without a signature."""
    net = Builder()
    x, y = net.tensor([2, 3], name="x"), net.tensor([2, 3], name="y")
    return net.save(path, [x, y], [net.op("ADD", [x, y], [2, 3], schema.AddOptionsT(), name="sum")])


def linear(path, weight, *, batch=None):
    """Write ``y = x @ weight.T`` with a dynamic batch, and a signature."""
    net = Builder()
    rows, columns = weight.shape
    x = net.tensor([batch, columns], name="serving_x:0")
    inputs = [x, net.constant(weight), -1]
    y = net.op("FULLY_CONNECTED", inputs, [batch, rows], fully_connected(), version=5)
    net.signature({"x": x}, {"y": y})
    return net.save(path, [x], [y])


def tied_ffn(path, weight):
    """Write ``y = gelu(x @ weight.T) @ weight``: one buffer that is read both ways."""
    net = Builder()
    rows, columns = weight.shape
    x = net.tensor([None, columns], name="x")
    w = net.constant(weight)
    h = net.op("FULLY_CONNECTED", [x, w, -1], [None, rows], fully_connected(), version=5)
    g = net.op("GELU", [h], [None, rows], schema.GeluOptionsT())
    y = net.op("BATCH_MATMUL", [g, w], [None, columns], schema.BatchMatMulOptionsT(), name="y")
    return net.save(path, [x], [y])


def lookup(path, table):
    """Write ``rows = table[ids]`` for int64 ids [n]."""
    net = Builder()
    ids = net.tensor([None], "int64", name="ids")
    indices = [net.constant(table), ids]
    rows = net.op("GATHER", indices, [None, table.shape[1]], schema.GatherOptionsT(), name="rows")
    return net.save(path, [ids], [rows])


def two_and_two(path, **signature):
    """Write ``late = b - a`` and ``early = a + b`` over a [2] and b [None, 2].

    The graph has b before a, and late before early; the signature is sorted otherwise.
    """
    net = Builder()
    a, b = net.tensor([2], name="p"), net.tensor([None, 2], name="q")
    late = net.op("SUB", [b, a], [None, 2], schema.SubOptionsT(), name="r")
    early = net.op("ADD", [a, b], [None, 2], schema.AddOptionsT(), name="s")
    net.signature({"a": a, "b": b}, {"early": early, "late": late}, **signature)
    return net.save(path, [b, a], [late, early])


def unary(path, kind, dtype_in, dtype_out, options=None, shape=(None, 3)):
    """Write one operator with one input and one output."""
    net = Builder()
    x = net.tensor(shape, dtype_in, name="x")
    return net.save(path, [x], [net.op(kind, [x], shape, options, dtype=dtype_out, name="y")])


def cast(path, dtype_in, dtype_out):
    options = schema.CastOptionsT()
    options.inDataType, options.outDataType = _TYPES[dtype_in], _TYPES[dtype_out]
    return unary(path, "CAST", dtype_in, dtype_out, options)


def warm_up(path):
    """Write the model that is ``runtimes/warm_up.tflite``."""
    return tied_ffn(path, np.zeros((8, 64), np.float32))
