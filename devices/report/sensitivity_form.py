"""sensitivity.json and sensitivity.html: the curve of a net, for a machine and for people."""

from __future__ import annotations

import dataclasses
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from devices.report import units
from devices.report.decode import MismatchError, decode
from devices.report.drawing import (
    COLOURS,
    INK,
    SERIES,
    SETTINGS,
    SOFT,
    WIDTH_INCHES,
    add_legend,
    one_axes,
    short,
    svg_of,
)
from devices.report.page import render_page
from devices.report.units import format_share
from export.errors import BadFileError, MissingExtraError, OutputError
from weightspace.sensitivity import Sensitivity

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SCHEMA = 1
JSON, HTML = "sensitivity.json", "sensitivity.html"
TEMPLATE = "sensitivity.html.jinja"


@dataclass(frozen=True, slots=True)
class Record:
    """A curve and whose it is.

    Args:
        layers: those that were chosen.
    """

    schema: int
    model: str
    layers: tuple[str, ...]
    curve: Sensitivity

    def __post_init__(self) -> None:
        if self.layers != self.curve.names:
            raise ValueError("its layers are not those that its curve chose")

    @classmethod
    def of(cls, model: str, curve: Sensitivity) -> Record:
        """Build the record of a curve."""
        return cls(SCHEMA, model, curve.names, curve)


def as_dict(record: Record) -> dict[str, Any]:
    """Turn a record into what JSON has."""
    return cast("dict[str, Any]", json.loads(_text(record)))


def write_record(record: Record, folder: Path) -> None:
    """Write both files; each is replaced when the new one is whole.

    Raises:
        MissingExtraError: matplotlib is not installed.
        OutputError: the folder cannot be written.
    """
    contents = {JSON: _text(record), HTML: render(record)}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in contents.items():
            part = folder / f".{name}.{os.getpid()}"
            try:
                part.write_text(text, encoding="utf-8")
                part.replace(folder / name)
            finally:
                part.unlink(missing_ok=True)
    except OSError as error:
        raise OutputError(f"{folder} cannot be written: {error.strerror}") from error


def read_record(path: Path) -> Record:
    """Read sensitivity.json.

    Raises:
        BadFileError: it is missing, or is no such record.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        record = cast("Record", decode(Record, data, "record"))
    except OSError as error:
        raise BadFileError(f"{path} cannot be read: {error.strerror}") from error
    except (ValueError, MismatchError, RecursionError) as error:
        raise BadFileError(
            f"{path} is no record of `weightspace sensitivity` ({error}); run it again"
        ) from error
    if record.schema != SCHEMA:
        raise BadFileError(f"{path} has schema {record.schema}, this version reads {SCHEMA}")
    return record


def render(record: Record) -> str:
    """Give the page; the same record gives the same text.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    from markupsafe import Markup

    plots = {name: Markup(svg) for name, svg in _draw(record).items()}  # texts are escaped in it
    return render_page(
        TEMPLATE,
        model=record.model, curve=record.curve, plots=plots, colours=COLOURS, units=units,
        headline=headline(record), budget=budget_words(record.curve),
    )  # fmt: skip


def headline(record: Record) -> str:
    """Say in one sentence what was chosen and what it costs."""
    curve, last = record.curve, record.curve.last
    if last is None:
        return f"No layer of {record.model} can be replaced within the budget"
    loss = last.together.loss - curve.dense.loss
    return (
        f"{curve.chosen} of {len(curve.steps)} layers as {curve.structure}: "
        f"{format_share(last.parameters / curve.parameters)} of the parameters, loss {loss:+.3f}, "
        f"accuracy {format_share(curve.dense.accuracy)} to {format_share(last.together.accuracy)}"
    )


def budget_words(curve: Sensitivity) -> str:
    """Say what the choice had to keep."""
    if curve.budget.parameters is not None:
        return f"at most {format_share(curve.budget.parameters)} of the parameters"
    if curve.budget.loss is not None:
        return f"at most {curve.budget.loss:g} more loss"
    return "none; all layers"


def _text(record: Record) -> str:
    return json.dumps(dataclasses.asdict(record), indent=1, allow_nan=False) + "\n"


def _draw(record: Record) -> dict[str, str]:
    try:
        import matplotlib
    except ImportError as error:
        raise MissingExtraError.of("matplotlib", "report") from error
    if not record.curve.steps:
        return {}
    with matplotlib.rc_context(SETTINGS):
        return {
            "curve": svg_of(_curve(record.curve), "curve", headline(record)),
            "alone": svg_of(_alone(record.curve), "alone", "Loss with one layer replaced."),
        }


def _curve(curve: Sensitivity) -> Figure:
    """Draw the loss over the parameters, from the dense net to all layers replaced."""
    figure, axes = one_axes(WIDTH_INCHES * 0.62)
    sizes = [curve.parameters, *(step.parameters for step in curve.steps)]
    losses = [curve.dense.loss, *(step.together.loss for step in curve.steps)]
    shares = [100 * size / curve.parameters for size in sizes]
    axes.plot(shares, losses, "-", color=SERIES[0])
    kept, rest = slice(0, curve.chosen + 1), slice(curve.chosen + 1, None)
    axes.plot(shares[kept], losses[kept], "o", color=SERIES[1], label="replaced")
    if shares[rest]:
        axes.plot(shares[rest], losses[rest], "o", color=SERIES[0], ms=4, label="left dense")
    axes.axhline(curve.dense.loss, color=INK, lw=1.1, ls=(0, (4, 3)))
    if curve.budget.loss is not None:
        axes.axhline(curve.dense.loss + curve.budget.loss, color=SOFT, lw=1, ls=":")
    if curve.budget.parameters is not None:
        axes.axvline(100 * curve.budget.parameters, color=SOFT, lw=1, ls=":")
    axes.invert_xaxis()
    axes.set_xlabel("parameters of the net, % of the dense one's")
    axes.set_ylabel("loss")
    axes.grid()
    add_legend(figure, axes, 2)
    return figure


def _alone(curve: Sensitivity) -> Figure:
    """Draw what each layer costs when it is replaced and no other, in the order of the curve."""
    figure, axes = one_axes(0.8 + 0.24 * len(curve.steps))
    places = range(len(curve.steps))
    increases = [step.alone.loss - curve.dense.loss for step in curve.steps]
    colours = [SERIES[1 if place < curve.chosen else 0] for place in places]
    axes.barh(places, increases, height=0.62, color=colours)
    axes.axvline(0, color=INK, lw=1.1)
    axes.set_yticks(places, [short(step.layer.name) for step in curve.steps])
    axes.set_ylim(len(curve.steps) - 0.4, -0.6)
    axes.tick_params(axis="y", length=0)
    axes.set_xlabel("loss that one layer costs alone")
    axes.grid(axis="x")
    return figure
