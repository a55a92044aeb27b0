from __future__ import annotations

import random
import re
import struct
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from export.audit import audit_file
from export.errors import BadFileError
from export.flatbuffer import FlatBufferError, Schema, read_flatbuffer
from export.tflite_io import check_tflite, read_tflite
from export.tflite_schema import OPERATORS, SCHEMA, TENSOR_TYPES
from tests.export.tflite_files import FILES, S, W, Writer


@cache
def contents(name: str, behind: bool) -> bytes:
    writer = FILES[name]()
    return writer._behind() if behind else writer._pack()


def refused(path: Path, words: str) -> None:
    with pytest.raises(BadFileError, match=words) as caught:
        check_tflite(path)
    assert path.name in str(caught.value)
    assert "\n" not in str(caught.value)
    assert ";" in str(caught.value)  # what to do


# ---- what is read --------------------------------------------------------------------------------


@pytest.mark.parametrize("behind", [False, True])
def test_a_file_reads_back(tmp_path, behind):
    file = read_tflite(FILES["tied"]().save(tmp_path / "m.tflite", behind=behind))
    (graph,) = file.subgraphs
    assert [(p.name, p.tensor) for p in graph.inputs] == [("tokens", 0)]
    assert [(p.name, p.tensor) for p in graph.outputs] == [("features", 3)]
    assert [(o.name, o.inputs, o.outputs) for o in graph.operators] == [
        ("FULLY_CONNECTED", (0, 1, -1), (2,)),
        ("BATCH_MATMUL", (2, 1), (3,)),
    ]
    assert graph.operators[0].options == {"keep_num_dims": True}
    np.testing.assert_array_equal(file.values_of(graph.tensors[1]), W)
    assert file.values_of(graph.tensors[0]) is None
    assert [(s.key, s.subgraph) for s in file.signatures] == [("serve", 0)]
    ((name, place),) = file.metadata
    assert (name, file.buffers[place].data.tobytes()) == ("min_runtime_version", b"2.17.0")


def test_a_graph_without_signature_has_the_names_of_its_tensors(tmp_path):
    file = read_tflite(FILES["two graphs"]().save(tmp_path / "m.tflite"))
    assert [graph.name for graph in file.subgraphs] == ["main", "back"]
    assert [graph.inputs[0].name for graph in file.subgraphs] == ["x", "t0"]


def test_buffers_are_views_of_the_file(tmp_path):
    path = FILES["tied"]().save(tmp_path / "m.tflite")
    buffer = read_tflite(path).buffers[1]
    assert path.read_bytes()[buffer.offset :][: W.nbytes] == W.tobytes()
    assert not buffer.data.flags.owndata
    assert not buffer.data.flags.writeable


def test_types_quantization_and_dimensions_that_are_set_later(tmp_path):
    import ml_dtypes

    writer = Writer()
    numbers = np.arange(6).reshape(2, 3)
    for name, bits in TENSOR_TYPES:
        if bits >= 8:
            kind = np.dtype(getattr(ml_dtypes, name, name))
            writer.constant(numbers.astype(kind), name=name)
    x = writer.input((1, 3))
    writer.graph.tensors[x].shapeSignature = [-1, 3]
    writer.graph.tensors[x].quantization = S.QuantizationParametersT()
    writer.graph.tensors[x].quantization.scale = np.ones(1, np.float32)
    file = read_tflite(writer.save(tmp_path / "m.tflite"))
    *constants, tensor = file.subgraphs[0].tensors
    assert (tensor.signature, tensor.shape, tensor.quantized) == ((-1, 3), (1, 3), True)
    for constant in constants:
        values = file.values_of(constant)
        assert values.shape == (2, 3)
        expected = numbers.astype(np.dtype(getattr(ml_dtypes, constant.dtype, constant.dtype)))
        assert values.tobytes() == expected.tobytes()


def test_operators_that_are_newer_than_this_table_keep_their_number(tmp_path):
    writer = FILES["tied"]()
    writer.model.operatorCodes[0].builtinCode = 5000
    writer.graph.operators[1].builtinOptionsType = 250
    file = read_tflite(writer.save(tmp_path / "m.tflite"))
    assert [o.name for o in file.subgraphs[0].operators] == ["BUILTIN_5000", "BATCH_MATMUL"]
    assert file.subgraphs[0].operators[1].options == {}


