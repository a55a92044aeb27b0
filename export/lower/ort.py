"""ONNX Runtime: which form each setting takes, and why.

No form wins at every shape and on every processor. What was measured is in docs/forms.md, and
``make bench`` measures it again. All forms hold under the runtime's default session options.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir

from export.lower import LATENCY_FIRST, MEMORY_FIRST
from export.onnx_io import save_model
from export.passes import run_pipeline
from export.passes.tied_ffn_function import DOMAIN
from export.records import KERNELS


@dataclass(frozen=True, slots=True)
class Form:
    """A way to write tied weights for ONNX Runtime.

    Args:
        pipeline: the passes that write it.
        words: what the runtime does with it.
        mapped: whether the weights must be in a file of their own, to be mapped into memory.
        has_kernel: whether it is for a runtime that is given the library of ``runtimes.kernels``.
    """

    pipeline: str
    words: str
    mapped: bool = False
    has_kernel: bool = False

    def words_at(self, precision: str) -> str:
        """Say what the runtime does with it, and with its weights where they are float16."""
        if precision == "float32":
            return self.words
        when = "in each run" if self.mapped else "once, when a session starts"
        return f"{self.words}; stored as float16 and made float32 {when}"

    @property
    def options_here(self) -> dict[str, str]:
        """Session options to run the form with on this machine, with its own library."""
        return {KERNELS: "this machine's"} if self.has_kernel else {}


REPACKED = Form(
    "ort-repacked",
    "Gemm with the transpose as an attribute; stored once, repacked by the runtime for each use",
)
SWITCHED = Form(
    "ort-switched",
    "Gemm with the transpose as an attribute; stored once, repacked by the runtime for more than "
    "32 rows, and up to 32 rows both uses read the stored copy",
)
ONE_PASS = Form(
    "ort-one-pass",
    "each tied FFN as one operator, whose kernel reads the mapped weight once for both products; "
    "where its library is not given, Gemm with the transpose as an attribute",
    mapped=True,
    has_kernel=True,
)
MAPPED = Form(
    "ort-mapped",
    "every weight an input with a default, in a file that is mapped; nothing is repacked",
    mapped=True,
)

FLOAT16 = "ort-float16"  # the pipeline behind that of a form

# In order of preference. The first is never slower than the naive export on what was measured;
# the others are faster for some models and slower for others, so they must be timed to be taken.
CANDIDATES: dict[str, tuple[Form, ...]] = {
    LATENCY_FIRST: (REPACKED, SWITCHED, ONE_PASS),
    MEMORY_FIRST: (MAPPED,),
}


def write_form(
    canonical: ir.Model,
    form: Form,
    path: Path,
    on_pass: Callable[[str], None] | None = None,
    *,
    precision: str = "float32",
) -> list[Path]:
    """Write a canonical graph in one form; the graph itself is left as it is.

    Args:
        precision: of the stored weights, ``float32`` or ``float16``; arithmetic is float32.

    Raises:
        WeightspaceError: a pass failed, or the file could not be written.
    """
    model = canonical.clone()
    run_pipeline(form.pipeline, model, on_pass)
    if precision == "float16":
        run_pipeline(FLOAT16, model, on_pass)
    return save_model(model, path, external=True if form.mapped else None)


def write_naive_float16(naive: ir.Model, path: Path) -> list[Path]:
    """Write the naive export with its weights stored as float16, in the way that ours are.

    Raises:
        WeightspaceError: as for ``write_form``.
    """
    model = naive.clone()
    run_pipeline(FLOAT16, model)
    return save_model(model, path)


def one_pass_weights(canonical: ir.Model) -> frozenset[str]:
    """Name the stored tensors of the tied FFNs that the one-pass kernel would compute."""
    model = canonical.clone()
    run_pipeline(ONE_PASS.pipeline, model)
    found = (node.inputs[1] for node in model.graph if node.domain == DOMAIN)
    return frozenset(weight.name or "" for weight in found if weight is not None)
