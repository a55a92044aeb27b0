"""An ONNX file from anywhere as the model of an export."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from onnx_ir.passes.common import InlinePass, RemoveInitializersFromInputsPass

from devices.measure import BATCH, SEQUENCE, axis_of, make_feeds
from export.audit_onnx import stored_in_graph
from export.errors import BadFileError
from export.onnx_io import load_model, specs_of
from export.records import StoredTensor, TieMap
from runtimes.ort import open_session
from weightspace.data import Images

_SAMPLES = 4
_LENGTH = 9  # of a sequence, where that varies


@dataclass(frozen=True, slots=True)
class OnnxSource:
    """An ONNX file: what ONNX Runtime computes with it is the reference for parity."""

    path: Path
    classes: int | None = None
    images: Images | None = None
    class_names: None = None
    pixels: None = None
    licence: str = ""
    texts: None = None
    largest: Mapping[str, int] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Name for the bundle and the report."""
        return self.path.stem

    @property
    def origin(self) -> str:
        """Where the model came from, in words."""
        return self.path.name

    @property
    def checkpoint_bytes(self) -> int:
        """Size of the file with its data."""
        return sum(file.stat().st_size for file in self._files())

    @property
    def pipeline(self) -> str:
        """The passes that make the graph canonical."""
        return "foreign"

    def capture(self) -> ir.Model:
        """Read the graph; its functions are inlined, and varying sizes without a name get one.

        Raises:
            BadFileError: the file is missing or corrupt.
        """
        model = load_model(self.path)
        InlinePass()(model)
        RemoveInitializersFromInputsPass()(model)  # defaults of older files, and of our own
        for value in model.graph.inputs:
            if value.shape is not None:
                value.shape = ir.Shape([_named(size, i) for i, size in enumerate(value.shape)])
        return model

    def ties(self, canonical: ir.Model) -> TieMap:
        """List the stored tensors of the canonical graph: copies have been tied by then."""
        found: list[StoredTensor] = []
        for tensor, _ in stored_in_graph(canonical):
            if tensor.dtype.startswith("float") and tensor.uses:
                found.append(tensor)
        if not found:
            raise BadFileError(f"{self.path} holds no weights")
        return TieMap(tuple(found))

    def write_naive(self, path: Path) -> None:
        """Take the file as it was given: what an app would ship without this toolkit."""
        for file in self._files():
            target = path.name if file == self.path else file.name
            shutil.copyfile(file, path.with_name(target))

    @property
    def naive_words(self) -> str:
        """What the naive export is."""
        return "the file as it was given"

    def parity_inputs(self) -> tuple[list[NDArray[np.generic]], str]:
        """Draw inputs."""
        specs = specs_of(self.capture().graph.inputs)
        axis, _ = axis_of(specs)
        feeds = make_feeds(specs, axis, _LENGTH if axis == SEQUENCE else _SAMPLES)
        return list(feeds.values()), "random numbers"

    def reference(self, inputs: Sequence[NDArray[np.generic]]) -> list[NDArray[np.generic]]:
        """Run the file as it was given in ONNX Runtime, its graph optimiser off."""
        session = open_session(self.path, optimize=False)
        names = [spec.name for spec in session.inputs]
        outputs = session.run(dict(zip(names, inputs, strict=True)))
        session.close()
        return list(outputs.values())

    def _files(self) -> list[Path]:
        """The file, and those that hold its external data."""
        model = load_model(self.path)
        tensors = [value.const_value for value in model.graph.initializers.values()]
        external = {Path(t.path) for t in tensors if isinstance(t, ir.ExternalTensor)}
        return [self.path, *sorted(external)]


def _named(size: int | ir.SymbolicDim, axis: int) -> int | str:
    if isinstance(size, int):
        return size
    return size.value or (BATCH if axis == 0 else f"d{axis}")
