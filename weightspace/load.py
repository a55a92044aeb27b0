"""Models of the zoo and checkpoints of them, as they are or with layers replaced."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from weightspace import zoo
from weightspace.checkpoint import (
    CheckpointError,
    load_checkpoint,
    read_metadata,
    save_checkpoint,
)
from weightspace.models import MODELS
from weightspace.models.spec import ImageEncoderSpec, ModelSpec
from weightspace.recipe import RECIPE, Recipe, follow, parse_recipe, recipe_text


@dataclass(frozen=True, slots=True)
class Loaded:
    """A model of the zoo, or a checkpoint of one.

    Args:
        recipe: what was replaced; empty for the architecture itself.
        checkpoint: the file of its weights; None where they are random.
    """

    spec: ModelSpec
    module: nn.Module
    recipe: Recipe
    checkpoint: Path | None

    @property
    def name(self) -> str:
        """Name the architecture and the structures in it."""
        structures = {part.structure for part in self.recipe.values()}
        return "-".join([self.spec.name, *sorted(structures)])


def save_converted(module: nn.Module, path: Path, model: str, recipe: Recipe) -> None:
    """Write a checkpoint whose header tells the architecture and the structure of each layer.

    Raises:
        CheckpointError: the file cannot be written.
    """
    save_checkpoint(module, path, {"model": model, RECIPE: recipe_text(recipe)})


def load_zoo_model(name: str) -> Loaded:
    """Build a model of the zoo and load its weights.

    Args:
        name: a row of ``MODELS``, or the path of a checkpoint of one. Without a shipped
            checkpoint the weights are random, of a fixed seed.

    Raises:
        CheckpointError: the file is damaged, its recipe is none, or it is of another model.
    """
    if name in MODELS:
        spec = MODELS[name]
        path = zoo.path_of(spec.checkpoint) if spec.checkpoint else None
        return _load(spec, "{}", path)
    path = Path(name)
    header = read_metadata(path)
    model = header.get("model")
    if model not in MODELS:
        raise CheckpointError(
            f"{path} does not say which model it belongs to (its header has no known 'model'); "
            "pass a factory as package.module:factory instead"
        )
    return _load(MODELS[model], header.get(RECIPE, "{}"), path)


def _load(spec: ModelSpec, text: str, path: Path | None) -> Loaded:
    torch.manual_seed(0)
    module = spec.build()
    try:
        recipe = parse_recipe(text)
        follow(module, recipe)
    except ValueError as error:
        raise CheckpointError(f"{path} holds {error}; convert the model again") from error
    if path is not None:
        load_checkpoint(module, path, "head" if isinstance(spec, ImageEncoderSpec) else None)
    return Loaded(spec, module, recipe, path)
