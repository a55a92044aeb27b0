"""The whole story of a deployment, one function a step."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from devices.measure import Candidate, Measured, axis_of, measure, time_side_by_side
from devices.report.html_form import write_html
from devices.report.json_form import read_json, write_json
from devices.report.record import Report
from devices.results import (
    notes_on,
    profile_entries,
    variant_of,
    waterfall,
    with_measurements,
)
from devices.source import Source, resolve
from devices.target import Target, require_format
from export.audit import Audit, audit_file, enforce
from export.bundle import new_bundle
from export.capture import capture
from export.errors import BadFileError, ParityError
from export.lower import SETTINGS
from export.lower.ort import CANDIDATES, Form, write_form
from export.manifest import (
    MANIFEST,
    artifacts_of,
    manifest_of,
    read_manifest,
    sha256_of,
    versions,
    write_manifest,
)
from export.naive import write_naive
from export.parity import compare_outputs
from export.parity import enforce as enforce_parity
from export.passes import run_pipeline
from export.records import Artifact, Parity, TensorSpec, TieMap
from runtimes import BACKENDS
from runtimes.bench import QUICK, Budget
from runtimes.environment import cpu_name, read_environment, swapped_bytes
from runtimes.ort import open_session
from runtimes.records import Environment, Latency
from weightspace.data import Images

NAIVE = "naive"
NAIVE_PATH = "naive/model.onnx"
REPORT_JSON, REPORT_HTML = "report.json", "report.html"
PRODUCERS = ("weightspace", "torch", "onnx", "onnx-ir", "onnxscript", "onnxsim", "onnxruntime")
# Enough to tell forms that differ by a tenth; the profile measures them properly afterwards.
_CHOOSING = Budget(warmup_runs=5, warmup_s=0.1, runs=20, seconds=0.6)
_NO_SLOWER = 1.05  # a few hundredths are noise
_WORTH = 0.97  # so a gain must be more than that

Step = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Options:
    """How to export and measure.

    Args:
        settings: which artifacts to make.
        sizes: sizes of the swept axis; None for a choice by the model.
        profile: False leaves the measurements out.
        keep_naive: keep the naive export in the bundle, so that it can be profiled later.
    """

    settings: tuple[str, ...] = SETTINGS
    threads: int = 1
    sizes: tuple[int, ...] | None = None
    budget: Budget = QUICK
    profile: bool = True
    keep_naive: bool = False


@dataclass(frozen=True, slots=True)
class Deployed:
    """A finished bundle."""

    folder: Path
    report: Report
    manifest: dict[str, Any]


def deploy(
    model: str, target: Target, out: Path, options: Options, on_step: Step | None = None
) -> Deployed:
    """Export a model for a target, check it, measure it on this machine and write the bundle.

    Args:
        model: as for ``devices.source.resolve``.
        out: folder of the bundle; it appears whole or not at all.
        on_step: called with words for what happens next.

    Raises:
        WeightspaceError: any of its kinds; nothing is written then.
    """
    tell = on_step or (lambda _: None)
    require_format(target)
    with new_bundle(out) as folder:
        tell(f"tracing {model}")
        source = resolve(model)
        ties, canonical = capture_canonical(source, tell)
        tell("making the naive export to compare with")
        with tempfile.TemporaryDirectory(prefix="weightspace-") as scratch:
            naive = make_naive(source, folder if options.keep_naive else Path(scratch))
            forms = {
                setting: choose_form(canonical, setting, naive, target, options, tell)
                for setting in options.settings
            }
            artifacts, accuracies = make_artifacts(
                source, ties, canonical, forms, naive, folder, tell
            )
            report = make_report(
                source, ties, target, artifacts, accuracies, naive, folder, options, tell
            )
        write_reports(report, folder)
        manifest = manifest_of(
            name=source.name,
            source=source.origin,
            ties=ties,
            target=target.name,
            precision=artifacts[0].precision,
            artifacts=[artifact for artifact in artifacts if artifact.setting != NAIVE],
            profile=profile_entries(report),
        )
        write_manifest(manifest, folder)
    return Deployed(out, report, manifest)


def capture_canonical(source: Source, tell: Step) -> tuple[TieMap, ir.Model]:
    """Write the model as an ONNX graph with each stored tensor once."""
    tell("writing the ONNX graph")
    captured = capture(
        source.program,
        input_names=source.input_names,
        output_names=source.output_names,
        dynamic_shapes=source.dynamic_shapes,
    )
    run_pipeline("canonical", captured.model, lambda title: tell(f"pass {title}"))
    return captured.ties, captured.model


def make_naive(source: Source, folder: Path) -> Path:
    """Write the export that everyone makes."""
    path = folder / NAIVE_PATH
    path.parent.mkdir()
    write_naive(
        source.program, path, input_names=source.input_names, output_names=source.output_names
    )
    return path


def choose_form(
    canonical: ir.Model, setting: str, naive: Path, target: Target, options: Options, tell: Step
) -> tuple[Form, str]:
    """Choose how tied weights are written, and say why.

    Forms are timed where this machine has the target's architecture and measuring was asked for;
    otherwise the first is taken, which is never slower than the naive export.
    """
    forms = CANDIDATES[setting]
    if len(forms) == 1:
        return forms[0], "the form of this setting"
    environment = read_environment("onnxruntime")
    if not options.profile or target.arch != environment.arch:
        return forms[0], f"the safe choice: not timed on {target.arch} here"
    tell(f"choosing the form of {setting}")
    with tempfile.TemporaryDirectory(prefix="weightspace-") as scratch:
        candidates = {NAIVE: Candidate(naive)}
        for form in forms:
            path = Path(scratch) / f"{form.pipeline}.onnx"
            write_form(canonical, form, path)
            candidates[form.pipeline] = Candidate(path)
        specs = _inputs_of(path)  # ours: the naive export does not keep the names of the axes
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


def _named_inputs(artifacts: Sequence[Artifact]) -> tuple[TensorSpec, ...]:
    """Take the inputs from an artifact of ours: the naive export names axes as torch does."""
    return next(artifact.inputs for artifact in artifacts if artifact.setting != NAIVE)


def _worst_ratio(timed: Mapping[int, Mapping[str, Latency]], name: str) -> float:
    return max(by_name[name].p50 / by_name[NAIVE].p50 for by_name in timed.values())


def _inputs_of(path: Path) -> tuple[TensorSpec, ...]:
    session = open_session(path)
    specs = session.inputs
    session.close()
    return specs


def make_artifacts(
    source: Source,
    ties: TieMap,
    canonical: ir.Model,
    forms: Mapping[str, tuple[Form, str]],
    naive: Path,
    folder: Path,
    tell: Step,
) -> tuple[list[Artifact], dict[str, float | None]]:
    """Write, audit and check one artifact for each setting; the naive export is checked as well.

    Returns:
        The artifacts, the naive export first, and the accuracy of each where there are labels.

    Raises:
        TieLostError: an artifact of ours stores more than 1.01 of the unique bytes.
        ParityError: an artifact of ours computes something else than torch.
    """
    inputs, words = source.parity_inputs()
    tell("running torch for parity")
    reference = source.reference(inputs)
    naive_audit = audit_file(naive)
    made = [
        _artifact(source, ties, naive, NAIVE, naive_audit, naive_audit, "exporter, then onnxsim")
    ]
    paths = {NAIVE: naive}
    for setting, (form, reason) in forms.items():
        tell(f"writing {setting}")
        path = folder / f"model.{setting}.onnx"
        write_form(canonical, form, path)
        audit = audit_file(path)
        enforce(audit, ties)
        paths[setting] = path
        made.append(
            _artifact(source, ties, path, setting, audit, naive_audit, f"{form.words} ({reason})")
        )
    artifacts: list[Artifact] = []
    accuracies: dict[str, float | None] = {}
    for artifact in made:
        tell(f"checking {artifact.setting} against torch")
        parity, accuracies[artifact.setting] = check(
            paths[artifact.setting], inputs, reference, source, words
        )
        if artifact.setting != NAIVE:
            enforce_parity(parity)
        artifacts.append(replace(artifact, parity=parity))
    return artifacts, accuracies


def _artifact(
    source: Source, ties: TieMap, path: Path, setting: str, audit: Audit, naive: Audit, form: str
) -> Artifact:
    session = open_session(path)
    files = sorted(path.parent.glob(f"{path.name}*"))
    return Artifact(
        path=path.name if setting != NAIVE else NAIVE_PATH,
        format="onnx",
        setting=setting,
        precision=ties.stored[0].dtype if ties.stored else "float32",
        bytes=sum(file.stat().st_size for file in files),
        weight_bytes=audit.weight_bytes,
        unique_bytes=ties.unique_bytes,
        naive_bytes=naive.weight_bytes,
        sha256={file.name: sha256_of(file) for file in files},
        inputs=session.inputs,
        outputs=session.outputs,
        form=form,
        producer=versions(*PRODUCERS),
    )


def check(
    path: Path,
    inputs: Sequence[NDArray[np.generic]],
    reference: Sequence[NDArray[np.generic]],
    source: Source,
    words: str,
) -> tuple[Parity, float | None]:
    """Run an artifact on the parity inputs; gives parity, and accuracy where there are labels.

    Raises:
        ParityError: an output's shape differs, or is not finite.
    """
    session = open_session(path)
    step = 250
    names = [spec.name for spec in session.inputs]
    parts = []
    dynamic = all(isinstance(spec.shape[0], str) for spec in session.inputs if spec.shape)
    for start in range(0, len(inputs[0]), step if dynamic else len(inputs[0])):
        rows = slice(start, start + step) if dynamic else slice(None)
        feeds = dict(zip(names, (array[rows] for array in inputs), strict=True))
        parts.append(list(session.run(feeds).values()))
    session.close()
    found = [np.concatenate(part) if dynamic else part[0] for part in zip(*parts, strict=True)]
    if len(found) != len(reference):
        raise ParityError(f"{path.name} has {len(found)} outputs, torch has {len(reference)}")
    parity = compare_outputs(
        reference,
        found,
        source=words,
        evaluated_by="onnxruntime",
        classifier=source.classes is not None,
    )
    return parity, _accuracy(found, source.images)


def _accuracy(outputs: Sequence[NDArray[np.generic]], images: Images | None) -> float | None:
    if images is None:
        return None
    return float(np.mean(outputs[0].argmax(-1) == images.labels))


def make_report(
    source: Source,
    ties: TieMap,
    target: Target,
    artifacts: Sequence[Artifact],
    accuracies: Mapping[str, float | None],
    naive: Path,
    folder: Path,
    options: Options,
    tell: Step,
) -> Report:
    """Measure all artifacts side by side and put everything into one report."""
    paths = {a.setting: naive if a.setting == NAIVE else folder / a.path for a in artifacts}
    axis, sizes = axis_of(_named_inputs(artifacts))
    inputs = _named_inputs(artifacts)
    candidates = {a.setting: Candidate(paths[a.setting], a.session_options) for a in artifacts}
    sizes = options.sizes or sizes
    measured, environment = _measure(candidates, inputs, axis, sizes, options, tell)
    variants = tuple(
        with_measurements(
            variant_of(
                a, accuracies[a.setting], paths[a.setting], folder, BACKENDS[a.format].package
            ),
            measured.get(a.setting),
        )
        for a in artifacts
    )
    return Report(
        model=source.name,
        source=source.origin,
        ties=ties,
        target=target.name,
        target_title=target.title,
        device="local",
        measured_on=f"this machine ({cpu_name()})",
        threads=options.threads,
        axis=axis,
        variants=variants,
        waterfall=waterfall(ties.unique_bytes, source.checkpoint_bytes, variants),
        environment=environment,
        notes=notes_on(source.origin, artifacts),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def _measure(
    candidates: Mapping[str, Candidate],
    inputs: Sequence[TensorSpec],
    axis: str,
    sizes: Sequence[int],
    options: Options,
    tell: Step,
) -> tuple[dict[str, Measured], Environment]:
    if not options.profile:
        return {}, read_environment("onnxruntime")
    swapped = swapped_bytes()
    measured = measure(
        candidates,
        inputs,
        axis=axis,
        sizes=sizes,
        threads=options.threads,
        budget=options.budget,
        on_step=tell,
    )
    return measured, read_environment("onnxruntime", swapped=swapped_bytes() != swapped)


def write_reports(report: Report, folder: Path) -> None:
    """Write report.json and report.html into a bundle."""
    write_json(report, folder / REPORT_JSON)
    write_html(report, folder / REPORT_HTML)


def profile(folder: Path, options: Options, on_step: Step | None = None) -> Deployed:
    """Measure a bundle again on this machine and write its reports and manifest anew.

    The naive export is measured as well where the bundle was exported with it.

    Raises:
        BadFileError: the folder is no bundle, or a file of it is damaged.
        MeasureError: an artifact cannot be run.
    """
    tell = on_step or (lambda _: None)
    manifest = read_manifest(folder)
    report = read_json(folder / REPORT_JSON)
    artifacts = artifacts_of(manifest, folder / MANIFEST)
    _check_files(artifacts, folder)
    candidates = {a.setting: Candidate(folder / a.path, a.session_options) for a in artifacts}
    if (folder / NAIVE_PATH).is_file():
        candidates = {NAIVE: Candidate(folder / NAIVE_PATH), **candidates}
    inputs = artifacts[0].inputs
    sizes = options.sizes or axis_of(inputs)[1]
    measured, environment = _measure(candidates, inputs, report.axis, sizes, options, tell)
    variants = tuple(with_measurements(v, measured.get(v.name)) for v in report.variants)
    by_label = {step.label: step.bytes_by_variant for step in report.waterfall}
    checkpoint = next(iter(by_label.get("checkpoint", {}).values()), None)
    report = replace(
        report,
        device="local",
        measured_on=f"this machine ({cpu_name()})",
        threads=options.threads,
        variants=variants,
        waterfall=waterfall(report.ties.unique_bytes, checkpoint, variants),
        environment=environment,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
    )
    manifest["profile"] = profile_entries(report)
    write_reports(report, folder)
    write_manifest(manifest, folder)
    return Deployed(folder, report, manifest)


def _check_files(artifacts: Sequence[Artifact], folder: Path) -> None:
    """Hold the files of a bundle against the digests in its manifest."""
    for artifact in artifacts:
        for name, digest in artifact.sha256.items():
            file = (folder / artifact.path).parent / name
            if not file.is_file():
                raise BadFileError(f"{folder} lacks {name}; export it again")
            if sha256_of(file) != digest:
                raise BadFileError(f"{file} is not what was exported (sha256 differs); export it")
