"""What a caller may ask of a Core ML package."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

COLOURS = ("RGB", "BGR", "GRAYSCALE")
DEPLOYMENT_TARGETS = ("iOS15", "iOS16", "iOS17", "iOS18", "iOS26")
PRECISIONS = ("float32", "float16")
BATCH_LIMIT = 64
LENGTH_LIMIT = 512


@dataclass(frozen=True, slots=True)
class Range:
    """Sizes that a dynamic axis may take, both ends included.

    Args:
        usual: the size that Core ML shows as the default and plans memory for.
    """

    smallest: int
    largest: int
    usual: int | None = None


# One size, some sizes, or all sizes between two.
Sizes: TypeAlias = int | tuple[int, ...] | Range


@dataclass(frozen=True, slots=True)
class ImageInput:
    """An input that takes an image (a CVPixelBuffer) instead of an array.

    The network sees ``pixel * scale + bias`` with pixels from 0 to 255.

    Args:
        name: of the input, which is ``(1, channels, height, width)``.
        scale: one number, or one a channel.
        bias: one number, or one a channel.
        colour: ``RGB``, ``BGR`` or ``GRAYSCALE``; it must be the order the network was trained in.
    """

    name: str
    scale: float | tuple[float, ...] = 1.0
    bias: float | tuple[float, ...] = 0.0
    colour: str = "RGB"


@dataclass(frozen=True, slots=True)
class CoremlOptions:
    """How a package is written, and what it says of itself.

    Args:
        deployment_target: the oldest system that must load it, one of ``DEPLOYMENT_TARGETS``.
        image: an input that takes images.
        class_labels: names of the classes of the first output, in order. The package then gives
            ``classLabel`` and ``classLabel_probs`` as well, the latter after a softmax.
        dimensions: sizes of the dynamic axes, by the axis' name in ONNX. By default the first axis
            of an input may be 1 to 64, and any other 1 to 512.
        metadata: any further text, by key.
    """

    deployment_target: str = "iOS17"
    image: ImageInput | None = None
    class_labels: tuple[str, ...] | None = None
    dimensions: Mapping[str, Sizes] = field(default_factory=dict)
    author: str = ""
    licence: str = ""
    description: str = ""
    version: str = ""
    metadata: Mapping[str, str] = field(default_factory=dict)
    input_descriptions: Mapping[str, str] = field(default_factory=dict)
    output_descriptions: Mapping[str, str] = field(default_factory=dict)
