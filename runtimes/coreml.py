"""Core ML itself, on macOS, and what can be measured with it there.

Elsewhere nothing here runs: ``runtimes.open_artifact`` then takes the reference evaluation of the
saved program (`runtimes.coreml_reference`), which tells whether the file is right and nothing of
its speed.

Written against the documented interface of coremltools 9; **not tried on hardware**.
"""

from __future__ import annotations

import asyncio
import sys
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from export.coreml_io import SUFFIX, import_coremltools, read_coreml
from export.coreml_records import CoremlFile
from export.errors import BadFileError, MeasureError, UnknownNameError
from runtimes import coreml_reference
from runtimes.coreml_ports import (
    check_names,
    classes_of,
    fit_feed,
    input_ports,
    output_types,
    spec_of,
)
from runtimes.session import Arrays

NAME = "coremltools"
SYSTEM = "darwin"
COMPUTE_UNITS = "compute_units"
"""The session option; by default Core ML may use all units."""
UNITS = ("ALL", "CPU_ONLY", "CPU_AND_GPU", "CPU_AND_NE")

warm_up_model = coreml_reference.warm_up_model
write_without_weights = coreml_reference.write_without_weights


@dataclass(frozen=True, slots=True)
class DeviceShare:
    """What Core ML plans to run on one compute device.

    Args:
        device: such as ``CPU``, ``GPU`` or ``NeuralEngine``.
        operators: how many prefer it.
        estimated_cost: their part of the work by Core ML's own estimate, 0 to 1.
    """

    device: str
    operators: int
    estimated_cost: float


@dataclass(frozen=True, slots=True)
class CoremlTimes:
    """Times that Core ML reports of itself, without Python's, in milliseconds."""

    load_ms: tuple[float, ...]
    predict_ms: tuple[float, ...]


class CoremlSession:
    """An ML Program in Core ML; use ``open_session`` to make one."""

    def __init__(self, model: Any, file: CoremlFile) -> None:
        self._model = model
        self._name = file.path.name
        self._function = file.main
        self._features = {feature.name: feature for feature in file.main.inputs}
        self._ports = input_ports(file.main)
        self._given = output_types(file.main)
        self.inputs = tuple(spec_of(name, port.type) for name, port in self._ports.items())
        self.outputs = tuple(spec_of(name, kind) for name, kind in self._given.items())

    def run(self, feeds: Mapping[str, NDArray[np.generic]]) -> Arrays:
        """Run once: input name to array in, output name to array out.

        Raises:
            MeasureError: the feeds do not fit the inputs, or Core ML fails on them.
        """
        check_names(self._name, list(self._ports), feeds)
        given = {
            name: fit_feed(self._name, port, self._features.get(name), feeds[name])
            for name, port in self._ports.items()
        }
        try:
            outputs = self._model.predict(given)
        except Exception as error:  # the vendor's own errors have no common base
            raise MeasureError(f"Core ML cannot run {self._name}: {_first_line(error)}") from error
        return {name: self._array(name, outputs[name]) for name in self._given}

    def close(self) -> None:
        """Free the model."""
        self._model = None

    def _array(self, name: str, value: Any) -> NDArray[np.generic]:
        if isinstance(value, dict):  # of a classifier: a probability for each class
            value = [value[each] for each in classes_of(self._function, name)]
        kind = self._given[name].dtype
        return np.asarray(value, None if kind == "string" else kind)


def open_session(
    path: Path,
    *,
    threads: int = 1,
    options: Mapping[str, str] | None = None,
    optimize: bool = True,
) -> CoremlSession:
    """Load a .mlpackage into Core ML.

    Args:
        threads: not used: Core ML chooses them.
        options: ``compute_units`` as one of ``UNITS``.
        optimize: not used: Core ML compiles a package in one way.

    Raises:
        MeasureError: this is no macOS.
        MissingExtraError: coremltools is not installed.
        BadFileError: the package is missing or corrupt, has image inputs, or Core ML refuses it.
        UnknownNameError: an option is not known.
    """
    _require_macos()
    units = (options or {}).get(COMPUTE_UNITS, UNITS[0])
    for key in options or {}:
        if key != COMPUTE_UNITS:
            raise UnknownNameError(
                f"session option {key!r} is not known; Core ML has {COMPUTE_UNITS}"
            )
    file = _checked(path)
    return CoremlSession(_load(path, units), file)


