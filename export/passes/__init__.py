"""Graph passes, one a file, and the pipelines that they form, in order.

Every pass is held to three rules by ``run_pipeline``: its stored tensors never grow by more than a
few numbers or a thousandth, no tie is lost, and what it reports as modified is true.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import onnx_ir as ir

from export.errors import PassError, WeightspaceError
from export.passes.cancel_weight_transposes import CancelWeightTransposesPass
from export.passes.collapse_transposed_reshapes import CollapseTransposedReshapesPass
from export.passes.drop_zero_biases import DropZeroBiasesPass
from export.passes.expose_weights import ExposeWeightsPass
from export.passes.fix_reshapes import FixReshapesPass
from export.passes.fold_batch_norms import FoldBatchNormsPass
from export.passes.fold_small_expressions import FoldSmallExpressionsPass
from export.passes.fuse_tied_ffns import FuseTiedFfnsPass
from export.passes.hide_weight_expressions import HideWeightExpressionsPass
from export.passes.lower_opset import LowerOpsetPass
from export.passes.merge_equal_initializers import MergeEqualInitializersPass
from export.passes.merge_score_scales import MergeScoreScalesPass
from export.passes.merge_tied_initializers import MergeTiedInitializersPass
from export.passes.move_score_scales import MoveScoreScalesPass
from export.passes.narrow_indices import NarrowIndicesPass
from export.passes.reassociate_weights import (
    ReassociateLargeWeightsPass,
    ReassociateWeightsPass,
)
from export.passes.recognize_activations import RecognizeActivationsPass
from export.passes.replace_nan_guards import ReplaceNanGuardsPass
from export.passes.replace_pointwise_conv_transposes import ReplacePointwiseConvTransposesPass
from export.passes.separate_tied_products import SeparateTiedProductsPass
from export.passes.simplify_skeleton import SimplifySkeletonPass
from export.passes.store_float16 import StoreFloat16Pass
from export.passes.switch_by_rows import SwitchByRowsPass
from export.passes.tie_transposed_copies import TieTransposedCopiesPass
from export.passes.write_float16 import WriteFloat16Pass
from export.passes.write_tied_conv_transposes import WriteTiedConvTransposesPass
from export.passes.write_tied_gemms import WriteTiedGemmsPass
from export.passes.write_tied_pointwise_products import WriteTiedPointwiseProductsPass
from export.stamps import check_ties
from export.stored import is_shape, stored_bytes, stored_tensors

# A pass may need numbers of its own: the axes of a reduction, positions that are folded.
_SCALARS_BYTES = 64
_SHARE = 1000  # of the stored bytes, that much in one
PassFactory = Callable[[], ir.passes.InPlacePass]

# What every backend starts from: each stored tensor once, read through Transpose nodes.
_CANONICAL: tuple[PassFactory, ...] = (
    MergeTiedInitializersPass,  # first: later passes count the uses of a tensor
    SimplifySkeletonPass,  # shapes become constants, so the patterns below are plain
    DropZeroBiasesPass,  # before batch norms are folded into convolutions
    CollapseTransposedReshapesPass,  # needs the constant shapes
    ReplacePointwiseConvTransposesPass,  # leaves a Transpose that the next pass may fold
    NarrowIndicesPass,  # before a small index and its bank could be folded
    ReassociateLargeWeightsPass,  # before the expressions that it leaves on the weights are folded
    FoldSmallExpressionsPass,  # brings factors into the form in which they are read
    CancelWeightTransposesPass,
    FoldBatchNormsPass,  # needs to see which convolutions share their weight
    MergeEqualInitializersPass,  # last: it joins tensors that are equal by chance
)

# For what computes a weight in every run, or keeps its value in memory: the parts go to the
# activations wherever that takes fewer multiply-adds.
_APPLIED: tuple[PassFactory, ...] = (ReassociateWeightsPass, FoldSmallExpressionsPass)

# TensorRT's parser transposes a constant when it reads it, and so makes a copy; an attribute, and
# the transposed convolution, read the weight as it is.
_TENSORRT: tuple[PassFactory, ...] = (
    ReassociateWeightsPass,  # what of a weight's factors could be folded, the builder folds
    RecognizeActivationsPass,  # finds Gelu, which LowerOpset writes in one way
    MergeScoreScalesPass,
    WriteTiedGemmsPass,
    WriteTiedConvTransposesPass,
    FixReshapesPass,  # the Gemms' shapes
    LowerOpsetPass,
)

PIPELINES: dict[str, tuple[PassFactory, ...]] = {
    "canonical": _CANONICAL,
    # A file from elsewhere: copies that its exporter made are tied again first.
    "foreign": (MergeEqualInitializersPass, TieTransposedCopiesPass, *_CANONICAL),
    # ONNX Runtime may repack the weights that a kernel reads best in its own layout.
    "ort-repacked": (WriteTiedGemmsPass,),
    # The same for many rows; for few, both uses of a tied matrix read the one stored copy.
    "ort-switched": (
        WriteTiedGemmsPass,
        SwitchByRowsPass,  # last: it moves all nodes into the branches of an If
    ),
    # Both products of a tied FFN in one pass over its matrix, where a kernel for that is there.
    "ort-one-pass": (
        RecognizeActivationsPass,  # finds Gelu, for which the operator has a name
        FuseTiedFfnsPass,
        WriteTiedGemmsPass,  # of what is left
    ),
    # No weight is folded or repacked.
    "ort-mapped": (
        *_APPLIED,
        WriteTiedGemmsPass,
        WriteTiedConvTransposesPass,  # a Transpose would run each time once W is not constant
        ExposeWeightsPass,
    ),
    # After any of these: the weights in half the bytes.
    "ort-float16": (StoreFloat16Pass,),
    # TFLite has one operator for an activation, and none for what is no number.
    "tflite": (*_APPLIED, RecognizeActivationsPass, ReplaceNanGuardsPass, MergeScoreScalesPass),
    # The same holds for Core ML, and a compiler may take "x is not x" for false.
    "coreml": (*_APPLIED, RecognizeActivationsPass, ReplaceNanGuardsPass, MergeScoreScalesPass),
    "tensorrt-float32": (
        *_TENSORRT,
        MoveScoreScalesPass,  # in float16 the builder leaves it, and scores stay small
        SeparateTiedProductsPass,
        HideWeightExpressionsPass,
    ),
    # A builder would round to float16 where it likes; here the types are in the graph.
    "tensorrt-float16": (
        *_TENSORRT,
        WriteTiedPointwiseProductsPass,
        WriteFloat16Pass,
        SeparateTiedProductsPass,  # its bounds are numbers of the type
        HideWeightExpressionsPass,  # last: nothing after it may take its zeros for what they are
    ),
    # The naive export beside ours: in the opset and the types that TensorRT takes, no more.
    "tensorrt-naive-float32": (LowerOpsetPass,),
    "tensorrt-naive-float16": (LowerOpsetPass, WriteFloat16Pass),
}


@dataclass(frozen=True, slots=True)
class PassReport:
    """What one pass did: whether it changed the graph, and the stored bytes after it."""

    name: str
    modified: bool
    stored_bytes: int


def run_pipeline(
    name: str, model: ir.Model, on_pass: Callable[[str], None] | None = None
) -> list[PassReport]:
    """Run a pipeline in place.

    Args:
        name: a key of ``PIPELINES``.
        on_pass: called with the name of each pass before it runs.

    Raises:
        TieLostError: a pass stored a tied tensor twice.
        PassError: a pass failed, or stored more bytes than it freed.
    """
    return run_passes([make() for make in PIPELINES[name]], model, on_pass)


def run_passes(
    passes: list[ir.passes.InPlacePass],
    model: ir.Model,
    on_pass: Callable[[str], None] | None = None,
) -> list[PassReport]:
    """Run passes in place and hold each to the rules of this module; see ``run_pipeline``."""
    reports: list[PassReport] = []
    before = _weight_bytes(model)
    for step in passes:
        title = type(step).__name__.removesuffix("Pass")
        if on_pass:
            on_pass(title)
        try:
            result = step(model)
        except WeightspaceError:
            raise
        except Exception as error:
            done = ", ".join(report.name for report in reports) or "none"
            raise PassError(f"pass {title} failed after {done}: {error}") from error
        after = _weight_bytes(model)
        check_ties(model, title)
        # The tied initializers that the exporter wrote twice are merged by the first pass.
        if after > before + max(_SCALARS_BYTES, before // _SHARE):
            raise PassError(f"pass {title} stores {after - before} bytes more than it frees")
        reports.append(PassReport(title, result.modified, stored_bytes(model)))
        before = after
    return reports


def _weight_bytes(model: ir.Model) -> int:
    """Sum the bytes of what is stored, without the shapes that a graph's Reshapes read."""
    return sum(tensor.nbytes for _, tensor in stored_tensors(model) if not is_shape(tensor))
