"""What is said of nodes that have no form in a backend."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

_MAX_LISTED = 20


def title(node: ir.Node) -> str:
    """Name a node, and the part of the model it belongs to."""
    part = _part_of(node)
    where = f" near {part!r}" if part else ""
    return f"{node.domain + '.' if node.domain else ''}{node.op_type} {node.name!r}{where}"


def _part_of(node: ir.Node) -> str:
    """The part of the model a node belongs to: that of the nearest weight before it."""
    queue, seen = [node], {id(node)}
    while queue:
        current = queue.pop(0)
        for value in current.inputs:
            if value is None:
                continue
            if value.is_initializer() and "." in (value.name or ""):
                return (value.name or "").rpartition(".")[0]
            maker = value.producer()
            if maker is not None and id(maker) not in seen:
                seen.add(id(maker))
                queue.append(maker)
    return ""


def listing(problems: Sequence[str], backend: str) -> str:
    """All problems in one line."""
    shown = problems[:_MAX_LISTED]
    more = f"; and {len(problems) - len(shown)} more" if len(problems) > len(shown) else ""
    count = f"{len(problems)} nodes have" if len(problems) > 1 else "1 node has"
    return f"{count} no {backend} form: {'; '.join(shown)}{more}"
