"""What an app developer needs to call an exported text encoder: examples, tokenizer, licences.

Each platform is a folder of templates here. Files that end in ``.jinja`` are filled in with
``AppContents``; all others are copied as they are.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

APP = "app"
TOKENIZER = "tokenizer"
_HERE = Path(__file__).parent
_TEMPLATE = ".jinja"


@dataclass(frozen=True, slots=True)
class AppContents:
    """What a bundle holds for an app; paths are from the bundle's folder.

    Args:
        model: its name.
        artifacts: the file that the app takes, by format.
        precision: of the stored weights.
        inputs: names of the graph's inputs: token ids and mask, ``(batch, tokens)`` each.
        output: name of the graph's output, ``(batch, dimension)``.
        tokens: the longest text, in tokens; the tokenizer cuts what is longer.
        dimension: length of an embedding.
        tokenizer: folder of ``tokenizer.json``, ``tokenizer_config.json`` and ``vocab.txt``.
        golden: file with texts, their token ids and the model's own embeddings of them.
        licence: of the weights; empty where it is not known.
        download_bytes: size of each file that the app carries, by path.
    """

    model: str
    artifacts: Mapping[str, str]
    precision: str
    inputs: tuple[str, str]
    output: str
    tokens: int
    dimension: int
    tokenizer: str
    golden: str
    licence: str
    download_bytes: Mapping[str, int]

    @property
    def least_cosine(self) -> float:
        """What an app's own test asks of an embedding and the model's own of the same text."""
        return 0.9999 if self.precision == "float32" else 0.999

    @property
    def compiled(self) -> str:
        """What Xcode makes of the Core ML package."""
        return Path(self.artifacts["mlpackage"]).with_suffix(".mlmodelc").name


def write_app(folder: Path, platform: str, contents: AppContents) -> None:
    """Write a platform's example into ``folder/app/PLATFORM``.

    Args:
        folder: the bundle.
        platform: ``android``, ``iphone`` or ``web``.
    """
    source = _HERE / platform
    for path in sorted(file for file in source.rglob("*") if file.is_file()):
        place = folder / APP / platform / path.relative_to(source)
        place.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == _TEMPLATE:
            name = path.relative_to(_HERE).as_posix()
            place.with_suffix("").write_text(render(name, contents), encoding="utf-8")
        else:
            shutil.copyfile(path, place)


def render(template: str, contents: AppContents) -> str:
    """Fill a template of this folder; what is missing in it is an error."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(_HERE),
        autoescape=False,  # code and Markdown, no page
        undefined=StrictUndefined,
        keep_trailing_newline=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(template).render(app=contents)
