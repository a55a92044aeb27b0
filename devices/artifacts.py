"""One artifact for each format and setting, and the naive export of each format beside them."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from devices.app.wordpiece import read_wordpiece
from devices.engines import make_engines
from devices.forms import choose_form
from devices.golden import Golden, write_embeddings, write_golden, write_image_embeddings
from devices.options import NAIVE, Options
from devices.source import Source
from devices.steps import Step
from devices.target import Target
from export.audit import audit_file, enforce
from export.audit_onnx import audit_model
from export.errors import LoweringError, MissingExtraError, ParityError, UserError, WeightspaceError
from export.lower.coreml import FORM as COREML_FORM
from export.lower.coreml import CoremlOptions, ImageInput, Range, write_mlpackage
from export.lower.ort import write_form, write_naive_float16
from export.lower.tensorrt import FORM as TENSORRT_FORM
from export.lower.tensorrt import recipe_of, write_naive_tensorrt, write_tensorrt
from export.lower.tensorrt.profiles import profiles_of
from export.lower.tensorrt.recipe import write_recipe
from export.lower.tflite import FORMS as TFLITE_FORMS
from export.lower.tflite import ImageTask, TextTask, write_tflite
from export.manifest import files_of, sha256_of, versions
from export.onnx_io import load_model, specs_of
from export.parity import compare_outputs, limit_of
from export.parity import enforce as enforce_parity
from export.records import KERNELS, Artifact, Parity, TieMap
from runtimes import BACKENDS, open_artifact
from runtimes.ort import find_kernels
from runtimes.session import Session

# Where the naive export of a format stands, in the bundle where it is kept.
NAIVE_PATHS = {
    "onnx": "naive/model.onnx",
    "tflite": "naive/model.tflite",
    "mlpackage": "naive/model.mlpackage",
    "tensorrt": "naive/model.tensorrt.onnx",
    "engine": "naive/model.rtx.engine",
}
PRECISIONS = {
    "onnx": ("float32", "float16"),
    "tflite": ("float32", "float16"),
    "mlpackage": ("float16", "float32"),
    "tensorrt": ("float16", "float32"),
}
PRODUCERS = ("weightspace", "torch", "onnx", "onnx-ir", "onnxscript", "onnxsim")
_ROWS_AT_ONCE = 50  # packages take no more than 64


@dataclass(frozen=True, slots=True)
class Work:
    """What the artifacts of all formats are made from.

    Args:
        canonical: the model's graph, each stored tensor once.
        naive: the ONNX file that everyone exports.
        naive_folder: where naive exports go: the bundle, or a folder that is thrown away.
        folder: the bundle.
    """

    source: Source
    ties: TieMap
    canonical: ir.Model
    naive: Path
    naive_folder: Path
    folder: Path
    target: Target
    options: Options


@dataclass(frozen=True, slots=True)
class Made:
    """An artifact and where it is.

    Args:
        accuracy: None without labelled samples.
        qualifier: its precision where the bundle has several; empty otherwise.
    """

    artifact: Artifact
    path: Path
    accuracy: float | None
    qualifier: str = ""

    @property
    def id(self) -> str:
        """The name of its variant in a report."""
        parts = (self.artifact.format, self.qualifier, self.artifact.setting)
        return " ".join(part for part in parts if part)


@dataclass(frozen=True, slots=True)
class _Written:
    path: Path
    setting: str
    form: str
    takes_pixels: bool = False
    kernels: Path | None = None


def make_artifacts(work: Work, tell: Step) -> tuple[list[Made], list[str]]:
    """Write, audit and check all artifacts, the naive exports as well.

    Returns:
        What was made, format by format with the naive export first, and a sentence for each
        format that could not be made, or only in part.

    Raises:
        WeightspaceError: no format could be made, or an artifact breaks the 1.00 rule or parity.
    """
    inputs, words = work.source.parity_inputs()
    tell("running the reference for parity")
    reference = work.source.reference(inputs)
    _keep_golden(work, inputs, reference, words)
    made: list[Made] = []
    notes: list[str] = []
    left_out: dict[str, WeightspaceError] = {}
    for name in work.target.available_formats:
        try:
            for precision in precisions_of(name, work):
                part = _part_of(work, precision)
                qualifier = precision if part is not work else ""
                written = list(_WRITERS[name](part, precision, tell))
                checked = _checked(
                    part, work.folder, name, precision, written, inputs, reference, words, tell
                )
                made.extend(replace(one, qualifier=qualifier) for one in checked)
                if name == "tensorrt":
                    naive, ours = made[-2:]
                    engines, said = make_engines(ours.artifact, ours.path, naive.path, tell)
                    made.extend(Made(each, path, None, qualifier) for each, path in engines)
                    notes.extend(said)
        except (LoweringError, MissingExtraError, UserError) as error:
            left_out[name] = error
    if not made:
        raise next(iter(left_out.values()))
    missing = [f"No {BACKENDS[name].suffix} file: {error}." for name, error in left_out.items()]
    return made, [*missing, *notes]


def _keep_golden(
    work: Work,
    inputs: Sequence[NDArray[np.generic]],
    reference: Sequence[NDArray[np.generic]],
    words: str,
) -> None:
    pixels = work.source.pixels.of(inputs) if work.source.pixels is not None else None
    batches = {spec.shape[0] for spec in specs_of(work.canonical.graph.inputs) if spec.shape}
    golden = Golden(tuple(inputs), tuple(reference), words, tuple(pixels) if pixels else None)
    write_golden(work.folder, golden, whole=any(isinstance(size, int) for size in batches))
    if (texts := work.source.texts) is not None:
        write_embeddings(work.folder, texts.texts, texts.input_ids, reference[0])
    elif pixels is not None and work.source.classes is None:
        write_image_embeddings(work.folder, pixels[0], reference[0])


def precisions_of(name: str, work: Work) -> tuple[str, ...]:
    """Give the precisions of a format's weights: the target's own, or those asked for.

    Raises:
        UserError: the format is written in none of the precisions that were asked for.
    """
    if not work.options.precisions:
        own = work.target.precision
        return (own if own in PRECISIONS[name] else PRECISIONS[name][0],)
    usable = tuple(each for each in work.options.precisions if each in PRECISIONS[name])
    if usable:
        return usable
    known, asked = " and ".join(PRECISIONS[name]), " or ".join(work.options.precisions)
    raise UserError(f"{name} is written in {known}, not in {asked}")


def _part_of(work: Work, precision: str) -> Work:
    """Give each precision a folder of its own where there are several."""
    if len(work.options.precisions) < 2:
        return work
    folders = {key: getattr(work, key) / precision for key in ("folder", "naive_folder")}
    for folder in folders.values():
        folder.mkdir(exist_ok=True)
    return replace(work, **folders)


# ---- writing ----------------------------------------------------------------------------------


def _write_onnx(work: Work, precision: str, tell: Step) -> Iterator[_Written]:
    yield _naive_onnx(work, precision)
    for setting in work.options.settings:
        form, reason = choose_form(
            work.canonical, setting, work.naive, work.target, work.options, tell,
            precision=precision,
        )  # fmt: skip
        tell(f"writing {setting} onnx")
        path = work.folder / f"model.{setting}.onnx"
        write_form(work.canonical, form, path, precision=precision)
        kernels = _copy_kernels(work) if form.has_kernel else None
        words = f"{form.words_at(precision)} ({reason})"
        yield _Written(path, setting, words, kernels=kernels)


def _naive_onnx(work: Work, precision: str) -> _Written:
    if precision == "float32":
        return _Written(work.naive, NAIVE, work.source.naive_words)
    path = (work.naive_folder / NAIVE_PATHS["onnx"]).with_suffix(f".{precision}.onnx")
    path.parent.mkdir(exist_ok=True)
    write_naive_float16(load_model(work.naive), path)
    return _Written(path, NAIVE, f"{work.source.naive_words}, its weights stored as float16")


def _copy_kernels(work: Work) -> Path:
    """Put the library of kernels for the target's architecture into the bundle."""
    arch = work.target.arch or ""
    source, _ = find_kernels(arch)
    assert source is not None  # the form was chosen for it
    path = work.folder / "lib" / arch / source.name
    path.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, path)
    return path


