"""Small ONNX models of one operator or a few, lowered to TFLite and run next to ONNX Runtime."""

from __future__ import annotations

import re
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
from onnx.reference import ReferenceEvaluator
from onnxruntime.capi import onnxruntime_pybind11_state as ort_errors

from export.lower import LATENCY_FIRST
from export.lower.tflite import write_tflite
from runtimes.litert import open_session
from tests.export.conftest import run_onnx

OPSET = 20
TOLERANCE = 1e-5  # of the largest element
FAR = 2**63 - 1
INF, NAN = float("inf"), float("nan")
POSITIVE = np.linspace(0.1, 3, 12, dtype=np.float32).reshape(3, 4)
EDGES = np.float32([-20, -6, -3, -1, -0.5, -0.0, 0, 0.5, 1, 2.5, 3.5, 20])
SIGNED = np.arange(-6, 6).reshape(3, 4)
BOOLS = SIGNED % 3 == 0


Axes = tuple[int, ...]


@dataclass(frozen=True)
class Case:
    """Nodes in ONNX's text format; what is fed is named ``x...``, what comes out ``y...``.

    Args:
        varies: whether the first axis of what is fed may vary, or why that is refused.
        refused: a part of the reason, where the lowering refuses the case.
    """

    text: str
    inputs: dict[str, np.ndarray]
    constants: dict[str, np.ndarray]
    opset: int = OPSET
    varies: bool | str = True
    refused: str = ""

    @property
    def kinds(self) -> list[str]:
        return re.findall(r"([A-Z]\w+)[<(]", self.text)

    def __str__(self) -> str:
        shapes = ",".join("x".join(map(str, x.shape)) or "scalar" for x in self.inputs.values())
        return re.sub(r"\s+", " ", f"{self.text} [{shapes}]")


def case(
    text: str, *, opset: int = OPSET, varies: bool | str = True, refused: str = "", **values
) -> Case:
    """Make a case; a tuple stands for random floats of that shape."""
    random = np.random.default_rng(zlib.crc32(text.encode()))
    arrays = {name: _array(value, random) for name, value in values.items()}
    inputs = {name: array for name, array in arrays.items() if name.startswith("x")}
    constants = {name: array for name, array in arrays.items() if not name.startswith("x")}
    return Case(text, inputs, constants, opset, varies, refused)


def i32(values) -> np.ndarray:
    return np.asarray(values, np.int32)


def i64(values) -> np.ndarray:
    return np.asarray(values, np.int64)


def _array(value, random: np.random.Generator) -> np.ndarray:
    if isinstance(value, tuple):
        return random.standard_normal(value).astype(np.float32)
    array = np.asarray(value)
    return array.astype(np.float32) if array.dtype == np.float64 else array


def model_of(one: Case, axes: Axes = ()) -> ir.Model:
    """Build the model of a case, with the given axes of its inputs dynamic."""
    graph = onnx.parser.parse_graph(f"g () => () {{ {one.text} }}")
    names = [name for node in graph.node for name in node.output if name.startswith("y")]
    made = onnx.helper.make_graph(
        list(graph.node), "g",
        [_info(name, array, axes) for name, array in one.inputs.items()],
        [onnx.ValueInfoProto(name=name) for name in names],
        [onnx.numpy_helper.from_array(array, name) for name, array in one.constants.items()],
    )  # fmt: skip
    opset = onnx.helper.make_opsetid("", one.opset)
    proto = onnx.helper.make_model(made, opset_imports=[opset], ir_version=10)
    for place, node in enumerate(proto.graph.node):
        node.name = f"node{place}"
    return ir.from_proto(onnx.shape_inference.infer_shapes(proto, data_prop=True))


def _info(name: str, array: np.ndarray, axes: Axes) -> onnx.ValueInfoProto:
    shape = [f"n{axis}" if axis in axes else size for axis, size in enumerate(array.shape)]
    return onnx.helper.make_tensor_value_info(
        name, onnx.helper.np_dtype_to_tensor_dtype(array.dtype), shape
    )


def check(one: Case, path: Path, axes: Axes = (), *, setting: str = LATENCY_FIRST) -> None:
    """Lower a case, and compare what it computes with ONNX Runtime."""
    model = model_of(one, axes)
    write_tflite(model, path, setting)
    for optimize in (True, False):
        session = open_session(path, optimize=optimize)
        for feeds in feeds_of(one, axes):
            expected = expected_of(model, feeds)
            outputs = session.run(feeds)
            for name, want in zip((v.name for v in model.graph.outputs), expected, strict=True):
                assert_same(outputs[name], want)


def expected_of(model: ir.Model, feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
    """What ONNX computes."""
    try:
        return run_onnx(model, feeds, optimize=False)
    except ort_errors.NotImplemented:  # ONNX Runtime has not each operator for each type
        return list(ReferenceEvaluator(ir.to_proto(model)).run(None, feeds))


def feeds_of(one: Case, axes: Axes) -> list[dict[str, np.ndarray]]:
    """What is fed, run after run: axes that vary grow and shrink again."""
    if not axes:
        return [one.inputs]
    longer = {}
    for name, x in one.inputs.items():
        for axis in axes:
            x = np.concatenate([x, np.flip(x, axis)], axis) if axis < x.ndim else x
        longer[name] = x
    return [one.inputs, longer, one.inputs]


def assert_same(found: np.ndarray, expected: np.ndarray, tolerance: float = TOLERANCE) -> None:
    """Floats within a share of the largest, everything else in every bit."""
    assert found.dtype == expected.dtype
    assert found.shape == expected.shape
    if expected.dtype.kind != "f":
        np.testing.assert_array_equal(found, expected)
        return
    finite = expected[np.isfinite(expected)]
    scale = float(np.abs(finite).max()) if finite.size else 1.0
    np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance * scale)
