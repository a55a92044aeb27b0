"""``weightspace convert`` and ``weightspace sensitivity``: structured layers in a trained net."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Column, Table

from devices import console
from devices.console import JsonOption
from devices.plain import plain
from devices.report.units import format_ratio, format_share
from export.errors import UnknownNameError, UserError

if TYPE_CHECKING:
    from devices.report.sensitivity_form import Record
    from weightspace.calibrate import Measured
    from weightspace.convert import Left
    from weightspace.load import Loaded
    from weightspace.shrink import Shrunk

# The table of them is beside torch, which takes seconds to import.
STRUCTURE_HELP = (
    "What the layers become: basis, bilinear, acdc, tensor-train, tucker, cp, hashed, half-hashed, "
    "hashed-separable, shuffle, low-rank, low-rank-tied or tied-ffn."
)
BAR = 8  # letters of the longest bar

ModelOption = Annotated[
    str,
    typer.Option(
        "--model",
        help="A zoo name (see `weightspace models`) or a .safetensors checkpoint of a zoo model.",
    ),
]
DataOption = Annotated[
    Path | None,
    typer.Option(help="Folder of Fashion-MNIST's IDX files; default: where Debian puts them."),
]
ThreadsOption = Annotated[int | None, typer.Option(min=1, help="Default: torch's own.")]


def convert(
    model: ModelOption,
    out: Annotated[Path, typer.Option("--out", help="The checkpoint to write, .safetensors.")],
    structure: Annotated[str | None, typer.Option(help=STRUCTURE_HELP)] = None,
    share: Annotated[
        float | None,
        typer.Option(help="Parameters of a new weight over those of the dense one."),
    ] = None,
    layers: Annotated[
        str,
        typer.Option(
            help="Names of layers, with * for anything, separated by commas; or @FILE: those that "
            "`weightspace sensitivity` chose, with its structure and share."
        ),
    ] = "*",
    epochs: Annotated[int, typer.Option(min=0, help="Epochs of fine-tuning.")] = 0,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    data: DataOption = None,
    threads: ThreadsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Turn layers of a trained dense net into structured ones, as near as they can be.

    The error of each weight is shown. Batch norms get new statistics; with --epochs the net is
    fine-tuned on Fashion-MNIST, and the same command goes on after an interruption.

    [bold]Examples[/bold]

      weightspace convert --model resnet-fmnist --structure basis --share 0.5 --out b.safetensors

      weightspace convert --model resnet-fmnist --structure low-rank --share 0.25
      --layers 'stages.1.*' --epochs 3 --out low-rank.safetensors

      weightspace convert --model resnet-fmnist --layers @found/sensitivity.json
      --out chosen.safetensors

      weightspace export --model chosen.safetensors --target raspberry-pi
    """
    if out.suffix != ".safetensors":
        raise UserError(f"--out {str(out)!r} is no .safetensors file; give it that ending")
    with _refusals(), console.progress(_interrupted(out, epochs), spinner=not epochs) as tell:
        from weightspace.shrink import matching_layers, shrink

        loaded = _load(model)
        if layers.startswith("@"):
            names, structure, share = _chosen(Path(layers[1:]), loaded, structure, share)
        else:
            names = matching_layers(loaded, _patterns(layers))
        if structure is None or share is None:
            raise UserError("give --structure and --share, or --layers @FILE, which says both")
        done = shrink(
            loaded, _known(structure), names, share, out, epochs=epochs, seed=seed, data=data,
            threads=threads, tell=tell, console=console.err,
        )  # fmt: skip
    if as_json:
        console.print_json({**asdict(done), "structure": structure, "share": share, "out": out})
    else:
        _print_shrunk(done, out)


