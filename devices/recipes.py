"""TensorRT on a device: the recipe that it builds an engine by, and what its trtexec said."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from devices.answer import EngineRun
from devices.measure import shape_at
from devices.report.record import Result
from devices.report.units import format_bytes, format_ratio
from export.errors import BadFileError, MeasureError
from export.lower.tensorrt.recipe import RECIPE
from export.manifest import files_of
from export.records import TensorSpec
from runtimes.trtexec import parse_log, parse_times, require_passed

_TIMES = ".times.json"


def recipe_folder(folder: Path, model: Path) -> Path:
    """Lay out what a device builds an engine from: the prepared graph and the recipe beside it.

    Args:
        folder: made here, with links to the files.

    Raises:
        BadFileError: the recipe is not beside the graph.
    """
    recipe = model.with_name(RECIPE)
    if not recipe.is_file():
        raise BadFileError(f"{model} has no {RECIPE} beside it; export it again")
    folder.mkdir()
    for file in (*files_of(model), recipe):
        (folder / file.name).symlink_to(file.resolve())
    return folder


def usual_size(model: Path, specs: Sequence[TensorSpec], axis: str, sizes: Sequence[int]) -> int:
    """Give the size that a recipe times: the one that its engine is to be fastest at.

    Raises:
        BadFileError: the recipe is damaged.
    """
    path = model.with_name(RECIPE)
    try:
        profiles = json.loads(path.read_text(encoding="utf-8"))["profiles"]
        for spec in specs:
            one, other = shape_at(spec, axis, 1), shape_at(spec, axis, 2)
            for place, (small, large) in enumerate(zip(one, other, strict=True)):
                if small != large:
                    return int(profiles[spec.name]["opt"][place])
    except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
        raise BadFileError(f"{path} is damaged ({error}); export the bundle again") from error
    return min(sizes)


def read_engine(
    run: EngineRun, device: str, name: str, size: int, unique_bytes: int, notes: list[str]
) -> Result:
    """Read what trtexec printed and wrote on a device.

    Args:
        name: of the variant, for notes.
        size: that the engine was timed at.
        notes: takes what the logs say of the engine.

    Raises:
        DeviceError: trtexec failed; its reason is given.
        MeasureError: the times are damaged.
    """
    logs = {step: require_passed(parse_log(text), device) for step, text in run.steps}
    times = next((text for file, text in run.files.items() if file.endswith(_TIMES)), None)
    if "run" not in logs or times is None:
        raise MeasureError(f"trtexec on {device} wrote no times")
    for step, log in logs.items():
        notes.extend(f"{name}, {step}: {warning}" for warning in log.warnings)
    stored = logs["build"].engine.weights_bytes if "build" in logs else None
    if stored:
        notes.append(
            f"{name}: the engine that {device} built stores {format_bytes(stored)} of weights, "
            f"{format_ratio(stored / unique_bytes)} the unique parameters, by its builder's count."
        )
    latency = parse_times(times, warmup_runs=logs["run"].warmup_runs or 0)
    seconds = logs["run"].engine.deserialize_s
    load_ms = None if seconds is None else 1000 * seconds
    return Result(load_ms=load_ms, latency_ms_by_size={size: latency})
