from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from export.capture import capture, example_inputs_of, trace
from export.errors import CaptureError
from export.stamps import STORED, is_tied
from tests.export.nets import NETS, TiedBlock


def test_each_parameter_is_one_initializer_named_as_in_torch(captured_net):
    module, _, captured = captured_net("tied block")
    parameters = {name for name, _ in module.named_parameters()}
    stamped = {
        value.metadata_props[STORED]: value for value in captured.model.graph.initializers.values()
    }
    assert set(stamped) == parameters
    assert {name for name, value in stamped.items() if is_tied(value)} == {"query", "weight"}


@pytest.mark.parametrize("net", NETS)
def test_axes_have_the_names_they_were_given(net, captured_net):
    _, _, captured = captured_net(net)
    names = NETS[net][2]
    (value,) = captured.model.graph.inputs
    found = {axis: str(size) for axis, size in enumerate(value.shape) if not isinstance(size, int)}
    assert found == names
    assert value.name == "x"


def test_an_example_of_one_sample_leaves_the_axes_free(run):
    axes = ({0: "batch", 1: "sequence"},)
    program = trace(TiedBlock(), (torch.randn(1, 1, 32),), axes)
    captured = capture(program, input_names=["x"], dynamic_shapes=axes)
    x = torch.randn(3, 4, 32)
    (found,) = run(captured.model, {"x": x.numpy()})
    assert found.shape == (3, 4, 32)
    assert example_inputs_of(program)[0].shape == (2, 2, 32)


def test_a_module_keeps_its_mode():
    module = TiedBlock().train()
    trace(module, (torch.randn(2, 5, 32),))
    assert module.training


class Branching(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * 2 if x.sum() > 0 else x


def test_what_torch_cannot_trace_is_one_line_with_its_reason():
    with pytest.raises(CaptureError, match=r"torch\.export cannot trace Branching: ") as caught:
        trace(Branching(), (torch.ones(2),))
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) > 50
