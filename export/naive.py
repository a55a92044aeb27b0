"""The export that everyone makes, to stand beside ours: exporter, then onnxsim, with defaults."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import onnx
import onnx_ir as ir
from torch.export import ExportedProgram

from export.capture import run_exporter
from export.errors import CaptureError, MissingExtraError
from export.onnx_io import load_model
from export.stored import stored_bytes


def write_naive(
    program: ExportedProgram,
    path: Path,
    *,
    input_names: Sequence[str] | None = None,
    output_names: Sequence[str] | None = None,
) -> int:
    """Export with torch's own exporter and onnxsim, both at their defaults.

    Constant folding turns every transposed use of a weight into a second stored tensor.

    Returns:
        The stored weight bytes of the file.

    Raises:
        CaptureError: the exporter or the simplifier failed.
    """
    try:
        import onnxsim
    except ImportError as error:
        raise MissingExtraError.of("onnxsim", "torch") from error
    exported = run_exporter(program, input_names, output_names, optimize=True)
    try:
        simplified, _ = onnxsim.simplify(ir.to_proto(exported))
        large = simplified.ByteSize() > onnx.checker.MAXIMUM_PROTOBUF
        onnx.save(simplified, path, save_as_external_data=large)
    except Exception as error:
        raise CaptureError(f"the naive export failed: {error}") from error
    return stored_bytes(load_model(path))
