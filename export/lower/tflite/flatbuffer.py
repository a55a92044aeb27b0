"""A graph as a TFLite file, through the schema's own bindings (tensorflow/lite schema v3).

Equal constants share one buffer, whatever their shapes: a tie is one buffer that several tensors
point to. All buffers lie inside the flatbuffer, which every version of the runtime reads, aligned
to 16 bytes as the schema demands, so that a mapped file is used in place.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from export.errors import LoweringError, MissingExtraError, OutputError
from export.lower.sizes import in_file, is_static, signature
from export.lower.tflite.graph import Graph, Operator, Tensor
from export.onnx_io import reason_of

IDENTIFIER = b"TFL3"
SIGNATURE = "serving_default"
METADATA = "TFLITE_METADATA"
_MAX_BYTES = 2**31 - 1  # offsets in a flatbuffer are signed and have 32 bits
_ALIGNMENT = 16
_OLDEST_CODES = 127  # larger operator codes do not fit the field that old runtimes read

_TYPES = {
    "float32": "FLOAT32", "float16": "FLOAT16", "int64": "INT64", "int32": "INT32",
    "int16": "INT16", "int8": "INT8", "uint8": "UINT8", "uint16": "UINT16", "uint32": "UINT32",
    "bool": "BOOL", "float64": "FLOAT64", "object": "RESOURCE",
}  # fmt: skip

# Options tables whose name is not the operator's own in CamelCase.
_OPTIONS = {
    "CONV_2D": "Conv2DOptions", "DEPTHWISE_CONV_2D": "DepthwiseConv2DOptions",
    "MAX_POOL_2D": "Pool2DOptions", "AVERAGE_POOL_2D": "Pool2DOptions",
    "BATCH_MATMUL": "BatchMatMulOptions",
    "MEAN": "ReducerOptions", "SUM": "ReducerOptions", "REDUCE_MAX": "ReducerOptions",
    "REDUCE_MIN": "ReducerOptions", "REDUCE_PROD": "ReducerOptions",
    "REDUCE_ANY": "ReducerOptions", "REDUCE_ALL": "ReducerOptions",
    "MAXIMUM": "MaximumMinimumOptions", "MINIMUM": "MaximumMinimumOptions",
    "PADV2": "PadV2Options", "TOPK_V2": "TopKV2Options",
}  # fmt: skip


def _version(operator: Operator) -> int:
    """The oldest version of an operator that has what is written here.

    Source: tensorflow/lite/tools/versioning/op_version.cc.
    """
    kind, options = operator.kind, operator.options
    rank = max((tensor.rank for tensor in operator.inputs if tensor is not None), default=0)
    if kind == "FULLY_CONNECTED":
        return 5 if operator.inputs[2] is not None else 6
    if kind == "CONV_2D":
        x, filters = operator.inputs[0], operator.inputs[1]
        assert x is not None
        assert filters is not None
        return 1 if x.shape[3] == filters.shape[3] else 6
    if kind == "DEPTHWISE_CONV_2D":
        factors = options.get("dilationHFactor", 1), options.get("dilationWFactor", 1)
        return 1 if factors == (1, 1) else 2
    if kind == "GATHER":
        return 5 if options.get("batchDims") else 1
    if kind == "TRANSPOSE":
        return {5: 4, 6: 6}.get(rank, 1)
    if kind in _BEYOND_RANK_4 and rank > 4:
        return _BEYOND_RANK_4[kind]
    return _VERSIONS.get(kind, 1)


_BEYOND_RANK_4 = {
    "SLICE": 5, "STRIDED_SLICE": 4, "PAD": 4, "PADV2": 4, "SUB": 3, "MAXIMUM": 3, "MINIMUM": 3,
    "DIV": 2,
}  # fmt: skip
_VERSIONS = {
    "DEQUANTIZE": 3,  # reads float16
    "RESIZE_BILINEAR": 3, "RESIZE_NEAREST_NEIGHBOR": 3,  # half pixel centres
    "BROADCAST_TO": 2, "GATHER_ND": 2,
}  # fmt: skip


def write(graph: Graph, path: Path, description: str, metadata: bytes | None = None) -> None:
    """Write a graph.

    Args:
        metadata: TFLite's own, a FlatBuffer; None for a file without.

    Raises:
        MissingExtraError: the bindings are not installed.
        LoweringError: the weights do not fit the format.
        OutputError: the folder cannot be written or is full.
    """
    try:
        import flatbuffers
        from ai_edge_litert import schema_py_generated as schema
    except ImportError as error:
        raise MissingExtraError.of("ai-edge-litert", "litert") from error
    buffers = _Buffers(schema)
    model = schema.ModelT()
    model.version = 3
    model.description = description
    graphs = {"main": graph} if graph.setup is None else {"main": graph, "setup": graph.setup}
    operators = [operator for each in graphs.values() for operator in each.operators]
    codes = _operator_codes(schema, operators)
    model.operatorCodes = list(codes.values())
    tensors = {name: _all_tensors(each) for name, each in graphs.items()}
    model.subgraphs = [
        _subgraph(schema, name, each, tensors[name], list(codes), buffers)
        for name, each in graphs.items()
    ]
    model.signatureDefs = [_signature(schema, graph, tensors["main"])]
    if metadata is not None:
        entry = schema.MetadataT()
        entry.name = METADATA
        entry.buffer = buffers.place_of(np.frombuffer(metadata, np.uint8))
        model.metadata = [entry]
    model.buffers = buffers.tables
    room = buffers.bytes + 1024 * (sum(map(len, tensors.values())) + len(operators) + 8)
    if room > _MAX_BYTES:
        raise LoweringError(
            f"{buffers.bytes:,} bytes of weights do not fit a .tflite file, which ends at 2 GiB; "
            "use --precision float16 or another target"
        )
    builder = flatbuffers.Builder(room)
    builder.Finish(model.Pack(builder), IDENTIFIER)
    try:
        with path.open("wb") as file:
            file.write(memoryview(builder.Bytes)[builder.Head() :])
    except OSError as error:
        raise OutputError(reason_of(error, path)) from error


class _Buffers:
    """The buffers of a file: equal bytes once."""

    def __init__(self, schema: Any) -> None:
        class Buffer(schema.BufferT):  # type: ignore[misc]
            """A buffer that is copied in one piece, at the alignment that the schema demands."""

            def Pack(self, builder: Any) -> Any:
                if self.data is None:
                    return super().Pack(builder)
                data = _aligned_vector(builder, self.data)
                schema.BufferStart(builder)
                schema.BufferAddData(builder, data)
                return schema.BufferEnd(builder)

        self._make = Buffer
        self._known: dict[tuple[int, bytes], int] = {}
        self.tables = [Buffer()]  # the first is empty, and means "no constant"
        self.bytes = 0

    def place_of(self, data: NDArray[np.generic] | None) -> int:
        if data is None:
            return 0
        flat = np.ascontiguousarray(data).reshape(-1).view(np.uint8)
        key = (flat.size, hashlib.sha256(flat.data).digest())
        if key not in self._known:
            table = self._make()
            table.data = flat
            self._known[key] = len(self.tables)
            self.tables.append(table)
            self.bytes += flat.size + _ALIGNMENT
        return self._known[key]


def _aligned_vector(builder: Any, data: NDArray[np.uint8]) -> Any:
    builder.StartVector(1, data.size, _ALIGNMENT)
    head = builder.Head() - data.size
    builder.head = head
    memoryview(builder.Bytes)[head : head + data.size] = data.data
    return builder.EndVector()


def _all_tensors(graph: Graph) -> dict[Tensor, int]:
    """Number the tensors: inputs first, outputs last, as tools show them."""
    inputs = [*graph.inputs, *graph.unused]
    found: dict[Tensor, int] = {tensor: i for i, tensor in enumerate(inputs)}
    for operator in graph.operators:
        for tensor in (*operator.inputs, *operator.outputs):
            if tensor is not None:
                found.setdefault(tensor, len(found))
    for _, tensor in graph.outputs:
        found.setdefault(tensor, len(found))
    return found


def _operator_codes(schema: Any, operators: Sequence[Operator]) -> dict[str, Any]:
    codes: dict[str, Any] = {}
    for operator in operators:
        if operator.kind not in codes:
            code = schema.OperatorCodeT()
            code.builtinCode = getattr(schema.BuiltinOperator, operator.kind)
            code.deprecatedBuiltinCode = min(code.builtinCode, _OLDEST_CODES)
            codes[operator.kind] = code
        code = codes[operator.kind]
        code.version = max(code.version, _version(operator))
    return codes


def _subgraph(
    schema: Any, name: str, graph: Graph, tensors: dict[Tensor, int], codes: list[str],
    buffers: _Buffers,
) -> Any:  # fmt: skip
    subgraph = schema.SubGraphT()
    subgraph.name = name
    subgraph.tensors = [_tensor(schema, tensor, buffers) for tensor in tensors]
    subgraph.inputs = [tensors[tensor] for tensor in (*graph.inputs, *graph.unused)]
    subgraph.outputs = [tensors[tensor] for _, tensor in graph.outputs]
    subgraph.operators = [_operator(schema, op, tensors, codes) for op in graph.operators]
    return subgraph


def _tensor(schema: Any, tensor: Tensor, buffers: _Buffers) -> Any:
    table = schema.TensorT()
    table.name = tensor.name
    table.shape = list(in_file(tensor.shape))
    table.hasRank = True
    if not is_static(tensor.shape):
        table.shapeSignature = list(signature(tensor.shape))
    table.type = getattr(schema.TensorType, _TYPES[str(tensor.dtype)])
    table.buffer = buffers.place_of(tensor.data)
    return table


def _operator(schema: Any, operator: Operator, tensors: dict[Tensor, int], codes: list[str]) -> Any:
    table = schema.OperatorT()
    table.opcodeIndex = codes.index(operator.kind)
    inputs = operator.inputs
    while inputs and inputs[-1] is None:  # some kernels count their inputs to see what is left out
        inputs = inputs[:-1]
    table.inputs = [-1 if tensor is None else tensors[tensor] for tensor in inputs]
    table.outputs = [tensors[tensor] for tensor in operator.outputs]
    camel = "".join(word.capitalize() for word in operator.kind.split("_"))
    name = _OPTIONS.get(operator.kind, f"{camel}Options")
    if hasattr(schema, f"{name}T"):
        options = getattr(schema, f"{name}T")()
        for key, value in operator.options.items():
            if not hasattr(options, key):
                raise LoweringError(f"{operator.kind} has no option {key!r}; this is a defect")
            setattr(options, key, value)
        if hasattr(schema.BuiltinOptions, name):
            table.builtinOptionsType = getattr(schema.BuiltinOptions, name)
            table.builtinOptions = options
    return table


def _signature(schema: Any, graph: Graph, tensors: dict[Tensor, int]) -> Any:
    table = schema.SignatureDefT()
    table.signatureKey = SIGNATURE
    # LiteRT's compiled models refuse a signature that leaves out an input.
    inputs = (*graph.inputs, *graph.unused)
    table.inputs = [_named(schema, t.name, tensors[t]) for t in inputs]
    table.outputs = [_named(schema, name, tensors[t]) for name, t in graph.outputs]
    return table


def _named(schema: Any, name: str, place: int) -> Any:
    entry = schema.TensorMapT()
    entry.name, entry.tensorIndex = name, place
    return entry
