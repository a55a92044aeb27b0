from __future__ import annotations

import numpy as np
import pytest

from export.audit import audit_file
from export.errors import BadFileError
from tests.export.tflite_files import FILES, W, Writer, batch_matmul, weights


def uses(path, name: str) -> list[tuple[str, str]]:
    (found,) = [tensor for tensor in audit_file(path).stored if tensor.name == name]
    return [(use.op, use.view) for use in found.uses]


@pytest.mark.parametrize("behind", [False, True])
@pytest.mark.parametrize("name", ["tied", "tied tensors", "two graphs"])
def test_a_shared_buffer_is_one_stored_tensor_with_two_uses(tmp_path, name, behind):
    path = FILES[name]().save(tmp_path / "m.tflite", behind=behind)
    audit = audit_file(path)
    assert [(t.name, t.shape, t.dtype, t.bytes) for t in audit.ties] == [
        ("w", W.shape, "float32", W.nbytes)
    ]
    assert uses(path, "w") == [("FULLY_CONNECTED", "identity"), ("BATCH_MATMUL", "transpose")]
    assert (audit.weight_bytes, audit.duplicates, audit.ratio) == (W.nbytes, (), 1.0)


@pytest.mark.parametrize("behind", [False, True])
def test_a_transposed_copy_is_found(tmp_path, behind):
    audit = audit_file(FILES["duplicated"]().save(tmp_path / "m.tflite", behind=behind))
    assert [(d.name, d.of, d.view, d.bytes) for d in audit.duplicates] == [
        ("wt", "w", "transpose", W.nbytes)
    ]
    assert audit.ratio == 2.0


def test_uses_are_followed_through_conversions(tmp_path):
    path = FILES["halved"]().save(tmp_path / "m.tflite")
    audit = audit_file(path)
    assert uses(path, "w") == [("FULLY_CONNECTED", "identity"), ("FULLY_CONNECTED", "transpose")]
    assert uses(path, "order") == [("TRANSPOSE", "identity")]
    assert audit.weight_bytes == W.nbytes / 2 + 8


def test_buffers_of_the_same_bytes_are_stored_once(tmp_path):
    """Two records of a buffer may lead to one place behind the flatbuffer."""
    writer = FILES["duplicated"]()
    path = writer.save(tmp_path / "m.tflite", behind=True)
    first, second = writer.model.buffers[1:3]
    second.offset, second.size = first.offset, first.size
    data = path.read_bytes()
    path.write_bytes(writer._pack() + data[len(writer._pack()) :])
    audit = audit_file(path)
    assert audit.weight_bytes == W.nbytes
    assert uses(path, "w") == [("FULLY_CONNECTED", "identity"), ("FULLY_CONNECTED", "reshape")]


@pytest.mark.parametrize(
    ("left", "adjoint", "view"),
    [(True, False, "identity"), (True, True, "transpose"), (False, False, "transpose"),
     (False, True, "identity")],
)  # fmt: skip
def test_how_a_matrix_product_reads_a_weight(tmp_path, left, adjoint, view):
    writer = Writer()
    w, x = writer.constant(weights(16, 16), name="w"), writer.input((16, 16))
    options = batch_matmul(adj_x=left and adjoint, adj_y=not left and adjoint)
    inputs = [w, x] if left else [x, w]
    writer.graph.outputs = [writer.operator("BATCH_MATMUL", inputs, (16, 16), options)]
    assert uses(writer.save(tmp_path / "m.tflite"), "w") == [("BATCH_MATMUL", view)]


def test_outputs_custom_operators_and_other_shapes_are_uses(tmp_path):
    writer = Writer()
    w = writer.constant(W, name="w")
    flat = writer.constant(W.reshape(-1), writer.graph.tensors[w].buffer)
    filters = writer.constant(W.reshape(32, 1, 1, 16), writer.graph.tensors[w].buffer)
    writer.constant(weights(8, 8), name="unread")
    shape = writer.constant(np.array([16, 32], np.int32), name="shape")
    turned = writer.operator("RESHAPE", [w, shape], (16, 32))
    writer.operator("MY_MATMUL", [turned], (1,))
    writer.operator("GATHER", [flat], (1,))
    writer.operator("CONV_2D", [filters], (1,))
    writer.graph.outputs = [w, turned]
    path = writer.save(tmp_path / "m.tflite")
    assert [tensor.name for tensor in audit_file(path).stored] == ["w", "shape"]
    assert uses(path, "w") == [
        ("output", "identity"), ("MY_MATMUL", "reshape"), ("output", "reshape"),
        ("GATHER", "reshape"), ("CONV_2D", "identity"),
    ]  # fmt: skip


