"""How long a model takes at least on a target, from public figures: a roofline, no measurement.

Each operator takes the longer of two times: its arithmetic at the target's peak rate, and its
memory traffic at the target's bandwidth. A figure that nobody published is not guessed: the
estimate is refused, and the figure is named.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal

import onnx_ir as ir

from devices.measure import shape_at
from devices.memory_traffic import memory_bytes
from devices.operator_costs import GraphCost, cost_of
from devices.options import NAIVE
from devices.report.record import Result, Run, Variant
from devices.report.units import format_bytes, format_digits
from devices.target import Figure, Runtime, Target
from export.errors import UserError, WeightspaceError
from export.lower import LATENCY_FIRST, SETTINGS
from export.onnx_io import specs_of
from export.passes import run_passes
from export.passes.fuse_tied_ffns import FuseTiedFfnsPass
from export.passes.recognize_activations import RecognizeActivationsPass
from export.records import DTYPE_BYTES, KERNELS

Processor = Literal["CPU", "GPU"]

# Whose peak rate a target's file states, and which processor runs a format.
PROCESSOR_BY_RUNTIME: dict[Runtime, Processor] = {
    "onnxruntime": "CPU", "onnxruntime-web": "CPU", "litert": "CPU",
    "tensorrt": "GPU", "coreml": "GPU",
}  # fmt: skip
PROCESSOR_BY_FORMAT: dict[str, Processor] = {
    "onnx": "CPU", "tflite": "CPU", "tensorrt": "GPU", "mlpackage": "GPU",
}  # fmt: skip
# What a CPU reaches of a peak that was computed from its pipes and its clock. In Linpack, in
# float64, a Raspberry Pi 5 reaches 30 to 35.6 of 76.8 GFLOPS and a Raspberry Pi 4 11.4 to 17.9 of
# 28.8, which is 0.39 to 0.62 (github.com/geerlingguy/top500-benchmark, issues 18, 33 and 51). A
# peak that was measured is taken as it is, and so is a GPU's, for which no such source was found.
CPU_EFFICIENCY = 0.45
# LiteRT unpacks float16 weights to float32 when it loads a file, and ONNX Runtime computes the
# Cast behind them; both compute in float32.
_ARITHMETIC = {("tflite", "float16"): "float32", ("onnx", "float16"): "float32"}
# Settings whose runtime packs the weights anew for each use, so that a tie is read twice.
_COPY_PER_USE = {"onnx": (NAIVE, LATENCY_FIRST), "tflite": (NAIVE, LATENCY_FIRST)}
# Settings whose runtime computes what depends on no input once, as it loads the model: ONNX Runtime
# folds it, a .tflite file of ours says so itself. Others are taken to compute it in each run.
_COMPUTED_ONCE = {"onnx": (NAIVE, LATENCY_FIRST), "tflite": (NAIVE, *SETTINGS)}

_BANDWIDTH = "memory_bandwidth_bytes_per_s"
_PEAK = {"float32": "peak_flops_fp32_per_s", "float16": "peak_flops_fp16_per_s"}
_WORDS = {
    _BANDWIDTH: "memory bandwidth",
    _PEAK["float32"]: "float32 peak rate",
    _PEAK["float16"]: "float16 peak rate",
    "cpu_cores": "number of cores",
}


@dataclass(frozen=True, slots=True)
class Roofline:
    """What a target does at most, with the figures that say so.

    Args:
        flops_per_s: what arithmetic is counted at, after efficiency and the share of the cores.
        cache_bytes: of the last cache before memory; 0 where none is counted.
        notes: where each number is from, a sentence each.
    """

    flops_per_s: float
    bandwidth_bytes_per_s: float
    cache_bytes: int
    notes: tuple[str, ...]

    def time_ms(self, graph: GraphCost, *, copy_per_use: bool) -> float:
        """Give the time that the operators of a graph take at least, one after the other."""
        moved = memory_bytes(graph, self.cache_bytes, copy_per_use=copy_per_use)
        return 1000 * sum(
            max(operator.flops / self.flops_per_s, count / self.bandwidth_bytes_per_s)
            for operator, count in zip(graph.operators, moved, strict=True)
        )


def roofline_of(target: Target, format_name: str, precision: str, threads: int) -> Roofline:
    """Read a target's figures for one format and precision.

    Args:
        precision: of the arithmetic; see ``arithmetic_of``.

    Raises:
        UserError: a figure that is needed was published by nobody, or is of another processor.
    """
    runtime = target.runtime
    own = PROCESSOR_BY_RUNTIME[runtime] if runtime else None
    processor = PROCESSOR_BY_FORMAT.get(format_name)
    if processor is None or precision not in _PEAK:
        raise UserError(f"no latency is estimated for {format_name} in {precision}: no rule for it")
    if own not in (None, processor):
        raise UserError(
            f"no latency is estimated for {format_name} on target {target.name!r}: the figures "
            f"are of its {own}, and {format_name} runs on the {processor}"
        )
    needed = [_BANDWIDTH, _PEAK[precision], *(["cpu_cores"] if processor == "CPU" else [])]
    known = target.figures
    missing = [name for name in needed if name not in known]
    if missing:
        words = " and ".join(f"{_WORDS[name]} ({name})" for name in missing)
        raise UserError(
            f"no latency is estimated for target {target.name!r}: no source is known for its "
            f"{words}; measure on the device, or give a target file with the figure"
        )
    bandwidth, peak = known[_BANDWIDTH], known[_PEAK[precision]]
    efficiency = CPU_EFFICIENCY if processor == "CPU" and peak.kind != "measured" else 1.0
    share, cores_note = (
        _share_of_cores(known["cpu_cores"], threads) if processor == "CPU" else (1, "")
    )
    cache_bytes, cache_note = _cache(target, processor)
    notes = (
        f"Memory: {format_digits(bandwidth.value / 1e9)} GB/s ({_source(bandwidth)})",
        f"Arithmetic: {format_digits(peak.value / 1e9)} GFLOPS in {precision} ({_source(peak)}), "
        + (f"of which {efficiency:.0%} are counted on, as Raspberry Pis reach in Linpack"
           if efficiency < 1 else "all of it counted on"),
        *filter(None, [cores_note, cache_note]),
    )  # fmt: skip
    return Roofline(peak.value * efficiency * share, float(bandwidth.value), cache_bytes, notes)


def arithmetic_of(variant: Variant) -> str:
    """Give the precision that a variant computes in, which may be another than it stores."""
    return _ARITHMETIC.get((variant.format, variant.precision), variant.precision)


def estimate(
    target: Target,
    variants: Sequence[Variant],
    ours: ir.Model,
    naive: ir.Model | None,
    *,
    axis: str,
    sizes: Sequence[int],
    threads: int = 1,
) -> Run:
    """Estimate the latency of variants on a target from its public figures.

    Args:
        ours: the canonical graph, whose operators all variants of ours run; those with a kernel
            for tied FFNs run these as one operator.
        naive: the naive ONNX export, of which every format's naive export is made.
        axis: the dynamic dimension that takes the sizes: ``batch`` or ``sequence``.

    Returns:
        A run of the kind ``estimated``. Its notes list every assumption, and the kind and source
        of every figure. A variant that cannot be estimated has a ``failure``.

    Raises:
        UserError: no variant can be estimated; the figure that is missing is named.
    """
    costs = _Costs(ours, naive, axis)
    results: dict[str, Result] = {}
    notes: dict[str, None] = {}
    refusal: WeightspaceError | None = None
    for variant in variants:
        precision = arithmetic_of(variant)
        try:
            roofline = roofline_of(target, variant.format, precision, threads)
            per_use = variant.name in _COPY_PER_USE.get(variant.format, ())
            by_size = {}
            for size in sizes:
                once = variant.name in _COMPUTED_ONCE.get(variant.format, ())
                graph = costs.of(_graph_of(variant), size, precision, once)
                by_size[size] = roofline.time_ms(graph, copy_per_use=per_use)
        except WeightspaceError as error:
            refusal = refusal or error
            results[variant.id] = Result(failure=str(error))
            continue
        results[variant.id] = Result(estimate_ms_by_size=by_size)
        notes.update(dict.fromkeys(roofline.notes))
    if all(result.failure for result in results.values()):
        raise UserError(str(refusal or f"{target.name}: nothing to estimate"))
    estimated = [v for v in variants if not results[v.id].failure]
    return Run(
        device=target.name,
        measured_on=target.title,
        kind="estimated",
        threads=threads,
        environment=None,
        results=results,
        notes=(_METHOD, *notes, *_notes_on(estimated), *costs.notes(), *target.notes),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
    )


_METHOD = (
    "Each operator takes the longer of its arithmetic and its memory traffic; nothing is added for "
    "starting it, and what is in the cache costs nothing, so expect a device to be slower"
)


_Graph = Literal["naive", "ours", "one-pass"]


def _graph_of(variant: Variant) -> _Graph:
    if variant.name == NAIVE:
        return "naive"
    return "one-pass" if KERNELS in variant.session_options else "ours"


class _Costs:
    """The costs of the graphs, each size and width counted once."""

    def __init__(self, ours: ir.Model, naive: ir.Model | None, axis: str) -> None:
        self._specs = specs_of(ours.graph.inputs)
        self._axis = axis
        self._ours, self._naive = ours, naive
        self._graphs: dict[_Graph, ir.Model] = {}
        self._found: dict[tuple[_Graph, int, str, bool], GraphCost] = {}

    def of(self, which: _Graph, size: int, precision: str, computed_once: bool) -> GraphCost:
        key = (which, size, precision, computed_once)
        if key not in self._found:
            graph = self._graph(which)
            # By position: an exporter may rename inputs and their varying dimensions.
            fed = [value.name or "" for value in graph.graph.inputs if not value.is_initializer()]
            shapes = [shape_at(spec, self._axis, size) for spec in self._specs]
            by_name = dict(zip(fed, shapes, strict=True))
            self._found[key] = cost_of(
                graph, by_name, int(DTYPE_BYTES[precision]), computed_once=computed_once
            )
        return self._found[key]

    def _graph(self, which: _Graph) -> ir.Model:
        if which not in self._graphs:
            source = self._naive if which == "naive" else self._ours
            if source is None:
                raise UserError("the naive export is not at hand; export with --keep-naive")
            graph = source.clone()
            # Runtimes run a GELU as one operator however it is written, and so it is counted.
            run_passes([RecognizeActivationsPass()], graph)
            if which == "one-pass":
                run_passes([FuseTiedFfnsPass()], graph)
            self._graphs[which] = graph
        return self._graphs[which]

    def notes(self) -> list[str]:
        names = dict.fromkeys(name for cost in self._found.values() for name in cost.without_rule)
        if not names:
            return []
        return [f"Counted by their bytes alone, so too low: {', '.join(names)}"]


def _share_of_cores(cores: Figure, threads: int) -> tuple[float, str]:
    used = min(threads, int(cores.value))
    if used == cores.value:
        return 1.0, ""
    return used / cores.value, (
        f"{used} of {cores.value} cores: that share of the arithmetic, and all of the bandwidth, "
        "which one core is taken to reach"
    )


def _cache(target: Target, processor: Processor) -> tuple[int, str]:
    """Give the last cache before memory, and a sentence on it."""
    last = target.l3_bytes or target.l2_bytes
    if processor == "GPU":
        return 0, "No cache is counted: all reads and writes of the GPU go to memory"
    if last is None:
        return 0, "No cache is counted, as no source is known for its size: all goes to memory"
    return int(last.value), (
        f"Cache: {format_bytes(last.value)} ({_source(last)}); it keeps the tensors that were used "
        "last, and what it holds is not read again"
    )


def _notes_on(variants: Sequence[Variant]) -> list[str]:
    notes = []
    if any(v.name in _COPY_PER_USE.get(v.format, ()) for v in variants):
        notes.append(
            "naive and latency-first read a packed copy of a weight for each use; memory-first "
            "reads the stored one, a second time from the cache where that still holds it"
        )
    if any(v.name not in _COPY_PER_USE.get(v.format, ()) for v in variants):
        notes.append("A form that needs no packing is counted with kernels as fast as the others")
    if any(_graph_of(v) == "one-pass" for v in variants):
        notes.append("The one-pass kernel reads the matrix of a tied FFN once for both products")
    if any(arithmetic_of(v) != v.precision for v in variants):
        notes.append("float16 weights are made float32 as they are loaded, and are read as those")
    return notes


def _source(figure: Figure) -> str:
    return "; ".join(filter(None, [figure.kind, figure.source, figure.note]))
