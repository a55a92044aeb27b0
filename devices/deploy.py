"""The whole story of a deployment, one function a step."""

from __future__ import annotations

import platform
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import onnx_ir as ir

from devices.app.make import make_app, require_tokenizer
from devices.artifacts import NAIVE_PATHS, Made, Work, make_artifacts
from devices.estimate import estimate
from devices.golden import read_golden
from devices.known import LOCAL as HERE
from devices.measure import Candidate, axis_of, measure, operators_of
from devices.on_device import Plan, run_on
from devices.options import NAIVE, Options
from devices.report.csv_form import write_csv
from devices.report.html_form import write_html
from devices.report.json_form import read_json, write_json
from devices.report.record import Report, Run, Variant
from devices.report.runs import LOCAL
from devices.results import notes_on, profile_entries, variant_of, waterfall, with_run
from devices.source import Source, resolve
from devices.steps import Step
from devices.target import Target, require_format
from export.bundle import new_bundle
from export.errors import BadFileError, DeviceError, UserError, WeightspaceError
from export.manifest import (
    MANIFEST,
    artifacts_of,
    manifest_of,
    read_manifest,
    sha256_of,
    write_manifest,
)
from export.onnx_io import load_model
from export.passes import run_pipeline
from export.records import KERNELS, Artifact, TieMap
from runtimes import BACKENDS, backend_of
from runtimes.environment import cpu_name, read_environment, swapped_bytes
from runtimes.ort import find_kernels
from runtimes.records import OperatorTime

REPORT_JSON, REPORT_HTML, REPORT_CSV = "report.json", "report.html", "report.csv"


@dataclass(frozen=True, slots=True)
class Deployed:
    """A finished bundle."""

    folder: Path
    report: Report
    manifest: dict[str, Any]


def deploy(
    model: str, target: Target, out: Path, options: Options, on_step: Step | None = None
) -> Deployed:
    """Export a model for a target, check it, measure it here and on devices, write the bundle.

    Args:
        model: as for ``devices.source.resolve``.
        out: folder of the bundle; it appears whole or not at all.
        on_step: called with words for what happens next.

    Raises:
        DeviceError: a device failed; the bundle is written with all that the others measured.
        WeightspaceError: any other of its kinds; nothing is written then.
    """
    tell = on_step or (lambda _: None)
    require_format(target)
    with ExitStack() as stack:
        folder = stack.enter_context(new_bundle(out))
        scratch = stack.enter_context(tempfile.TemporaryDirectory(prefix="weightspace-"))
        tell(f"tracing {model}")
        source = resolve(model)
        if options.app:
            require_tokenizer(source)
        ties, canonical = capture_canonical(source, tell)
        tell("making the naive export to compare with")
        naive_folder = folder if options.keep_naive else Path(scratch)
        naive = make_naive(source, naive_folder)
        work = Work(source, ties, canonical, naive, naive_folder, folder, target, options)
        made, left_out = make_artifacts(work, tell)
        app = make_app(work, made, tell) if options.app else None
        report = make_report(work, made, left_out, tell)
        report, failures = _on_devices(report, work, made, tell)
        write_reports(report, folder)
        artifacts = [one.artifact for one in made if one.artifact.setting != NAIVE]
        manifest = manifest_of(
            name=source.name,
            source=source.origin,
            ties=ties,
            target=target.name,
            precision=artifacts[0].precision,
            artifacts=artifacts,
            profile=profile_entries(report),
            app=app,
            pixels=_pixels_of(source, artifacts[0]),
        )
        write_manifest(manifest, folder)
    if failures:
        again = f"the bundle is written; `weightspace profile {out} --device ...` tries again"
        raise DeviceError(f"{'; '.join(failures)}; {again}")
    return Deployed(out, report, manifest)


def _pixels_of(source: Source, artifact: Artifact) -> dict[str, Any] | None:
    if source.pixels is None:
        return None
    return {"input": artifact.inputs[0].name, **asdict(source.pixels)}


def _on_devices(
    report: Report, work: Work, made: Sequence[Made], tell: Step
) -> tuple[Report, list[str]]:
    """Measure on each device in turn; gives what failed as well, so that no figure is lost."""
    failures = []
    candidates = {one.id: Candidate(one.path, one.artifact.session_options) for one in made}
    plan = _plan(report, made[0].artifact, candidates, work.folder, work.options)
    for device in work.options.devices:
        if device.scheme == LOCAL:  # this machine was measured before
            continue
        try:
            run = run_on(device, plan, tell)
        except WeightspaceError as error:
            failures.append(str(error))
        else:
            report = with_run(report, run)
    return report, failures


