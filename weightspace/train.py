"""Training of the zoo's models on Fashion-MNIST: resumable, seeded, in epochs."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.optim import AdamW

from weightspace.bfloat16 import autocast, fast_bfloat16
from weightspace.checkpoint import save_checkpoint
from weightspace.data import DEFAULT_FOLDER, Images, load_fashion_mnist, preprocess
from weightspace.models import MODELS
from weightspace.models.spec import is_for_fashion_mnist
from weightspace.resume import restore_state, save_state

BATCH = 128
PEAK_RATE = 2e-3
WEIGHT_DECAY = 0.05
SMOOTHING = 0.1
WARMUP = 0.1  # share of all steps
SHIFT = 2  # pixels


@dataclass(frozen=True, slots=True)
class Card:
    """What is known of a trained checkpoint.

    Args:
        parameters: each storage counted once.
        test_accuracy: share of all 10,000 test images that are classified right.
        command: what made it.
        precision: arithmetic of the matrix products: ``bfloat16 autocast`` or ``float32``.
    """

    model: str
    title: str
    twin: str | None
    parameters: int
    test_accuracy: float
    epochs: int
    steps: int
    seed: int
    precision: str
    torch: str
    command: str
    data: str = "Fashion-MNIST, 60,000 training images"


@dataclass(frozen=True, slots=True)
class Run:
    """Settings that must not change between the parts of a resumed training.

    Args:
        images: how many are trained on.
        rate: the highest learning rate.
        decay: AdamW's weight decay of matrices and filters.
        recipe: digest of what was made of the architecture before; empty for nothing.
    """

    model: str
    epochs: int
    seed: int
    images: int
    rate: float = PEAK_RATE
    decay: float = WEIGHT_DECAY
    recipe: str = ""


def train(
    name: str,
    out: Path,
    *,
    data: Path = DEFAULT_FOLDER,
    epochs: int = 12,
    seed: int = 0,
    threads: int | None = None,
    limit: int | None = None,
    console: Console | None = None,
) -> Card:
    """Train a model of the zoo and write ``<name>.safetensors`` and ``<name>.json``.

    After each epoch the state is written to ``<out>/<name>.resume``; a run with the same
    settings goes on from there, with the same result as one that was never interrupted.

    Args:
        name: a model for Fashion-MNIST.
        out: folder for the checkpoint and its card.
        data: folder of the four IDX files.
        threads: torch's threads; None leaves torch's own choice.
        limit: train on the first images only; for trying things out.

    Raises:
        ValueError: the model is unknown or not for Fashion-MNIST, or ``epochs`` or ``limit`` is
            less than 1.
        DataError: the data is missing or damaged.
        CheckpointError: an interrupted training with other settings, or a file of another kind
            under its name, lies in ``out``.
    """
    if name not in MODELS:
        raise ValueError(f"model {name!r} is not known; `weightspace models` lists all")
    spec = MODELS[name]
    if not is_for_fashion_mnist(spec):
        raise ValueError(f"model {name!r} is not for Fashion-MNIST; there is no data to train it")
    if epochs < 1:
        raise ValueError(f"epochs is {epochs}; train for at least one")
    if limit is not None and limit < 1:
        raise ValueError(f"limit is {limit}; train on at least one image")
    if threads is not None:
        torch.set_num_threads(threads)
    training, test = load_fashion_mnist(data, train=True), load_fashion_mnist(data, train=False)
    training = Images(training.pixels[:limit], training.labels[:limit])
    run = Run(name, epochs, seed, len(training.labels))
    out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(seed)
    module = spec.build()
    fit(module, run, training, out / f"{name}.resume", console or Console(stderr=True))
    accuracy = accuracy_of(module, test)
    card = Card(
        model=name,
        title=spec.title,
        twin=spec.twin,
        parameters=sum(parameter.numel() for parameter in module.parameters()),
        test_accuracy=accuracy,
        epochs=epochs,
        steps=epochs * _steps(run),
        seed=seed,
        precision="bfloat16 autocast" if fast_bfloat16() else "float32",
        torch=torch.__version__,
        command=f"weightspace train {name} --epochs {epochs} --seed {seed}",
    )
    save_checkpoint(module, out / f"{name}.safetensors", {"model": name})
    (out / f"{name}.json").write_text(json.dumps(asdict(card), indent=1) + "\n")
    (out / f"{name}.resume").unlink(missing_ok=True)
    return card


def accuracy_of(module: nn.Module, images: Images) -> float:
    """Classify images in float32 and return the share that is right."""
    module.eval()
    right = 0
    with torch.no_grad():
        for start in range(0, len(images.labels), 500):
            part = slice(start, start + 500)
            logits = module(torch.from_numpy(preprocess(images.pixels[part])))
            right += int((logits.argmax(-1).numpy() == images.labels[part]).sum())
    return right / len(images.labels)


def fit(module: nn.Module, run: Run, images: Images, resume: Path, console: Console) -> None:
    """Train a module in place; after each epoch its state goes to ``resume``, and is read there.

    Raises:
        CheckpointError: ``resume`` is of another run, or of another kind.
    """
    # Convolutions on a CPU are up to twice as fast with the channels last in memory.
    module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = _optimizer(module, run.decay)
    first = restore_state(module, optimizer, resume, asdict(run))
    pixels = preprocess(images.pixels)
    columns = (
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(),
        TimeRemainingColumn(), TextColumn("{task.fields[shown]}"),
    )  # fmt: skip
    with Progress(*columns, console=console) as progress:
        for epoch in range(first, run.epochs):
            task = progress.add_task(
                f"{run.model} epoch {epoch + 1}/{run.epochs}", total=_steps(run), shown=""
            )
            right = seen = 0
            for step, loss, hits in _epoch(module, optimizer, run, epoch, pixels, images.labels):
                right, seen = right + hits, min(seen + BATCH, run.images)
                shown = f"loss {loss:.3f}, {right / seen:.1%} right"
                progress.update(task, completed=step + 1, shown=shown)
            save_state(module, optimizer, resume, asdict(run), epoch + 1)


def _epoch(
    module: nn.Module,
    optimizer: AdamW,
    run: Run,
    epoch: int,
    pixels: NDArray[np.float32],
    labels: NDArray[np.uint8],
) -> Iterator[tuple[int, float, int]]:
    """Train for one epoch; yields each step, its loss and how many of its batch were right."""
    # Order and augmentation depend on seed and epoch alone, so that resuming changes nothing.
    generator = np.random.default_rng((run.seed, epoch))
    order = generator.permutation(run.images)
    module.train()
    for step in range(_steps(run)):
        chosen = order[step * BATCH : (step + 1) * BATCH]
        batch = torch.from_numpy(augment(pixels[chosen], generator))
        target = torch.from_numpy(labels[chosen].astype(np.int64))
        rate = learning_rate(epoch * _steps(run) + step, run.epochs * _steps(run), run.rate)
        for group in optimizer.param_groups:
            group["lr"] = rate
        # The fused attention's backward is slow in bfloat16 on a CPU: most of a step.
        with sdpa_kernel(SDPBackend.MATH), autocast():
            logits = module(batch)
        loss = F.cross_entropy(logits.float(), target, label_smoothing=SMOOTHING)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it without types
        nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        optimizer.step()
        yield step, loss.item(), int((logits.detach().argmax(-1) == target).sum())


def augment(images: NDArray[np.float32], generator: np.random.Generator) -> NDArray[np.float32]:
    """Mirror half of the images and shift each by up to two pixels, ``(n, 1, 28, 28)``."""
    edge = images.min()
    padded = np.pad(images, ((0, 0), (0, 0), (SHIFT, SHIFT), (SHIFT, SHIFT)), constant_values=edge)
    windows = np.lib.stride_tricks.sliding_window_view(padded, images.shape[2:], axis=(2, 3))
    shifts = generator.integers(0, 2 * SHIFT + 1, (2, len(images)))
    shifted = windows[np.arange(len(images)), :, shifts[0], shifts[1]]
    mirrored = generator.random(len(images)) < 0.5
    shifted[mirrored] = shifted[mirrored, :, :, ::-1]
    return np.ascontiguousarray(shifted)


def learning_rate(step: int, steps: int, peak: float = PEAK_RATE) -> float:
    """Rise linearly to the peak over the warm-up, then fall as a cosine to zero."""
    warmup = max(1, int(WARMUP * steps))
    if step < warmup:
        return peak * (step + 1) / warmup
    return peak * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def _steps(run: Run) -> int:
    return math.ceil(run.images / BATCH)


def _optimizer(module: nn.Module, decay: float) -> AdamW:
    """Decay matrices and filters; leave vectors (norms, biases, positions) alone."""
    decayed = [p for p in module.parameters() if p.dim() >= 2 and p.shape[0] > 1]
    others = [p for p in module.parameters() if p.dim() < 2 or p.shape[0] <= 1]
    groups: list[dict[str, Any]] = [
        {"params": decayed, "weight_decay": decay},
        {"params": others},
    ]
    return AdamW(groups, weight_decay=0.0)