LETTERS = {
    "Bool": "?", "Int8": "b", "Uint8": "B", "Uint16": "H", "Int32": "i", "Uint32": "I",
    "Int64": "q", "Uint64": "Q", "Float32": "f",
}  # fmt: skip


def test_the_tables_are_those_of_the_bindings():
    source = Path(S.__file__).read_text()
    counts = re.findall(r"def (\w+)Start\(builder\):\s+builder\.StartObject\((\d+)\)", source)
    for table, count in counts:
        assert len(SCHEMA.tables.get(table, ())) == int(count), table
    assert set(SCHEMA.tables) <= {table for table, _ in counts}
    known = {}
    for table, field, kind, slot in re.findall(
        r"def (\w+?)Add(\w+)\(builder, \w+\):\s+builder\.Prepend(\w+)Slot\((\d+),", source
    ):
        ours = SCHEMA.tables[table][int(slot)]
        known[table, field] = ours
        assert ours.name.replace("_", "") == field.lower(), table
        assert ours.kind == LETTERS.get(kind) or (kind == "UOffsetTRelative" and ours.kind != "")
    vectors = re.findall(
        r"def (\w+?)Start(\w+)Vector\(builder, \w+\):\s+return builder\.StartVector\((\d+),", source
    )
    widths = {letter: struct.calcsize(f"<{letter}") for letter in LETTERS.values()}
    for table, field, width in vectors:
        kind = known[table, field].kind
        assert (kind[0], widths.get(kind[1:-1], 4)) == ("[", int(width)), (table, field)


def test_the_enumerations_are_those_of_the_bindings():
    def named(enumeration: type) -> list[str]:
        values = {v: k for k, v in vars(enumeration).items() if not k.startswith("_")}
        return [values[place] for place in range(len(values))]

    assert list(OPERATORS) == named(S.BuiltinOperator)
    assert [name.upper() for name, _ in TENSOR_TYPES] == named(S.TensorType)
    for union, tables in SCHEMA.unions.items():
        assert ["NONE", *tables[1:]] == named(getattr(S, union))


# ---- what is refused -----------------------------------------------------------------------------


def test_what_is_no_tflite_file(tmp_path):
    refused(tmp_path, "is not a file")
    for content in (b"", b"TFL3", b"\x08\0\0\0TFL", bytes(range(200))):
        (tmp_path / "m.tflite").write_bytes(content)
        refused(tmp_path / "m.tflite", "is no TFLite file")


@pytest.mark.parametrize("behind", [False, True])
@pytest.mark.parametrize("keep", [8, 20, 200, 1000, -1])
def test_a_file_cut_short(tmp_path, keep, behind):
    path = tmp_path / "m.tflite"
    path.write_bytes(contents("tied", behind)[:keep])
    refused(path, "cut short|sound")


def _branch(writer: Writer) -> None:
    options = S.IfOptionsT()
    options.thenSubgraphIndex = 1
    writer.operator("IF", [0], (1,), options)


def _code(writer: Writer) -> None:
    code = writer.model.operatorCodes[0]
    code.builtinCode, code.deprecatedBuiltinCode = -5, -3


def _large_options(writer: Writer) -> None:
    operator = writer.graph.operators[0]
    operator.largeCustomOptionsOffset, operator.largeCustomOptionsSize = 10**6, 5


def _set(item, field, value) -> None:
    setattr(item, field, value)


