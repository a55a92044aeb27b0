"""Models of transformers, at random weights: their tied embedding is stored once."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from export.audit import LIMIT
from export.audit_onnx import audit_model
from export.capture import capture, trace
from export.naive import write_naive
from export.passes import PIPELINES, run_pipeline

transformers = pytest.importorskip("transformers")

AXES = {0: "batch", 1: "sequence"}


class Logits(nn.Module):
    """Calls a model by position and gives its logits alone."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return self.model(input_ids=ids, attention_mask=mask, use_cache=False).logits


def build(name: str) -> nn.Module:
    small = {"vocab_size": 4000, "hidden_size": 128, "num_attention_heads": 2}
    encoder = {"intermediate_size": 512, "max_position_embeddings": 64, "use_cache": False}
    if name == "BertForMaskedLM":
        config = transformers.BertConfig(num_hidden_layers=2, **encoder, **small)
    elif name == "AlbertForMaskedLM":
        config = transformers.AlbertConfig(
            num_hidden_layers=3, embedding_size=64, **encoder, **small
        )
    else:
        config = transformers.GPT2Config(
            n_layer=2, n_embd=128, n_head=2, vocab_size=4000, n_positions=64,
            bos_token_id=0, eos_token_id=0,
        )  # fmt: skip
    return Logits(getattr(transformers, name)(config)).eval()


@pytest.mark.parametrize("name", ["BertForMaskedLM", "AlbertForMaskedLM", "GPT2LMHeadModel"])
def test_a_tied_embedding_is_stored_once(name, tmp_path, run):
    module = build(name)
    inputs = (torch.randint(0, 4000, (2, 9)), torch.ones(2, 9, dtype=torch.int64))
    program = trace(module, inputs, (AXES, AXES))
    captured = capture(program, input_names=["ids", "mask"], dynamic_shapes=(AXES, AXES))
    naive_bytes = write_naive(program, tmp_path / "naive.onnx")
    assert naive_bytes / captured.ties.unique_bytes > 1.5

    ids = torch.randint(0, 4000, (3, 20))
    mask = torch.ones(3, 20, dtype=torch.int64)
    mask[1, 12:] = 0
    with torch.no_grad():
        expected = module(ids, mask).numpy()
    for pipeline in dict.fromkeys(("canonical", *PIPELINES)):
        model = captured.model if pipeline == "canonical" else captured.model.clone()
        run_pipeline(pipeline, model)
        half = "float16" in pipeline
        unique = captured.ties.unique_bytes_at("float16" if half else "float32")
        audit = audit_model(model, unique)
        if "naive" not in pipeline:
            assert audit.ratio <= LIMIT
        assert audit.duplicates == ()
        (found,) = run(model, {"ids": ids.numpy(), "mask": mask.numpy()})
        np.testing.assert_allclose(
            found, expected, rtol=0, atol=(2e-2 if half else 1e-4) * abs(expected).max()
        )
