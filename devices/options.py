"""How an export is made and measured."""

from __future__ import annotations

from dataclasses import dataclass

from devices.device import Device
from export.lower import SETTINGS
from runtimes.bench import QUICK, Budget

NAIVE = "naive"


@dataclass(frozen=True, slots=True)
class Options:
    """How to export and measure.

    Args:
        settings: which artifacts to make.
        precision: of the stored weights; None for the target's own.
        sizes: sizes of the swept axis; None for a choice by the model.
        profile: False leaves the measurements out.
        keep_naive: keep the naive exports in the bundle, so that they can be profiled later.
        devices: where to measure too, besides this machine.
    """

    settings: tuple[str, ...] = SETTINGS
    precision: str | None = None
    threads: int = 1
    sizes: tuple[int, ...] | None = None
    budget: Budget = QUICK
    profile: bool = True
    keep_naive: bool = False
    devices: tuple[Device, ...] = ()