def _plan(
    report: Report,
    artifact: Artifact,
    candidates: Mapping[str, Candidate],
    folder: Path,
    options: Options,
) -> Plan:
    """Say what to measure on devices: any artifact tells the inputs and outputs of all."""
    return Plan(
        candidates=candidates,
        variants=report.variants,
        inputs=artifact.inputs,
        outputs=artifact.outputs,
        golden=read_golden(folder),
        axis=report.axis,
        sizes=options.sizes or axis_of(artifact.inputs)[1],
        threads=options.threads,
        budget=options.budget,
    )


def capture_canonical(source: Source, tell: Step) -> tuple[TieMap, ir.Model]:
    """Write the model as an ONNX graph with each stored tensor once."""
    tell("writing the ONNX graph")
    graph = source.capture()
    run_pipeline(source.pipeline, graph, lambda title: tell(f"pass {title}"))
    return source.ties(graph), graph


def make_naive(source: Source, folder: Path) -> Path:
    """Write the export that everyone makes."""
    path = folder / NAIVE_PATHS["onnx"]
    path.parent.mkdir()
    source.write_naive(path)
    return path


def make_report(work: Work, made: Sequence[Made], left_out: Sequence[str], tell: Step) -> Report:
    """Measure all artifacts side by side and put everything into one report."""
    artifacts = [one.artifact for one in made]
    axis, sizes = axis_of(artifacts[0].inputs)
    candidates = {one.id: Candidate(one.path, one.artifact.session_options) for one in made}
    sizes = work.options.sizes or sizes
    variants = tuple(
        replace(
            variant_of(
                one.artifact,
                one.accuracy,
                one.path,
                work.folder,
                BACKENDS[one.artifact.format].runtime,
            ),
            qualifier=one.qualifier,
        )
        for one in made
    )
    run = measure_here(candidates, artifacts, axis, sizes, work.options, tell)
    estimated, refused = _estimate(work, variants, axis, sizes, tell)
    return Report(
        model=work.source.name,
        source=work.source.origin,
        ties=work.ties,
        target=work.target.name,
        target_title=work.target.title,
        axis=axis,
        variants=variants,
        waterfall=waterfall(work.ties.unique_bytes, work.source.checkpoint_bytes, variants, run),
        runs=tuple(each for each in (run, estimated) if each is not None),
        notes=(*left_out, *notes_on(work.source.origin, artifacts), *refused),
        created=_now(),
    )


def _estimate(
    work: Work, variants: Sequence[Variant], axis: str, sizes: Sequence[int], tell: Step
) -> tuple[Run | None, list[str]]:
    """Estimate latency on the target; gives why not where a figure of it is not known."""
    if not work.options.profile or work.target.read_at_run_time:
        return None, []
    tell(f"estimating latency on {work.target.title}")
    # A device runs the engine that it builds itself, not one that was built here.
    timed = [variant for variant in variants if variant.format != "engine"]
    naive = load_model(work.naive)
    try:
        run = estimate(
            work.target, timed, work.canonical, naive,
            axis=axis, sizes=sizes, threads=work.options.threads,
        )  # fmt: skip
    except UserError as error:
        words = str(error)
        return None, [f"{words[0].upper()}{words[1:]}."]
    return run, []


def measure_here(
    candidates: Mapping[str, Candidate],
    artifacts: Sequence[Artifact],
    axis: str,
    sizes: Sequence[int],
    options: Options,
    tell: Step,
) -> Run | None:
    """Measure what can be, keyed by ``Variant.id``, on this machine; None where nothing can."""
    candidates = {
        each: candidate
        for each, candidate in candidates.items()
        if backend_of(candidate.path).measurable
    }
    if not options.profile or not candidates:
        return None
    swapped = swapped_bytes()
    results = measure(
        candidates,
        artifacts[0].inputs,
        axis=axis,
        sizes=sizes,
        threads=options.threads,
        budget=options.budget,
        on_step=tell,
    )
    runtimes = [BACKENDS[artifact.format].package for artifact in artifacts]
    return Run(
        device=LOCAL,
        measured_on=f"this machine ({cpu_name()})",
        kind="measured",
        threads=options.threads,
        environment=read_environment(*runtimes, swapped=swapped_bytes() != swapped),
        results=results,
        notes=_without_kernels(candidates),
        created=_now(),
    )


