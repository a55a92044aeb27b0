"""How tied weights are written for ONNX Runtime on a target: a choice that is measured."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import onnx_ir as ir

from devices.estimate import roofline_of
from devices.measure import Candidate, axis_of, shape_at, time_side_by_side
from devices.operator_costs import cost_of
from devices.options import NAIVE, Options
from devices.target import Target
from export.errors import UserError
from export.lower.ort import CANDIDATES, Form, one_pass_weights, write_form
from export.onnx_io import specs_of
from runtimes.bench import Budget
from runtimes.environment import read_environment
from runtimes.ort import find_kernels
from runtimes.records import Latency

# Enough to tell forms that differ by a tenth; the profile measures them properly afterwards.
_CHOOSING = Budget(warmup_runs=5, warmup_s=0.1, runs=20, seconds=0.6)
_NO_SLOWER = 1.05  # a few hundredths are noise
_WORTH = 0.97  # so a gain must be more than that


def choose_form(
    canonical: ir.Model,
    setting: str,
    naive: Path,
    target: Target,
    options: Options,
    tell: Callable[[str], None],
    *,
    precision: str = "float32",
) -> tuple[Form, str]:
    """Choose how tied weights are written, and say why.

    Forms are timed where this machine has the target's architecture and measuring was asked for.
    On another architecture a form with a kernel is taken where ``bound_by_weights`` tells that
    it must gain; otherwise the first, which is never slower than the naive export.

    Args:
        precision: of the stored weights.
    """
    forms = CANDIDATES[setting]
    if precision == "float16":  # the kernel reads its weights as they are stored, in float32
        forms = tuple(form for form in forms if not form.has_kernel)
    if len(forms) == 1:
        return forms[0], "the form of this setting"
    if target.arch != read_environment().arch:
        return _by_figures(forms, canonical, target, options)
    if not options.profile:
        return forms[0], _untimed(target)
    tell(f"choosing the form of {setting}")
    return _by_timing(forms, canonical, naive, target, options, tell, precision)


def _by_figures(
    forms: Sequence[Form], canonical: ir.Model, target: Target, options: Options
) -> tuple[Form, str]:
    sizes = options.sizes or axis_of(specs_of(canonical.graph.inputs))[1]
    kernel = next((form for form in forms if form.has_kernel), None)
    if kernel is None or not bound_by_weights(canonical, target, sizes, options.threads):
        return forms[0], _untimed(target)
    if lacking := find_kernels(target.arch or "")[1]:
        return forms[0], f"{_untimed(target)}; no one-pass kernel: {lacking}"
    return kernel, f"by the figures of {target.name}, whose memory decides; not timed"


def _untimed(target: Target) -> str:
    return f"the safe choice: not timed on {target.arch} here"


def _by_timing(
    forms: Sequence[Form],
    canonical: ir.Model,
    naive: Path,
    target: Target,
    options: Options,
    tell: Callable[[str], None],
    precision: str,
) -> tuple[Form, str]:
    lacking = ""
    if not one_pass_weights(canonical) or (lacking := find_kernels(target.arch or "")[1]):
        forms = [form for form in forms if not form.has_kernel]
    with tempfile.TemporaryDirectory(prefix="weightspace-") as scratch:
        candidates = {NAIVE: Candidate(naive)}
        for form in forms:
            path = Path(scratch) / f"{form.pipeline}.onnx"
            write_form(canonical, form, path, precision=precision)
            candidates[form.pipeline] = Candidate(path, form.options_here)
        specs = specs_of(canonical.graph.inputs)
        axis, sizes = axis_of(specs)
        timed = time_side_by_side(
            candidates, specs, axis=axis, sizes=options.sizes or sizes,
            threads=options.threads, budget=_CHOOSING, on_step=tell,
        )  # fmt: skip
    ratios = {form.pipeline: _mean_ratio(timed, form.pipeline) for form in forms}
    # A gain at one size does not pay for a loss at another: no size may be slower than naive.
    first, *others = forms
    steady = [form for form in others if _worst_ratio(timed, form.pipeline) <= _NO_SLOWER]
    best = min(steady, key=lambda form: ratios[form.pipeline], default=first)
    if ratios[best.pipeline] > _WORTH * ratios[first.pipeline]:
        best = first
    words = ", ".join(f"{name} {ratio:.2f}" for name, ratio in ratios.items())
    without = f"; no one-pass kernel: {lacking}" if lacking else ""
    return best, f"timed here, mean ratio to naive: {words}{without}"


def bound_by_weights(
    canonical: ir.Model, target: Target, sizes: Sequence[int], threads: int
) -> bool:
    """Whether reading the matrices of its tied FFNs decides their time on a target, at each size.

    It does where they do not fit into the cache together, and where the arithmetic of both
    products takes no longer than one reading of their matrix: then reading it once takes half the
    time of reading it twice. All by the target's published figures.

    Args:
        sizes: of the swept axis; see ``devices.measure.axis_of``.

    Returns:
        Also False where there are none, or a figure that is needed was published by nobody.
    """
    weights = one_pass_weights(canonical)
    if not weights:
        return False
    try:
        roofline = roofline_of(target, "onnx", "float32", threads)
    except UserError:
        return False
    specs = specs_of(canonical.graph.inputs)
    axis, _ = axis_of(specs)
    for size in sizes:
        shapes = {spec.name: shape_at(spec, axis, size) for spec in specs}
        products = [
            (operator.flops / roofline.flops_per_s, read)
            for operator in cost_of(canonical, shapes).operators
            for read in operator.reads
            if read.tensor in weights
        ]
        held = {read.tensor: read.bytes for _, read in products}
        if sum(held.values()) <= roofline.cache_bytes:
            return False
        bandwidth = roofline.bandwidth_bytes_per_s
        if any(2 * computing > read.bytes / bandwidth for computing, read in products):
            return False
    return True


def _mean_ratio(timed: Mapping[int, Mapping[str, Latency]], name: str) -> float:
    """Geometric mean of the ratio of medians to the naive export over all sizes."""
    logs = [math.log(by_name[name].p50 / by_name[NAIVE].p50) for by_name in timed.values()]
    return math.exp(sum(logs) / len(logs))


def _worst_ratio(timed: Mapping[int, Mapping[str, Latency]], name: str) -> float:
    return max(by_name[name].p50 / by_name[NAIVE].p50 for by_name in timed.values())
