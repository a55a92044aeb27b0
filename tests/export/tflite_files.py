"""Writes real .tflite files through the schema's own bindings, small enough to follow by eye."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

S = pytest.importorskip("ai_edge_litert.schema_py_generated")
flatbuffers = pytest.importorskip("flatbuffers")

ALIGN = 16  # bytes, of data behind the flatbuffer
NOT_YET = 2  # stands for an offset until it is known; 0 would leave the field out


class Writer:
    """Builds a file; operators give the index of the tensor that they write."""

    def __init__(self, name: str = "main") -> None:
        self.model = S.ModelT()
        self.model.version = 3
        self.model.operatorCodes, self.model.buffers, self.model.subgraphs = [], [], []
        self.model.metadata, self.model.signatureDefs = [], None
        self.buffer(None)  # by convention the first is empty
        self.begin(name)

    def begin(self, name: str) -> None:
        """Begin one more subgraph."""
        self.graph = S.SubGraphT()
        self.graph.name = name
        self.graph.tensors, self.graph.operators = [], []
        self.graph.inputs, self.graph.outputs = [], []
        self.model.subgraphs.append(self.graph)

    def buffer(self, array: np.ndarray | None) -> int:
        made = S.BufferT()
        if array is not None:
            made.data = np.frombuffer(np.ascontiguousarray(array).tobytes(), np.uint8)
        self.model.buffers.append(made)
        return len(self.model.buffers) - 1

    def tensor(self, shape, dtype="float32", buffer: int = 0, name: str | None = None) -> int:
        made = S.TensorT()
        made.shape, made.buffer, made.hasRank = [int(size) for size in shape], buffer, True
        made.type = getattr(S.TensorType, str(dtype).upper())
        made.name = name if name is not None else f"t{len(self.graph.tensors)}"
        self.graph.tensors.append(made)
        return len(self.graph.tensors) - 1

    def constant(self, array: np.ndarray, buffer: int | None = None, name=None) -> int:
        """Add a constant, in a buffer of its own or in one that is there."""
        place = self.buffer(array) if buffer is None else buffer
        return self.tensor(array.shape, array.dtype, place, name)

    def input(self, shape, dtype="float32", name: str | None = None) -> int:
        self.graph.inputs.append(self.tensor(shape, dtype, name=name))
        return self.graph.inputs[-1]

    def operator(
        self, name: str, inputs: list[int], shape, options: Any = None, dtype="float32"
    ) -> int:
        made = S.OperatorT()
        made.opcodeIndex, made.inputs = self._code(name), inputs
        made.outputs = [self.tensor(shape, dtype)]
        if options is not None:
            kind = type(options).__name__.removesuffix("T")
            made.builtinOptions = options
            made.builtinOptionsType = getattr(S.BuiltinOptions, kind)
        self.graph.operators.append(made)
        return made.outputs[0]

    def _code(self, name: str) -> int:
        code = S.OperatorCodeT()
        code.builtinCode = getattr(S.BuiltinOperator, name, S.BuiltinOperator.CUSTOM)
        code.deprecatedBuiltinCode = min(code.builtinCode, 127)
        code.version = {"FULLY_CONNECTED": 5, "DEQUANTIZE": 3}.get(name, 1)
        if code.builtinCode == S.BuiltinOperator.CUSTOM:
            code.customCode = name
        self.model.operatorCodes.append(code)
        return len(self.model.operatorCodes) - 1

    def signature(self, inputs: dict[str, int], outputs: dict[str, int], key="serve") -> None:
        made = S.SignatureDefT()
        made.signatureKey, made.subgraphIndex = key, len(self.model.subgraphs) - 1
        made.inputs, made.outputs = [
            [_map(name, index) for name, index in side.items()] for side in (inputs, outputs)
        ]
        self.model.signatureDefs = [*(self.model.signatureDefs or []), made]

    def metadata(self, name: str, data: bytes) -> None:
        made = S.MetadataT()
        made.name, made.buffer = name, self.buffer(np.frombuffer(data, np.uint8))
        self.model.metadata.append(made)

    def save(self, path: Path, *, behind: bool = False) -> Path:
        """Write the file.

        Args:
            behind: put every buffer behind the flatbuffer, as files over 2 GiB have to.
        """
        path.write_bytes(self._behind() if behind else self._pack())
        return path

    def _pack(self) -> bytes:
        builder = flatbuffers.Builder(1024)
        builder.Finish(self.model.Pack(builder), b"TFL3")
        return bytes(builder.Output())

    def _behind(self) -> bytes:
        moved = [(buffer, buffer.data) for buffer in self.model.buffers if buffer.data is not None]
        for buffer, data in moved:
            buffer.data, buffer.offset, buffer.size = None, NOT_YET, len(data)
        end = len(self._pack())
        for buffer, _ in moved:
            buffer.offset = -(-end // ALIGN) * ALIGN
            end = buffer.offset + buffer.size
        whole = bytearray(self._pack().ljust(end, b"\0"))
        for buffer, data in moved:
            whole[buffer.offset : buffer.offset + buffer.size] = data.tobytes()
        return bytes(whole)


def _map(name: str, index: int) -> Any:
    made = S.TensorMapT()
    made.name, made.tensorIndex = name, index
    return made


def fully_connected() -> Any:
    options = S.FullyConnectedOptionsT()
    options.keepNumDims = True
    return options


def batch_matmul(adj_x: bool = False, adj_y: bool = False) -> Any:
    options = S.BatchMatMulOptionsT()
    options.adjX, options.adjY = adj_x, adj_y
    return options


def weights(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)


# ---- whole files: y = W^T (W x), for W of 32 x 16 ------------------------------------------------

W = weights(32, 16)


def _begin(name: str = "main") -> tuple[Writer, int]:
    writer = Writer(name)
    return writer, writer.input((1, 4, 16), name="x")


def _end(writer: Writer, y: int) -> Writer:
    writer.graph.outputs = [y]
    writer.signature({"tokens": writer.graph.inputs[0]}, {"features": y})
    writer.metadata("min_runtime_version", b"2.17.0")
    return writer


def tied() -> Writer:
    """One buffer, read by both operators."""
    writer, x = _begin()
    w = writer.constant(W, name="w")
    h = writer.operator("FULLY_CONNECTED", [x, w, -1], (1, 4, 32), fully_connected())
    return _end(writer, writer.operator("BATCH_MATMUL", [h, w], (1, 4, 16), batch_matmul()))


def tied_tensors() -> Writer:
    """One buffer under two tensors."""
    writer, x = _begin()
    w = writer.constant(W, name="w")
    again = writer.constant(W, writer.graph.tensors[w].buffer, name="w again")
    h = writer.operator("FULLY_CONNECTED", [x, w], (1, 4, 32), fully_connected())
    return _end(writer, writer.operator("BATCH_MATMUL", [h, again], (1, 4, 16), batch_matmul()))


def duplicated() -> Writer:
    """What converters write: the transpose stored beside W."""
    writer, x = _begin()
    w, wt = writer.constant(W, name="w"), writer.constant(W.T, name="wt")
    h = writer.operator("FULLY_CONNECTED", [x, w], (1, 4, 32), fully_connected())
    return _end(writer, writer.operator("FULLY_CONNECTED", [h, wt], (1, 4, 16), fully_connected()))


def halved() -> Writer:
    """Stored in float16, read through DEQUANTIZE; the second use through TRANSPOSE as well."""
    writer, x = _begin()
    w = writer.operator(
        "DEQUANTIZE", [writer.constant(W.astype(np.float16), name="w")], (32, 16),
        S.DequantizeOptionsT(),
    )  # fmt: skip
    order = writer.constant(np.array([1, 0], np.int32), name="order")
    wt = writer.operator("TRANSPOSE", [w, order], (16, 32), S.TransposeOptionsT())
    h = writer.operator("FULLY_CONNECTED", [x, w], (1, 4, 32), fully_connected())
    return _end(writer, writer.operator("FULLY_CONNECTED", [h, wt], (1, 4, 16), fully_connected()))


def two_graphs() -> Writer:
    """A second subgraph reads the same buffer, under the same name; there is no signature."""
    writer, x = _begin()
    w = writer.constant(W, name="w")
    place = writer.graph.tensors[w].buffer
    writer.graph.outputs = [
        writer.operator("FULLY_CONNECTED", [x, w], (1, 4, 32), fully_connected())
    ]
    writer.begin("back")
    h, w = writer.input((1, 4, 32)), writer.constant(W, place, name="w")
    writer.graph.outputs = [writer.operator("BATCH_MATMUL", [h, w], (1, 4, 16), batch_matmul())]
    return writer


FILES: dict[str, Callable[[], Writer]] = {
    "tied": tied, "tied tensors": tied_tensors, "duplicated": duplicated, "halved": halved,
    "two graphs": two_graphs,
}  # fmt: skip
