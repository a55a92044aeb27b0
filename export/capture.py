"""From a torch module to an ONNX graph that holds each parameter once."""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import onnx_ir as ir
import torch
from onnx_ir.passes.common import ClearMetadataAndDocStringPass
from torch import Tensor, nn
from torch.export import ExportedProgram

from export.errors import CaptureError, MissingExtraError
from export.records import TieMap
from export.stamps import stamp
from export.ties import tie_map

OPSET = 20  # the first with Gelu as an operator; every backend of this project reads it

DynamicShapes = Sequence[Mapping[int, str] | None]


@dataclass(frozen=True, slots=True)
class Captured:
    """A traced program, its ONNX graph and its ties.

    Args:
        program: the torch program; ``program.module()`` is the reference for parity.
        model: the graph, unoptimised; each initializer carries the torch name of its parameter.
        ties: the stored tensors of the program and their uses.
    """

    program: ExportedProgram
    model: ir.Model
    ties: TieMap


def trace(
    module: nn.Module,
    example_inputs: Sequence[Tensor],
    dynamic_shapes: DynamicShapes | None = None,
) -> ExportedProgram:
    """Trace a module in eval mode.

    Args:
        example_inputs: positional inputs of ``forward``. torch would fix a varying axis that has
            size 1 in the example, so such an axis is repeated.
        dynamic_shapes: for each input the dimensions that may vary, as axis to name; the same
            name stands for the same size.

    Raises:
        CaptureError: ``torch.export`` cannot trace the module, with its own reason.
    """
    # Not torch's own named dimensions: those must state every bound that the model implies, such
    # as the number of positions.
    dynamic = torch.export.Dim.DYNAMIC
    shapes = [dict.fromkeys(axes or {}, dynamic) for axes in dynamic_shapes or ()]
    examples = _widened(example_inputs, dynamic_shapes or ())
    was_training = module.training
    try:
        with torch.no_grad(), _quiet():
            return torch.export.export(
                module.eval(), examples, dynamic_shapes=tuple(shapes) or None
            )
    except Exception as error:
        raise CaptureError(
            f"torch.export cannot trace {type(module).__name__}: {_first_line(error)}"
        ) from error
    finally:
        module.train(was_training)


def _widened(example_inputs: Sequence[Tensor], dynamic_shapes: DynamicShapes) -> tuple[Tensor, ...]:
    widened = list(example_inputs)
    for place, axes in enumerate(dynamic_shapes):
        for axis in axes or {}:
            if widened[place].shape[axis] == 1:
                widened[place] = torch.cat([widened[place]] * 2, dim=axis)
    return tuple(widened)


def capture(
    program: ExportedProgram,
    *,
    input_names: Sequence[str] | None = None,
    output_names: Sequence[str] | None = None,
    dynamic_shapes: DynamicShapes | None = None,
) -> Captured:
    """Write a traced program as an ONNX graph, each parameter once and named as in torch.

    Args:
        dynamic_shapes: as given to ``trace``, to name the graph's dimensions.

    Raises:
        CaptureError: an operator has no ONNX form, with the exporter's own reason, or two
            parameters overlap in memory.
    """
    ties = tie_map(program)
    # The exporter's own optimiser folds a transposed weight into a second copy.
    model = run_exporter(program, input_names, output_names, optimize=False)
    # The exporter notes stack traces on every node: more bytes than a small model's weights.
    ClearMetadataAndDocStringPass()(model)
    _name_dimensions(model, dynamic_shapes or ())
    stamp(model, ties)
    return Captured(program, model, ties)


def run_exporter(
    program: ExportedProgram,
    input_names: Sequence[str] | None,
    output_names: Sequence[str] | None,
    *,
    optimize: bool,
) -> ir.Model:
    """Run torch's dynamo ONNX exporter.

    Args:
        optimize: whether its own optimiser runs after it, as it does by default.

    Raises:
        CaptureError: an operator has no ONNX form, with the exporter's own reason.
    """
    try:
        import onnxscript  # noqa: F401  the exporter needs it and says so only deep inside
    except ImportError as error:
        raise MissingExtraError.of("onnxscript", "torch") from error
    try:
        with torch.no_grad(), _quiet():
            exported = torch.onnx.export(
                program,
                dynamo=True,
                opset_version=OPSET,
                input_names=list(input_names) if input_names else None,
                output_names=list(output_names) if output_names else None,
                optimize=optimize,
                verbose=False,
            )
    except Exception as error:
        raise CaptureError(f"the ONNX exporter failed: {_first_line(error)}") from error
    assert exported is not None  # None is what the older exporter returns
    _separate_names(exported.model)
    return exported.model


def _separate_names(model: ir.Model) -> None:
    """Rename results that bear the name of a stored tensor, or of an input or output.

    The exporter gives both the name ``index`` where a module indexes by a buffer of that name, and
    calls a result ``embedding`` beside an output that was asked to be called so.
    """
    taken = {value.name for node in model.graph for value in node.outputs}
    kept = {value.name for value in (*model.graph.inputs, *model.graph.outputs)}
    for node in model.graph:
        for value in node.outputs:
            twice = value.name in kept and not value.is_graph_output()
            if twice or value.name in model.graph.initializers:
                base, count = value.name, 1
                while f"{base}.{count}" in taken:
                    count += 1
                value.name = f"{base}.{count}"
                taken.add(value.name)


def _name_dimensions(model: ir.Model, dynamic_shapes: DynamicShapes) -> None:
    """Give dynamic dimensions the user's names instead of torch's symbols, such as ``s77``."""
    names: dict[str, str] = {}
    for value, axes in zip(model.graph.inputs, dynamic_shapes, strict=False):
        for axis, name in (axes or {}).items():
            symbol = value.shape[axis] if value.shape is not None else None
            if isinstance(symbol, ir.SymbolicDim) and symbol.value:
                names[symbol.value] = name
    values = [*model.graph.inputs, *(v for node in model.graph for v in node.outputs)]
    for value in values:
        if value.shape is not None:
            value.shape = ir.Shape([_renamed(size, names) for size in value.shape])


def _renamed(size: int | ir.SymbolicDim, names: Mapping[str, str]) -> int | str | None:
    if isinstance(size, int):
        return size
    return names.get(size.value or "", size.value)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Hold back the exporter's notes on packages that an export does not need."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def _first_line(error: BaseException) -> str:
    """Take the first telling line of an exception, of its deepest cause where it has one."""
    deepest = error
    while deepest.__cause__ is not None:
        deepest = deepest.__cause__
    lines = [line.strip() for line in str(deepest).splitlines() if line.strip()]
    return f"{type(deepest).__name__}: {lines[0]}" if lines else type(deepest).__name__


def example_inputs_of(program: ExportedProgram) -> tuple[Any, ...]:
    """Read the example inputs that a program was traced with.

    Raises:
        CaptureError: the program was saved without them.
    """
    if program.example_inputs is None:
        raise CaptureError("the program holds no example inputs; save it with them")
    args, kwargs = program.example_inputs
    if kwargs:
        raise CaptureError("programs with keyword inputs are not supported; trace by position")
    return tuple(args)
