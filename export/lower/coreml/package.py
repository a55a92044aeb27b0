"""A program as an .mlpackage: a folder that is there whole or not at all."""

from __future__ import annotations

import json
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from export.errors import LoweringError, OutputError
from export.lower.coreml.convert import Converted
from export.lower.coreml.options import CoremlOptions
from export.lower.coreml.pipeline import pipeline
from export.onnx_io import reason_of

MANIFEST = "Manifest.json"
MODEL = "Data/com.apple.CoreML/model.mlmodel"
WEIGHTS = "Data/com.apple.CoreML/weights/weight.bin"
_INLINE_BYTES = 256
_NAMESPACE = uuid.UUID("5f0c1f0e-8a57-4a55-9a43-6d1b9c3a7e21")  # any will do, as long as it stays


def write_package(ct: Any, converted: Converted, path: Path, options: CoremlOptions) -> None:
    """Write a program; a package that stood at ``path`` stays until the new one is whole.

    Raises:
        LoweringError: coremltools refuses the program.
        OutputError: the folder cannot be written or is full.
    """
    path = path.absolute()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    except OSError as error:
        raise OutputError(reason_of(error, path)) from error
    try:
        package = temporary / "model.mlpackage"
        _convert(ct, converted, package, options)
        _finish(ct, converted, package, options)
        if path.exists():
            path.rename(temporary / "previous")
        try:
            package.rename(path)
        except BaseException:
            if (temporary / "previous").exists():
                (temporary / "previous").rename(path)
            raise
    except OSError as error:
        raise OutputError(reason_of(error, path)) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _convert(ct: Any, converted: Converted, package: Path, options: CoremlOptions) -> None:
    classifier = None
    if options.class_labels is not None:
        classifier = ct.ClassifierConfig(
            list(options.class_labels), predicted_probabilities_output=converted.probabilities
        )
    try:
        with _small_constants_inline():
            ct.convert(
                converted.program,
                convert_to="mlprogram",
                inputs=converted.inputs,
                classifier_config=classifier,
                minimum_deployment_target=getattr(ct.target, options.deployment_target),
                compute_precision=ct.precision.FLOAT32,  # the program has its precision already
                pass_pipeline=pipeline(ct),
                skip_model_load=True,
                package_dir=str(package),
            )
    except OSError:
        raise
    except Exception as error:  # coremltools' errors have no common base
        reason = (str(error) or repr(error)).strip().splitlines()[0]
        raise LoweringError(f"coremltools refuses the program: {reason}") from error


@contextmanager
def _small_constants_inline() -> Iterator[None]:
    """Keep constants of a few hundred bytes in the program itself.

    In the weight file each has a record of 64 bytes and starts at a multiple of 64: as much again.
    coremltools has no setting for it; where a later version has no such function, none is changed.
    """
    from coremltools.converters.mil.backend.mil import load

    name = "should_use_weight_file"
    usual = getattr(load, name, None)
    if usual is None:
        yield
        return

    def large(value: Any, *rest: Any) -> bool:
        return bool(usual(value, *rest)) and value.nbytes > _INLINE_BYTES

    setattr(load, name, large)
    try:
        yield
    finally:
        setattr(load, name, usual)


def _finish(ct: Any, converted: Converted, package: Path, options: CoremlOptions) -> None:
    """Fill in what the package says of itself, and take out what changes from run to run."""
    file = package / MODEL
    spec = ct.proto.Model_pb2.Model()
    spec.ParseFromString(file.read_bytes())
    description = spec.description
    metadata = description.metadata
    metadata.author, metadata.license = options.author, options.licence
    metadata.shortDescription, metadata.versionString = options.description, options.version
    metadata.userDefined.pop("com.github.apple.coremltools.conversion_date", None)
    for key, text in options.metadata.items():
        metadata.userDefined[key] = text
    for features, texts in (
        (description.input, options.input_descriptions),
        (description.output, options.output_descriptions),
    ):
        by_name = {converted.names.get(name, name): text for name, text in texts.items()}
        for feature in features:
            feature.shortDescription = by_name.get(feature.name, "")
    file.write_bytes(spec.SerializeToString(deterministic=True))
    _settle_identifiers(package / MANIFEST)


def _settle_identifiers(file: Path) -> None:
    """Give the entries of the manifest identifiers that are the same in every run."""
    manifest = json.loads(file.read_text())
    renamed = {
        old: str(uuid.uuid5(_NAMESPACE, entry["path"])).upper()
        for old, entry in manifest["itemInfoEntries"].items()
    }
    manifest["itemInfoEntries"] = {
        renamed[old]: entry
        for old, entry in sorted(manifest["itemInfoEntries"].items(), key=lambda e: e[1]["path"])
    }
    manifest["rootModelIdentifier"] = renamed[manifest["rootModelIdentifier"]]
    file.write_text(json.dumps(manifest, indent=4) + "\n")
