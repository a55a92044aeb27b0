"""Small ML Programs, built with coremltools and saved as they stand: no pass changes them."""

from __future__ import annotations

import inspect

import numpy as np

from export.coreml_io import import_coremltools, quiet_coremltools, read_coreml
from runtimes.coreml_reference import open_session

ct = import_coremltools()
from coremltools.converters.mil.mil import Builder as mb  # noqa: E402
from coremltools.converters.mil.mil import types  # noqa: E402

DTYPES = {"float32": types.fp32, "float16": types.fp16, "int32": types.int32}


def save(path, build, inputs, *, target="iOS17", pipeline="EMPTY", half=False):
    """Save the program that ``build`` makes of inputs, each given by an array or a tensor spec."""
    names = list(inspect.signature(build).parameters)
    specs = [
        mb.TensorSpec(given.shape, DTYPES[str(given.dtype)])
        if isinstance(given, np.ndarray)
        else given
        for given in inputs
    ]
    assert len(names) == len(specs)
    version = getattr(ct.target, target)
    with quiet_coremltools():
        program = mb.program(input_specs=specs, opset_version=version)(build)
        model = ct.convert(
            program,
            convert_to="mlprogram",
            minimum_deployment_target=version,
            compute_precision=ct.precision.FLOAT16 if half else ct.precision.FLOAT32,
            pass_pipeline=getattr(ct.PassPipeline, pipeline),
            skip_model_load=True,
        )
    model.save(str(path))
    return path


def run(path, inputs, **options):
    """Run a saved program on arrays in the order of its inputs; gives its outputs in a list."""
    session = open_session(path, **options)
    feeds = {spec.name: array for spec, array in zip(session.inputs, inputs, strict=True)}
    outputs = session.run(feeds)
    assert [spec.name for spec in session.outputs] == list(outputs)
    return list(outputs.values())


def operators_of(path):
    """List the operators of a saved program."""
    return [operation.type for operation in read_coreml(path).main.block.operations]
