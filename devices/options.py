"""How an export is made and measured."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from devices.device import Device
from export.lower import SETTINGS
from export.lower.tensorrt.profiles import Range
from export.lower.tensorrt.recipe import RecipeOptions
from runtimes.bench import QUICK, Budget

NAIVE = "naive"


@dataclass(frozen=True, slots=True)
class Options:
    """How to export and measure.

    Args:
        settings: which artifacts to make.
        precisions: of the stored weights, one or several; none for the target's own.
        sizes: sizes of the swept axis; None for a choice by the model.
        profile: False leaves the measurements out.
        keep_naive: keep the naive exports in the bundle, so that they can be profiled later.
        app: add the tokenizer, an example for the target's apps and the licences.
        devices: where to measure too, besides this machine.
        recipe: how a TensorRT engine is built.
        ranges: sizes of dynamic axes that a TensorRT engine takes, by the axis' name.
    """

    settings: tuple[str, ...] = SETTINGS
    precisions: tuple[str, ...] = ()
    threads: int = 1
    sizes: tuple[int, ...] | None = None
    budget: Budget = QUICK
    profile: bool = True
    keep_naive: bool = False
    app: bool = False
    devices: tuple[Device, ...] = ()
    recipe: RecipeOptions = field(default_factory=RecipeOptions)
    ranges: Mapping[str, Range] = field(default_factory=dict)
