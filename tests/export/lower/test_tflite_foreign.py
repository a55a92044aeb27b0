"""Architectures of transformers, at random weights, lowered and run in LiteRT beside torch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from export.audit import LIMIT, audit_file
from export.capture import capture, trace
from export.lower import SETTINGS
from export.lower.tflite import write_tflite
from export.parity import LIMITS
from export.passes import run_pipeline
from runtimes import open_artifact

transformers = pytest.importorskip("transformers")

VOCABULARY = 500
SMALL = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64,
}  # fmt: skip
TEXT = {"vocab_size": VOCABULARY, "max_position_embeddings": 64}
WIDTHS = [8, 16, 24, 32]


class Output(nn.Module):
    """Calls a model by position and gives one of its outputs."""

    def __init__(self, model: nn.Module, name: str) -> None:
        super().__init__()
        self.model = model
        self.name = name

    def forward(self, x: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        if mask is None:
            return getattr(self.model(x), self.name)
        return getattr(self.model(x, attention_mask=mask), self.name)


@dataclass(frozen=True)
class Foreign:
    """How to make a model, which of its outputs is compared, and the size of its images."""

    make: Callable[[], nn.Module]
    output: str
    image: int | None = None


def _of(model: str, config: str, **values: Any) -> Callable[[], nn.Module]:
    return lambda: getattr(transformers, model)(getattr(transformers, config)(**values))


FOREIGN = {
    "ViT": Foreign(
        _of("ViTModel", "ViTConfig", **SMALL, image_size=32, patch_size=8),
        "last_hidden_state", 32,
    ),
    "ResNet": Foreign(
        _of("ResNetModel", "ResNetConfig", embedding_size=8, hidden_sizes=WIDTHS, depths=[1] * 4),
        "last_hidden_state", 32,
    ),
    "MobileNetV2": Foreign(
        _of("MobileNetV2Model", "MobileNetV2Config", image_size=64, depth_multiplier=0.35),
        "last_hidden_state", 64,
    ),
    "MobileViT": Foreign(
        _of(
            "MobileViTModel", "MobileViTConfig", image_size=64, hidden_sizes=[16, 24, 32],
            neck_hidden_sizes=[8, 8, 16, 16, 24, 24, 32],
        ),
        "last_hidden_state", 64,
    ),
    "ConvNeXt": Foreign(
        _of("ConvNextModel", "ConvNextConfig", hidden_sizes=WIDTHS, depths=[1] * 4),
        "last_hidden_state", 64,
    ),
    "RegNet": Foreign(
        _of(
            "RegNetModel", "RegNetConfig", embedding_size=8, hidden_sizes=WIDTHS, depths=[1] * 4,
            groups_width=8,
        ),
        "last_hidden_state", 32,
    ),
    "Swin": Foreign(
        _of(
            "SwinModel", "SwinConfig", image_size=32, patch_size=4, embed_dim=8, depths=[1, 1],
            num_heads=[1, 2], window_size=4,
        ),
        "last_hidden_state", 32,
    ),
    "SegFormer": Foreign(
        _of(
            "SegformerForSemanticSegmentation", "SegformerConfig", hidden_sizes=WIDTHS,
            depths=[1] * 4, num_attention_heads=[1, 1, 2, 2], decoder_hidden_size=16,
        ),
        "logits", 64,
    ),
    "BERT": Foreign(_of("BertForMaskedLM", "BertConfig", **SMALL, **TEXT), "logits"),
    "ALBERT": Foreign(
        _of("AlbertForMaskedLM", "AlbertConfig", **SMALL, **TEXT, embedding_size=16), "logits"
    ),
    "MiniLM": Foreign(_of("BertModel", "BertConfig", **SMALL, **TEXT), "last_hidden_state"),
    "DistilBERT": Foreign(
        _of(
            "DistilBertModel", "DistilBertConfig", dim=32, n_layers=2, n_heads=2, hidden_dim=64,
            vocab_size=VOCABULARY,
        ),
        "last_hidden_state",
    ),
    "GPT-2": Foreign(
        _of(
            "GPT2LMHeadModel", "GPT2Config", n_embd=32, n_layer=2, n_head=2,
            vocab_size=VOCABULARY, n_positions=64, use_cache=False, bos_token_id=0, eos_token_id=0,
        ),
        "logits",
    ),
}  # fmt: skip


def feeds(model: Foreign, batch: int, length: int) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(batch)
    if model.image is not None:
        return (torch.randn(batch, 3, model.image, model.image, generator=generator),)
    ids = torch.randint(0, VOCABULARY, (batch, length), generator=generator)
    mask = torch.ones_like(ids)
    mask[0, length // 2 :] = 0
    return ids, mask


@pytest.fixture(scope="module", params=FOREIGN)
def lowered(request, tmp_path_factory):
    """A model, its ties, and its files by setting and precision."""
    model = FOREIGN[request.param]
    torch.manual_seed(0)
    module = model.make()
    with torch.no_grad():
        for parameter in module.parameters():
            # Norms at 1 and biases at 0 would hide a mistake; small numbers vanish in the output.
            parameter.add_(0.1 * torch.randn_like(parameter))
    module = Output(module, model.output).eval()
    axes = {0: "batch"} if model.image else {0: "batch", 1: "sequence"}
    dynamic = [axes] * len(feeds(model, 2, 8))
    program = trace(module, feeds(model, 2, 8), dynamic)
    names = ["x", "mask"][: len(dynamic)]
    captured = capture(program, input_names=names, dynamic_shapes=dynamic)
    run_pipeline("canonical", captured.model)
    folder = tmp_path_factory.mktemp(request.param)
    files = {}
    for setting in SETTINGS:
        for precision in LIMITS:
            path = folder / f"{setting}.{precision}.tflite"
            write_tflite(captured.model, path, setting, precision)
            files[setting, precision] = path
    return request.param, module, captured.ties, files


@pytest.mark.parametrize("precision", LIMITS)
@pytest.mark.parametrize("setting", SETTINGS)
def test_a_foreign_model_agrees_with_torch_at_every_size(lowered, setting, precision):
    name, module, _, files = lowered
    session = open_artifact(files[setting, precision])
    for batch, length in ((1, 5), (3, 12), (2, 7)):
        inputs = feeds(FOREIGN[name], batch, length)
        with torch.no_grad():
            expected = module(*inputs).numpy()
        named = dict(zip(("x", "mask"), (t.numpy() for t in inputs), strict=False))
        (found,) = session.run(named).values()
        assert np.isfinite(expected).all()
        assert abs(expected).max() > 1e-2
        limit = LIMITS[precision] * abs(expected).max()
        np.testing.assert_allclose(found, expected, rtol=0, atol=limit)
    session.close()


@pytest.mark.parametrize("precision", LIMITS)
@pytest.mark.parametrize("setting", SETTINGS)
def test_a_foreign_model_stores_each_weight_once(lowered, setting, precision):
    name, _, ties, files = lowered
    audit = audit_file(files[setting, precision])
    # In models of 50 kB the shapes and scalars of the graph weigh something as well.
    numbers = sum(t.bytes for t in audit.stored if t.dtype.startswith(("int", "uint", "bool")))
    unique = ties.unique_bytes_at(precision)
    if name == "Swin":  # the masks of its windows are buffers, not parameters
        unique += 4 * 4 * 16 * 16
    assert audit.weight_bytes - numbers <= LIMIT * unique + 256
    assert [d for d in audit.duplicates if d.bytes >= 1024] == []