@pytest.mark.parametrize("dtype", ["float32", "float16", "int8", "bfloat16", "int64", "complex128"])
def test_copies_are_found_in_every_type(tmp_path, dtype):
    import ml_dtypes

    kind = np.dtype(getattr(ml_dtypes, dtype, dtype))
    array = (weights(16, 32) * 50).astype(kind)
    writer = Writer()
    one, other = writer.constant(array, name="one"), writer.constant(array.T, name="other")
    writer.graph.outputs = [writer.operator("PACK", [one, other], (1,))]
    audit = audit_file(writer.save(tmp_path / "m.tflite"))
    assert [(d.name, d.of, d.bytes) for d in audit.duplicates] == [("other", "one", array.nbytes)]
    assert audit.stored[0].dtype == dtype


def test_values_that_shapes_do_not_measure_are_listed_as_bytes(tmp_path):
    writer = Writer()
    words = writer.tensor((3,), "string", writer.buffer(np.arange(40, dtype=np.uint8)), "words")
    padded = writer.tensor((4,), "float32", writer.buffer(weights(8)), "padded")
    packed = writer.tensor((5,), "int4", writer.buffer(np.zeros(3, np.uint8)), "packed")
    writer.graph.outputs = [words, padded, packed]
    found = audit_file(writer.save(tmp_path / "m.tflite")).stored
    assert [(t.name, t.dtype, t.shape, t.bytes) for t in found] == [
        ("words", "uint8", (40,), 40), ("padded", "uint8", (32,), 32), ("packed", "int4", (5,), 3),
    ]  # fmt: skip


def test_names_that_are_missing_or_used_twice_get_the_number_of_the_buffer(tmp_path):
    writer = Writer()
    for seed, name in enumerate(("w", "w", "")):
        writer.graph.outputs.append(writer.constant(weights(8, 8, seed=seed), name=name))
    found = audit_file(writer.save(tmp_path / "m.tflite")).stored
    assert [tensor.name for tensor in found] == ["w", "w (buffer 2)", "buffer 3"]


def test_circles_and_forks_of_views_end(tmp_path):
    """Nothing of this is a graph that runs, but none of it may keep an audit from ending."""
    writer = Writer()
    w = last = writer.constant(weights(64), name="w")
    for _ in range(2000):  # each tensor is written from the one before it twice: 2^2000 ways
        before, last = last, writer.operator("RESHAPE", [last], (64,))
        writer.operator("RESHAPE", [before], (64,))
        writer.graph.operators[-1].outputs = [last]
    writer.operator("RESHAPE", [last], (64,))
    writer.graph.operators[-1].outputs = [w]
    assert uses(writer.save(tmp_path / "fork.tflite"), "w") == [("RESHAPE", "identity")] * 2
    writer = Writer()
    last = writer.constant(weights(64), name="w")
    for _ in range(2000):
        last = writer.operator("RESHAPE", [last], (64,))
    chain = uses(writer.save(tmp_path / "chain.tflite"), "w")
    assert chain == [("RESHAPE", ">".join(["reshape"] * 8))]


def test_weights_in_another_file_are_refused(tmp_path):
    writer = FILES["tied"]()
    writer.graph.tensors[1].externalBuffer = 1
    with pytest.raises(BadFileError, match="keeps 'w' in another file"):
        audit_file(writer.save(tmp_path / "m.tflite"))


def test_the_content_says_what_a_file_is(tmp_path):
    path = FILES["tied"]().save(tmp_path / "model.bin")
    assert audit_file(path).weight_bytes == W.nbytes
    path.write_bytes(b"something else")
    with pytest.raises(BadFileError, match=r"model\.bin .*\.onnx or \.tflite"):
        audit_file(path)
    with pytest.raises(BadFileError, match=r"is not a file; .*\.onnx or \.tflite"):
        audit_file(tmp_path / "absent.tflite")
