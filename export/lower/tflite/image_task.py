"""What the .tflite file of a model for images tells of its input, in TFLite's metadata."""

from __future__ import annotations

from dataclasses import dataclass

from export.lower.tflite.graph import Graph
from export.lower.tflite.metadata import Table, write_metadata

_MIN_PARSER = "1.0.0"
_IMAGE_PROPERTIES, _NORMALIZATION = 2, 1  # ContentProperties, ProcessUnitOptions
_COLOURS = {"RGB": 1, "GRAYSCALE": 2}


@dataclass(frozen=True, slots=True)
class ImageTask:
    """How the input of a model is made of pixels from 0 to 255: ``(pixel - mean) / std``.

    Args:
        name: of the model.
        image: name of the input.
        colour: ``RGB`` or ``GRAYSCALE``.
        licence: of the weights; empty where it is not known.
    """

    name: str
    image: str
    mean: float
    std: float
    colour: str
    licence: str = ""


def describe_image(graph: Graph, task: ImageTask) -> bytes:
    """Write the metadata of a graph: its image's colours and normalisation."""
    content = Table((_IMAGE_PROPERTIES, Table(_COLOURS[task.colour])))
    unit = Table((_NORMALIZATION, Table([task.mean], [task.std])))
    described = Table(
        task.image, "An image, normalised as its process unit tells.", None, content, [unit]
    )
    return write_metadata(
        name=task.name,
        description="Takes images: pixels from 0 to 255, of each the mean taken off, then scaled.",
        licence=task.licence,
        inputs=[described if t.name == task.image else Table(t.name) for t in graph.inputs],
        outputs=[Table(name) for name, _ in graph.outputs],
        parser=_MIN_PARSER,
    )