def read_plan(path: Path, *, compute_units: str = UNITS[0]) -> tuple[DeviceShare, ...]:
    """Read where Core ML plans to run a package's operators; most of the work first.

    The costs are Core ML's estimates, not measured.

    Raises:
        MeasureError: this is no macOS, or there is no plan.
        BadFileError: the package is missing or corrupt.
    """
    _require_macos()
    _checked(path)
    coremltools = import_coremltools()
    from coremltools.models.compute_plan import MLComputePlan

    model = _load(path, compute_units)
    try:
        plan = MLComputePlan.load_from_path(
            model.get_compiled_model_path(), compute_units=coremltools.ComputeUnit[compute_units]
        )
        program = plan.model_structure.program
        operators: dict[str, int] = defaultdict(int)
        costs: dict[str, float] = defaultdict(float)
        for operation in program.functions["main"].block.operations:
            usage = plan.get_compute_device_usage_for_mlprogram_operation(operation)
            if usage is None:  # a constant
                continue
            cost = plan.get_estimated_cost_for_mlprogram_operation(operation)
            device = _device_name(usage.preferred_compute_device)
            operators[device] += 1
            costs[device] += cost.weight if cost is not None else 0.0
    except Exception as error:  # the vendor's own errors have no common base
        raise MeasureError(f"Core ML has no plan for {path}: {_first_line(error)}") from error
    shares = (DeviceShare(name, operators[name], costs[name]) for name in operators)
    return tuple(sorted(shares, key=lambda share: -share.estimated_cost))


def measure_times(
    path: Path,
    feeds: Mapping[str, NDArray[np.generic]],
    *,
    compute_units: str = UNITS[0],
    runs: int = 50,
    loads: int = 3,
) -> CoremlTimes:
    """Let Core ML time loading and predicting; one run to warm up is left out.

    Raises:
        MeasureError: this is no macOS, the feeds do not fit, or Core ML fails.
        BadFileError: the package is missing or corrupt.
    """
    _require_macos()
    function = _checked(path).main
    ports = input_ports(function)
    check_names(path.name, list(ports), feeds)
    features = {feature.name: feature for feature in function.inputs}
    given = {
        name: fit_feed(path.name, port, features.get(name), feeds[name])
        for name, port in ports.items()
    }
    model = _load(path, compute_units)
    try:
        load_ms, predict_ms = asyncio.run(_time(model, given, runs, loads))
    except Exception as error:  # the vendor's own errors have no common base
        raise MeasureError(f"Core ML cannot time {path}: {_first_line(error)}") from error
    return CoremlTimes(tuple(load_ms), tuple(predict_ms))


async def _time(
    model: Any, feeds: Mapping[str, NDArray[np.generic]], runs: int, loads: int
) -> tuple[list[float], list[float]]:
    from coremltools.models.ml_program.experimental.perf_utils import MLModelBenchmarker

    benchmarker = MLModelBenchmarker(model)
    load = await benchmarker.benchmark_load(iterations=loads)
    predict = await benchmarker.benchmark_predict(inputs=dict(feeds), iterations=runs, warmup=True)
    return load.samples, predict.samples


def _require_macos() -> None:
    if sys.platform != SYSTEM:
        raise MeasureError(
            "Core ML runs on macOS only; elsewhere a package is checked for parity by the "
            "reference evaluation, and nothing is timed"
        )


def _checked(path: Path) -> CoremlFile:
    """Read a package before Core ML does, which trusts more than it should."""
    if not path.is_dir():
        raise BadFileError(f"{path} is no folder; give the path of a {SUFFIX} folder")
    file = read_coreml(path)
    for feature in file.main.inputs:
        if feature.kind != "multiArray":
            raise BadFileError(
                f"input {feature.name!r} of {path} is of kind {feature.kind}, which is not run "
                "here; convert it with array inputs"
            )
    return file


def _load(path: Path, units: str) -> Any:
    if units not in UNITS:
        raise UnknownNameError(
            f"compute units {units!r} are not known; they are {', '.join(UNITS)}"
        )
    coremltools = import_coremltools()
    try:
        return coremltools.models.MLModel(str(path), compute_units=coremltools.ComputeUnit[units])
    except Exception as error:  # the vendor's own errors have no common base
        raise BadFileError(f"Core ML cannot load {path}: {_first_line(error)}") from error


def _device_name(device: Any) -> str:
    return type(device).__name__.removeprefix("ML").removesuffix("ComputeDevice")


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__