def _without_kernels(candidates: Mapping[str, Candidate]) -> tuple[str, ...]:
    """Say which artifacts ran their standard operators here for want of a kernel."""
    named = [each for each, candidate in candidates.items() if KERNELS in candidate.options]
    lacking = find_kernels(platform.machine())[1] if named else ""
    return (f"{', '.join(named)} ran without the one-pass kernel: {lacking}",) if lacking else ()


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def write_reports(report: Report, folder: Path) -> None:
    """Write a bundle's reports; each is replaced when the new one is whole."""
    with tempfile.TemporaryDirectory(prefix=".report.", dir=folder) as scratch:
        written = Path(scratch)
        write_json(report, written / REPORT_JSON)
        write_html(report, written / REPORT_HTML)
        write_csv(report, written / REPORT_CSV)
        for name in (REPORT_JSON, REPORT_HTML, REPORT_CSV):
            (written / name).replace(folder / name)


def profile(folder: Path, options: Options, on_step: Step | None = None) -> Deployed:
    """Measure a bundle again, here or on devices, and write its reports and manifest anew.

    What other devices measured, and what was estimated, stays as it is. The naive exports are
    measured as well where the bundle was exported with them.

    Args:
        options: measured on ``devices`` where it names any, on this machine otherwise. What a
            device measured is written before the next is asked.

    Raises:
        BadFileError: the folder is no bundle, or a file of it is damaged.
        MeasureError: an artifact cannot be run.
        DeviceError: a device failed; what was measured before is kept.
    """
    tell = on_step or (lambda _: None)
    manifest = read_manifest(folder)
    report = read_json(folder / REPORT_JSON)
    artifacts = artifacts_of(manifest, folder / MANIFEST)
    _check_files(artifacts, folder)
    candidates = bundle_candidates(folder, report)
    plan = _plan(report, artifacts[0], candidates, folder, options)
    done = Deployed(folder, report, manifest)
    for device in options.devices or (HERE,):
        if device.scheme == LOCAL:
            run = measure_here(candidates, artifacts, plan.axis, plan.sizes, options, tell)
        else:
            run = run_on(device, plan, tell)
        if run is not None:
            done = add_run(folder, run)
    return done


def bundle_candidates(folder: Path, report: Report) -> dict[str, Candidate]:
    """Find what of a bundle can be measured, by ``Variant.id``: naive exports as well."""
    return {
        variant.id: Candidate(folder / variant.path, variant.session_options)
        for variant in report.variants
        if variant.path is not None and (folder / variant.path).exists()
    }


def add_run(folder: Path, run: Run) -> Deployed:
    """Add what a device measured, or an estimate, to a bundle's reports and manifest.

    Raises:
        BadFileError: the folder is no bundle.
        OutputError: the folder cannot be written to.
    """
    manifest = read_manifest(folder)
    return _renew(folder, manifest, with_run(read_json(folder / REPORT_JSON), run))


def _renew(folder: Path, manifest: dict[str, Any], report: Report) -> Deployed:
    report = replace(report, created=_now())
    manifest["profile"] = profile_entries(report)
    write_reports(report, folder)
    write_manifest(manifest, folder)
    return Deployed(folder, report, manifest)


def operators_by_artifact(
    folder: Path, threads: int, on_step: Step | None = None
) -> dict[str, tuple[OperatorTime, ...]]:
    """Time each operator of a bundle's artifacts; none for a runtime that cannot tell.

    Raises:
        BadFileError: the folder is no bundle, or a file of it is damaged.
        MeasureError: an artifact cannot be run.
    """
    artifacts = artifacts_of(read_manifest(folder), folder / MANIFEST)
    _check_files(artifacts, folder)
    found: dict[str, tuple[OperatorTime, ...]] = {}
    for artifact in artifacts:
        if on_step:
            on_step(f"timing the operators of {artifact.path}")
        path = folder / artifact.path
        found[artifact.path] = operators_of(path, artifact.inputs, threads=threads)
    return found


def _check_files(artifacts: Sequence[Artifact], folder: Path) -> None:
    """Hold the files of a bundle against the digests in its manifest."""
    for artifact in artifacts:
        for name, digest in artifact.sha256.items():
            file = (folder / artifact.path).parent / name
            if name == artifact.session_options.get(KERNELS) and not file.exists():
                continue  # the model runs without it
            if not file.is_file():
                raise BadFileError(f"{folder} lacks {name}; export it again")
            if sha256_of(file) != digest:
                raise BadFileError(f"{file} is not what was exported (sha256 differs); export it")
