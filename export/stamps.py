"""The torch name of a parameter, carried by its initializer through every pass.

Ties are kept by identity. After each pass the graph is held against the stamps: a stored tensor of
torch may stand in the graph at most once.
"""

from __future__ import annotations

from collections import Counter

import onnx_ir as ir

from export.errors import TieLostError
from export.records import TieMap

STORED = "weightspace.stored"
VIEW = "weightspace.view"
TIED = "weightspace.tied"


def stamp(model: ir.Model, ties: TieMap) -> None:
    """Write on each initializer which stored tensor of torch it is, and through which view."""
    for value in model.graph.initializers.values():
        value.metadata_props.clear()  # the exporter's notes; they cost bytes in the file
    for tensor in ties.stored:
        for name, view in ((tensor.name, "identity"), *tensor.aliases):
            found = model.graph.initializers.get(name)
            if found is not None:
                found.metadata_props[STORED] = tensor.name
                found.metadata_props[VIEW] = view
                if tensor.tied:
                    found.metadata_props[TIED] = "1"


def is_tied(value: ir.Value) -> bool:
    """Whether the torch program reads this stored tensor more than once."""
    return TIED in value.metadata_props


def check_ties(model: ir.Model, after: str) -> None:
    """Refuse a graph that holds one stored tensor of torch twice.

    Args:
        after: what ran last, for the message.

    Raises:
        TieLostError: a stored tensor has more than one initializer.
    """
    counts = Counter(
        value.metadata_props[STORED]
        for value in model.graph.initializers.values()
        if STORED in value.metadata_props
    )
    twice = [name for name, count in counts.items() if count > 1]
    if twice:
        raise TieLostError(f"{after} stores {', '.join(map(repr, twice))} more than once")
