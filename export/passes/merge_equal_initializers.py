"""One initializer for tensors whose every bit is equal."""

from __future__ import annotations

import onnx_ir as ir

from export.stamps import STORED


class MergeEqualInitializersPass(ir.passes.InPlacePass):
    """Join initializers of equal type, shape and bytes; near matches are left alone.

    Weights that are equal by chance exist (biases that never moved from zero), so the joined
    tensor keeps the stamp of the first one only.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Treat the main graph."""
        seen: dict[tuple[object, ...], ir.Value] = {}
        modified = False
        inputs = {value.name for value in model.graph.inputs}
        for name, value in list(model.graph.initializers.items()):
            tensor = value.const_value
            if tensor is None or name in inputs or value.is_graph_output():
                continue
            # A digest would do for speed; the bytes themselves leave no room for a collision.
            key = (tensor.dtype, tuple(tensor.shape.numpy()), _Bytes(tensor))
            keeper = seen.setdefault(key, value)
            if keeper is not value:
                value.replace_all_uses_with(keeper)
                model.graph.initializers.pop(name)
                if STORED not in keeper.metadata_props:
                    keeper.metadata_props.update(value.metadata_props)
                modified = True
        return ir.passes.PassResult(model, modified)


class _Bytes:
    """A tensor's bytes as a key: hashed by a digest, compared in full."""

    def __init__(self, tensor: ir.TensorProtocol) -> None:
        import hashlib

        self._tensor = tensor
        self._digest = hashlib.blake2b(tensor.tobytes(), digest_size=16).digest()

    def __hash__(self) -> int:
        return hash(self._digest)

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, _Bytes)
            and self._digest == other._digest
            and self._tensor.tobytes() == other._tensor.tobytes()
        )
