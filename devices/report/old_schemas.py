"""Reports that earlier versions wrote: the machine that exported was the only one measured."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field

from devices.report.record import Report, Result, Run, Variant, WaterfallStep
from export.records import Parity, TieMap
from runtimes.records import Environment, Latency, Memory

OLD_SCHEMAS = (1, 2)  # in 1 the waterfall names variants by their setting; all are of one format


@dataclass(frozen=True, slots=True)
class OldVariant:
    """A variant with what was measured of it."""

    name: str
    format: str
    runtime: str
    precision: str
    path: str | None
    file_bytes: int
    weight_bytes: int
    ratio: float
    form: str
    session_options: dict[str, str] = field(default_factory=dict)
    parity: Parity | None = None
    accuracy: float | None = None
    load_ms: float | None = None
    memory: Memory | None = None
    latency_ms_by_size: dict[int, Latency] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class OldReport:
    """A report of one device."""

    model: str
    source: str
    ties: TieMap
    target: str
    target_title: str
    device: str
    measured_on: str
    threads: int
    axis: str
    variants: tuple[OldVariant, ...]
    waterfall: tuple[WaterfallStep, ...]
    environment: Environment
    notes: tuple[str, ...] = ()
    created: str = ""
    schema: int = OLD_SCHEMAS[-1]


def upgraded(old: OldReport) -> Report:
    """Write an old report in the present records; nothing that was measured is lost.

    Raises:
        ValueError: two variants have the same id.
    """
    variants = tuple(_variant(each) for each in old.variants)
    names = {each.name if old.schema == 1 else each.id: each.id for each in variants}
    steps = tuple(
        dataclasses.replace(
            step,
            bytes_by_variant={
                names.get(name, name): size for name, size in step.bytes_by_variant.items()
            },
        )
        for step in old.waterfall
    )
    results = {
        new.id: Result(each.load_ms, each.memory, each.latency_ms_by_size)
        for each, new in zip(old.variants, variants, strict=True)
        if each.memory or each.latency_ms_by_size or each.load_ms is not None
    }
    run = Run(
        device=old.device,
        measured_on=old.measured_on,
        kind="measured",
        threads=old.threads,
        environment=old.environment,
        results=results,
        created=old.created,
    )
    return Report(
        model=old.model,
        source=old.source,
        ties=old.ties,
        target=old.target,
        target_title=old.target_title,
        axis=old.axis,
        variants=variants,
        waterfall=steps,
        runs=(run,) if results else (),
        notes=old.notes,
        created=old.created,
    )


def _variant(old: OldVariant) -> Variant:
    return Variant(
        name=old.name,
        format=old.format,
        runtime=old.runtime,
        precision=old.precision,
        path=old.path,
        file_bytes=old.file_bytes,
        weight_bytes=old.weight_bytes,
        ratio=old.ratio,
        form=old.form,
        session_options=old.session_options,
        parity=old.parity,
        accuracy=old.accuracy,
    )
