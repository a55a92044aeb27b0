from __future__ import annotations

import json
import shutil
import struct
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from export.coreml_blobs import BITS, BLOB_TYPES, unpack
from export.coreml_io import MANIFEST, is_coreml, quiet_coremltools, read_coreml
from export.coreml_records import Constant
from export.errors import BadFileError
from tests.runtimes.coreml_programs import ct, mb, save, types

MODEL = "Data/com.apple.CoreML/model.mlmodel"
WEIGHTS = "Data/com.apple.CoreML/weights/weight.bin"
RANDOM = np.random.default_rng(0)
W = RANDOM.standard_normal((32, 16)).astype(np.float32)


def tied(x):
    w = mb.const(val=W, name="w")
    h = mb.relu(x=mb.linear(x=x, weight=w, bias=W[:, 0]))
    return mb.matmul(x=h, y=w, name="y")


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    path = tmp_path_factory.mktemp("sound") / "m.mlpackage"
    return save(path, tied, [mb.TensorSpec((2, 16))])


@pytest.fixture
def package(sound, tmp_path):
    return Path(shutil.copytree(sound, tmp_path / "m.mlpackage"))


def constants(path):
    found = {}
    for operation in read_coreml(path).main.block.operations:
        if operation.type == "const":
            found[operation.name] = operation.attributes["val"]
        for key, arguments in operation.inputs.items():
            for each in arguments:
                if isinstance(each, Constant):
                    found[f"{operation.name} {key}"] = each
    return found


def refused(path, words):
    with pytest.raises(BadFileError, match=words) as caught:
        read_coreml(path)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)


# ---- what is read -------------------------------------------------------------------------------


def test_a_program_is_read_as_it_was_written(sound):
    file = read_coreml(sound)
    assert (file.default, file.specification, list(file.functions)) == ("main", 8, ["main"])
    assert [(port.name, port.type.dtype, port.type.shape) for port in file.main.block.inputs] == [
        ("x", "float32", (2, 16))
    ]
    computing = [o for o in file.main.block.operations if o.type != "const"]
    assert [o.type for o in computing] == ["linear", "relu", "matmul"]
    assert computing[0].inputs["weight"] == computing[2].inputs["y"] == ("w",)
    assert [(f.name, f.kind, f.dtype) for f in file.main.outputs] == [
        ("y", "multiArray", "float32")
    ]


def test_constants_are_views_of_the_weight_file(sound):
    constant = constants(sound)["w"]
    assert constant.place == ("@model_path/weights/weight.bin", 128)
    assert not constant.values.flags.owndata
    assert not constant.values.flags.writeable
    np.testing.assert_array_equal(constant.values, W)


@pytest.mark.parametrize(
    "dtype", ["float16", "float32", "int8", "uint8", "int16", "uint16", "int32"]
)
@pytest.mark.parametrize("size", [3, 64])
def test_every_type_is_read(tmp_path, dtype, size):
    values = (RANDOM.random((size, 2)) * 100).astype(dtype)

    def build(x):
        return mb.add(x=x, y=mb.cast(x=mb.const(val=values, name="c"), dtype="fp32"))

    path = save(tmp_path / "m.mlpackage", build, [mb.TensorSpec((size, 2))], target="iOS18")
    found = constants(path)["c"]
    assert (found.place is not None) == (size == 64)
    assert found.type.dtype == dtype
    np.testing.assert_array_equal(found.values, values)
    assert found.values.dtype == dtype


