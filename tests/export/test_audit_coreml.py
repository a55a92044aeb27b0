from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from typer.testing import CliRunner

from devices.cli import app
from export.audit import audit_file
from export.coreml_io import quiet_coremltools
from export.errors import BadFileError
from tests.runtimes.coreml_programs import ct, mb, save, types

RANDOM = np.random.default_rng(0)
W = RANDOM.standard_normal((32, 16)).astype(np.float32)
FILTERS = RANDOM.standard_normal((8, 4, 3, 4)).astype(np.float32)
B = RANDOM.standard_normal(32).astype(np.float32)


def spec(*shape, dtype=types.fp32):
    return mb.TensorSpec(shape, dtype)


def tied(x):
    w = mb.const(val=W, name="w")
    h = mb.relu(x=mb.linear(x=x, weight=w, bias=B))
    return mb.matmul(x=h, y=w, name="y")


def duplicated(x):
    h = mb.relu(x=mb.linear(x=x, weight=mb.const(val=W, name="w"), bias=B))
    return mb.linear(x=h, weight=mb.const(val=W.T.copy(), name="wt"), name="y")


@pytest.fixture
def saved(tmp_path):
    def make(build, *specs, **options):
        return save(tmp_path / "m.mlpackage", build, specs, **options)

    return make


def uses(path, name: str) -> list[tuple[str, str]]:
    (found,) = [tensor for tensor in audit_file(path).stored if tensor.name == name]
    return [(use.op, use.view) for use in found.uses]


def test_a_constant_that_is_read_twice_is_one_stored_tensor(saved):
    path = saved(tied, spec(2, 16))
    audit = audit_file(path)
    assert [(t.name, t.shape, t.dtype, t.bytes) for t in audit.ties] == [
        ("w", W.shape, "float32", W.nbytes)
    ]
    assert uses(path, "w") == [("linear", "identity"), ("matmul", "transpose")]
    assert [use.where for use in audit.ties[0].uses] == ["linear_0", "y"]
    assert (audit.weight_bytes, audit.duplicates) == (W.nbytes + B.nbytes, ())
    assert audit.ratio == 1.0


def test_a_transposed_copy_is_found(saved):
    audit = audit_file(saved(duplicated, spec(2, 16)))
    assert [(d.name, d.of, d.view, d.bytes) for d in audit.duplicates] == [
        ("wt", "w", "transpose", W.nbytes)
    ]
    assert audit.ratio > 1.9


