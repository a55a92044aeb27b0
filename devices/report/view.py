"""Figures and sentences that every form of the report derives in the same way."""

from __future__ import annotations

import math

from devices.report.record import Report, Variant, WaterfallStep
from devices.report.units import format_bytes
from runtimes.records import Latency

NAIVE = "naive"
_TITLE_BY_FORMAT = {
    "onnx": "ONNX", "tflite": "TFLite", "tensorrt": "TensorRT", "mlpackage": "Core ML",
}  # fmt: skip


def formats(report: Report) -> tuple[str, ...]:
    """Give the formats of the variants, in order of their first appearance."""
    return tuple(dict.fromkeys(variant.format for variant in report.variants))


def format_title(format_name: str) -> str:
    """Write a format as its makers do: ``TFLite``."""
    return _TITLE_BY_FORMAT.get(format_name, format_name)


def label(report: Report, variant: Variant) -> str:
    """Name a variant: by its setting, and by its format too where the report has several."""
    return variant.name if len(formats(report)) == 1 else variant.id


def naive_variant(report: Report, variant: Variant) -> Variant | None:
    """Give the naive export of a variant's format, if the report has one."""
    same_format = variants_of(report, variant.format)
    return next((each for each in same_format if each.name == NAIVE), None)


def ordered_variants(report: Report) -> tuple[Variant, ...]:
    """Give the variants format by format, the naive one first in each."""
    order = formats(report)
    return tuple(sorted(report.variants, key=lambda v: (order.index(v.format), v.name != NAIVE)))


def variants_of(report: Report, format_name: str) -> tuple[Variant, ...]:
    """Give the variants of one format, the naive one first."""
    return tuple(v for v in ordered_variants(report) if v.format == format_name)


def ours(report: Report) -> tuple[Variant, ...]:
    """Give the variants that are not naive, format by format."""
    return tuple(variant for variant in ordered_variants(report) if variant.name != NAIVE)


def waterfall_of(report: Report, format_name: str) -> tuple[WaterfallStep, ...]:
    """Give the steps of the waterfall that any variant of a format has."""
    ids = {variant.id for variant in variants_of(report, format_name)}
    return tuple(step for step in report.waterfall if ids & set(step.bytes_by_variant))


def swept_sizes(report: Report) -> tuple[int, ...]:
    """Give all sizes that any variant was timed at."""
    return tuple(sorted({size for v in report.variants for size in v.latency_ms_by_size}))


def unique_bytes(report: Report, variant: Variant) -> int:
    """Give the model's unique bytes at the precision of a variant."""
    if variant.ratio > 0 and math.isfinite(variant.ratio):
        return round(variant.weight_bytes / variant.ratio)
    return report.ties.unique_bytes


def resident_ratio(report: Report, variant: Variant) -> float | None:
    """Give the bytes that the weights hold in memory over the unique bytes."""
    unique = unique_bytes(report, variant)
    if variant.memory is None or not unique:
        return None
    return variant.memory.weights_resident_bytes / unique


def latency_ratio(report: Report, variant: Variant, size: int) -> float | None:
    """Give the median latency of a variant over that of its format's naive one at the same size."""
    naive = naive_variant(report, variant)
    mine = variant.latency_ms_by_size.get(size)
    theirs = naive.latency_ms_by_size.get(size) if naive else None
    return mine.p50 / theirs.p50 if mine and theirs and theirs.p50 > 0 else None


def percentile(samples: tuple[float, ...], share: float) -> float:
    """Give a percentile of samples, linear between neighbours."""
    ordered = sorted(samples)
    position = share * (len(ordered) - 1)
    low = math.floor(position)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (position - low)


def latency_low(latency: Latency) -> tuple[float, str]:
    """Give the lower end of a latency band and its name: p10, or the minimum without samples."""
    if latency.samples:
        return percentile(latency.samples, 0.1), "p10"
    return latency.min, "min"


