"""manifest.json: what a bundle holds, in a stable form (schema 1)."""

from __future__ import annotations

import glob
import hashlib
import importlib.metadata
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from export.errors import BadFileError
from export.records import Artifact, Parity, TensorSpec, TieMap

SCHEMA = 1
MANIFEST = "manifest.json"


def manifest_of(
    *,
    name: str,
    source: str,
    ties: TieMap,
    target: str,
    precision: str,
    artifacts: Sequence[Artifact],
    profile: Sequence[Mapping[str, Any]],
    app: Mapping[str, Any] | None = None,
    pixels: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Put a bundle's records into the manifest's form.

    Args:
        name: the model's name.
        source: where it came from: a zoo name, ``package.module:factory`` or a file's name.
        profile: the measurements, each as in the manifest.
        app: what the bundle holds for an app; None where that was not asked for.
        pixels: how the first input is made of pixels; None where it is no image.
    """
    return {
        "schema": SCHEMA,
        "model": {
            "name": name,
            "source": source,
            "unique_parameters": ties.unique_parameters,
            "unique_bytes": ties.unique_bytes,
            "ties": [
                {
                    "stored": tensor.name,
                    "shape": list(tensor.shape),
                    "dtype": tensor.dtype,
                    "uses": [
                        {"op": use.op, "view": use.view, "where": use.where} for use in tensor.uses
                    ],
                    "aliases": [{"name": name, "view": view} for name, view in tensor.aliases],
                }
                for tensor in ties.ties
            ],
            **({"pixels": dict(pixels)} if pixels is not None else {}),
        },
        "target": {"name": target, "precision": precision},
        "artifacts": [_artifact_entry(artifact) for artifact in artifacts],
        "profile": [dict(entry) for entry in profile],
        **({"app": dict(app)} if app is not None else {}),
    }


def _artifact_entry(artifact: Artifact) -> dict[str, Any]:
    entry = asdict(artifact)
    entry["ratio"] = round(artifact.ratio, 6)
    return entry


def artifacts_of(manifest: Mapping[str, Any], path: Path) -> list[Artifact]:
    """Read the artifacts back.

    Args:
        path: the manifest's file, for messages.

    Raises:
        BadFileError: an entry lacks a key or holds something else than it should.
    """
    try:
        return [_artifact(entry) for entry in manifest["artifacts"]]
    except (KeyError, TypeError, ValueError) as error:
        raise BadFileError(f"{path} is not a whole manifest ({error}); export it again") from error


def _artifact(entry: Mapping[str, Any]) -> Artifact:
    fields = {key: value for key, value in entry.items() if key != "ratio"}
    for key in ("inputs", "outputs"):
        fields[key] = tuple(
            TensorSpec(spec["name"], spec["dtype"], tuple(spec["shape"])) for spec in entry[key]
        )
    if entry["parity"] is not None:
        fields["parity"] = Parity(**entry["parity"])
    return Artifact(**fields)


def write_manifest(manifest: Mapping[str, Any], folder: Path) -> None:
    """Write the manifest into a bundle."""
    part = folder / f"{MANIFEST}.part"
    part.write_text(json.dumps(manifest, indent=1, allow_nan=False) + "\n")
    part.replace(folder / MANIFEST)


def read_manifest(folder: Path) -> dict[str, Any]:
    """Read a bundle's manifest.

    Raises:
        BadFileError: the folder is no bundle, or its manifest is corrupt or of a newer schema.
    """
    path = folder / MANIFEST
    if not path.is_file():
        raise BadFileError(f"{folder} is no bundle (it has no {MANIFEST}); export one with --out")
    try:
        manifest = json.loads(path.read_text())
        schema = manifest["schema"]
    except (ValueError, KeyError, TypeError) as error:
        raise BadFileError(f"{path} is not a readable manifest; export it again") from error
    if schema != SCHEMA:
        raise BadFileError(f"{path} has schema {schema}; this version reads schema {SCHEMA}")
    if not isinstance(manifest, dict):
        raise BadFileError(f"{path} is not a readable manifest; export it again")
    return manifest


def files_of(path: Path) -> list[Path]:
    """Give the files of an artifact: itself and its data, or all in its folder."""
    if path.is_dir():
        return sorted(file for file in path.rglob("*") if file.is_file())
    return sorted(path.parent.glob(f"{glob.escape(path.name)}*"))


def sha256_of(path: Path) -> str:
    """Digest a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def versions(*packages: str) -> dict[str, str]:
    """Look up the installed versions of packages, leaving out those that are not there."""
    found: dict[str, str] = {}
    for package in packages:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
