"""How tied weights are written for ONNX Runtime on a target: a choice that is measured."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

import onnx_ir as ir

from devices.measure import Candidate, axis_of, time_side_by_side
from devices.options import NAIVE, Options
from devices.target import Target
from export.lower.ort import CANDIDATES, Form, write_form
from export.onnx_io import specs_of
from runtimes.bench import Budget
from runtimes.environment import read_environment
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
) -> tuple[Form, str]:
    """Choose how tied weights are written, and say why.

    Forms are timed where this machine has the target's architecture and measuring was asked for;
    otherwise the first is taken, which is never slower than the naive export.
    """
    forms = CANDIDATES[setting]
    if len(forms) == 1:
        return forms[0], "the form of this setting"
    if not options.profile or target.arch != read_environment().arch:
        return forms[0], f"the safe choice: not timed on {target.arch} here"
    tell(f"choosing the form of {setting}")
    with tempfile.TemporaryDirectory(prefix="weightspace-") as scratch:
        candidates = {NAIVE: Candidate(naive)}
        for form in forms:
            path = Path(scratch) / f"{form.pipeline}.onnx"
            write_form(canonical, form, path)
            candidates[form.pipeline] = Candidate(path)
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
    return best, f"timed here, mean ratio to naive: {words}"


def _mean_ratio(timed: Mapping[int, Mapping[str, Latency]], name: str) -> float:
    """Geometric mean of the ratio of medians to the naive export over all sizes."""
    logs = [math.log(by_name[name].p50 / by_name[NAIVE].p50) for by_name in timed.values()]
    return math.exp(sum(logs) / len(logs))


def _worst_ratio(timed: Mapping[int, Mapping[str, Latency]], name: str) -> float:
    return max(by_name[name].p50 / by_name[NAIVE].p50 for by_name in timed.values())
