"""The records that travel through an export: plain frozen data, no behaviour beyond sums.

The words are those of docs/vocabulary.md: a *stored tensor* is one block of parameter bytes, a
*use* is an operator that reads it through a *view*, a *tie* is two or more uses of one of them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

DTYPE_BYTES: dict[str, float] = {
    "float64": 8, "float32": 4, "float16": 2, "bfloat16": 2,
    "int64": 8, "int32": 4, "int16": 2, "int8": 1,
    "uint64": 8, "uint32": 4, "uint16": 2, "uint8": 1, "bool": 1,
    "complex128": 16, "complex64": 8, "float8_e4m3fn": 1, "float8_e5m2": 1,
    "int4": 0.5, "uint4": 0.5, "int2": 0.25,
    "uint1": 0.125, "uint2": 0.25, "uint3": 0.375, "uint6": 0.75,
}  # fmt: skip

INDEX = "index"  # the last step of a view, of what says where another tensor is read
# Key of a session option: a library with kernels for operators of the model, by its path from the
# artifact's folder. The model runs without it as well.
KERNELS = "custom_ops_library"
# How the name of an input begins that nothing reads: some clients of a format insist on feeding it.
UNUSED = "unused_"


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """One input or output: its name, element type and shape; a string is a dynamic dimension."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]


@dataclass(frozen=True, slots=True)
class Use:
    """An operator that reads a stored tensor.

    Args:
        op: the operator's type, such as ``linear`` (torch) or ``Gemm`` (ONNX).
        view: how it reads: ``identity``, ``transpose``, ``permute(0,2,1)``, ``reshape`` or a
            chain of these joined by ``>``. It ends with ``index`` where the numbers say which
            elements of another tensor are read.
        where: the node's or module's name.
    """

    op: str
    view: str
    where: str = ""

    @property
    def reads_as_index(self) -> bool:
        """Whether the numbers say which elements of another tensor are read."""
        return self.view.split(">")[-1] == INDEX


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """One block of parameter bytes with everything that reads it.

    Args:
        aliases: further names in torch of the same storage, each with its view of it.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    uses: tuple[Use, ...] = ()
    aliases: tuple[tuple[str, str], ...] = ()

    @property
    def elements(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def bytes(self) -> int:
        """Size in bytes."""
        return math.ceil(self.elements * DTYPE_BYTES[self.dtype])

    @property
    def is_index(self) -> bool:
        """Whether the numbers are whole, and only say which elements of others are read."""
        whole = self.dtype.startswith(("int", "uint"))
        return whole and bool(self.uses) and all(use.reads_as_index for use in self.uses)

    @property
    def tied(self) -> bool:
        """Whether more than one use or more than one name reads this tensor."""
        return len(self.uses) > 1 or bool(self.aliases)


@dataclass(frozen=True, slots=True)
class TieMap:
    """All parameters of a torch model, each storage once, with the uses that read it."""

    stored: tuple[StoredTensor, ...]

    @property
    def unique_parameters(self) -> int:
        """Number of parameters, each storage counted once."""
        return sum(tensor.elements for tensor in self.stored)

    @property
    def unique_bytes(self) -> int:
        """Bytes of the parameters, each storage counted once."""
        return sum(tensor.bytes for tensor in self.stored)

    def unique_bytes_at(self, precision: str) -> int:
        """Bytes of the parameters, each storage once, when floats are stored in a precision."""
        total = 0
        for tensor in self.stored:
            dtype = precision if "float" in tensor.dtype else tensor.dtype
            total += math.ceil(tensor.elements * DTYPE_BYTES[dtype])
        return total

    @property
    def ties(self) -> tuple[StoredTensor, ...]:
        """The stored tensors that are read more than once."""
        return tuple(tensor for tensor in self.stored if tensor.tied)


@dataclass(frozen=True, slots=True)
class Parity:
    """How an artifact's outputs compare with torch's on the same inputs.

    Args:
        max_abs: largest absolute difference over all outputs.
        max_rel: ``max_abs`` over the largest absolute value of the torch output.
        cosine: cosine similarity of the flattened outputs.
        psnr_db: peak signal-to-noise ratio in dB; None when the outputs are equal.
        inputs: number of samples compared.
        source: where the inputs are from, such as ``fashion-mnist test`` or ``random normal``.
        top1_agreement: share of samples with the same arg max; None unless a classifier.
        reference: what evaluated the artifact, such as ``onnxruntime``.
    """

    max_abs: float
    max_rel: float
    cosine: float
    psnr_db: float | None
    inputs: int
    source: str
    top1_agreement: float | None = None
    reference: str = "onnxruntime"


@dataclass(frozen=True, slots=True)
class Artifact:
    """A file, or a file and its data, that a device can run, with what is known of it.

    Args:
        path: relative to the bundle.
        setting: ``latency-first``, ``memory-first`` or ``naive``.
        bytes: all files of the artifact together.
        weight_bytes: all stored tensors in it, constants in nodes included, indices not.
        unique_bytes: the torch model's unique parameters at this precision.
        naive_bytes: stored weight bytes of the naive export of the same model.
        form: how the tied uses are written, and why that form was chosen.
        session_options: options that the runtime must set, as key and value; ``KERNELS`` is no
            option of a runtime but names the library of kernels to register.
        index_bytes: stored integers that say which elements of a weight are read, and no more.
    """

    path: str
    format: str
    setting: str
    precision: str
    bytes: int
    weight_bytes: int
    unique_bytes: int
    naive_bytes: int
    sha256: dict[str, str]
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    form: str
    parity: Parity | None = None
    session_options: dict[str, str] = field(default_factory=dict)
    producer: dict[str, str] = field(default_factory=dict)
    index_bytes: int = 0

    @property
    def ratio(self) -> float:
        """Stored weight bytes over unique parameter bytes; the 1.00 rule bounds it by 1.01."""
        return self.weight_bytes / self.unique_bytes