def _write_tflite(work: Work, precision: str, tell: Step) -> Iterator[_Written]:
    tell("lowering to tflite")
    for setting in work.options.settings:
        path = work.folder / f"model.{setting}.tflite"
        write_tflite(work.canonical, path, setting, precision, _task_of(work))
        yield _Written(path, setting, TFLITE_FORMS[setting])
    naive = work.naive_folder / NAIVE_PATHS["tflite"]
    naive.parent.mkdir(exist_ok=True)
    write_tflite(load_model(work.naive), naive, precision=precision)
    yield _Written(naive, NAIVE, "the naive ONNX export lowered as it is: a buffer for each use")


def _task_of(work: Work) -> TextTask | ImageTask | None:
    """Say what an app must know of a model for texts or images; None for another one."""
    source = work.source
    if (pixels := source.pixels) is not None:
        image = work.canonical.graph.inputs[0].name or ""
        mean, std = -pixels.bias / pixels.scale, 1 / pixels.scale
        return ImageTask(source.name, image, mean, std, pixels.colour, source.licence)
    if source.texts is None:
        return None
    pieces = read_wordpiece(source.texts.tokenizer)
    ids, mask = (value.name or "" for value in work.canonical.graph.inputs)
    vocabulary = pieces.text.encode()
    return TextTask(source.name, ids, mask, pieces.tokens, vocabulary, source.licence)


