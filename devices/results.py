"""From artifacts and measurements to what the report and the manifest say."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from devices.measure import Measured
from devices.report.record import Report, Variant, WaterfallStep
from devices.report.view import format_title, label
from export.records import Artifact

SMALL_MODEL_BYTES = 4_000_000
_STORED_CAUSE = "stored tensors in the lowered file"
_STORED_CAUSE_BY_FORMAT = {
    "onnx": "stored tensors: constant folding gives a transposed use a copy of its own",
}


def notes_on(origin: str, artifacts: Sequence[Artifact]) -> tuple[str, ...]:
    """Say what a reader of the figures should know."""
    notes = []
    if "random weights" in origin:
        notes.append("The weights are random: sizes and times are real, accuracy is not.")
    if min(artifact.unique_bytes for artifact in artifacts) < SMALL_MODEL_BYTES:
        notes.append("In so small a model most of the peak memory is the runtime's own.")
    return tuple(notes)


def variant_of(
    artifact: Artifact, accuracy: float | None, path: Path, folder: Path, runtime: str
) -> Variant:
    """Describe an artifact; its path is left out where it is not in the bundle.

    Args:
        runtime: the package that runs it.
    """
    return Variant(
        name=artifact.setting,
        format=artifact.format,
        runtime=runtime,
        precision=artifact.precision,
        path=artifact.path if path.is_relative_to(folder) else None,
        file_bytes=artifact.bytes,
        weight_bytes=artifact.weight_bytes,
        ratio=artifact.ratio,
        form=artifact.form,
        session_options=artifact.session_options,
        parity=artifact.parity,
        accuracy=accuracy,
    )


def with_measurements(variant: Variant, measured: Measured | None) -> Variant:
    """Give a variant new measurements, or none."""
    return replace(
        variant,
        load_ms=measured.load_ms if measured else None,
        memory=measured.memory if measured else None,
        latency_ms_by_size=measured.latency_ms_by_size if measured else {},
    )


def waterfall(
    unique_bytes: int, checkpoint_bytes: int | None, variants: Sequence[Variant]
) -> tuple[WaterfallStep, ...]:
    """Follow the bytes from the parameters to the peak in memory, for each variant."""

    def step(label: str, cause: str, sizes: Mapping[str, int | None]) -> WaterfallStep:
        known = {each: size for each, size in sizes.items() if size is not None}
        return WaterfallStep(label, cause, known)

    ids = [variant.id for variant in variants]
    formats = dict.fromkeys(variant.format for variant in variants)
    grown = {
        v.id: v.memory.loaded_rss_bytes - v.memory.baseline_rss_bytes if v.memory else None
        for v in variants
    }
    peak = {
        v.id: v.memory.peak_rss_bytes - v.memory.baseline_rss_bytes if v.memory else None
        for v in variants
    }
    steps = (
        step("unique parameters", "each storage of the torch model once",
             dict.fromkeys(ids, unique_bytes)),
        step("checkpoint", "the parameters, buffers and names in one file",
             dict.fromkeys(ids, checkpoint_bytes)),
        *(step(format_title(each), _STORED_CAUSE_BY_FORMAT.get(each, _STORED_CAUSE),
               {v.id: v.weight_bytes for v in variants if v.format == each})
          for each in formats),
        step("artifact", "the graph and the names besides the stored tensors",
             {v.id: v.file_bytes for v in variants}),
        step("resident after load", "copies that the runtime folds or repacks for its kernels; "
             "mapped pages are not touched yet", grown),
        step("peak while running", "activations, scratch memory, and mapped pages as they are read",
             peak),
    )  # fmt: skip
    return tuple(step for step in steps if step.bytes_by_variant)


def profile_entries(report: Report) -> list[dict[str, Any]]:
    """Put the measurements into the manifest's form, one entry an artifact and size."""
    environment = asdict(report.environment)
    entries: list[dict[str, Any]] = []
    for variant in report.variants:
        for size, latency in variant.latency_ms_by_size.items():
            figures = asdict(latency)
            for key in ("samples", "runs", "warmup"):
                figures.pop(key)
            memory = variant.memory
            entries.append(
                {
                    "artifact": variant.path or label(report, variant),
                    "runtime": variant.runtime,
                    "device": report.device,
                    "kind": "measured",
                    "threads": report.threads,
                    report.axis: size,
                    "runs": latency.runs,
                    "warmup": latency.warmup,
                    "latency_ms": figures,
                    "load_ms": variant.load_ms,
                    "peak_rss_bytes": memory.peak_rss_bytes if memory else None,
                    "weights_resident_bytes": memory.weights_resident_bytes if memory else None,
                    "environment": environment,
                }
            )
    return entries
