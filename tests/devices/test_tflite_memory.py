"""What the two settings of TFLite keep in memory: bytes, not times."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from export.audit import audit_file
from export.capture import capture, trace
from export.lower import LATENCY_FIRST, MEMORY_FIRST
from export.lower.tflite import write_tflite
from export.passes import run_pipeline
from runtimes.memory import measure_fresh
from weightspace.layers import TiedFFN

LAYERS, WIDTH = 6, 512


class Stack(nn.Module):
    """Tied FFNs, each with a residual."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(TiedFFN(WIDTH, 4 * WIDTH) for _ in range(LAYERS))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = x + layer(x)
        return x


@pytest.fixture(scope="module")
def stack():
    torch.manual_seed(0)
    module = Stack().eval()
    axes = ({0: "batch", 1: "sequence"},)
    program = trace(module, (torch.randn(2, 5, WIDTH),), axes)
    captured = capture(program, input_names=["x"], dynamic_shapes=axes)
    run_pipeline("canonical", captured.model)
    return captured


@pytest.mark.parametrize("length", [1, 16, 128])
def test_memory_first_reads_weights_in_place(stack, length, tmp_path):
    feeds = {"x": np.ones((1, length, WIDTH), np.float32)}
    unique = stack.ties.unique_bytes
    anonymous = {}
    for setting in (LATENCY_FIRST, MEMORY_FIRST):
        path = tmp_path / f"{setting}.tflite"
        write_tflite(stack.model, path, setting)
        assert audit_file(path).weight_bytes <= 1.01 * unique
        anonymous[setting] = measure_fresh(path, feeds).memory.anonymous_bytes
    assert anonymous[MEMORY_FIRST] <= 0.5 * unique
    assert anonymous[LATENCY_FIRST] >= 1.5 * unique  # XNNPACK packs a copy for each use
