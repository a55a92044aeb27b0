"""Measure a bundle's artifacts on a device: what it can run, and by what."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from devices.answer import EngineRun
from devices.benchmark_model import measure_with_binary
from devices.device import Device
from devices.golden import Golden
from devices.measure import Candidate
from devices.options import NAIVE, Options
from devices.recipes import read_engine, recipe_folder, usual_size
from devices.remote import TENSORRT, ParityInputs, Task, measure_on
from devices.report.record import Result, Run, Variant
from devices.transports import Transport, open_transport
from export.errors import DeviceError, UserError
from export.parity import limit_of
from export.records import TensorSpec
from runtimes import BACKENDS

# What is behind an address of each scheme can run; a phone without Python runs TFLite alone.
_FORMATS: dict[str, tuple[str, ...]] = {
    "local": ("onnx", "tflite"),
    "ssh": ("onnx", "tflite", TENSORRT),
    "adb": ("onnx", "tflite"),
    "mac": ("mlpackage",),
}
_PHONE_FORMATS = ("tflite",)


def run_on(
    device: Device,
    candidates: Mapping[str, Candidate],
    variants: Sequence[Variant],
    specs: tuple[Sequence[TensorSpec], Sequence[TensorSpec]],
    golden: Golden | None,
    *,
    axis: str,
    sizes: Sequence[int],
    options: Options,
    on_step: Callable[[str], None],
) -> Run:
    """Send what a device can run to it, measure it there, compare its outputs, and clean up.

    Args:
        candidates: by ``Variant.id``; those of a format that the device does not run are left out.
        specs: the inputs and the outputs of all artifacts.
        golden: what outputs are compared with; None leaves that out.
        axis: what the sizes are; see ``devices.measure.make_feeds``.

    Raises:
        UserError: there is nothing that the device can run.
        DeviceError: it cannot be reached, lacks something, or failed; the remedy is named.
    """
    fitting = _fitting(device, candidates, variants)
    transport = open_transport(device)
    on_step(f"connecting to {device.name}")
    try:
        transport.connect()
        run = _measure(transport, fitting, variants, specs, golden, axis, sizes, options, on_step)
    except BaseException:
        _close(transport)
        raise
    left = _close(transport)
    return replace(run, notes=(*run.notes, left)) if left else run


def _fitting(
    device: Device, candidates: Mapping[str, Candidate], variants: Sequence[Variant]
) -> dict[str, Candidate]:
    formats = _PHONE_FORMATS if device.benchmark_binary else _FORMATS[device.scheme]
    format_by_id = {variant.id: variant.format for variant in variants}
    fitting = {
        each: candidate for each, candidate in candidates.items() if format_by_id[each] in formats
    }
    if not fitting:
        have = " and ".join(dict.fromkeys(BACKENDS[v.format].suffix for v in variants))
        wanted = " or ".join(BACKENDS[name].suffix for name in formats)
        raise UserError(f"{device.name} runs {wanted} files, and the bundle holds {have}")
    return fitting


def _measure(
    transport: Transport,
    candidates: Mapping[str, Candidate],
    variants: Sequence[Variant],
    specs: tuple[Sequence[TensorSpec], Sequence[TensorSpec]],
    golden: Golden | None,
    axis: str,
    sizes: Sequence[int],
    options: Options,
    tell: Callable[[str], None],
) -> Run:
    if transport.device.benchmark_binary:
        return measure_with_binary(
            transport, {each: candidate.path for each, candidate in candidates.items()}, specs[0],
            axis=axis, sizes=sizes, threads=options.threads, budget=options.budget, on_step=tell,
        )  # fmt: skip
    by_id = {variant.id: variant for variant in variants}
    notes: list[str] = []
    with tempfile.TemporaryDirectory(prefix="weightspace-") as scratch:
        tasks = {}
        for place, (each, candidate) in enumerate(candidates.items()):
            variant = by_id[each]
            if variant.format == TENSORRT:
                size = usual_size(candidate.path, specs[0], axis, sizes)
                folder = recipe_folder(Path(scratch) / str(place), candidate.path)
                tasks[each] = _engine_task(folder, variant, size, transport.device.name, notes)
            else:
                parity = _parity(variant, golden, specs[1])
                tasks[each] = Task(candidate, variant.format, parity)
        run = measure_on(
            transport, tasks, specs[0],
            axis=axis, sizes=sizes, threads=options.threads, budget=options.budget, on_step=tell,
        )  # fmt: skip
    return replace(run, notes=(*run.notes, *dict.fromkeys(notes)))


def _engine_task(folder: Path, variant: Variant, size: int, device: str, notes: list[str]) -> Task:
    def read(run: EngineRun) -> Result:
        unique_bytes = round(variant.weight_bytes / variant.ratio)
        return read_engine(run, device, variant.id, size, unique_bytes, notes)

    return Task(Candidate(folder), TENSORRT, read_engine=read)


def _parity(
    variant: Variant, golden: Golden | None, outputs: Sequence[TensorSpec]
) -> ParityInputs | None:
    if golden is None:
        return None
    takes_pixels = variant.format == "mlpackage" and variant.name != NAIVE
    return ParityInputs(
        inputs=golden.pixels if takes_pixels and golden.pixels else golden.inputs,
        reference=golden.outputs,
        output_names=tuple(spec.name for spec in outputs),
        source=golden.source,
        limit=limit_of(variant.format, variant.precision),
        classifier=variant.parity is not None and variant.parity.top1_agreement is not None,
    )


def _close(transport: Transport) -> str:
    """Clean up on the device; gives what could not be, in words."""
    try:
        transport.close()
    except DeviceError as error:
        return str(error)
    return ""
