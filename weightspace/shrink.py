"""Makes a smaller model of the zoo's: structured layers, batch norms renewed, fine-tuned, saved."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

import torch
from rich.console import Console

from weightspace.calibrate import load_calibration, reestimate_norms
from weightspace.convert import (
    Conversion,
    approximate_layers,
    dense_layers,
    parameters_of,
    replace_layers,
)
from weightspace.data import DEFAULT_FOLDER, Images, load_fashion_mnist, load_slice
from weightspace.load import Loaded, save_converted
from weightspace.models.spec import is_for_fashion_mnist
from weightspace.recipe import Part, recipe_text
from weightspace.train import WEIGHT_DECAY, Run, accuracy_of, fit

RATE = 5e-4  # a quarter of training's: the weights are near to good ones
IMAGES = 1000  # for the batch norms


@dataclass(frozen=True, slots=True)
class Shrunk:
    """What came out of a conversion.

    Args:
        parameters_before: of the net that was given, each storage once.
        accuracy_before: share of the test images; None where there are none for the model.
        images: the test images, in words; empty where there are none.
    """

    model: str
    conversion: Conversion
    parameters_before: int
    parameters_after: int
    accuracy_before: float | None
    accuracy_after: float | None
    images: str


def matching_layers(model: Loaded, patterns: Iterable[str]) -> list[str]:
    """List the dense layers whose name matches a pattern such as ``stages.*``.

    Raises:
        ValueError: a pattern matches none.
    """
    names = list(dense_layers(model.module))
    matched: set[str] = set()
    for pattern in patterns:
        found = {name for name in names if fnmatchcase(name, pattern)}
        if not found:
            raise ValueError(
                f"no dense layer of {model.name} is named {pattern!r}; there are "
                f"{', '.join(names) or 'none'}"
            )
        matched |= found
    return [name for name in names if name in matched]


def shrink(
    model: Loaded,
    structure: str,
    names: Iterable[str],
    share: float,
    out: Path,
    *,
    epochs: int = 0,
    seed: int = 0,
    data: Path | None = None,
    limit: int | None = None,
    threads: int | None = None,
    tell: Callable[[str], None] = lambda words: None,
    console: Console | None = None,
) -> Shrunk:
    """Replace layers, renew the batch norms' statistics, fine-tune, and write a checkpoint.

    The weight decay of fine-tuning is training's, times the parameters that are left over those
    that were (arXiv:1906.00859). After each epoch the state is written to ``<out>.resume``; the
    same call goes on from there.

    Args:
        model: is changed in place.
        out: the checkpoint to write.
        epochs: of fine-tuning; 0 for none.
        data: folder of Fashion-MNIST's four IDX files; None for where Debian puts them.
        limit: fine-tune on the first images only; for trying things out.
        tell: is told of each step before its turn.
        console: shows the progress of fine-tuning.

    Raises:
        ValueError: the structure, a name or the share is none, no layer can be replaced, or
            there is no data to fine-tune this model on.
        DataError: the data is missing or damaged.
        CheckpointError: an interrupted fine-tuning with other settings lies there, or the
            checkpoint cannot be written.
    """
    spec, module = model.spec, model.module
    if epochs and not is_for_fashion_mnist(spec):
        raise ValueError(f"model {spec.name!r} is not for Fashion-MNIST; there is no data for it")
    if not out.parent.is_dir():
        raise ValueError(f"{out} cannot be written: its folder is missing; create it first")
    if threads is not None:
        torch.set_num_threads(threads)
    test, images = _test_images(data) if is_for_fashion_mnist(spec) else (None, "")
    training = load_fashion_mnist(data or DEFAULT_FOLDER, train=True) if epochs else None
    example = spec.example_inputs(batch=1)
    found, done = approximate_layers(module, structure, names, share, example, tell)
    if not found:
        reasons = "; ".join(f"{each.name}: {each.reason}" for each in done.left)
        raise ValueError(f"no layer of {model.name} can be replaced by {structure}: {reasons}")
    # Convolutions on a CPU are up to twice as fast with the channels last in memory.
    module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    tell("measuring the model as it is")
    before = parameters_of(module)
    accuracy_before = None if test is None else accuracy_of(module, test)
    replace_layers(module, found)
    recipe = {**model.recipe, **{each.name: Part(structure, each.sizes) for each in done.layers}}
    resume = out.with_name(f"{out.name}.resume")
    if test is not None:
        tell("renewing the statistics of the batch norms")
        reestimate_norms(module, load_calibration(IMAGES, data))
    if training is not None:
        run = Run(
            spec.name, epochs, seed, len(training.labels[:limit]), RATE,
            WEIGHT_DECAY * parameters_of(module) / before,
            hashlib.sha256(recipe_text(recipe).encode()).hexdigest()[:16],
        )  # fmt: skip
        shown = Images(training.pixels[:limit], training.labels[:limit])
        fit(module, run, shown, resume, console or Console(stderr=True))
    tell("measuring what came out")
    accuracy_after = None if test is None else accuracy_of(module, test)
    save_converted(module, out, spec.name, recipe)
    if training is not None:
        resume.unlink()
    return Shrunk(
        Loaded(spec, module, recipe, out).name, done, before, parameters_of(module),
        accuracy_before, accuracy_after, images,
    )  # fmt: skip


def _test_images(folder: Path | None) -> tuple[Images, str]:
    """Take all test images where the set is, else those that ship, and say which."""
    if folder is not None or DEFAULT_FOLDER.is_dir():
        images = load_fashion_mnist(folder or DEFAULT_FOLDER, train=False)
    else:
        images = load_slice()
    return images, f"{len(images.labels):,} test images of Fashion-MNIST"
