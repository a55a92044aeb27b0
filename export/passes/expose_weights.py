"""Weights as graph inputs with a default value, which a runtime neither folds nor repacks."""

from __future__ import annotations

import onnx_ir as ir

SMALLEST_BYTES = 1024


class ExposeWeightsPass(ir.passes.InPlacePass):
    """Name stored tensors among the graph's inputs, keeping their stored value as the default.

    ONNX lets a caller override such a tensor (IR specification, "Graphs": an initializer that
    is an input gives a default), so a runtime may not fold it into another constant nor keep a
    private repacked copy. No session option is needed, and no caller needs to feed anything.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Treat floating-point matrices and filters of the main graph from 1 KiB on."""
        modified = False
        inputs = set(model.graph.inputs)
        for value in model.graph.initializers.values():
            tensor = value.const_value
            if tensor is None or value in inputs or tensor.nbytes < SMALLEST_BYTES:
                continue
            if not tensor.dtype.is_floating_point() or len(tensor.shape) < 2:
                continue
            model.graph.inputs.append(value)
            modified = True
        return ir.passes.PassResult(model, modified)