def _write_mlpackage(work: Work, precision: str, tell: Step) -> Iterator[_Written]:
    tell("lowering to mlpackage")
    source = work.source
    image = None
    if source.pixels is not None:
        name = work.canonical.graph.inputs[0].name or ""
        image = ImageInput(name, source.pixels.scale, source.pixels.bias, source.pixels.colour)
    described = CoremlOptions(
        image=image,
        class_labels=source.class_names,
        dimensions={name: Range(1, most) for name, most in source.largest.items()},
        author="weightspace",
        licence=source.licence,
        description=f"{source.name}: each shared weight is stored once",
    )
    setting = work.options.settings[0]
    path = work.folder / "model.mlpackage"
    write_mlpackage(work.canonical, path, precision, options=described)
    yield _Written(path, setting, COREML_FORM, takes_pixels=image is not None)
    naive = work.naive_folder / NAIVE_PATHS["mlpackage"]
    naive.parent.mkdir(exist_ok=True)
    write_mlpackage(load_model(work.naive), naive, precision)
    yield _Written(naive, NAIVE, "the naive ONNX export lowered as it is: a constant for each use")


def _write_tensorrt(work: Work, precision: str, tell: Step) -> Iterator[_Written]:
    tell("preparing onnx for tensorrt")
    options = work.options
    # Chosen once: the naive export has other names for the same axes.
    specs, largest = specs_of(work.canonical.graph.inputs), work.source.largest
    profiles = profiles_of(specs, options.ranges, options.sizes, largest)

    def with_recipe(prepared: ir.Model, path: Path) -> None:
        recipe = recipe_of(
            prepared, path.name, precision, profiles=profiles, options=options.recipe
        )
        write_recipe(recipe, path.parent)

    path = work.folder / "model.tensorrt.onnx"
    with_recipe(write_tensorrt(work.canonical, path, precision), path)
    yield _Written(path, options.settings[0], TENSORRT_FORM)
    naive = work.naive_folder / NAIVE_PATHS["tensorrt"]
    naive.parent.mkdir(exist_ok=True)
    with_recipe(write_naive_tensorrt(load_model(work.naive), naive, precision), naive)
    yield _Written(naive, NAIVE, "the naive ONNX export in the same opset and types")


_WRITERS: dict[str, Callable[[Work, str, Step], Iterator[_Written]]] = {
    "onnx": _write_onnx,
    "tflite": _write_tflite,
    "mlpackage": _write_mlpackage,
    "tensorrt": _write_tensorrt,
}


# ---- checking ---------------------------------------------------------------------------------