def test_two_constants_on_one_blob_are_stored_once(saved):
    def build(x):
        rows = mb.linear(x=x, weight=mb.const(val=W, name="w"), bias=B)
        filters = mb.const(val=W.reshape(32, 16, 1, 1) + 0, name="filters")
        flat = mb.const(val=W.reshape(-1) + 0, name="flat")
        h = mb.reshape(x=rows, shape=[2, 32, 1, 1])
        return (
            mb.conv_transpose(x=h, weight=filters),
            mb.reduce_sum(x=mb.reshape(x=flat, shape=[32, 16])),
        )

    path = saved(build, spec(2, 16))
    file = path / "Data/com.apple.CoreML/model.mlmodel"
    model = ct.proto.Model_pb2.Model()
    model.ParseFromString(file.read_bytes())
    function = model.mlProgram.functions["main"]
    constants = {
        o.outputs[0].name: o.attributes["val"].blobFileValue
        for o in function.block_specializations[function.opset].operations
        if o.type == "const"
    }
    assert audit_file(path).weight_bytes > 3 * W.nbytes
    for name in ("filters", "flat"):
        constants[name].offset = constants["w"].offset
    file.write_bytes(model.SerializeToString())
    audit = audit_file(path)
    assert audit.weight_bytes < 1.1 * W.nbytes
    assert uses(path, "w") == [
        ("linear", "identity"), ("conv_transpose", "transpose"), ("reduce_sum", "reshape>reshape"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("left", "flag", "view"),
    [(True, False, "identity"), (True, True, "transpose"), (False, False, "transpose"),
     (False, True, "identity")],
)  # fmt: skip
def test_how_a_matrix_product_reads_a_weight(saved, left, flag, view):
    square = mb.const  # a square matrix, so that each side may be turned

    def build(x):
        w = square(val=W[:16], name="w")
        if left:
            return mb.matmul(x=w, y=x, transpose_x=flag)
        return mb.matmul(x=x, y=w, transpose_y=flag)

    assert uses(saved(build, spec(16, 16)), "w") == [("matmul", view)]


def test_how_convolutions_and_look_ups_read_a_weight(saved):
    def build(x, tokens):
        w = mb.const(val=FILTERS, name="w")
        h = mb.conv(x=x, weight=w, pad_type="same", strides=[2, 2])
        y = mb.conv_transpose(x=h, weight=w)
        z = mb.einsum(values=(w, x), equation="nchw,nwhu->nchu")
        return y, mb.gather(x=w, indices=tokens), z

    path = saved(build, spec(8, 4, 3, 3), spec(2, dtype=types.int32))
    assert sorted(uses(path, "w")) == [
        ("conv", "identity"), ("conv_transpose", "transpose"), ("einsum", "identity"),
        ("gather", "identity"),
    ]  # fmt: skip
    # Strides, axes and flags are options, not stored tensors.
    assert [tensor.name for tensor in audit_file(path).stored] == ["w"]


def test_uses_are_followed_through_conversions(saved):
    def build(x):
        half = mb.const(val=W.astype(np.float16), name="w")
        wide = mb.cast(x=half, dtype="fp32")
        turned = mb.transpose(x=mb.transpose(x=wide, perm=[1, 0]), perm=[-1, -2])
        flat = mb.reshape(x=mb.squeeze(x=mb.expand_dims(x=wide, axes=[0]), axes=[0]), shape=[-1])
        h = mb.matmul(x=x, y=wide, transpose_y=True)
        return mb.add(x=mb.matmul(x=h, y=turned), y=mb.reduce_mean(x=flat)), half

    path = saved(build, spec(2, 16))
    assert sorted(uses(path, "w")) == [
        ("matmul", "identity"), ("matmul", "transpose>transpose>transpose"),
        ("output", "identity"), ("reduce_mean", "reshape>reshape>reshape"),
    ]  # fmt: skip
    assert audit_file(path).weight_bytes == W.nbytes / 2


@pytest.mark.parametrize("target", ["iOS16", "iOS18"])
def test_compressed_weights_count_as_they_are_stored(saved, target):
    codes = RANDOM.integers(-128, 128, W.shape).astype(np.int8)
    scale = np.abs(B) + 0.1

    def build(x):
        if target == "iOS16":
            w = mb.constexpr_affine_dequantize(
                quantized_data=codes, zero_point=np.int8(3), scale=scale, axis=0, name="w"
            )
        else:
            w = mb.constexpr_blockwise_shift_scale(data=codes, scale=scale[:, None], name="w")
        return mb.matmul(x=mb.matmul(x=x, y=w, transpose_y=True), y=w)

    path = saved(build, spec(2, 16), target=target)
    audit = audit_file(path)
    assert sorted((t.dtype, t.bytes, len(t.uses)) for t in audit.stored) == [
        ("float32", scale.nbytes, 1), ("int8", codes.nbytes, 2),
    ]  # fmt: skip
    (tie,) = audit.ties
    assert [(use.op, use.view) for use in tie.uses] == [
        ("matmul", "identity"), ("matmul", "transpose"),
    ]  # fmt: skip


@pytest.mark.parametrize("bits", [1, 2, 3, 4, 6])
def test_types_below_a_byte_are_counted_and_compared(saved, bits):
    from coremltools.converters.mil.mil.types.type_mapping import string_to_nptype

    codes = RANDOM.integers(0, 2**bits, (64, 48)).astype(np.uint8)
    lut = np.linspace(-1, 1, 2**bits, dtype=np.float32).reshape(1, 1, -1, 1)

    def build(x):
        kind = string_to_nptype(f"uint{bits}")
        one = mb.constexpr_lut_to_dense(indices=codes.astype(kind), lut=lut)
        other = mb.constexpr_lut_to_dense(indices=codes.T.copy().astype(kind), lut=lut)
        return mb.linear(x=mb.linear(x=x, weight=one), weight=other)

    audit = audit_file(saved(build, spec(2, 48), target="iOS18"))
    packed = [tensor for tensor in audit.stored if tensor.dtype == f"uint{bits}"]
    assert [tensor.bytes for tensor in packed] == [codes.size * bits // 8] * 2
    (found,) = [d for d in audit.duplicates if d.name == packed[1].name]
    assert (found.of, found.view) == (packed[0].name, "transpose")


def test_constants_in_the_program_are_stored_tensors(saved):
    small = np.float32([1, 2, 3])

    def build(x):
        y = mb.add(x=x, y=mb.const(val=small, name="small"))
        return mb.mul(x=y, y=2.5), mb.gather(x=y, indices=np.int32([2, 0]), name="g")

    audit = audit_file(saved(build, spec(3)))
    assert [(t.name, t.bytes) for t in audit.stored] == [("small", 12), ("g_indices_0", 8)]


def test_functions_that_share_a_blob_store_it_once(saved, tmp_path):
    path = saved(tied, spec(2, 16))
    joined = ct.utils.MultiFunctionDescriptor()
    for name in ("one", "two"):
        joined.add_function(str(path), "main", name)
    joined.default_function_name = "one"
    both = tmp_path / "both.mlpackage"
    with quiet_coremltools():
        ct.utils.save_multifunction(joined, str(both))
    assert audit_file(both).weight_bytes == W.nbytes + B.nbytes
    assert uses(both, "w") == [("linear", "identity"), ("matmul", "transpose")] * 2


def test_a_bare_model_is_audited_as_its_package(saved, tmp_path):
    path = saved(tied, spec(2, 16))
    shutil.copytree(path / "Data/com.apple.CoreML", tmp_path / "bare")
    assert audit_file(tmp_path / "bare/model.mlmodel") == audit_file(path)
    path.rename(tmp_path / "package")
    assert audit_file(tmp_path / "package").ratio == 1.0


def test_the_command_line_audits_packages(saved):
    path = saved(duplicated, spec(2, 16))
    done = CliRunner().invoke(app, ["audit", str(path)])
    assert done.exit_code == 1
    assert "stored twice: wt is w (transpose), 2,048 bytes" in " ".join(done.output.split())
    shutil.rmtree(path)
    path = saved(tied, spec(2, 16))
    done = CliRunner().invoke(app, ["audit", str(path), "--json"])
    assert done.exit_code == 0
    found = json.loads(done.output)
    assert found["ratio"] == 1.0
    assert [use["view"] for use in found["stored"][0]["uses"]] == ["identity", "transpose"]


def test_a_folder_that_is_no_package_is_refused(tmp_path):
    with pytest.raises(BadFileError, match=r"is not a file; .* \.mlpackage"):
        audit_file(tmp_path)
    with pytest.raises(BadFileError, match=r"is neither a \.mlpackage folder nor"):
        audit_file(tmp_path / "absent.mlpackage")
