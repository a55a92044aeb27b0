"""Joins of neighbouring operators that a TFLite operator has attributes or inputs for."""

from __future__ import annotations

import numpy as np

from export.lower.tflite.graph import Graph, Operator, Tensor

_ACTIVATIONS = {"RELU": 1, "RELU_N1_TO_1": 2, "RELU6": 3}  # the schema's ActivationFunctionType
_TAKES_ACTIVATION = {
    "CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED", "ADD", "SUB", "MUL", "DIV",
    "MAX_POOL_2D", "AVERAGE_POOL_2D",
}  # fmt: skip
_SMALLEST_SCALE = 1e-3  # what is divided by less would drown in the sum
_LOWEST = float(np.finfo(np.float32).min)
_TAKES_BIAS = {"CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED"}


def fuse(graph: Graph) -> None:
    """Take biases and activations into the operators before them."""
    _fuse_biases(graph)
    _move_offsets(graph)
    _fuse_activations(graph)
    graph.remove_unread()
    _pad_with_zeros(graph)
    _fill_biases(graph)


def _fuse_biases(graph: Graph) -> None:
    makers, uses, outputs = graph.makers(), graph.uses(), _outputs(graph)
    for add in graph.operators:
        if add.kind != "ADD":
            continue
        for product, bias in (add.inputs, add.inputs[::-1]):
            assert product is not None
            maker = makers.get(product)
            if (
                maker is not None
                and maker.kind in _TAKES_BIAS
                and maker.inputs[2] is None
                and len(uses[product]) == 1
                and product not in outputs
                and bias is not None
                and _is_vector(bias, product)
            ):
                assert bias.data is not None
                maker.inputs[2] = _flat(bias)
                _take_over(maker, add, makers)
                break


def _move_offsets(graph: Graph) -> None:
    """Write ``conv(x) * s + t`` as ``(conv(x) + t / s) * s``: the bias costs nothing.

    A norm after a filter that is tied cannot be folded into it, and leaves this behind.
    """
    makers, uses, outputs = graph.makers(), graph.uses(), _outputs(graph)
    for add in graph.operators:
        if add.kind != "ADD" or len(add.inputs) != 2:
            continue  # what another operator took over has no inputs any more
        product, offset = add.inputs
        assert product is not None
        assert offset is not None
        scale_by = makers.get(product)
        if scale_by is None or scale_by.kind != "MUL" or len(uses[product]) != 1:
            continue
        source, scale = scale_by.inputs
        conv = makers.get(source) if source is not None else None
        if (
            conv is None
            or source is None
            or scale is None
            or conv.kind not in _TAKES_BIAS
            or conv.inputs[2] is not None
            or len(uses[source]) != 1
            or outputs & {source, product}
            or not (_is_vector(scale, source) and _is_vector(offset, source))
        ):
            continue
        bias = _quotient(offset, scale)
        if bias is not None:
            conv.inputs[2] = bias
            _take_over(scale_by, add, makers)


def _quotient(offset: Tensor, scale: Tensor) -> Tensor | None:
    """The offset over the scale, or None where that is no fair number."""
    assert offset.data is not None
    assert scale.data is not None
    above = offset.data.reshape(-1).astype(np.float64)
    below = scale.data.reshape(-1).astype(np.float64)
    if np.abs(below).min() < _SMALLEST_SCALE:
        return None
    array = (above / below).astype(np.float32)
    return Tensor(offset.name, array.shape, array.dtype, array, offset.weight)


def _is_vector(bias: Tensor, product: Tensor) -> bool:
    last = product.shape[-1]
    return (
        bias.data is not None
        and bias.data.size == last
        and bias.rank > 0
        and bias.shape[-1] == last
        and bias.rank <= product.rank
    )


def _flat(bias: Tensor) -> Tensor:
    if bias.rank == 1:
        return bias
    assert bias.data is not None
    shape = (bias.data.size,)
    return Tensor(bias.name, shape, bias.dtype, bias.data.reshape(shape), bias.weight)


def _fuse_activations(graph: Graph) -> None:
    makers, uses, outputs = graph.makers(), graph.uses(), _outputs(graph)
    for activation in graph.operators:
        source = activation.inputs[0] if activation.inputs else None
        if activation.kind not in _ACTIVATIONS or source is None:
            continue
        maker = makers.get(source)
        if (
            maker is not None
            and maker.kind in _TAKES_ACTIVATION
            and not maker.options.get("fusedActivationFunction")
            and len(uses[source]) == 1
            and source not in outputs
        ):
            maker.options["fusedActivationFunction"] = _ACTIVATIONS[activation.kind]
            _take_over(maker, activation, makers)


def _pad_with_zeros(graph: Graph) -> None:
    """Pad for MAX_POOL_2D with 0 after an activation that is never below: XNNPACK pads with 0.

    Only what is below every number can be exchanged: each window has an element of the image.
    """
    makers, uses, outputs = graph.makers(), graph.uses(), _outputs(graph)
    for pad in graph.operators:
        if pad.kind != "PADV2" or pad.inputs[0] is None:
            continue
        maker = makers.get(pad.inputs[0])
        readers = uses.get(pad.outputs[0], [])
        pooled = readers and all(op.kind == "MAX_POOL_2D" for op in readers)
        replaceable = pooled and pad.outputs[0] not in outputs and _fills_with_lowest(pad)
        if maker is not None and replaceable and _is_never_negative(maker):
            pad.kind = "PAD"
            pad.inputs = pad.inputs[:2]


def _fills_with_lowest(pad: Operator) -> bool:
    filler = pad.inputs[2]
    return filler is not None and filler.data is not None and filler.data.item() <= _LOWEST


def _is_never_negative(maker: Operator) -> bool:
    fused = maker.options.get("fusedActivationFunction")
    return maker.kind in ("RELU", "RELU6", "LOGISTIC") or fused in (1, 3)


def _fill_biases(graph: Graph) -> None:
    """Give each convolution a bias: the kernels want one, where that of a product is optional."""
    zeros: dict[int, Tensor] = {}
    for operator in graph.operators:
        if operator.kind in ("CONV_2D", "DEPTHWISE_CONV_2D") and operator.inputs[2] is None:
            channels = operator.outputs[0].shape[-1]
            assert isinstance(channels, int)
            if channels not in zeros:
                array = np.zeros(channels, np.float32)
                zeros[channels] = Tensor(f"zeros_{channels}", (channels,), array.dtype, array)
            operator.inputs[2] = zeros[channels]


def _take_over(maker: Operator, follower: Operator, makers: dict[Tensor, Operator]) -> None:
    """Let an operator compute what the one after it did; that one is no longer read."""
    old = maker.outputs[0]
    maker.outputs[0] = follower.outputs[0]
    follower.outputs = [old]
    follower.inputs = []
    makers[maker.outputs[0]] = maker


def _outputs(graph: Graph) -> set[Tensor]:
    return {tensor for _, tensor in graph.outputs}
