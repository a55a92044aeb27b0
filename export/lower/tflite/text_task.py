"""A text encoder as MediaPipe's text tasks take it: three inputs, metadata and a vocabulary.

They look for the metadata of TFLite, take a model with three int32 inputs for BERT, and tell the
inputs by the names that the metadata gives them: ``ids``, ``segment_ids`` and ``mask``. The
vocabulary is a file in a zip archive that follows the FlatBuffer, stored as it is. An encoder
without segments gets an input that nothing reads.
"""

from __future__ import annotations

import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from export.lower.tflite.graph import Graph, Operator, Tensor
from export.lower.tflite.metadata import Table, write_metadata
from export.records import UNUSED

VOCABULARY = "vocab.txt"
_SEGMENTS = "segment_ids"
_MIN_PARSER = "1.1.0"  # the first that knows the tokenizers among the inputs' process units
_VOCABULARY_FILE, _BERT_TOKENIZER = 5, 4  # AssociatedFileType, ProcessUnitOptions
_OLDEST_DATE = (1980, 1, 1, 0, 0, 0)  # a zip archive's; the same file for the same model


@dataclass(frozen=True, slots=True)
class TextTask:
    """What a text encoder's file tells of itself.

    Args:
        name: of the model.
        ids: name of the input of token ids.
        mask: name of the input that is 1 for a token and 0 for padding.
        tokens: the longest text that the encoder takes.
        vocabulary: a token a line; its number, from 0 on, is its id.
        licence: of the weights; empty where it is not known.
    """

    name: str
    ids: str
    mask: str
    tokens: int
    vocabulary: bytes
    licence: str = ""


def fit_inputs(graph: Graph, task: TextTask) -> None:
    """Make the inputs those that MediaPipe feeds: int32, and of any number of tokens.

    It cuts no text where the number may vary, so the graph does, as tokenizers do: what is too
    much is left out before the last token, which ends the text.
    """
    steps: list[Operator] = []
    for place, tensor in enumerate(graph.inputs):
        given = Tensor(tensor.name, tensor.shape, np.dtype(np.int32))
        steps += _cut(given, tensor, task.tokens)
        tensor.name = f"{tensor.name}_wide"
        graph.inputs[place] = given
    graph.operators[:0] = steps
    first = graph.inputs[0]
    graph.unused = [Tensor(f"{UNUSED}{_SEGMENTS}", first.shape, first.dtype)]


def _cut(given: Tensor, wide: Tensor, tokens: int) -> list[Operator]:
    """Keep the first tokens and the last one, ``tokens`` at most, in the type of ``wide``."""

    def part(name: str) -> Tensor:
        return Tensor(f"{given.name}_{name}", given.shape, given.dtype)

    def pair(value: int) -> Tensor:
        values = np.asarray([0, value], np.int32)
        return Tensor(f"{given.name}_at", (2,), values.dtype, values)

    start, first, last, cut = map(part, ("start", "first", "last", "cut"))
    step = Tensor(f"{given.name}_step", (2,), given.dtype, np.ones(2, np.int32))
    rows, to_the_end = {"beginMask": 1, "endMask": 1}, {"beginMask": 1, "endMask": 3}
    return [
        Operator("STRIDED_SLICE", [given, pair(0), pair(-1), step], [start], rows),
        # A slice that ends behind its input ends with it.
        Operator("STRIDED_SLICE", [start, pair(0), pair(tokens - 1), step], [first], rows),
        Operator("STRIDED_SLICE", [given, pair(-1), pair(0), step], [last], to_the_end),
        Operator("CONCATENATION", [first, last], [cut], {"axis": 1}),
        Operator("CAST", [cut], [wide]),
    ]


def describe_text(graph: Graph, task: TextTask) -> bytes:
    """Write the metadata of a graph whose inputs were fitted."""
    known = {task.ids: "ids", task.mask: "mask", f"{UNUSED}{_SEGMENTS}": _SEGMENTS}
    vocabulary = Table(VOCABULARY, "A token a line, in the order of the ids.", _VOCABULARY_FILE)
    inputs = [*graph.inputs, *graph.unused]
    return write_metadata(
        name=task.name,
        description="Embeds a text; pooling and normalisation to length 1 are part of the graph.",
        licence=task.licence,
        inputs=[Table(known.get(tensor.name, tensor.name)) for tensor in inputs],
        outputs=[Table(name) for name, _ in graph.outputs],
        parser=_MIN_PARSER,
        units=[Table((_BERT_TOKENIZER, Table([vocabulary])))],
    )


def append_vocabulary(path: Path, task: TextTask) -> None:
    """Append the vocabulary to a written file."""
    with zipfile.ZipFile(path, "a", zipfile.ZIP_STORED) as archive:
        archive.writestr(zipfile.ZipInfo(VOCABULARY, _OLDEST_DATE), task.vocabulary)
