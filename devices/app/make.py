"""The app's part of a bundle: tokenizer, golden embeddings, licences and a platform's example."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from devices.app import APP, TOKENIZER, AppContents, render, write_app
from devices.app.wordpiece import WordPiece, read_wordpiece
from devices.artifacts import Made, Work
from devices.golden import EMBEDDINGS
from devices.options import NAIVE
from devices.source import Source
from devices.steps import Step
from devices.target import Platform, require_app
from export.errors import UserError

# What an app carries of the tokenizer; a .tflite has its vocabulary inside.
_TOKENIZER_FILES: dict[Platform, tuple[str, ...]] = {
    "android": (),
    "iphone": ("tokenizer.json", "tokenizer_config.json"),
    "web": ("tokenizer.json",),
}
LICENCES, LICENCE_TEXT = "LICENCES.md", "Apache-2.0.txt"


def require_tokenizer(source: Source) -> WordPiece:
    """Read the tokenizer of a text encoder.

    Raises:
        UserError: the model is none.
        BadFileError: its tokenizer cannot be read, or is not of the kind that apps have.
    """
    if source.pixels is not None:
        raise UserError(
            f"--app needs a text encoder with its tokenizer, such as minilm-pe; {source.name!r} "
            "takes images: leave --app out (docs/embeddings.md tells how they are fed)"
        )
    if source.texts is None:
        raise UserError(
            f"--app needs a text encoder with its tokenizer, such as minilm-pe; {source.name!r} "
            "has none (docs/models.md tells how a factory names one)"
        )
    return read_wordpiece(source.texts.tokenizer)


def make_app(work: Work, made: Sequence[Made], tell: Step) -> dict[str, Any]:
    """Write all that an app needs beside the artifacts; gives the manifest's entry.

    Raises:
        UserError: the model or the target has no app.
        BadFileError: the tokenizer cannot be read.
    """
    platform = require_app(work.target)
    tell(f"writing the {platform} example")
    pieces = require_tokenizer(work.source)
    _write_tokenizer(work, pieces)
    contents = _contents_of(work, made, pieces)
    (work.folder / LICENCES).write_text(render(f"{LICENCES}.jinja", contents), encoding="utf-8")
    shutil.copyfile(Path(__file__).parent / LICENCE_TEXT, work.folder / LICENCE_TEXT)
    write_app(work.folder, platform, contents)
    return {"platform": platform, "folder": f"{APP}/{platform}", **asdict(contents)}


def _write_tokenizer(work: Work, pieces: WordPiece) -> None:
    folder = work.folder / TOKENIZER
    folder.mkdir(exist_ok=True)
    shutil.copyfile(pieces.path, folder / "tokenizer.json")
    (folder / "vocab.txt").write_text(pieces.text, encoding="utf-8")
    config = json.dumps(pieces.config, indent=1)
    (folder / "tokenizer_config.json").write_text(f"{config}\n", encoding="utf-8")


def _contents_of(work: Work, made: Sequence[Made], pieces: WordPiece) -> AppContents:
    """Say what to take: of each format the first artifact, which is the one in front in reports."""
    ours = [one for one in made if one.artifact.setting != NAIVE]
    first = {one.artifact.format: one for one in reversed(ours)}
    artifact = ours[0].artifact
    (ids, mask), (output, *_) = artifact.inputs, artifact.outputs
    carried: dict[str, int] = {}
    for one in first.values():
        carried |= _carried(work.folder, one)
    for name in _TOKENIZER_FILES[require_app(work.target)]:
        carried[f"{TOKENIZER}/{name}"] = (work.folder / TOKENIZER / name).stat().st_size
    return AppContents(
        model=work.source.name,
        artifacts={name: one.artifact.path for name, one in first.items()},
        precision=artifact.precision,
        inputs=(ids.name, mask.name),
        output=output.name,
        tokens=pieces.tokens,
        dimension=int(output.shape[-1]),
        tokenizer=TOKENIZER,
        golden=EMBEDDINGS,
        licence=work.source.licence,
        download_bytes=carried,
    )


def _carried(folder: Path, made: Made) -> dict[str, int]:
    """Give the size of each file of an artifact, and of a package as a whole, by path."""
    sizes: dict[str, int] = {}
    beside = (folder / made.artifact.path).parent
    for name in made.artifact.sha256:
        path = (beside / Path(name).parts[0]).relative_to(folder).as_posix()
        sizes[path] = sizes.get(path, 0) + (beside / name).stat().st_size
    return sizes
