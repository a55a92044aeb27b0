"""TFLite's metadata: what a file tells of its model, as a FlatBuffer in one of its buffers.

Source: mediapipe/tasks/metadata/metadata_schema.fbs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

_IDENTIFIER = b"M001"


class Table:
    """A table of a FlatBuffer: its fields in the order of their slots, None for those left out.

    A field is a text, a small number, a table, a list of tables or of floats, or a union as
    ``(tag, table)``.
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
    if isinstance(field, Table):
        return field.write(builder)
    if isinstance(field, list) and field and isinstance(field[0], float):
        return builder.CreateNumpyVector(np.asarray(field, np.float32))
    if isinstance(field, list):
        places = [table.write(builder) for table in field]
        builder.StartVector(4, len(places), 4)
        for place in reversed(places):
            builder.PrependUOffsetTRelative(place)
        return builder.EndVector()
    return None


def write_metadata(
    *,
    name: str,
    description: str,
    licence: str,
    inputs: Sequence[Table],
    outputs: Sequence[Table],
    parser: str,
    units: Sequence[Table] | None = None,
) -> bytes:
    """Write what a model with one graph tells of itself.

    Args:
        licence: empty where it is not known.
        inputs: a ``TensorMetadata`` for each input of the graph, in order.
        outputs: the same for the outputs.
        parser: the first version of readers that know all of it.
        units: what makes the inputs of something else, all together.
    """
    import flatbuffers

    main = Table(None, None, [*inputs], [*outputs], None, [*units] if units is not None else None)
    model = Table(name, description, None, [main], "weightspace", licence or None, None, parser)
    builder = flatbuffers.Builder(1024)
    builder.Finish(model.write(builder), _IDENTIFIER)
    return bytes(builder.Output())
