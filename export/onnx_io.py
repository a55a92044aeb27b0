"""Reading and writing ONNX files, with or without external data."""

from __future__ import annotations

import errno
from collections.abc import Sequence
from pathlib import Path

import onnx
import onnx_ir as ir

from export.errors import BadFileError, OutputError
from export.records import TensorSpec

# Protobuf ends at 2 GiB. Long before that, weights in a file of their own are better: the runtime
# maps them, where it copies those of a single file and keeps the copy beside its repacked ones.
EXTERNAL_ABOVE_BYTES = 256 * 1024
# Smaller tensors stay inside the .onnx file: each one that is mapped takes whole pages, and shapes
# can be inferred without the data.
INLINE_BYTES = 16 * 1024


def load_model(path: Path) -> ir.Model:
    """Read an ONNX model; external data is mapped when it is first looked at.

    Raises:
        BadFileError: the file is missing or no ONNX model, or its external data is missing or
            shorter than the model says.
    """
    if not path.is_file():
        raise BadFileError(f"{path} is not a file; give the path of an .onnx file")
    try:
        model = ir.load(path)
    except Exception as error:
        raise BadFileError(
            f"{path} is not a readable ONNX model (corrupt or cut short); export it again"
        ) from error
    if not len(model.graph) and not model.graph.outputs:
        raise BadFileError(f"{path} holds no ONNX graph; is it an ONNX file?")
    _check_tensors(model, path)
    return model


def _check_tensors(model: ir.Model, path: Path) -> None:
    for name, value in model.graph.initializers.items():
        tensor = value.const_value
        if isinstance(tensor, ir.ExternalTensor):
            file = Path(tensor.path)
            end = (tensor.offset or 0) + tensor.nbytes
            if not file.is_file() or file.stat().st_size < end:
                raise BadFileError(
                    f"{path}: the data of {name!r} is missing from {file.name}; "
                    "keep the .onnx file and its data file together, or export again"
                )
        elif isinstance(tensor, ir.TensorProtoTensor):
            raw = tensor.raw
            if raw.HasField("raw_data") and len(raw.raw_data) != tensor.nbytes:
                raise BadFileError(
                    f"{path}: {name!r} holds {len(raw.raw_data)} bytes where its shape needs "
                    f"{tensor.nbytes}; export it again"
                )


def save_model(model: ir.Model, path: Path, *, external: bool | None = None) -> list[Path]:
    """Write a model, checked with full shape inference, and return its files.

    Args:
        external: whether the weights go into ``<name>.data`` beside the model; by default they
            do above 256 KiB.

    Raises:
        OutputError: the folder cannot be written or is full.
    """
    weight_bytes = sum(
        value.const_value.nbytes
        for value in model.graph.initializers.values()
        if value.const_value is not None
    )
    if external is None:
        external = weight_bytes > EXTERNAL_ABOVE_BYTES
    try:
        if external:
            data = path.with_name(f"{path.name}.data")
            ir.save(model, path, external_data=data.name, size_threshold_bytes=INLINE_BYTES)
        else:
            ir.save(model, path)
        onnx.checker.check_model(str(path), full_check=True)
    except OSError as error:
        raise OutputError(reason_of(error, path)) from error
    except onnx.checker.ValidationError as error:
        raise OutputError(f"{path.name} is not valid ONNX: {error}") from error
    return sorted(path.parent.glob(f"{path.name}*"))


def specs_of(values: Sequence[ir.Value]) -> tuple[TensorSpec, ...]:
    """Describe inputs or outputs; a dimension that varies is its name, or ``?`` without one."""
    specs = []
    for value in values:
        if value.is_initializer():
            continue  # an input with a default, which nobody feeds
        sizes = value.shape or ()
        shape = tuple(s if isinstance(s, int) else s.value or "?" for s in sizes)
        dtype = str(value.dtype.numpy()) if value.dtype is not None else "float32"
        specs.append(TensorSpec(value.name or "", dtype, shape))
    return tuple(specs)


def reason_of(error: OSError, path: Path) -> str:
    """Say in one line why a path could not be written, and what to do."""
    if error.errno == errno.ENOSPC:
        return f"the disk is full while writing {path}; free some space and run it again"
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return f"{path} cannot be written (no permission); choose another --out"
    return f"{path} cannot be written ({error.strerror or error}); choose another --out"