def sensitivity(
    model: ModelOption,
    structure: Annotated[str, typer.Option(help=STRUCTURE_HELP)],
    share: Annotated[
        float, typer.Option(help="Parameters of a new weight over those of the dense one.")
    ],
    parameters: Annotated[
        float | None,
        typer.Option(help="Choose layers until this share of the net's parameters is left."),
    ] = None,
    loss: Annotated[
        float | None, typer.Option(help="Choose layers that cost at most so much more loss.")
    ] = None,
    layers: Annotated[
        str, typer.Option(help="Names of layers, with * for anything, separated by commas.")
    ] = "*",
    images: Annotated[int, typer.Option(min=2, help="How many to measure the loss on.")] = 1000,
    folder: Annotated[
        Path | None,
        typer.Option(
            "--out", help="Folder of sensitivity.json and .html; default out/MODEL-STRUCTURE."
        ),
    ] = None,
    data: DataOption = None,
    threads: ThreadsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Replace one layer at a time, measure the loss, and choose the layers that a budget takes.

    Layers are ranked by the loss that they cost for each parameter saved; the curve over them is
    measured again, and drawn in the report.

    [bold]Examples[/bold]

      weightspace sensitivity --model resnet-fmnist --structure basis --share 0.5 --parameters 0.8

      weightspace sensitivity --model resnet-fmnist --structure basis --share 0.5 --loss 0.02 --json
    """
    with _refusals(), console.progress("interrupted; nothing was written") as tell:
        import torch

        from devices.report.sensitivity_form import Record, write_record
        from weightspace.calibrate import load_calibration
        from weightspace.models.spec import is_for_fashion_mnist
        from weightspace.sensitivity import Budget
        from weightspace.sensitivity import sensitivity as search
        from weightspace.shrink import matching_layers

        budget = Budget(parameters, loss)
        loaded = _load(model)
        if not is_for_fashion_mnist(loaded.spec):
            raise UserError(
                f"model {loaded.name!r} is not for Fashion-MNIST; there is no data to measure it on"
            )
        names = matching_layers(loaded, _patterns(layers))
        if threads is not None:
            torch.set_num_threads(threads)
        calibration = load_calibration(images, data)
        curve = search(loaded.module, _known(structure), names, share, calibration, budget, tell)
        record = Record.of(loaded.name, curve)
        place = folder or Path("out") / f"{loaded.name}-{structure}"
        write_record(record, place)
    if as_json:
        from devices.report.sensitivity_form import as_dict

        console.print_json(as_dict(record))
    else:
        _print_curve(record, place)


def _load(model: str) -> Loaded:
    from weightspace.load import load_zoo_model
    from weightspace.models import MODELS

    if model not in MODELS and not model.endswith(".safetensors"):
        raise UnknownNameError.near("model", model, MODELS, "weightspace models")
    return load_zoo_model(model)


def _known(structure: str) -> str:
    from weightspace.structures import STRUCTURES

    if structure not in STRUCTURES:
        raise UnknownNameError.near(
            "structure", structure, STRUCTURES, "weightspace convert --help"
        )
    return structure


def _patterns(text: str) -> list[str]:
    return [part.strip() for part in text.split(",")]


def _chosen(
    path: Path, loaded: Loaded, structure: str | None, share: float | None
) -> tuple[list[str], str, float]:
    """Read what a search chose; what is said on the command line goes before it."""
    from devices.report.sensitivity_form import read_record

    record = read_record(path)
    if record.model != loaded.name:
        raise UserError(f"{path} is of {record.model}, not of {loaded.name}; search that model")
    if not record.layers:
        raise UserError(f"{path} chose no layer; search again with a larger budget")
    return list(record.layers), structure or record.curve.structure, share or record.curve.share


@contextmanager
def _refusals() -> Iterator[None]:
    """Turn the torch side's refusals, which has no errors of ours, into a user's errors."""
    try:
        yield
    except ValueError as error:
        raise UserError(str(error)) from error


def _interrupted(out: Path, epochs: int) -> str:
    if epochs:
        return "interrupted; run the same command to go on from the last epoch"
    return f"interrupted; {out} was not written"


def _print_shrunk(done: Shrunk, out: Path) -> None:
    name = Column("layer", overflow="fold")
    table = Table(name, "becomes", "parameters", "multiply-adds", "weight error", box=None)
    for each in done.conversion.layers:
        parameters = f"{each.parameters_after:,}", each.parameters_after / each.parameters_before
        work = f"{each.multiply_adds_after:,}", each.multiply_adds_after / each.multiply_adds_before
        sizes = [f"{count}  {format_ratio(ratio)}" for count, ratio in (parameters, work)]
        table.add_row(plain(each.name), each.layer, *sizes, f"{each.error:.3f}")
    console.out.print(table)
    _print_left(done.conversion.left)
    before, after = done.parameters_before, done.parameters_after
    words = f"{done.model}: {before:,} to {after:,} parameters, {format_share(after / before)}"
    if done.accuracy_before is not None and done.accuracy_after is not None:
        words += f"; {done.accuracy_before:.2%} to {done.accuracy_after:.2%} of {done.images} right"
    console.out.print(plain(f"{words}; {out}"), soft_wrap=True)


def _print_curve(record: Record, folder: Path) -> None:
    """Show the curve as a table, with a bar for the loss that each step adds to the dense net's."""
    from devices.report.sensitivity_form import HTML, headline

    curve = record.curve
    name = Column("layer", overflow="fold")
    table = Table(name, "alone", "parameters", "loss", "accuracy", "more", "", box=None)
    table.add_row("dense", "", f"{curve.parameters:,}", *_reached(curve.dense), "")
    most = max((step.together.loss - curve.dense.loss for step in curve.steps), default=0.0)
    for place, step in enumerate(curve.steps, start=1):
        more = max(0.0, step.together.loss - curve.dense.loss)
        bar = "█" * round(BAR * more / most) if most > 0 else ""
        chosen = "chosen" if place <= curve.chosen else ""
        table.add_row(
            plain(step.layer.name), f"{step.alone.loss:.4f}", f"{step.parameters:,}",
            *_reached(step.together), bar, chosen, style="" if chosen else "dim",
        )  # fmt: skip
    console.out.print(table)
    _print_left(curve.left)
    console.out.print(plain(f"{headline(record)}; {folder / HTML}"), soft_wrap=True)


def _reached(measured: Measured) -> tuple[str, str]:
    return f"{measured.loss:.4f}", format_share(measured.accuracy)


def _print_left(left: tuple[Left, ...]) -> None:
    """Say why layers stay as they are, those of one reason together."""
    names: dict[str, list[str]] = {}
    for each in left:
        names.setdefault(each.reason, []).append(each.name)
    for reason, found in names.items():
        more = f" and {len(found) - 3} more" if len(found) > 3 else ""
        stay = "stays" if len(found) == 1 else "stay"
        words = f"{', '.join(found[:3])}{more} {stay}: {reason}"
        console.out.print(plain(words), style="dim", soft_wrap=True)
