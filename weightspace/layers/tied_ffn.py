"""Feed-forward layer whose second matrix is its first one transposed (arXiv:2401.16438)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from weightspace.layers.descent import descend


class TiedFFN(nn.Module):
    """``y = M Wᵀ (g GELU(W x + b1)) + b2`` with one stored ``W``; the paper has no ``M`` and ``g``.

    The nonlinearity leaves W's column space, so Wᵀ can serve as the layer that follows: the
    matrix is used by its rows and by its columns.

    Args:
        dim: size of the input and of the output.
        hidden: rows of ``W``.
        tied: False stores a second matrix ``(dim, hidden)``: the ordinary layer, for comparison.
        gain: scale each hidden unit by a number ``g`` of its own.
        output_map: end in a square matrix ``M (dim, dim)``. A strictly tied layer has a symmetric
            Jacobian, which few trained layers have; this repairs it.

    Raises:
        ValueError: a gain or an output map is asked of a layer that is not tied.

    Source: arXiv:2401.16438, row and column space sharing. Differs: separate biases; gain and
    output map are ours.
    """

    def __init__(
        self,
        dim: int,
        hidden: int,
        *,
        tied: bool = True,
        gain: bool = False,
        output_map: bool = False,
    ) -> None:
        super().__init__()
        if not tied and (gain or output_map):
            raise ValueError("a gain and an output map are for tied layers: leave them out")
        self.weight = nn.Parameter(torch.empty(hidden, dim))
        self.hidden_bias = nn.Parameter(torch.zeros(hidden))
        self.out_weight = None if tied else nn.Parameter(torch.empty(dim, hidden))
        self.gain = nn.Parameter(torch.ones(hidden)) if gain else None
        self.output_map = nn.Parameter(torch.eye(dim)) if output_map else None
        self.bias = nn.Parameter(torch.zeros(dim))
        nn.init.xavier_uniform_(self.weight)
        if self.out_weight is not None:
            nn.init.xavier_uniform_(self.out_weight)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(..., dim)`` to ``(..., dim)``."""
        out_weight = self.weight.t() if self.out_weight is None else self.out_weight
        hidden = F.gelu(F.linear(x, self.weight, self.hidden_bias))  # (..., hidden)
        if self.gain is not None:
            hidden = hidden * self.gain
        if self.output_map is None:
            return F.linear(hidden, out_weight, self.bias)
        return F.linear(F.linear(hidden, out_weight), self.output_map, self.bias)

    @classmethod
    def from_pair(
        cls,
        first: nn.Linear,
        second: nn.Linear,
        inputs: Tensor | None = None,
        *,
        gain: bool = False,
        output_map: bool = False,
        observe: Callable[[Tensor, Tensor], Tensor] | None = None,
        steps: int = 100,
    ) -> Self:
        """Stand in for two trained layers with a GELU between them.

        Without ``inputs`` the two matrices are fitted, by least squares in turns. That takes no
        notice of what the layer is used on, and a tie costs much; with ``inputs`` all parameters
        go on from there to the least squared error of the outputs.

        Args:
            first: ``(dim -> hidden)``.
            second: ``(hidden -> dim)``.
            inputs: what the layer was given, ``(n, dim)``.
            observe: maps inputs and outputs, both ``(n, dim)``, to that of which the error is
                taken, such as the norm of their sum. Where few dimensions of the outputs hold most
                of their variance, the outputs' own error says little.
            steps: the most that the fit to the outputs takes.

        Raises:
            ValueError: the layers' sizes do not make a pair.
        """
        dim, hidden = first.in_features, first.out_features
        if (second.in_features, second.out_features) != (hidden, dim):
            raise ValueError(
                f"layers {dim} -> {hidden} and {second.in_features} -> {second.out_features} "
                "are no pair: the second has to map back"
            )
        layer = cls(dim, hidden, gain=gain, output_map=output_map).to(first.weight.device)
        with torch.no_grad():
            _fit_weights(layer, first.weight.double(), second.weight.double().T)
            if first.bias is not None:
                layer.hidden_bias.copy_(first.bias)
            if second.bias is not None:
                layer.bias.copy_(second.bias)
            if inputs is not None:
                outputs = second(F.gelu(first(inputs))).float()
        if inputs is not None:
            fit_outputs(layer, inputs.float(), outputs, observe or _outputs_alone, steps)
        return layer.to(first.weight.dtype)


def _fit_weights(layer: TiedFFN, reading: Tensor, writing: Tensor) -> None:
    """Lessen the sum of the relative errors of ``W ~ reading`` and ``g W Mᵀ ~ writing``.

    Both are ``(hidden, dim)``. Each of W, g and M has a closed form, given the others.
    """
    gain = torch.ones_like(reading[:, :1])
    output_map = torch.eye(reading.shape[1]).to(reading)
    read, write = _inverse(reading.square().sum()), _inverse(writing.square().sum())
    weight = reading
    for _ in range(20):
        if layer.output_map is not None:
            output_map = torch.linalg.lstsq(gain * weight, writing).solution.T
        if layer.gain is not None:
            written = weight @ output_map.T
            products = (writing * written).sum(1, keepdim=True)
            gain = products * _inverse(written.square().sum(1, keepdim=True))
        # A row's normal matrix is read + write g² MᵀM: one eigenbasis serves all rows.
        values, vectors = torch.linalg.eigh(output_map.T @ output_map)
        target = read * reading + write * gain * (writing @ output_map)
        weight = target @ vectors / (read + write * gain.square() * values) @ vectors.T
    layer.weight.copy_(weight)
    if layer.gain is not None:
        layer.gain.copy_(gain[:, 0])
    if layer.output_map is not None:
        layer.output_map.copy_(output_map)


def _inverse(squares: Tensor) -> Tensor:
    return squares.clamp_min(1e-30).reciprocal()  # a matrix or a row may be all zeros


def fit_outputs(
    layer: TiedFFN,
    inputs: Tensor,
    outputs: Tensor,
    observe: Callable[[Tensor, Tensor], Tensor],
    steps: int,
) -> None:
    """Lessen the squared error of what is observed, over its variance, from this layer on.

    Args:
        inputs: ``(n, dim)``.
        outputs: what the layer should give, ``(n, dim)``.
        observe: as for ``TiedFFN.from_pair``.
        steps: the most that it takes.
    """
    with torch.no_grad():
        target = observe(inputs, outputs)
        variance = (target - target.mean(0)).square().mean()

    def error() -> Tensor:
        return (observe(inputs, layer(inputs)) - target).square().mean() / variance

    descend(layer.parameters(), error, steps)
    layer.zero_grad()


def _outputs_alone(inputs: Tensor, outputs: Tensor) -> Tensor:
    return outputs