@pytest.mark.parametrize("dtype", ["int4", "uint4", "int8", "uint1", "uint2", "uint3", "uint6"])
@pytest.mark.parametrize("shape", [(3, 2), (64, 3)])
def test_types_below_a_byte_are_unpacked(tmp_path, dtype, shape):
    from coremltools.converters.mil.mil.types.type_mapping import string_to_nptype

    bits = BITS[dtype]
    least = -(2 ** (bits - 1)) if dtype.startswith("int") else 0
    values = RANDOM.integers(least, least + 2**bits, shape).astype("int8")
    typed = values.astype(string_to_nptype(dtype))

    def build(x):
        if dtype in {"int4", "uint4", "int8"}:
            scale = np.ones((1, 1), np.float32)
            weight = mb.constexpr_blockwise_shift_scale(data=typed, scale=scale)
        else:
            lut = np.zeros((1, 1, 2**bits, 1), np.float32)
            weight = mb.constexpr_lut_to_dense(indices=typed, lut=lut)
        return mb.add(x=x, y=weight)

    path = save(tmp_path / "m.mlpackage", build, [mb.TensorSpec(shape)], target="iOS18")
    (found,) = [c for c in constants(path).values() if c.type.dtype == dtype]
    assert found.data.size == -(-values.size * bits // 8)
    np.testing.assert_array_equal(found.values, values)


@given(st.integers(1, 7), st.lists(st.integers(0, 127), max_size=40), st.booleans())
def test_unpacking_undoes_packing(bits, numbers, signed):
    numbers = [number % 2**bits for number in numbers]
    whole = sum(number << (place * bits) for place, number in enumerate(numbers))
    data = np.frombuffer(whole.to_bytes(-(-len(numbers) * bits // 8), "little"), np.uint8)
    if signed:
        numbers = [number - 2**bits * (number >= 2 ** (bits - 1)) for number in numbers]
    assert unpack(data, bits, len(numbers), signed=signed).tolist() == numbers


def test_a_bare_model_is_read_with_its_weights_beside_it(sound, tmp_path):
    shutil.copytree(sound / Path(MODEL).parent, tmp_path / "bare")
    np.testing.assert_array_equal(constants(tmp_path / "bare/model.mlmodel")["w"].values, W)


def test_the_content_says_what_is_a_package(sound, tmp_path):
    plain = Path(shutil.copytree(sound, tmp_path / "plain"))
    assert is_coreml(plain)
    assert constants(plain).keys() == constants(sound).keys()
    assert not is_coreml(tmp_path)
    assert is_coreml(tmp_path / "absent.mlpackage")


def test_functions_of_a_program_are_read_with_their_features(package, tmp_path):
    joined = ct.utils.MultiFunctionDescriptor()
    for name in ("one", "two"):
        joined.add_function(str(package), "main", name)
    joined.default_function_name = "two"
    with quiet_coremltools():
        ct.utils.save_multifunction(joined, str(tmp_path / "both.mlpackage"))
    file = read_coreml(tmp_path / "both.mlpackage")
    assert sorted(file.functions) == ["one", "two"]
    assert file.main is file.functions["two"]
    assert [feature.name for feature in file.functions["one"].inputs] == ["x"]


# ---- what is refused ----------------------------------------------------------------------------


def test_what_is_no_package_is_refused(package, tmp_path):
    refused(tmp_path / "absent.mlpackage", "is neither a .mlpackage folder nor a .mlmodel file")
    refused(tmp_path / "model.mlmodelc", "is compiled; give the .mlpackage")
    (tmp_path / "empty").mkdir()
    refused(tmp_path / "empty", r"has no Manifest\.json; give the path of a \.mlpackage folder")
    (package / WEIGHTS).unlink()
    refused(package, r"w' lies in '@model_path/weights/weight\.bin', which is missing; export it")
    (package / MODEL).unlink()
    refused(package, r"is not complete: there is no Data/com\.apple\.CoreML/model\.mlmodel; copy")


def test_a_neural_network_is_refused_with_the_remedy(tmp_path):
    model = ct.proto.Model_pb2.Model()
    model.specificationVersion = 4
    model.neuralNetwork.SetInParent()
    path = tmp_path / "m.mlmodel"
    path.write_bytes(model.SerializeToString())
    refused(path, "no ML Program but a model of kind neuralNetwork; .*convert_to='mlprogram'")
    path.write_bytes(b"")
    refused(path, "no ML Program but an empty model")
    path.write_bytes(b"something else")
    refused(path, r"corrupt or cut short: m\.mlmodel is no Core ML model; copy it or")


@pytest.mark.parametrize(
    "content",
    ["", "{", "[]", "1", '{"rootModelIdentifier": "A"}', "[" * 200_000, "\udcff",
     json.dumps({"rootModelIdentifier": "A", "itemInfoEntries": {"A": {"path": "../../x"}}}),
     json.dumps({"rootModelIdentifier": "A", "itemInfoEntries": {"A": {"path": "/etc/passwd"}}}),
     json.dumps({"rootModelIdentifier": "A", "itemInfoEntries": {"A": {"path": "a\0b"}}}),
     json.dumps({"rootModelIdentifier": ["A"], "itemInfoEntries": {}})],
)  # fmt: skip
def test_a_manifest_that_names_no_model_is_refused(package, content):
    (package / MANIFEST).write_text(content, errors="surrogateescape")
    refused(package, r"Manifest\.json is corrupt: it names no model; copy the package")


def test_a_manifest_that_is_too_large_is_not_read(package):
    with (package / MANIFEST).open("wb") as file:
        file.truncate(2**20 + 1)
    refused(package, "has 1,048,577 bytes, more than the 1,048,576 that can be read")


def test_a_model_that_protobuf_cannot_hold_is_not_read(package):
    with (package / MODEL).open("wb") as file:
        file.truncate(2**31)
    refused(package, r"model\.mlmodel has 2,147,483,648 bytes, .* its weights in a file of their")


def edit(package, change):
    model = ct.proto.Model_pb2.Model()
    model.ParseFromString((package / MODEL).read_bytes())
    function = model.mlProgram.functions["main"]
    change(function.block_specializations[function.opset], model)
    (package / MODEL).write_bytes(model.SerializeToString())


def operation(block, name):
    return next(each for each in block.operations if each.outputs[0].name == name)


def stored(block):
    return operation(block, "w").attributes["val"]


def _dimension(block, size):
    for kind in (stored(block).type, operation(block, "w").outputs[0].type):
        kind.tensorType.dimensions[0].constant.size = size


def _file(block, name):
    stored(block).blobFileValue.fileName = name


DAMAGE = {
    r"'w' has the shape \(288230376151711744, 16\), which is beyond any file":
        lambda b, m: _dimension(b, 2**58),
    r"'w' has the shape \(9223372036854775808, 16\), which is beyond any file":
        lambda b, m: _dimension(b, 2**63),
    r"val of const 'w' is float32 of 4,096 bytes, its blob at byte 64 of .* is float32 of 2,048":
        lambda b, m: _dimension(b, 64),
    r"val of const 'w' is float16 of 1,024 bytes":
        lambda b, m: setattr(stored(b).type.tensorType, "dataType", 10),
    r"val of const 'w' is of type 99, which is not known":
        lambda b, m: setattr(stored(b).type.tensorType, "dataType", 99),
    r"val of const 'w' has rank 3 and 2 dimensions":
        lambda b, m: setattr(stored(b).type.tensorType, "rank", 3),
    r"val of const 'w' lies in .*, but there is no blob at byte 0 of":
        lambda b, m: setattr(stored(b).blobFileValue, "offset", 0),
    r"but there is no blob at byte 128$|but there is no blob at byte 128;":
        lambda b, m: setattr(stored(b).blobFileValue, "offset", 128),
    r"but there is no blob at byte 18,446,744,073,709,551,552 of":
        lambda b, m: setattr(stored(b).blobFileValue, "offset", 2**64 - 64),
    r"lies in '@model_path/\.\./\.\./x', which is outside the package":
        lambda b, m: _file(b, "@model_path/../../x"),
    r"lies in '/etc/passwd', which is outside the package": lambda b, m: _file(b, "/etc/passwd"),
    r"lies in '@model_path//etc/passwd', which is outside":
        lambda b, m: _file(b, "@model_path//etc/passwd"),
    r"'@model_path/model\.mlmodel' is no weight file: it is of version":
        lambda b, m: _file(b, "@model_path/model.mlmodel"),
    r"y of matmul 'y' is the value 'nothing', which nothing has made by then":
        lambda b, m: setattr(operation(b, "y").inputs["y"].arguments[0], "name", "nothing"),
    r"function 'main' makes the value 'x' twice":
        lambda b, m: setattr(operation(b, "w").outputs[0], "name", "x"),
    r"function 'main' gives out the value 'gone', which": lambda b, m: b.outputs.append("gone"),
    r"const 'w' has no value": lambda b, m: operation(b, "w").attributes.pop("val"),
    r"val of const 'w' has no type": lambda b, m: stored(b).ClearField("type"),
    r"function 'main' has no 'z' that it is said to have":
        lambda b, m: setattr(m.description.output[0], "name", "z"),
    r"feature 'x' has no type": lambda b, m: m.description.input[0].ClearField("type"),
    r"it runs function 'second', there is none":
        lambda b, m: setattr(m.description, "defaultFunctionName", "second"),
    r"function 'main' has no operators for 'CoreML99'":
        lambda b, m: setattr(m.mlProgram.functions["main"], "opset", "CoreML99"),
    r"it holds no function": lambda b, m: m.mlProgram.ClearField("functions"),
    r"is bool \[\], and 2 values are there": lambda b, m: operation(b, "y_transpose_x_0")
        .attributes["val"].immediateValue.tensor.bools.values.append(True),
    r"is bool and has its values in 'floats'": lambda b, m: operation(b, "y_transpose_x_0")
        .attributes["val"].immediateValue.tensor.floats.values.append(1.0),
}  # fmt: skip


@pytest.mark.parametrize("words", DAMAGE)
def test_what_does_not_fit_together_is_named(package, words):
    edit(package, DAMAGE[words])
    refused(package, words)


RECORD = struct.Struct("<IIQQQ")


@pytest.mark.parametrize(
    ("place", "fields", "words"),
    [
        (64, (0xDEADBEEF, 2, 2**40, 128, 0), "data from byte 128 to 1,099,511,627,904 of"),
        (64, (0xDEADBEEF, 2, 2048, 2**40, 0), "data from byte 1,099,511,627,776 to"),
        (64, (0xDEADBEEF, 2, 2**64 - 64, 128, 0), "data from byte 128 to"),
        (64, (0xDEADBEEF, 2, 2048, 64, 0), "data from byte 64 to 2,112"),
        (64, (0xDEADBEEF, 99, 2048, 128, 0), "is of type 99, which is not known"),
        (64, (0xDEADBEEF, 2, 2048, 128, 9), "holds a broken number of values"),
        (64, (0xDEADBEEF, 2, 1024, 128, 0), "is float32 of 2,048 bytes, its blob"),
        (64, (0xDEADBEEF, 1, 2048, 128, 0), "is float16 of 2,048"),
        (64, (0xDEADBEE0, 2, 2048, 128, 0), "there is no blob at byte 64"),
        (0, (3, 1, 0, 0, 0), "no weight file: it is of version 1, not 2"),
        (0, (10**6, 2, 0, 0, 0), "it says it holds 1,000,000 blobs, more than its size allows"),
        (2176, (0xDEADBEEF, 2, 128, 2112, 0), "data from byte 2,112"),
    ],
)
def test_records_are_checked_before_they_are_followed(package, place, fields, words):
    data = bytearray((package / WEIGHTS).read_bytes())
    RECORD.pack_into(data, place, *fields)
    (package / WEIGHTS).write_bytes(data)
    refused(package, words)


def test_blobs_that_overlap_in_part_are_refused(package):
    data = bytearray((package / WEIGHTS).read_bytes())
    RECORD.pack_into(data, 2240 - 64, 0xDEADBEEF, 2, 128, 2240, 0)
    RECORD.pack_into(data, 2048, 0xDEADBEEF, 2, 128, 2112, 0)  # within the data of w
    (package / WEIGHTS).write_bytes(data)

    def change(block, model):
        name = next(o.outputs[0].name for o in block.operations if "bias" in o.outputs[0].name)
        operation(block, name).attributes["val"].blobFileValue.offset = 2048

    edit(package, change)
    refused(package, r"two blobs of '@model_path/weights/weight\.bin' share a part of their bytes")


def test_a_weight_file_that_is_cut_short_is_refused(package):
    data = (package / WEIGHTS).read_bytes()
    for size, words in ((0, "holds 0 bytes, fewer than a header"), (63, "63 bytes, fewer"),
                        (64, "more than its size allows"),
                        (512, "data from byte 128 to 2,176 of 512")):  # fmt: skip
        (package / WEIGHTS).write_bytes(data[:size])
        refused(package, words)


def test_every_type_of_a_blob_has_a_width():
    assert set(BLOB_TYPES.values()) <= BITS.keys()
    assert types.int4.get_bitwidth() == BITS["int4"]


# ---- damage at random ---------------------------------------------------------------------------


def damage(data: bytes, pick) -> bytes:
    """Turn, move, put in or take out some bytes; ``pick(n)`` gives a number below n."""
    found = bytearray(data)
    for _ in range(1 + pick(3)):
        at = pick(len(found))
        match pick(6):
            case 0:
                found[at] = pick(256)
            case 1:
                found[at] ^= 1 << pick(8)
            case 2:
                at -= at % 8
                number = (0, 1, 2**31, 2**63, 2**64 - 1, len(found), pick(len(found)))[pick(7)]
                found[at : at + 8] = struct.pack("<Q", number)
            case 3:
                found[at:at] = bytes(pick(256) for _ in range(1 + pick(16)))
            case 4:
                start = pick(len(found))
                found[at : at + 32] = found[start : start + 32]
            case 5:
                del found[max(at, 1) :]
    return bytes(found)


def everything(constant):
    if constant.type.dtype in BITS:
        assert constant.values.shape == constant.type.fixed
    for item in constant.items:
        if isinstance(item, Constant):
            everything(item)


@settings(max_examples=600, deadline=timedelta(seconds=5), suppress_health_check=list(HealthCheck))
@given(name=st.sampled_from([MANIFEST, MODEL, WEIGHTS, MODEL]), data=st.data())
def test_damage_is_refused_in_one_line_or_harmless(sound, tmp_path_factory, name, data):
    package = tmp_path_factory.getbasetemp() / "damaged.mlpackage"
    shutil.copytree(sound, package, dirs_exist_ok=True)
    whole = (sound / name).read_bytes()
    (package / name).write_bytes(damage(whole, lambda n: data.draw(st.integers(0, n - 1))))
    refusal = ""
    try:
        for function in read_coreml(package).functions.values():
            for each in function.block.operations:
                for constant in each.attributes.values():
                    everything(constant)
    except BadFileError as error:
        refusal = str(error)
    assert "\n" not in refusal
    assert not refusal or str(package) in refusal
