"""Random small networks of many operators, for a format whose layouts differ from ONNX's."""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir
from hypothesis import strategies as st

BATCH = 1009  # stands for the size that varies; its multiples are no other size
MOST_ELEMENTS = 4096
SIZES = (1, 2, 3, 4, 6)
UNARY = ("Relu", "Tanh", "Sigmoid", "Neg", "Abs", "HardSwish", "LeakyRelu", "Gelu", "Softplus")

Shape = tuple[int, ...]


class Net:
    """Grows a graph from its values; every choice is drawn by hypothesis."""

    def __init__(self, data: st.DataObject) -> None:
        self.data = data
        self.random = np.random.default_rng(self.draw(st.integers(0, 2**16)))
        self.varies = self.draw(st.booleans())
        # One choice a net: the simplifier joins reductions that differ in it, and loses the axis.
        self.keeps_axes = self.draw(st.booleans())
        rank = self.draw(st.integers(2, 4))
        batch = BATCH if self.varies else self.draw(st.sampled_from((1, 2, 3)))
        shape = (batch, *(self.draw(st.sampled_from((1, 3, 4, 6))) for _ in range(rank - 1)))
        self.nodes: list[ir.Node] = []
        self.weights: list[ir.Value] = []
        self.shapes: dict[str, Shape] = {}
        self.x = ir.Value(
            name="x",
            shape=ir.Shape(["n" if size == BATCH else size for size in shape]),
            type=ir.TensorType(ir.DataType.FLOAT),
        )
        self.shapes["x"] = shape
        self.values = [self.x]

    # ---- building blocks ----------------------------------------------------------------------

    def draw(self, strategy: st.SearchStrategy):
        return self.data.draw(strategy)

    def pick(self) -> tuple[ir.Value, Shape]:
        """A value made before; mostly one of the last."""
        value = self.draw(st.sampled_from(self.values[-3:] if self.draw(st.booleans()) else
                                          self.values))  # fmt: skip
        return value, self.shapes[value.name]

    def axis(self, shape: Shape, *, static: bool = False) -> int | None:
        axes = [a for a, size in enumerate(shape) if not (static and size % BATCH == 0)]
        return self.draw(st.sampled_from(axes)) if axes else None

    def stored(self, array: np.ndarray) -> ir.Value:
        name = f"c{len(self.weights)}"
        value = ir.Value(
            name=name,
            shape=ir.Shape(array.shape),
            type=ir.TensorType(ir.DataType.from_numpy(array.dtype)),
            const_value=ir.tensor(array, name=name),
        )
        self.weights.append(value)
        return value

    def weight(self, shape: Shape) -> ir.Value:
        """Parameters of a shape: new ones, or used before."""
        same = [w for w in self.weights if tuple(w.shape) == shape and w.dtype == ir.DataType.FLOAT]
        if same and self.draw(st.booleans()):
            return self.draw(st.sampled_from(same))
        scale = 1 / math.sqrt(max(math.prod(shape[1:]), 1))
        return self.stored((self.random.standard_normal(shape) * scale).astype(np.float32))

    def ints(self, numbers) -> ir.Value:
        return self.stored(np.asarray(numbers, np.int64))

    def add(self, op: str, inputs: list[ir.Value], shape: Shape, **attributes) -> ir.Value:
        node = ir.node(op, inputs, attributes, name=f"n{len(self.nodes)}")
        node.outputs[0].name = f"v{len(self.nodes)}"
        self.nodes.append(node)
        self.keep(node.outputs[0], shape)
        return node.outputs[0]

    def keep(self, value: ir.Value, shape: Shape) -> None:
        self.shapes[value.name] = shape
        if math.prod(shape) // (BATCH if self.varies else 1) <= MOST_ELEMENTS:
            self.values.append(value)

    # ---- steps --------------------------------------------------------------------------------

    def unary(self) -> None:
        x, shape = self.pick()
        self.add(self.draw(st.sampled_from(UNARY)), [x], shape)

    def clip(self) -> None:
        x, shape = self.pick()
        low, high = self.draw(st.sampled_from(((0, 6), (-1, 1), (-0.5, 0.7))))
        bounds = [self.stored(np.asarray(v, np.float32)) for v in (low, high)]
        self.add("Clip", [x, *bounds], shape)

    def constant(self) -> None:
        """An elementwise operator with parameters that are broadcast."""
        x, shape = self.pick()
        kept = self.draw(st.integers(0, len(shape)))
        sizes = [
            1 if size % BATCH == 0 or self.draw(st.booleans()) else size
            for size in shape[len(shape) - kept :]
        ]
        op = self.draw(st.sampled_from(("Add", "Mul", "Sub")))
        w = self.weight(tuple(sizes))
        self.add(op, [x, w] if self.draw(st.booleans()) else [w, x], shape)

    def both(self) -> None:
        """An elementwise operator on two values, one of them broadcast or not."""
        x, shape = self.pick()
        fitting = [v for v in self.values if _fits(self.shapes[v.name], shape)]
        y = self.draw(st.sampled_from(fitting))
        op = self.draw(st.sampled_from(("Add", "Mul", "Sub", "Max", "Min")))
        self.add(op, [x, y] if self.draw(st.booleans()) else [y, x], shape)

    def transpose(self) -> None:
        x, shape = self.pick()
        if not shape:
            return
        perm = self.draw(st.permutations(range(len(shape))))
        self.add("Transpose", [x], tuple(shape[a] for a in perm), perm=list(perm))

    def reshape(self) -> None:
        """Merge two neighbouring axes, split one, or add or drop an axis of size 1."""
        x, shape = self.pick()
        axis = self.axis(shape)
        if axis is None:
            return
        size = shape[axis]
        parts = [p for p in (2, 3) if size % p == 0 and size > p]
        how = self.draw(st.sampled_from(("merge", "split", "one")))
        if how == "merge" and axis + 1 < len(shape):
            after = (*shape[:axis], size * shape[axis + 1], *shape[axis + 2 :])
        elif how == "split" and parts and len(shape) < 5:
            part = self.draw(st.sampled_from(parts))
            pair = (size // part, part) if self.draw(st.booleans()) or size % BATCH == 0 else (
                part, size // part)  # fmt: skip
            after = (*shape[:axis], *pair, *shape[axis + 1 :])
        elif size == 1 and len(shape) > 1:
            after = (*shape[:axis], *shape[axis + 1 :])
        elif len(shape) < 5:
            after = (*shape[:axis], 1, *shape[axis:])
        else:
            return
        target = [-1 if size % BATCH == 0 else size for size in after]
        self.add("Reshape", [x, self.ints(target)], after)

    def reduce(self) -> None:
        x, shape = self.pick()
        if not shape:
            return
        axes = self.draw(st.sets(st.integers(0, len(shape) - 1), min_size=1))
        if any(shape[a] % BATCH == 0 for a in axes) and not self.draw(st.booleans()):
            return
        keep = self.keeps_axes
        after = tuple(1 if a in axes else s for a, s in enumerate(shape) if keep or a not in axes)
        op = self.draw(st.sampled_from(("ReduceMean", "ReduceMax", "ReduceMin", "ReduceL2")))
        self.add(op, [x, self.ints(sorted(axes))], after, keepdims=int(keep))

    def matmul(self) -> None:
        """A product with parameters, straight or transposed, new or tied."""
        x, shape = self.pick()
        if not shape or shape[-1] % BATCH == 0:
            return
        width = shape[-1]
        matrices = [
            (w, turned)
            for w in self.weights if len(w.shape) == 2 and w.dtype == ir.DataType.FLOAT
            for turned in (False, True) if w.shape[1 if turned else 0] == width
        ]  # fmt: skip
        if matrices and self.draw(st.booleans()):
            w, turned = self.draw(st.sampled_from(matrices))
        else:
            turned = self.draw(st.booleans())
            out = self.draw(st.sampled_from((4, 6, 8)))
            w = self.weight((out, width) if turned else (width, out))
        out = w.shape[0 if turned else 1]
        if len(shape) == 2 and self.draw(st.booleans()):
            self.add("Gemm", [x, w, self.weight((out,))], (*shape[:-1], out), transB=int(turned))
            return
        if turned:
            w = self.add("Transpose", [w], tuple(w.shape)[::-1], perm=[1, 0])
            self.values.remove(w)
        y = self.add("MatMul", [x, w], (*shape[:-1], out))
        if self.draw(st.booleans()):
            self.add("Add", [y, self.weight((out,))], (*shape[:-1], out))

    def attend(self) -> None:
        """A product of a value with itself, transposed."""
        x, shape = self.pick()
        if len(shape) < 3 or shape[-1] % BATCH == 0 or shape[-2] % BATCH == 0 or shape[-2] == 1:
            return
        perm = [*range(len(shape) - 2), len(shape) - 1, len(shape) - 2]
        turned = self.add("Transpose", [x], tuple(shape[a] for a in perm), perm=perm)
        scores = self.add("MatMul", [x, turned], (*shape[:-1], shape[-2]))
        shares = self.add("Softmax", [scores], (*shape[:-1], shape[-2]), axis=-1)
        self.add("MatMul", [shares, x], shape)

    def conv(self) -> None:
        x, shape = self.pick()
        if len(shape) != 4 or any(size % BATCH == 0 for size in shape[1:]):
            return
        filters = [
            w for w in self.weights if len(w.shape) == 4 and w.shape[1] == shape[1]
            and w.shape[2] <= shape[2] and w.shape[3] <= shape[3]
        ]  # fmt: skip
        depthwise = self.draw(st.integers(0, 3)) == 0
        kernel = self.draw(st.sampled_from((1, 2, 3)))
        pads = [self.draw(st.integers(0, kernel - 1)) for _ in range(4)]
        stride = self.draw(st.sampled_from((1, 1, 2)))
        if filters and not depthwise and self.draw(st.booleans()):
            w = self.draw(st.sampled_from(filters))
            kernel, pads = w.shape[2], [0] * 4
        elif depthwise:
            w = self.weight((shape[1] * self.draw(st.sampled_from((1, 2))), 1, kernel, kernel))
        else:
            w = self.weight((self.draw(st.sampled_from((3, 4))), shape[1], kernel, kernel))
        size = [
            (shape[2 + i] + pads[i] + pads[2 + i] - kernel) // stride + 1 for i in (0, 1)
        ]  # fmt: skip
        if min(size) < 1 or any(shape[2 + i] + pads[i] + pads[2 + i] < kernel for i in (0, 1)):
            return
        inputs = [x, w, *([self.weight((w.shape[0],))] if self.draw(st.booleans()) else [])]
        self.add(
            "Conv", inputs, (shape[0], w.shape[0], *size),
            pads=pads, strides=[stride] * 2, group=shape[1] if depthwise else 1,
        )  # fmt: skip

    def conv_transpose(self) -> None:
        """A transposed convolution; its filter may be that of a convolution."""
        x, shape = self.pick()
        if len(shape) != 4 or any(size % BATCH == 0 for size in shape[1:]):
            return
        filters = [w for w in self.weights if len(w.shape) == 4 and w.shape[0] == shape[1]]
        if filters and self.draw(st.booleans()):
            w = self.draw(st.sampled_from(filters))
        else:
            kernel = self.draw(st.sampled_from((1, 2, 3)))
            w = self.weight((shape[1], self.draw(st.sampled_from((3, 4))), kernel, kernel))
        stride = self.draw(st.sampled_from((1, 2)))
        size = [(shape[2 + i] - 1) * stride + w.shape[2 + i] for i in (0, 1)]
        after = (shape[0], w.shape[1], *size)
        self.add("ConvTranspose", [x, w], after, strides=[stride] * 2)

    def pool(self) -> None:
        x, shape = self.pick()
        if len(shape) != 4 or any(size % BATCH == 0 for size in shape[1:]) or min(shape[2:]) < 2:
            return
        op = self.draw(st.sampled_from(("MaxPool", "AveragePool")))
        pad = self.draw(st.integers(0, 1))
        size = [(s + 2 * pad - 2) // 2 + 1 for s in shape[2:]]
        self.add(op, [x], (*shape[:2], *size),
                 kernel_shape=[2, 2], strides=[2, 2], pads=[pad] * 4)  # fmt: skip

    def norm(self) -> None:
        x, shape = self.pick()
        axis = self.axis(shape[1:]) if len(shape) > 1 else None
        if axis is None or any(size % BATCH == 0 for size in shape[axis + 1 :]):
            return
        rest = shape[axis + 1 :]
        if math.prod(rest) < 2:
            return  # the deviation of one number is 0
        inputs = [x, self.weight(rest), self.weight(rest)]
        self.add("LayerNormalization", inputs, shape, axis=axis + 1, epsilon=0.01)

    def softmax(self) -> None:
        x, shape = self.pick()
        axis = self.axis(shape)
        if axis is not None and shape[axis] > 1:  # of one number it is a constant
            self.add("Softmax", [x], shape, axis=axis)

    def slice(self) -> None:
        x, shape = self.pick()
        axis = self.axis(shape, static=True)
        if axis is None:
            return
        size = shape[axis]
        start = self.draw(st.integers(-size, size - 1))
        first = start % size
        end = self.draw(st.integers(first + 1, size))
        step = self.draw(st.sampled_from((1, 1, 2)))
        after = (*shape[:axis], -(-(end - first) // step), *shape[axis + 1 :])
        inputs = [x, *(self.ints([v]) for v in (start, end, axis, step))]
        self.add("Slice", inputs, after)

    def split(self) -> None:
        x, shape = self.pick()
        axis = self.axis(shape, static=True)
        if axis is None or shape[axis] < 2:
            return
        first = self.draw(st.integers(1, shape[axis] - 1))
        sizes = [first, shape[axis] - first]
        node = ir.node("Split", [x, self.ints(sizes)], {"axis": axis}, num_outputs=2,
                       name=f"n{len(self.nodes)}")  # fmt: skip
        for place, (output, size) in enumerate(zip(node.outputs, sizes, strict=True)):
            output.name = f"v{len(self.nodes)}_{place}"
            self.keep(output, (*shape[:axis], size, *shape[axis + 1 :]))
        self.nodes.append(node)

    def concat(self) -> None:
        x, shape = self.pick()
        axis = self.axis(shape, static=True)
        if axis is None:
            return
        others = [
            v for v in self.values
            if len(self.shapes[v.name]) == len(shape)
            and all(a == axis or s == t
                    for a, (s, t) in enumerate(zip(self.shapes[v.name], shape, strict=True)))
        ]  # fmt: skip
        others = [v for v in others if self.shapes[v.name][axis] % BATCH]
        many = self.draw(st.lists(st.sampled_from(others), min_size=1, max_size=6))
        size = shape[axis] + sum(self.shapes[v.name][axis] for v in many)
        after = (*shape[:axis], size, *shape[axis + 1 :])
        self.add("Concat", [x, *many], after, axis=axis)

    def gather(self) -> None:
        x, shape = self.pick()
        axis = self.axis(shape, static=True)
        if axis is None:
            return
        size = shape[axis]
        count = self.draw(st.integers(1, 3))
        places = self.draw(st.lists(st.integers(-size, size - 1), min_size=count, max_size=count))
        if count == 1 and self.draw(st.booleans()):
            after, indices = (*shape[:axis], *shape[axis + 1 :]), self.ints(places[0])
        else:
            after, indices = (*shape[:axis], count, *shape[axis + 1 :]), self.ints(places)
        self.add("Gather", [x, indices], after, axis=axis)

    def pad(self) -> None:
        x, shape = self.pick()
        axis = self.axis(shape, static=True)
        if axis is None:
            return
        pads = [0] * (2 * len(shape))
        pads[axis], pads[axis + len(shape)] = (self.draw(st.integers(0, 2)) for _ in range(2))
        size = shape[axis] + pads[axis] + pads[axis + len(shape)]
        inputs = [x, self.ints(pads), self.stored(np.asarray(0.5, np.float32))]
        self.add("Pad", inputs, (*shape[:axis], size, *shape[axis + 1 :]))

    def expand(self) -> None:
        x, shape = self.pick()
        ones = [a for a, size in enumerate(shape) if size == 1]
        if not ones:
            return
        axis = self.draw(st.sampled_from(ones))
        target = [3 if a == axis else 1 for a in range(len(shape))]
        self.add("Expand", [x, self.ints(target)], (*shape[:axis], 3, *shape[axis + 1 :]))

    # ---- the result ---------------------------------------------------------------------------

    def model(self) -> ir.Model:
        outputs = list(dict.fromkeys([self.values[-1], self.draw(st.sampled_from(self.values))]))
        read = {value for node in self.nodes for value in node.inputs}
        graph = ir.Graph(
            [self.x],
            [v for v in outputs if v is not self.x] or [self._copied()],
            nodes=self.nodes,
            initializers=[w for w in self.weights if w in read],
            opset_imports={"": 20},
            name="g",
        )
        return ir.Model(graph, ir_version=10)

    def _copied(self) -> ir.Value:
        return self.add("Identity", [self.x], self.shapes["x"])

    def feeds(self, batch: int) -> dict[str, np.ndarray]:
        shape = [batch if size == BATCH else size for size in self.shapes["x"]]
        return {"x": self.random.standard_normal(shape).astype(np.float32)}


def _fits(small: Shape, large: Shape) -> bool:
    """Whether a shape can be broadcast to another."""
    pairs = zip(small[::-1], large[::-1], strict=False)
    return len(small) <= len(large) and all(size in (1, other) for size, other in pairs)


STEPS = (
    "unary", "clip", "constant", "both", "transpose", "reshape", "reduce", "matmul", "matmul",
    "attend", "conv", "conv", "conv_transpose", "pool", "norm", "softmax", "slice", "split",
    "concat", "gather", "pad", "expand",
)  # fmt: skip


@st.composite
def random_nets(draw) -> tuple[ir.Model, list[dict[str, np.ndarray]]]:
    """A network, and what it is fed run after run."""
    net = Net(draw(st.data()))
    for step in draw(st.lists(st.sampled_from(STEPS), min_size=2, max_size=12)):
        getattr(net, step)()
    batches = (2, 5, 1) if net.varies else (2,)
    return net.model(), [net.feeds(batch) for batch in batches]
