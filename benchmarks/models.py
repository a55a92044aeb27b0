"""The models that the benchmarks compare, by name: a module, sample inputs and their names.

Only torch, weightspace and, for the text encoder, transformers are needed here, so that other
tools' environments can make the same models.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from weightspace import zoo
from weightspace.checkpoint import load_checkpoint
from weightspace.layers import TiedBottleneck, TiedFFN
from weightspace.models import IMAGE_MODELS
from weightspace.models.spec import ImageSpec

_FFN = re.compile(r"ffn-(\d+)x(\d+)-s(\d+)")
_TEXT = re.compile(r"minilm-l6-s(\d+)")
_VOCABULARY = 30522

NAMES = (
    *IMAGE_MODELS,
    *(f"ffn-{size}-s{tokens}" for size in ("6x384", "12x768") for tokens in (16, 128)),
    "conv-bottleneck",
    "minilm-l6-s16",
    "minilm-l6-s128",
)


class FFNStack(nn.Module):
    """Residual tied FFNs on ``(batch, tokens, dim)``."""

    def __init__(self, layers: int, dim: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(TiedFFN(dim, 4 * dim) for _ in range(layers))

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(batch, tokens, dim)`` to the same shape."""
        for layer in self.layers:
            x = x + layer(x)
        return x


class TextEncoder(nn.Module):
    """BERT of MiniLM-L6's size (arXiv:2002.10957), called by position, at random weights."""

    def __init__(self) -> None:
        super().__init__()
        from transformers import BertConfig, BertModel

        config = BertConfig(
            vocab_size=_VOCABULARY, hidden_size=384, num_hidden_layers=6, num_attention_heads=12,
            intermediate_size=1536,
        )  # fmt: skip
        self.model = BertModel(config, add_pooling_layer=False)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Map two ``(batch, tokens)`` to ``(batch, tokens, 384)``."""
        hidden: Tensor = self.model(input_ids, attention_mask=attention_mask).last_hidden_state
        return hidden


@dataclass(frozen=True)
class Model:
    """A model in eval mode, inputs of batch 1 to trace and feed it with, and their names."""

    name: str
    module: nn.Module
    inputs: tuple[Tensor, ...]
    input_names: tuple[str, ...]

    @property
    def unique_bytes(self) -> int:
        """Bytes of the parameters, each storage once."""
        storages = {p.untyped_storage().data_ptr(): p.nbytes for p in self.module.parameters()}
        return sum(storages.values())


def make(name: str) -> Model:
    """Make a model: trained weights where the zoo has them, else the same random ones each time.

    Raises:
        ValueError: ``name`` is none of ``NAMES``.
    """
    if name not in NAMES:
        raise ValueError(f"model {name!r} is not known; there are {', '.join(NAMES)}")
    torch.manual_seed(0)
    if name in IMAGE_MODELS:
        return _of_spec(IMAGE_MODELS[name])
    if found := _FFN.fullmatch(name):
        layers, dim, tokens = map(int, found.groups())
        model = Model(name, FFNStack(layers, dim), (torch.randn(1, tokens, dim),), ("x",))
    elif found := _TEXT.fullmatch(name):
        tokens = int(found[1])
        ids = torch.randint(0, _VOCABULARY, (1, tokens))
        mask = (torch.arange(tokens) < tokens * 3 // 4).long()[None]  # the rest is padding
        model = Model(name, TextEncoder(), (ids, mask), ("input_ids", "attention_mask"))
    else:
        blocks = nn.Sequential(*(TiedBottleneck(256, 64) for _ in range(6)))
        model = Model(name, blocks, (torch.randn(1, 256, 28, 28),), ("x",))
    draw_vectors(model.module)
    model.module.eval()
    return model


def _of_spec(spec: ImageSpec) -> Model:
    module = spec.build()
    if spec.checkpoint is not None:
        load_checkpoint(module, zoo.path_of(spec.checkpoint))
    else:
        draw_vectors(module)
    return Model(spec.name, module.eval(), spec.example_inputs(1), spec.input_names)


def draw_vectors(module: nn.Module) -> None:
    """Give biases, norms' scales and statistics values, as training does: 0 and 1 fold away."""
    for part in module.modules():
        if isinstance(part, nn.LayerNorm | nn.BatchNorm2d):
            nn.init.uniform_(part.weight, 0.5, 1.5)
        if isinstance(part, nn.BatchNorm2d):
            assert part.running_mean is not None
            assert part.running_var is not None
            part.running_mean.normal_(std=0.1)
            part.running_var.uniform_(0.5, 2.0)
    for name, parameter in module.named_parameters():
        if name.endswith("bias"):
            nn.init.normal_(parameter, std=0.02)
