"""Measure a bundle's artifacts on a device: what it can run, and by what."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from devices.answer import EngineRun
from devices.benchmark_model import binary_of, measure_with_binary
from devices.device import Device
from devices.golden import Golden
from devices.measure import Candidate
from devices.options import NAIVE
from devices.recipes import read_engine, recipe_folder, usual_size
from devices.remote import TENSORRT, ParityInputs, Task, measure_on
from devices.report.record import Result, Run, Variant
from devices.steps import Step
from devices.transports import Transport, open_transport
from export.errors import DeviceError, UserError
from export.parity import limit_of
from export.records import TensorSpec
from runtimes import BACKENDS
from runtimes.bench import Budget

# What is behind an address of each scheme can run; a phone without Python runs TFLite alone.
_FORMATS: dict[str, tuple[str, ...]] = {
    "ssh": ("onnx", "tflite", TENSORRT),
    "adb": ("onnx", "tflite"),
    "mac": ("mlpackage",),
}
_PHONE_FORMATS = ("tflite",)
_LOOK_S = 60.0
_NOT_FOUND = 127


@dataclass(frozen=True, slots=True)
class Plan:
    """What is to be measured on any device.

    Args:
        candidates: by ``Variant.id``; those of a format that a device does not run are left out.
        inputs: of all artifacts.
        outputs: of all artifacts.
        golden: what outputs are compared with; None leaves that out.
        axis: what the sizes are; see ``devices.measure.make_feeds``.
    """

    candidates: Mapping[str, Candidate]
    variants: Sequence[Variant]
    inputs: Sequence[TensorSpec]
    outputs: Sequence[TensorSpec]
    golden: Golden | None
    axis: str
    sizes: Sequence[int]
    threads: int
    budget: Budget


def run_on(device: Device, plan: Plan, on_step: Step) -> Run:
    """Send what a device can run to it, measure it there, compare its outputs, and clean up.

    Raises:
        UserError: there is nothing that the device can run.
        DeviceError: it cannot be reached, lacks something, or failed; the remedy is named.
    """
    plan = replace(plan, candidates=_fitting(device, plan))
    transport = open_transport(device)
    on_step(f"connecting to {device.name}")
    try:
        transport.connect()
        if device.scheme == "adb" and not device.benchmark_binary:
            _require_python(transport)
        measure = _by_binary if device.benchmark_binary else _by_agent
        run = measure(transport, plan, on_step)
    except BaseException:
        _close(transport)
        raise
    left = _close(transport)
    return replace(run, notes=(*run.notes, left)) if left else run


def _fitting(device: Device, plan: Plan) -> dict[str, Candidate]:
    formats = _PHONE_FORMATS if device.benchmark_binary else _FORMATS[device.scheme]
    format_by_id = {variant.id: variant.format for variant in plan.variants}
    fitting = {
        each: candidate
        for each, candidate in plan.candidates.items()
        if format_by_id[each] in formats
    }
    if not fitting:
        have = " and ".join(dict.fromkeys(BACKENDS[v.format].suffix for v in plan.variants))
        wanted = " or ".join(BACKENDS[name].suffix for name in formats)
        raise UserError(f"{device.name} runs {wanted} files, and the bundle holds {have}")
    return fitting


def _require_python(transport: Transport) -> None:
    """Say what a phone needs that has no Python, as none has of itself.

    Raises:
        UserError: it has no Python.
    """
    done = transport.run([transport.device.python, "--version"], timeout_s=_LOOK_S)
    if done.exit_code == _NOT_FOUND:
        binary_of(transport.device)


def _by_binary(transport: Transport, plan: Plan, on_step: Step) -> Run:
    paths = {each: candidate.path for each, candidate in plan.candidates.items()}
    return measure_with_binary(
        transport, paths, plan.inputs,
        axis=plan.axis, sizes=plan.sizes, threads=plan.threads, budget=plan.budget, on_step=on_step,
    )  # fmt: skip


def _by_agent(transport: Transport, plan: Plan, on_step: Step) -> Run:
    by_id = {variant.id: variant for variant in plan.variants}
    notes: list[str] = []
    with tempfile.TemporaryDirectory(prefix="weightspace-") as scratch:
        tasks = {}
        for place, (each, candidate) in enumerate(plan.candidates.items()):
            variant = by_id[each]
            if variant.format == TENSORRT:
                size = usual_size(candidate.path, plan.inputs, plan.axis, plan.sizes)
                folder = recipe_folder(Path(scratch) / str(place), candidate.path)
                tasks[each] = _engine_task(folder, variant, size, transport.device.name, notes)
            else:
                parity = _parity(variant, plan.golden, plan.outputs)
                tasks[each] = Task(candidate, variant.format, parity)
        run = measure_on(
            transport, tasks, plan.inputs,
            axis=plan.axis, sizes=plan.sizes, threads=plan.threads, budget=plan.budget,
            on_step=on_step,
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
