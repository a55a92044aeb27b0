"""A text encoder as MediaPipe's text tasks take it: three inputs, metadata and a vocabulary.

They look for the metadata of TFLite (mediapipe/tasks/metadata/metadata_schema.fbs), take a model
with three int32 inputs for BERT, and tell the inputs by the names that the metadata gives them:
``ids``, ``segment_ids`` and ``mask``. The vocabulary is a file in a zip archive that follows the
FlatBuffer, stored as it is. An encoder without segments gets an input that nothing reads.
"""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from export.lower.tflite.graph import Graph, Operator, Tensor
from export.records import UNUSED

VOCABULARY = "vocab.txt"
_SEGMENTS = "segment_ids"
_IDENTIFIER = b"M001"
_MIN_PARSER = "1.1.0"  # the first that knows the tokenizers among the inputs' process units
_VOCABULARY_FILE, _BERT_TOKENIZER = 5, 4  # AssociatedFileType, ProcessUnitOptions
_OLDEST_DATE = (1980, 1, 1, 0, 0, 0)  # a zip archive's; the same file for the same model


class _Table:
    """A table of a FlatBuffer: its fields in the order of their slots, None for those left out.

    A field is a text, a number, a table, a list of tables, or a union as ``(tag, table)``.
    """

    def __init__(self, *fields: Any) -> None:
        self.fields = fields

    def write(self, builder: Any) -> Any:
        """Write the table and what it refers to; gives its place."""
        slots = [slot for field in self.fields for slot in _slots(field)]
        places = [_place(builder, field) for field in slots]
        builder.StartObject(len(slots))
        for slot, (field, place) in enumerate(zip(slots, places, strict=True)):
            if isinstance(field, int):
                builder.PrependUint8Slot(slot, field, 0)
            elif place is not None:
                builder.PrependUOffsetTRelativeSlot(slot, place, 0)
        return builder.EndObject()


def _slots(field: Any) -> Sequence[Any]:
    return field if isinstance(field, tuple) else (field,)  # a union takes two


def _place(builder: Any, field: Any) -> Any:
    """Write what a field refers to; None for what lies in the table itself."""
    if isinstance(field, str):
        return builder.CreateString(field)
    if isinstance(field, _Table):
        return field.write(builder)
    if isinstance(field, list):
        places = [table.write(builder) for table in field]
        builder.StartVector(4, len(places), 4)
        for place in reversed(places):
            builder.PrependUOffsetTRelative(place)
        return builder.EndVector()
    return None


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


def describe(graph: Graph, task: TextTask) -> bytes:
    """Write the metadata of a graph whose inputs were fitted."""
    import flatbuffers

    known = {task.ids: "ids", task.mask: "mask", f"{UNUSED}{_SEGMENTS}": _SEGMENTS}
    vocabulary = _Table(VOCABULARY, "A token a line, in the order of the ids.", _VOCABULARY_FILE)
    tokenizer = _Table((_BERT_TOKENIZER, _Table([vocabulary])))
    inputs = [*graph.inputs, *graph.unused]
    main = _Table(
        None,
        None,
        [_Table(known.get(tensor.name, tensor.name)) for tensor in inputs],
        [_Table(name) for name, _ in graph.outputs],
        None,
        [tokenizer],
    )
    words = "Embeds a text; pooling and normalisation to length 1 are part of the graph."
    licence = task.licence or None
    model = _Table(task.name, words, None, [main], "weightspace", licence, None, _MIN_PARSER)
    builder = flatbuffers.Builder(1024)
    builder.Finish(model.write(builder), _IDENTIFIER)
    return bytes(builder.Output())


def append_vocabulary(path: Path, task: TextTask) -> None:
    """Append the vocabulary to a written file."""
    with zipfile.ZipFile(path, "a", zipfile.ZIP_STORED) as archive:
        archive.writestr(zipfile.ZipInfo(VOCABULARY, _OLDEST_DATE), task.vocabulary)
