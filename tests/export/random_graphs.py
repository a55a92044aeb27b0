"""Random small graphs whose weights are used in random places, straight and transposed."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from hypothesis import strategies as st

from export.stamps import STORED, TIED, VIEW

DIMS = (4, 6, 8)
MATRIX_STEPS = ("matmul", "matmul", "gemm", "bias", "activation", "residual")
IMAGE_STEPS = ("conv", "conv", "conv transpose", "batch norm", "bias norm", "activation")


class Builder:
    """Grows a graph one step at a time; every choice is drawn by hypothesis."""

    def __init__(self, data: st.DataObject, image: bool) -> None:
        self.data, self.image = data, image
        self.random = np.random.default_rng(data.draw(st.integers(0, 2**16), label="seed"))
        self.dim = data.draw(st.sampled_from(DIMS), label="width")
        rest = ["h", "w"] if image else []
        lead = ["batch"] if image or data.draw(st.booleans()) else ["batch", "tokens"]
        self.x = self._value("x", [*lead, self.dim, *rest])
        self.now, self.before = self.x, None
        self.nodes: list[ir.Node] = []
        self.initializers: list[ir.Value] = []
        self.count = 0

    def _value(self, name: str, shape: list[int | str]) -> ir.Value:
        return ir.Value(name=name, shape=ir.Shape(shape), type=ir.TensorType(ir.DataType.FLOAT))

    def weight(self, shape: tuple[int, ...], scale: float = 0.5) -> ir.Value:
        array = (self.random.standard_normal(shape) * scale).astype(np.float32)
        return self.stored(array, f"w{len(self.initializers)}")

    def stored(self, array: np.ndarray, name: str, stamp: str = "", view: str = "identity"):
        value = self._value(name, list(array.shape))
        value.const_value = ir.tensor(array, name=name)
        value.metadata_props.update({STORED: stamp or name, VIEW: view, TIED: "1"})
        self.initializers.append(value)
        return value

    def node(self, op: str, inputs: list[ir.Value], shape: list[int | str], **attributes):
        node = ir.node(op, inputs, attributes)
        self.nodes.append(node)
        self.count += 1
        node.outputs[0].name = f"v{self.count}"
        node.outputs[0].shape = ir.Shape(shape)
        node.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
        return node.outputs[0]

    def matrix(self, rank: int) -> tuple[ir.Value, bool]:
        """A weight that fits, new or used before, and whether it must be read transposed.

        Orientation as in ``x @ W``: rows are the input's width.
        """
        fitting = [
            (value, transposed)
            for value in self.initializers
            if len(value.shape) == rank
            for transposed in (False, True)
            if value.shape[1 if transposed else 0] == self.dim
            and all(size == 1 for size in list(value.shape)[2:])
        ]
        if fitting and self.data.draw(st.booleans(), label="tie"):
            value, transposed = self.data.draw(st.sampled_from(fitting), label="use")
            if self.data.draw(st.integers(0, 4), label="alias") == 0:
                value, transposed = self.alias(value, transposed)
            return value, transposed
        out = self.data.draw(st.sampled_from(DIMS), label="out")
        transposed = self.data.draw(st.booleans(), label="transposed")
        shape = (out, self.dim) if transposed else (self.dim, out)
        return self.weight((*shape, *[1] * (rank - 2))), transposed

    def alias(self, value: ir.Value, transposed: bool) -> tuple[ir.Value, bool]:
        """A second name of the same memory, as it is or transposed."""
        array, name = value.const_value.numpy(), f"a{len(self.initializers)}"
        stamp, rank = value.metadata_props[STORED], len(value.shape)
        if value.metadata_props[VIEW] != "identity":
            return value, transposed
        if rank == 2 and self.data.draw(st.booleans(), label="transposed alias"):
            alias = self.stored(np.ascontiguousarray(array.T), name, stamp, "transpose")
            return alias, not transposed
        return self.stored(array, name, stamp), transposed

    def read(self, value: ir.Value, transposed: bool) -> ir.Value:
        """Read a weight through as many Transposes as its orientation takes, or two more."""
        turns = int(transposed) + 2 * self.data.draw(st.integers(0, 1), label="turns")
        for _ in range(turns):
            shape = list(value.shape)
            shape[:2] = shape[1::-1]
            value = self.node("Transpose", [value], shape, perm=[1, 0, *range(2, len(shape))])
        return value

    def step(self) -> None:
        kind = self.data.draw(st.sampled_from(IMAGE_STEPS if self.image else MATRIX_STEPS))
        getattr(self, kind.replace(" ", "_"))()

    def _advance(self, value: ir.Value, dim: int | None = None) -> None:
        self.before, self.now = self.now, value
        self.dim = dim or self.dim

    def _shape(self, dim: int) -> list[int | str]:
        shape = [s if isinstance(s, int) else s.value for s in self.now.shape]
        shape[1 if self.image else -1] = dim
        return shape

    def matmul(self) -> None:
        value, transposed = self.matrix(2)
        out = value.shape[0 if transposed else 1]
        read = self.read(value, transposed)
        self._advance(self.node("MatMul", [self.now, read], self._shape(out)), out)

    def gemm(self) -> None:
        if len(self.now.shape) != 2:
            return self.matmul()
        value, transposed = self.matrix(2)
        out = value.shape[0 if transposed else 1]
        inputs = [self.now, value]
        self._advance(self.node("Gemm", inputs, self._shape(out), transB=int(transposed)), out)
        return None

    def bias(self) -> None:
        self._advance(self.node("Add", [self.now, self.weight((self.dim,))], self._shape(self.dim)))

    def activation(self) -> None:
        op = self.data.draw(st.sampled_from(["Relu", "Gelu", "Tanh"]))
        self._advance(self.node(op, [self.now], self._shape(self.dim)))

    def residual(self) -> None:
        if self.before is not None and list(self.before.shape) == list(self.now.shape):
            self._advance(self.node("Add", [self.before, self.now], self._shape(self.dim)))

    def conv(self) -> None:
        value, transposed = self.matrix(4)  # a filter is (out, in): the other way round
        out = value.shape[0 if transposed else 1]
        read = self.read(value, not transposed)
        self._advance(self.node("Conv", [self.now, read], self._shape(out)), out)

    def conv_transpose(self) -> None:
        value, transposed = self.matrix(4)
        out = value.shape[0 if transposed else 1]
        read = self.read(value, transposed)
        self._advance(self.node("ConvTranspose", [self.now, read], self._shape(out)), out)

    def batch_norm(self) -> None:
        vectors = [self.weight((self.dim,)) for _ in range(3)]
        variance = self.random.uniform(0.5, 2, self.dim).astype(np.float32)
        vectors.append(self.stored(variance, f"var{len(self.initializers)}"))
        inputs = [self.now, *vectors]
        self._advance(self.node("BatchNormalization", inputs, self._shape(self.dim)))

    def bias_norm(self) -> None:
        """A convolution with a bias, then a norm: the bias goes through the norm."""
        value, transposed = self.matrix(4)
        out = value.shape[0 if transposed else 1]
        inputs = [self.now, self.read(value, not transposed), self.weight((out,))]
        self._advance(self.node("Conv", inputs, self._shape(out)), out)
        self.batch_norm()

    def model(self) -> ir.Model:
        graph = ir.Graph(
            [self.x], [self.now], nodes=self.nodes, initializers=self.initializers,
            opset_imports={"": 20}, name="g",
        )  # fmt: skip
        return ir.Model(graph, ir_version=10)

    def feeds(self) -> dict[str, np.ndarray]:
        sizes = {"batch": 3, "tokens": 5, "h": 4, "w": 3}
        shape = [s if isinstance(s, int) else sizes[s.value] for s in self.x.shape]
        return {"x": self.random.standard_normal(shape).astype(np.float32)}


@st.composite
def random_graphs(draw) -> tuple[ir.Model, dict[str, np.ndarray]]:
    builder = Builder(draw(st.data()), draw(st.booleans()))
    builder.matmul() if not builder.image else builder.conv()
    for _ in range(draw(st.integers(1, 8))):
        builder.step()
    return builder.model(), builder.feeds()
