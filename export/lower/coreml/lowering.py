"""The state of one lowering, and what the operators' functions may ask of it."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Sequence, Set
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from export.lower import facts
from export.lower.node import Node, Unsupported
from export.lower.probe import Probed
from export.lower.sizes import Dim, Size, derive, in_file, is_static, signature

Array = NDArray[np.generic]
Var: TypeAlias = Any  # coremltools' value of a program
Step = tuple[str, tuple[int, ...]]  # ("transpose", perm) or ("reshape", shape)

MAX_RANK = 5  # of a Core ML tensor that is computed
FLOAT32, FLOAT16, INT32, BOOL = (np.dtype(name) for name in ("float32", "float16", "int32", "bool"))
# Integers that a constant may be stored as; a cast makes them int32 where they are read.
_NARROW = tuple(np.dtype(name) for name in ("uint8", "uint16", "int8", "int16"))
_TYPE_NAMES = {FLOAT32: "fp32", FLOAT16: "fp16", INT32: "int32", BOOL: "bool"}
_LARGEST = float(np.finfo(np.float16).max)
# Stands for what is beyond float16, such as the -3.4e38 of a mask: the sum of two is still finite.
_FAR = 3e4
_BEYOND = 1e30
_SMALLEST = 2 * float(np.finfo(np.float16).smallest_subnormal)

__all__ = ["Constant", "Lowering", "Node", "Placed", "Unsupported"]


@dataclass(frozen=True, slots=True)
class Constant(facts.Constant):
    """A value known before the run.

    Args:
        steps: the views that lead from the initializer that it comes from to ``array``.
    """

    steps: tuple[Step, ...] = ()

    def transposed(self, perm: Sequence[int]) -> Constant:
        """The same numbers with their axes in another order."""
        perm = tuple(perm)
        steps = (*self.steps, ("transpose", perm))
        if self.steps and self.steps[-1][0] == "transpose":
            both = tuple(self.steps[-1][1][axis] for axis in perm)
            steps = (*self.steps[:-1], ("transpose", both))
            if both == tuple(range(len(both))):
                steps = self.steps[:-1]
        return replace(self, array=self.array.transpose(perm), steps=steps)

    def reshaped(self, shape: Sequence[int]) -> Constant:
        """The same numbers in another shape."""
        shape = tuple(shape)
        if shape == self.array.shape:
            return self
        steps = (*self.steps, ("reshape", shape))
        return replace(self, array=self.array.reshape(shape), steps=steps)


@dataclass(frozen=True, slots=True)
class Placed:
    """A value that the program computes, or an input.

    Args:
        folded: whether ``var`` has fewer axes than the value, because those are more than Core ML
            takes: the same elements in the same order.
    """

    var: Var
    folded: bool = False


class Lowering(facts.Facts):
    """Turns ONNX values into those of an ML Program, each stored tensor into one constant."""

    def __init__(
        self,
        probed: Probed,
        builder: Any,
        differently: Set[str],
        kept: Set[str] = frozenset(),
        *,
        half: bool = False,
    ) -> None:
        super().__init__(probed, kept)
        self.float = self._usual = FLOAT16 if half else FLOAT32
        self.where = ""
        self.builder = builder
        self._differently = differently
        self._bases: dict[str, Array] = {}
        self._constants: dict[tuple[Any, ...], Var] = {}
        self._cast: dict[tuple[str, np.dtype[Any]], Var] = {}
        self._names: dict[str, int] = {}
        self._axes: dict[Size, tuple[Var, int]] = {}
        self._sizes: dict[Size, Var] = {}
        self._vectors: dict[tuple[Size, ...], Var] = {}

    # ---- what is known of ONNX values ---------------------------------------------------------

    def rank(self, value: ir.Value) -> int:
        """The value's number of axes."""
        return len(self.shape(value))

    def dtype(self, value: ir.Value) -> np.dtype[Any]:
        """The element type that the value has in the program."""
        return self.stored_type(self._probed.dtypes[value.name or ""])

    def stored_type(self, dtype: np.dtype[Any]) -> np.dtype[Any]:
        """The program's type for one of ONNX: Core ML has neither float64 nor int64."""
        if dtype.kind == "f":
            return self.float
        return BOOL if dtype.kind == "b" else INT32

    def weight(self, value: ir.Value | None, what: str) -> Constant:
        """A parameter that Core ML wants constant."""
        held = None if value is None else self.held(value)
        if not isinstance(held, Constant):
            raise Unsupported(f"{what} is computed while the model runs; it must be constant")
        return held

    def is_held(self, value: ir.Value) -> bool:
        """Whether a value has been lowered already, with the operator before it."""
        return (value.name or "") in self._held

    def held(self, value: ir.Value) -> Constant | Placed:
        """How a value is held: as a constant or in the program."""
        name = value.name or ""
        if name not in self._held:
            sizes = self._probed.sizes(name)
            if sizes is None:
                raise Unsupported(f"{value.name!r} was not lowered")
            scalar = self.rank(value) == 0
            self._held[name] = Placed(self.size_vector(sizes, scalar=scalar))
        found: Constant | Placed = self._held[name]
        return found

    # ---- constants ----------------------------------------------------------------------------

    def hold_weight(self, value: ir.Value, array: Array) -> None:
        """Note a stored tensor."""
        name = value.name or ""
        self._bases[name] = array
        self._held[name] = Constant(array, name, name)

    def hold_constant(self, value: ir.Value, array: Array) -> None:
        """Note that a value is constant, by itself."""
        self._held[value.name or ""] = Constant(array, value.name or "constant")

    def hold(self, value: ir.Value, held: Constant | Placed) -> None:
        """Note that a value is what another one is, or a view of it."""
        self._held[value.name or ""] = held

    def keeps_axes(self, constant: Constant) -> bool:
        """Whether readers disagree on how to store a tensor, so that it stays as it is."""
        return constant.origin in self._differently

    def const(self, array: Any, name: str = "const") -> Var:
        """A constant of the program; equal arrays give the same one."""
        array = np.asarray(array)
        whole = np.ascontiguousarray(array)  # which has an axis where a number has none
        digest = hashlib.blake2b(whole.data, digest_size=20).digest()
        key = (array.shape, array.dtype, digest, self.float)
        if key not in self._constants:
            self._constants[key] = self._stored(array, name)
        return self._constants[key]

    def _stored(self, array: Array, name: str) -> Var:
        """A constant in the type that it takes least room in, cast to the one that is read."""
        wanted = self.stored_type(array.dtype)
        if array.size == 1:
            kept = self.converted(array)
        elif array.dtype in _NARROW:
            kept = array
        elif wanted == FLOAT32 != self._usual:
            with self.exactly(False):
                return self.cast(self.const(array, name), FLOAT32)
        else:
            kept = self.converted(array)
        value = kept[()] if kept.ndim == 0 else np.ascontiguousarray(kept)
        var = self.builder.const(val=value, name=self.unique(name))
        return var if kept.dtype == wanted else self.emit("cast", x=var, dtype=_TYPE_NAMES[wanted])

    @contextmanager
    def exactly(self, wanted: bool) -> Iterator[None]:
        """Compute in float32, or in the precision of the program again."""
        before, self.float = self.float, FLOAT32 if wanted else self._usual
        try:
            yield
        finally:
            self.float = before

    def is_const(self, constant: Constant) -> bool:
        """Whether a constant of ONNX is one of the program, not computed from a shared one."""
        return not (constant.steps and self.keeps_axes(constant))

    def const_of(self, constant: Constant) -> Var:
        """The constant of the program for one of ONNX, through its views where it is shared."""
        if self.is_const(constant):
            return self.const(constant.array, constant.name)
        var = self.const(self._bases[constant.origin], constant.origin)
        for kind, numbers in constant.steps:
            key = "perm" if kind == "transpose" else "shape"
            var = self.emit(kind, x=var, **{key: list(numbers)})
        return var

    def converted(self, array: Array) -> Array:
        """The array in the program's type; what that cannot hold becomes the nearest it can."""
        dtype = self.stored_type(array.dtype)
        if array.dtype == dtype:
            return array
        if dtype == FLOAT16:
            return _half(array)
        if dtype == INT32 and array.dtype.itemsize > 4:
            limits = np.iinfo(np.int32)
            return np.asarray(np.clip(array, limits.min, limits.max).astype(INT32))
        return np.asarray(array.astype(dtype))

    def number(self, value: float, dtype: np.dtype[Any] | None = None) -> Var:
        """A constant number, of the program's floating point type where none is given."""
        array = np.asarray(value, FLOAT32 if dtype == FLOAT16 else dtype or FLOAT32)
        return self.const(_half(array) if dtype == FLOAT16 else array, "number")

    def epsilon(self, value: float) -> Any:
        """What keeps a division finite; never so small that float16 would take it for 0.

        Nor larger than that: the variance of a layer's activations may be small itself.
        """
        return self.float.type(max(value, _SMALLEST) if self.float == FLOAT16 else value)

    # ---- values of the program ----------------------------------------------------------------

    def unique(self, name: str) -> str:
        """Make a name that nothing else has, as near to the given one as Core ML's rules allow."""
        clean = name = _clean(name)
        while name in self._names:
            self._names[clean] += 1
            name = f"{clean}_{self._names[clean]}"
        self._names[name] = 0
        return name

    def emit(self, kind: str, **inputs: Any) -> Var:
        """Append an operator and give its result; what Core ML refuses is Unsupported.

        coremltools' builder has no error of its own: its type inference raises all of these.
        """
        make = getattr(self.builder, kind)
        try:
            return make(name=self.unique(f"{self.where}_{kind}"), **inputs)
        except (ValueError, TypeError, AssertionError, NotImplementedError, IndexError) as error:
            reason = (str(error) or repr(error)).splitlines()[0]
            raise Unsupported(f"{kind}: {reason}") from error

    def place(self, value: ir.Value, var: Var, *, folded: bool = False) -> None:
        """Note what a value is in the program."""
        self._held[value.name or ""] = Placed(var, folded)
        if not folded:
            self.know_axes(var, self.shape(value))

    def know_axes(self, var: Var, shape: Sequence[Size]) -> None:
        """Note where a varying size can be read off while the model runs."""
        for axis, size in enumerate(shape):
            if isinstance(size, Dim):
                self._axes.setdefault(size, (var, axis))

    def var(self, value: ir.Value) -> Var:
        """The value in the program."""
        held = self.held(value)
        if isinstance(held, Constant):
            return self.const_of(held)
        if held.folded:
            raise Unsupported(f"a tensor of {self.rank(value)} axes; Core ML has {MAX_RANK}")
        if self.type_of(held.var) in (FLOAT16, FLOAT32):
            return self._in_precision(held.var)
        return held.var

    def _in_precision(self, var: Var) -> Var:
        """Floating point numbers in the precision of what is being computed."""
        if self.type_of(var) == self.float:
            return var
        key = (var.name, self.float)
        if key not in self._cast:
            self._cast[key] = self.cast(var, self.float)
        return self._cast[key]

    def floats(self, value: ir.Value) -> Var:
        """The value in the program, as floating point numbers."""
        return self.cast(self.var(value), self.float)

    # ---- small helpers that many operators use ------------------------------------------------

    def type_of(self, var: Var) -> np.dtype[Any]:
        """The element type of a value of the program."""
        name = var.dtype.__name__.split(".")[-1]
        return {"fp32": FLOAT32, "fp16": FLOAT16, "bool": BOOL}.get(name, INT32)

    def cast(self, var: Var, dtype: np.dtype[Any]) -> Var:
        """Convert the element type."""
        if self.type_of(var) == dtype:
            return var
        return self.emit("cast", x=var, dtype=_TYPE_NAMES[dtype])

    def reshape(self, var: Var, shape: Sequence[Size]) -> Var:
        """Reshape; the new shape is constant where at most one size varies."""
        shape = tuple(shape)
        if is_static(shape) and tuple(var.shape) == shape:
            return var
        if sum(isinstance(size, Dim) for size in shape) <= 1 and 0 not in shape:
            return self.emit("reshape", x=var, shape=list(signature(shape)))
        return self.emit("reshape", x=var, shape=self.size_vector(shape))

    def broadcast_to(self, var: Var, have: Sequence[Size], want: Sequence[Size]) -> Var:
        """Repeat a tensor to a larger shape."""
        have, want = tuple(have), tuple(want)
        if have == want:
            return var
        if len(have) < len(want):
            have = (1,) * (len(want) - len(have)) + have
            var = self.reshape(var, have)
        pairs = list(zip(have, want, strict=True))
        if all(isinstance(w, int) or h == w for h, w in pairs):
            times = [w if h == 1 and isinstance(w, int) else 1 for h, w in pairs]
            return self.emit("tile", x=var, reps=times) if any(t > 1 for t in times) else var
        dtype = self.type_of(var)
        zeros = self.fill(want, 0, INT32 if dtype == BOOL else dtype)
        if dtype == BOOL:
            return self.cast(self.emit("add", x=self.cast(var, INT32), y=zeros), BOOL)
        return self.emit("add", x=var, y=zeros)

    def fill(self, shape: Sequence[Size], value: float, dtype: np.dtype[Any]) -> Var:
        """A tensor of one number, made while the model runs: it takes no room in the file."""
        number = self.converted(np.asarray(value, FLOAT32 if dtype.kind == "f" else dtype))
        if dtype == BOOL:
            return self.cast(self.fill(shape, int(value), INT32), BOOL)
        return self.emit("fill", shape=self.size_vector(shape), value=number.astype(dtype)[()])

    # ---- sizes that vary ----------------------------------------------------------------------

    def size_vector(self, sizes: Sequence[Size], *, scalar: bool = False) -> Var:
        """A vector of sizes, or a number, read off tensors while the model runs where they vary."""
        if is_static(sizes):
            array = np.asarray(in_file(sizes), INT32)
            return self.const(array.reshape(()) if scalar else array, "sizes")
        key = tuple(sizes)
        if scalar:
            return self.emit("squeeze", x=self._one_size(key[0]), axes=[0])
        if key not in self._vectors:
            parts = self._runs(key)
            found = parts[0] if len(parts) == 1 else self.emit("concat", values=parts, axis=0)
            self._vectors[key] = found
        return self._vectors[key]

    def _runs(self, sizes: Sequence[Size]) -> list[Var]:
        """Sizes as vectors to be joined; known neighbours are one constant."""
        parts: list[Var] = []
        known: list[int] = []
        for size in (*sizes, None):
            if isinstance(size, int):
                known.append(size)
                continue
            if known:
                parts.append(self.const(np.asarray(known, INT32), "sizes"))
                known = []
            if size is not None:
                parts.append(self._one_size(size))
        return parts

    def _one_size(self, size: Size) -> Var:
        """A vector of one size."""
        if isinstance(size, int):
            return self.const(np.asarray([size], INT32), "sizes")
        if size not in self._sizes:
            self._sizes[size] = self._read_size(size)
        return self._sizes[size]

    def _read_size(self, size: Dim) -> Var:
        if size in self._axes:
            var, axis = self._axes[size]
            whole = self.emit("shape", x=var)
            return self.emit("slice_by_index", x=whole, begin=[axis], end=[axis + 1])
        derived = derive(size, tuple(self._axes))
        if derived is None:
            raise Unsupported("a size that cannot be derived from those of the inputs")
        result, *others = (self._one_size(term) for term in derived.terms)
        for other in others:
            result = self.emit("mul", x=result, y=other)
        if derived.factor != 1:
            result = self.emit("mul", x=result, y=self.number(derived.factor, INT32))
        if derived.offset:
            result = self.emit("add", x=result, y=self.number(derived.offset, INT32))
        return result


def _clean(name: str) -> str:
    """A name of letters, digits and underscores that does not begin with a digit."""
    clean = re.sub(r"[^A-Za-z0-9_]", "_", name)
    return clean if re.match(r"[A-Za-z_]", clean) else f"_{clean}"


def _half(array: Array) -> Array:
    """Round to float16: what is finite stays so, and a single number stays off 0.

    Such a number may keep a division finite.
    """
    far = np.where(np.abs(array) >= _BEYOND, np.copysign(_FAR, array), array)
    if array.size == 1 and 0 < np.abs(array).item() < _SMALLEST:
        far = np.copysign(_SMALLEST, array)
    return np.asarray(np.clip(far, -_LARGEST, _LARGEST).astype(FLOAT16))