DAMAGE = {
    r"tensor 'w' lies in buffer 70, there are 3": lambda w: _set(w.graph.tensors[1], "buffer", 70),
    r"tensor 'w' needs 4,096 bytes, its buffer 1 holds 2,048":
        lambda w: _set(w.graph.tensors[1], "shape", [64, 16]),
    r"tensor 'w' has the shape \(-32, -16\)":
        lambda w: _set(w.graph.tensors[1], "shape", [-32, -16]),
    r"tensor 'w' has 65 dimensions": lambda w: _set(w.graph.tensors[1], "shape", [1] * 65),
    r"tensor 'x' has the shape \(-2,\)":
        lambda w: _set(w.graph.tensors[0], "shape", [-2]),
    r"tensor 'w' is of type 99": lambda w: _set(w.graph.tensors[1], "type", 99),
    r"operator 0 of 'main' has code 9, there are 2":
        lambda w: _set(w.graph.operators[0], "opcodeIndex", 9),
    r"the inputs of operator 1 of 'main' \(BATCH_MATMUL\) name tensor 4, there are 4":
        lambda w: _set(w.graph.operators[1], "inputs", [2, 4]),
    r"the outputs of operator 1 of 'main' \(BATCH_MATMUL\) name tensor -2":
        lambda w: _set(w.graph.operators[1], "outputs", [-2]),
    r"operator 2 of 'main' \(IF\) runs subgraph 1, there are 1": _branch,
    r"the options of operator 0 .* end at byte 1,000,005": _large_options,
    r"the outputs of 'main' name tensor -1, there are 4": lambda w: _set(w.graph, "outputs", [-1]),
    r"signature 'serve' calls subgraph 3, there are 1":
        lambda w: _set(w.model.signatureDefs[0], "subgraphIndex", 3),
    r"signature 'serve' calls 'tokens' tensor 44, there are 4":
        lambda w: _set(w.model.signatureDefs[0].inputs[0], "tensorIndex", 44),
    r"metadata 'min_runtime_version' lies in buffer 8":
        lambda w: _set(w.model.metadata[0], "buffer", 8),
    r"metadata lies in buffer -1": lambda w: _set(w.model, "metadataBuffer", [-1]),
    r"it holds no graph": lambda w: _set(w.model, "subgraphs", []),
    r"it holds operator code -3": _code,
}  # fmt: skip


@pytest.mark.parametrize("words", DAMAGE)
def test_what_does_not_fit_together_is_named(tmp_path, words):
    writer = FILES["tied"]()
    DAMAGE[words](writer)
    refused(writer.save(tmp_path / "m.tflite"), words)


@pytest.mark.parametrize(
    ("offset", "size", "words"),
    [
        (10**6, 2048, "buffer 1 ends at byte 1,002,048"),
        (2**64 - 1000, 2048, "buffer 1 ends at byte 18,446,744,073,709,552,664"),
        (8, 2**63, "buffer 1 ends at byte"),
        (8, 100, "tensor 'w' needs 2,048 bytes, its buffer 1 holds 100"),
    ],
)
def test_data_behind_the_flatbuffer_lies_in_the_file(tmp_path, offset, size, words):
    writer = FILES["tied"]()
    writer.model.buffers[1].data = None
    writer.model.buffers[1].offset, writer.model.buffers[1].size = offset, size
    refused(writer.save(tmp_path / "m.tflite"), words)


def test_buffers_that_overlap_in_part_are_refused(tmp_path):
    writer = FILES["duplicated"]()
    path = writer.save(tmp_path / "m.tflite", behind=True)
    writer.model.buffers[2].offset -= 64
    data = path.read_bytes()
    head = writer._pack()
    path.write_bytes(head + data[len(head) :])
    refused(path, "two buffers share a part of their bytes")


# ---- structure alone -----------------------------------------------------------------------------

TREE = Schema.parse("Node = leaves:[Leaf] name:s\nLeaf = numbers:[i]", "")
# Where things lie in `tree`, in bytes: the vtables of Node and Leaf, a Node, and what it holds.
NODE_VTABLE, LEAF_VTABLE, NODE, HELD = 4, 12, 20, 32


def words(*values: int) -> bytes:
    return struct.pack(f"<{len(values)}I", *values)


def tree(leaves: int, name: int, held: bytes) -> bytes:
    """A Node; ``leaves`` and ``name`` are the places to which its fields lead."""
    vtables = struct.pack("<HHHHHHHH", 8, 12, 4, 8, 6, 8, 4, 0)
    fields = words(NODE - NODE_VTABLE, leaves - NODE - 4, name - NODE - 8)
    return words(NODE) + vtables + fields + held


def test_a_sound_tree_reads_back():
    leaf = HELD + 16
    held = words(1, leaf - HELD - 4) + words(2) + b"ab\0\0"
    held += words(leaf - LEAF_VTABLE, 4) + words(2, 7, 8)
    found = read_flatbuffer(tree(HELD, HELD + 8, held), TREE, "Node")
    assert found["name"] == "ab"
    assert found["leaves"][0]["numbers"].tolist() == [7, 8]


