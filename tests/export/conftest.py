from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
import torch


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture
def text_model():
    """Build a model from the ONNX text format."""

    def build(text: str) -> ir.Model:
        return ir.from_onnx_text(text)

    return build


def run_onnx(
    model: ir.Model, feeds: dict[str, np.ndarray], *, optimize: bool = True
) -> list[np.ndarray]:
    """Run a graph in ONNX Runtime with its graph optimiser on or off."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 3
    if not optimize:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(ir.to_proto(model).SerializeToString(), options)
    return session.run(None, feeds)


@pytest.fixture
def run():
    return run_onnx


@pytest.fixture
def captured_net():
    """Capture one of ``NETS``: gives the module, its input and the captured graph."""
    from export.capture import capture, trace
    from tests.export.nets import NETS

    def build(name: str):
        make, make_input, axes = NETS[name]
        module, x = make().eval(), make_input()
        program = trace(module, (x,), (axes,))
        graph = capture(program, input_names=["x"], output_names=["y"], dynamic_shapes=(axes,))
        return module, x, graph

    return build
