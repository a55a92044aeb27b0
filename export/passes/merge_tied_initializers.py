"""One initializer for all names of one stored tensor."""

from __future__ import annotations

import onnx_ir as ir

from export.stamps import STORED, VIEW
from export.views import permutation_of_view


class MergeTiedInitializersPass(ir.passes.InPlacePass):
    """Point all uses of a stored tensor at one initializer.

    1. A further name of the same memory: its uses read the owner.
    2. A permuted view of it: its uses read a Transpose of the owner.

    Which initializers are one memory was stamped at capture; values are not looked at.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Merge in the main graph, where the exporter keeps all parameters."""
        groups: dict[str, list[ir.Value]] = {}
        for value in model.graph.initializers.values():
            if STORED in value.metadata_props:
                groups.setdefault(value.metadata_props[STORED], []).append(value)
        modified = False
        for name, values in groups.items():
            owner = next((v for v in values if v.metadata_props[VIEW] == "identity"), None)
            if owner is None:
                continue  # only a view of the tensor is in the graph: it is stored as that
            for value in values:
                if value is not owner:
                    _replace(model.graph, value, owner)
                    modified = True
            if owner.name != name:
                owner.name = name
                modified = True
        return ir.passes.PassResult(model, modified)


def _replace(graph: ir.Graph, alias: ir.Value, owner: ir.Value) -> None:
    view = alias.metadata_props[VIEW]
    assert alias.name is not None
    graph.initializers.pop(alias.name)
    if view == "identity":
        alias.replace_all_uses_with(owner, replace_graph_outputs=True)
        return
    permutation = permutation_of_view(view, len(owner.shape or ()))
    transpose = ir.node("Transpose", [owner], {"perm": list(permutation)})
    result = transpose.outputs[0]
    result.name, result.shape, result.type = f"{alias.name}.view", alias.shape, alias.type
    graph.insert_before(graph.node(0), transpose)
    alias.replace_all_uses_with(result, replace_graph_outputs=True)