@pytest.mark.parametrize(
    ("leaves", "name", "held", "message"),
    [
        (HELD, HELD + 4, words(2**32 - 1), r"Node\.leaves of 4,294,967,295 elements leads"),
        (HELD, HELD + 4, words(0, 2**32 - 1), r"Node\.name of 4,294,967,295 characters leads"),
        (HELD, HELD + 4, words(0, 4) + b"abcdef", r"Node\.name does not end"),
        (HELD, HELD + 2**20, words(0), r"Node\.name leads to byte 1,048,612 of 36"),
        (HELD + 2, HELD, words(0, 0), r"Node\.leaves is not aligned"),
        (NODE + 4, HELD, words(0), r"Node\.leaves leads to itself"),
        (
            HELD,
            HELD,
            words(1, 4) + words(2**31, 0),
            r"vtable of Node\.leaves leads to byte -?2,147",
        ),
        (HELD, HELD, words(1, 4, HELD + 8, 0), r"vtable of Node\.leaves is none"),
    ],
)
def test_offsets_and_counts_are_checked_before_they_are_followed(leaves, name, held, message):
    with pytest.raises(FlatBufferError, match=message):
        read_flatbuffer(tree(leaves, name, held), TREE, "Node")


def test_offsets_that_all_lead_to_one_place_end():
    """A million leaves that are one, of a million numbers, in a file of 8 MB."""
    count = 1_000_000
    leaf = HELD + 4 + 4 * count
    slots = (leaf - np.arange(HELD + 4, leaf, 4)).astype("<u4").tobytes()
    held = words(count) + slots + words(leaf - LEAF_VTABLE, 4) + words(count) + bytes(4 * count)
    with pytest.raises(FlatBufferError, match="far too often"):
        read_flatbuffer(tree(HELD, HELD, held), TREE, "Node")


# ---- damage at random ----------------------------------------------------------------------------


def damage(data: bytes, pick: Callable[[int], int]) -> bytes:
    """Turn, move, put in or take out some bytes; ``pick(n)`` gives a number below n."""
    found = bytearray(data)
    for _ in range(1 + pick(3)):
        at = pick(len(found))
        match pick(6):
            case 0:
                found[at] = pick(256)
            case 1 | 2:  # an offset or index
                at -= at % 4
                extremes = (0, 1, 2**31 - 1, 2**31, 2**32 - 1, len(found))
                number = (*extremes, pick(128), pick(len(found)))[pick(8)]
                found[at : at + 4] = words(number)
            case 3:
                found[at:at] = bytes(pick(256) for _ in range(1 + pick(16)))
            case 4:
                start = pick(len(found))
                found[at : at + 32] = found[start : start + 32]
            case 5:
                del found[max(at, 16) :]
    return bytes(found)


@settings(max_examples=600, deadline=timedelta(seconds=5), suppress_health_check=list(HealthCheck))
@given(name=st.sampled_from(sorted(FILES)), behind=st.booleans(), data=st.data())
def test_damage_is_refused_in_one_line_or_harmless(tmp_path_factory, name, behind, data):
    path = tmp_path_factory.getbasetemp() / "damaged.tflite"
    path.write_bytes(damage(contents(name, behind), lambda n: data.draw(st.integers(0, n - 1))))
    try:
        check_tflite(path)
    except BadFileError as error:
        refusal = str(error)
    else:
        refusal = ""
        for graph in (file := read_tflite(path)).subgraphs:
            for tensor in graph.tensors:
                file.values_of(tensor)
        with suppress(BadFileError):  # weights in another file
            assert audit_file(path).weight_bytes <= path.stat().st_size
    assert "\n" not in refusal


LOAD = """
import resource, sys
from ai_edge_litert.interpreter import Interpreter, OpResolverType
resource.setrlimit(resource.RLIMIT_AS, (8 << 30, 8 << 30))
plain = OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES
for path in sys.argv[1:]:
    print(path, flush=True)
    for kind in (OpResolverType.AUTO, plain):
        try:
            Interpreter(path, experimental_op_resolver_type=kind).allocate_tensors()
        except (ValueError, RuntimeError, UnicodeDecodeError, MemoryError):
            pass
"""


def test_what_is_passed_does_not_crash_the_interpreter(tmp_path):
    """The interpreter may refuse damage that the check lets through, but must live."""
    passed = []
    for seed in range(120):
        random_numbers = random.Random(seed)
        name, behind = sorted(FILES)[seed % len(FILES)], bool(seed % 2)
        path = tmp_path / f"{seed}.tflite"
        path.write_bytes(damage(contents(name, behind), random_numbers.randrange))
        with suppress(BadFileError):
            check_tflite(path)
            passed.append(str(path))
    assert 20 < len(passed) < 100
    done = subprocess.run(
        [sys.executable, "-c", LOAD, *passed], capture_output=True, text=True, check=False,
        timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout.splitlines()[-1] + done.stderr
