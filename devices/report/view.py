"""What every form of the report derives in the same way of its variants and formats."""

from __future__ import annotations

import math

from devices.report.record import Report, Variant, WaterfallStep
from devices.report.units import format_bytes
from runtimes.records import Latency

NAIVE = "naive"
_TITLE_BY_FORMAT = {
    "onnx": "ONNX", "tflite": "TFLite", "mlpackage": "Core ML",
    "tensorrt": "TensorRT graph", "engine": "TensorRT engine",
}  # fmt: skip


def formats(report: Report) -> tuple[str, ...]:
    """Give the formats of the variants, in order of their first appearance."""
    return tuple(dict.fromkeys(variant.format for variant in report.variants))


def format_title(format_name: str) -> str:
    """Write a format as its makers do: ``TFLite``."""
    return _TITLE_BY_FORMAT.get(format_name, format_name)


def setting_words(variant: Variant) -> str:
    """Name a variant inside its format: by its setting, and by its qualifier if it has one."""
    return " ".join(filter(None, (variant.qualifier, variant.name)))


def label(report: Report, variant: Variant) -> str:
    """Name a variant: by its setting, and by its format too where the report has several."""
    return setting_words(variant) if len(formats(report)) == 1 else variant.id


def groups(report: Report) -> tuple[tuple[str, str], ...]:
    """Give what stands beside one naive export: each format, by qualifier where it has them."""
    order = formats(report)
    found = dict.fromkeys((variant.format, variant.qualifier) for variant in report.variants)
    return tuple(sorted(found, key=lambda group: order.index(group[0])))


def group_of(report: Report, group: tuple[str, str]) -> tuple[Variant, ...]:
    """Give the variants of one group, the naive one first."""
    return tuple(v for v in ordered_variants(report) if (v.format, v.qualifier) == group)


def group_title(group: tuple[str, str]) -> str:
    """Write a group as a title: ``TFLite``, ``TFLite float16``."""
    return " ".join(filter(None, (format_title(group[0]), group[1])))


def naive_variant(report: Report, variant: Variant) -> Variant | None:
    """Give the naive export that a variant stands beside, if the report has one."""
    beside = group_of(report, (variant.format, variant.qualifier))
    return next((each for each in beside if each.name == NAIVE), None)


def ordered_variants(report: Report) -> tuple[Variant, ...]:
    """Give the variants group by group, the naive one first in each."""
    order = groups(report)
    return tuple(
        sorted(
            report.variants,
            key=lambda v: (order.index((v.format, v.qualifier)), v.name != NAIVE),
        )
    )


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


def unique_bytes(report: Report, variant: Variant) -> int:
    """Give the model's unique bytes at the precision of a variant."""
    if variant.ratio > 0 and math.isfinite(variant.ratio):
        return round(variant.weight_bytes / variant.ratio)
    return report.ties.unique_bytes


def percentile(samples: tuple[float, ...], share: float) -> float:
    """Give a percentile of samples, linear between neighbours."""
    ordered = sorted(samples)
    position = share * (len(ordered) - 1)
    low = math.floor(position)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (position - low)


def latency_high(latency: Latency) -> float:
    """Give the upper end of a band: the 90th percentile, or the median where that is not known."""
    return latency.p50 if latency.p90 is None else latency.p90


def latency_low(latency: Latency) -> tuple[float, str]:
    """Give the lower end of a latency band and its name: p10, or the minimum without samples."""
    if latency.samples:
        return percentile(latency.samples, 0.1), "p10"
    return latency.min, "min"


def size_label(report: Report, size: int) -> str:
    """Name a size of the sweep: ``batch 8``."""
    return f"{report.axis} {size}"


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