def size_label(report: Report, size: int) -> str:
    """Name a size of the sweep: ``batch 8``."""
    return f"{report.axis} {size}"


def measured_for_target(report: Report) -> bool:
    """Whether the machine that was measured is of the target."""
    return report.device != "local" or report.target == "local"


def measured_words(report: Report) -> str:
    """Say which machine was measured, and that it is not the target where it is not."""
    if not any(v.latency_ms_by_size or v.memory for v in report.variants):
        return "Latency and memory: not measured."
    where = f"Latency and memory: measured on {report.measured_on}, {_threads(report)}"
    if measured_for_target(report):
        return f"{where}."
    return f"{where}. Measured here; not a figure of the target ({report.target_title})."


def invalid_words(report: Report) -> str | None:
    """Say why the measurements are invalid, if they are."""
    causes = [
        cause
        for cause, found in (
            ("the machine swapped", report.environment.swapped),
            ("the processor throttled", report.environment.throttled),
        )
        if found
    ]
    if not causes:
        return None
    return f"Invalid: {' and '.join(causes)} while it was measured; measure again."


def missing_words(report: Report) -> tuple[str, ...]:
    """List what was not measured, a sentence each."""
    found = []
    for what, lacking in _lacking(report).items():
        if len(lacking) == len(report.variants):
            found.append(f"Not measured: {what}.")
        elif lacking:
            found.append(f"Not measured for {', '.join(lacking)}: {what}.")
    found += _without_naive(report)
    if not measured_for_target(report):
        found.append(f"Nothing was measured on the target ({report.target_title}).")
    return tuple(found)


def _without_naive(report: Report) -> list[str]:
    present = {variant.format for variant in report.variants if variant.name == NAIVE}
    if len(formats(report)) <= 1:
        return [] if present else ["No naive export stands beside it."]
    return [
        f"No naive {format_title(each)} export stands beside ours."
        for each in formats(report)
        if each not in present
    ]


def _lacking(report: Report) -> dict[str, list[str]]:
    pairs = [(label(report, variant), variant) for variant in ordered_variants(report)]
    return {
        "latency": [name for name, v in pairs if not v.latency_ms_by_size],
        "memory": [name for name, v in pairs if v.memory is None],
        "parity": [name for name, v in pairs if v.parity is None],
        "accuracy (no labelled samples)": [name for name, v in pairs if v.accuracy is None],
    }


def reference_of(report: Report) -> str:
    """Name what the outputs are compared with: torch, or the ONNX file that was given."""
    return "the given file" if report.source.endswith(".onnx") else "torch"


def parity_words(report: Report) -> str | None:
    """Say what parity was measured on, and name every runtime that evaluated a variant."""
    runtimes_by_inputs: dict[str, list[str]] = {}
    for variant in ordered_variants(report):
        if variant.parity:
            inputs = f"on {variant.parity.inputs} inputs ({variant.parity.source})"
            runtimes_by_inputs.setdefault(inputs, []).append(variant.parity.reference)
    if not runtimes_by_inputs:
        return None
    parts = [
        f"{inputs}, evaluated by {' and '.join(dict.fromkeys(runtimes))}"
        for inputs, runtimes in runtimes_by_inputs.items()
    ]
    return f"Parity: against {reference_of(report)} {'; '.join(parts)}."


def parameters_words(report: Report) -> str:
    """Say how many parameters the model has, and how much of them is tied."""
    ties = report.ties
    return (
        f"{ties.unique_parameters:,} unique parameters, {format_bytes(ties.unique_bytes)}; "
        f"{len(ties.ties)} of {len(ties.stored)} stored tensors are used more than once"
    )


def option_words(options: dict[str, str]) -> str:
    """Write session options in words."""
    if not options:
        return "defaults of the runtime"
    return ", ".join(f"{key} = {value}" for key, value in options.items())


def _threads(report: Report) -> str:
    return f"{report.threads} thread{'' if report.threads == 1 else 's'}"