def _checked(
    work: Work,
    bundle: Path,
    name: str,
    precision: str,
    written: Sequence[_Written],
    inputs: Sequence[NDArray[np.generic]],
    reference: Sequence[NDArray[np.generic]],
    words: str,
    tell: Step,
) -> Iterator[Made]:
    """Audit each file and compare it with the reference.

    Raises:
        TieLostError: an artifact of ours stores more than 1.01 of the unique bytes.
        ParityError: an artifact of ours computes something else than the reference.
    """
    unique_bytes = work.ties.unique_bytes_at(precision)
    written = sorted(written, key=lambda one: one.setting != NAIVE)
    naive_bytes = audit_file(written[0].path).weight_bytes
    index_bytes = audit_model(work.canonical).index_bytes
    for one in written:
        tell(f"checking {one.setting} {name} against the reference")
        audit = audit_file(one.path)
        if one.setting != NAIVE:
            enforce(audit, work.ties, unique_bytes, index_bytes)
        files = [*files_of(one.path), *([one.kernels] if one.kernels else [])]
        folder = one.path.parent
        artifact = Artifact(
            path=_path_in(bundle, one.path, name),
            format=name,
            setting=one.setting,
            precision=precision,
            bytes=sum(file.stat().st_size for file in files),
            weight_bytes=audit.weight_bytes,
            index_bytes=audit.index_bytes,
            unique_bytes=unique_bytes,
            naive_bytes=naive_bytes,
            sha256={file.relative_to(folder).as_posix(): sha256_of(file) for file in files},
            inputs=specs_of(work.canonical.graph.inputs),
            outputs=specs_of(work.canonical.graph.outputs),
            form=one.form,
            session_options=(
                {KERNELS: one.kernels.relative_to(folder).as_posix()} if one.kernels else {}
            ),
            producer=versions(*PRODUCERS, BACKENDS[name].package),
        )
        pixels = work.source.pixels if one.takes_pixels else None
        given = pixels.of(inputs) if pixels is not None else inputs
        parity, accuracy = check(artifact, one.path, given, reference, work.source, words)
        if one.setting != NAIVE:
            enforce_parity(parity, limit_of(name, precision))
        yield Made(replace(artifact, parity=parity), one.path, accuracy)


def _path_in(bundle: Path, path: Path, name: str) -> str:
    """Name a file in the bundle; a naive export that is thrown away has a name all the same."""
    return path.relative_to(bundle).as_posix() if path.is_relative_to(bundle) else NAIVE_PATHS[name]


def check(
    artifact: Artifact,
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
    session = open_artifact(path, options=artifact.session_options)
    names = [spec.name for spec in session.inputs]
    wanted = [spec.name for spec in artifact.outputs]
    count = _rows_at_once(session, len(inputs[0]))
    parts = []
    for start in range(0, len(inputs[0]), count):
        rows = slice(start, start + count)
        feeds = dict(zip(names, (array[rows] for array in inputs), strict=True))
        outputs = session.run(feeds)
        kept = wanted if set(wanted) <= set(outputs) else [spec.name for spec in session.outputs]
        parts.append([outputs[name] for name in kept])
    session.close()
    whole = count >= len(inputs[0])
    found = [part[0] if whole else np.concatenate(part) for part in zip(*parts, strict=True)]
    if len(found) != len(reference):
        raise ParityError(
            f"{path.name} has {len(found)} outputs, the reference has {len(reference)}"
        )
    parity = compare_outputs(
        reference,
        found,
        source=words,
        evaluated_by=BACKENDS[artifact.format].evaluated_by,
        classifier=source.classes is not None,
    )
    return parity, _accuracy(found, source)


def _rows_at_once(session: Session, samples: int) -> int:
    """How many samples an artifact takes at once: all where its batch is fixed to them."""
    batches = {spec.shape[0] for spec in session.inputs if spec.shape}
    if all(isinstance(size, str) for size in batches):
        return _ROWS_AT_ONCE
    return 1 if batches == {1} else samples


def _accuracy(outputs: Sequence[NDArray[np.generic]], source: Source) -> float | None:
    if source.images is None or source.classes is None:
        return None
    return float(np.mean(outputs[0].argmax(-1) == source.images.labels))
