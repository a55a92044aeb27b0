"""Sizes that vary, more axes than Core ML has, numbers beyond float16, and what is refused."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from export.errors import LoweringError, OutputError, UnknownNameError
from export.lower.coreml import CoremlOptions, ImageInput, Range, write_mlpackage
from export.onnx_io import save_model
from runtimes.coreml_reference import open_session
from tests.export.lower.coreml_models import (
    blobs_of,
    parsed,
    with_core_ml,
    with_onnx_runtime,
)
from tests.runtimes.coreml_programs import operators_of

R = np.random.default_rng(0)


def normal(*shape):
    return R.normal(size=shape).astype(np.float32)


def ints(*values):
    return np.asarray(values, np.int64)


# ---- sizes that vary --------------------------------------------------------------------------

# Graphs whose shapes are computed while they run.
VARYING = {
    "heads": (
        "g (float[b, s, 12] x) => (float[b, s, 12] y) {"
        " z = Shape(x) two = Slice(z, from, to) shape = Concat<axis=0>(two, heads)"
        " h = Reshape(x, shape) t = Transpose<perm=[0, 2, 1, 3]>(h)"
        " u = Transpose<perm=[0, 2, 1, 3]>(t) y = Reshape(u, z) }",
        {"from": ints(0), "to": ints(2), "heads": ints(3, 4)},
    ),
    "positions": (
        "g (int64[b, s] x) => (float[b, s, 6] y) {"
        " z = Shape(x) n = Gather<axis=0>(z, one) r = Range(zero, n, one) w = Gather(P, r)"
        " e = Gather(E, x) y = Add(e, w) }",
        {"P": normal(40, 6), "E": normal(30, 6), "one": np.int64(1), "zero": np.int64(0)},
    ),
    "a causal mask": (
        "g (float[b, s, 6] x) => (float[b, s, 6] y) {"
        " z = Shape(x) n = Gather<axis=0>(z, one) r = Range(zero, n, one) "
        " row = Unsqueeze(r, axis0) col = Unsqueeze(r, axis1) kept = LessOrEqual(row, col)"
        " m = Where(kept, none, far) t = Transpose<perm=[0, 2, 1]>(x) s0 = MatMul(x, t)"
        " s1 = Add(s0, m) p = Softmax<axis=-1>(s1) y = MatMul(p, x) }",
        {"one": np.int64(1), "zero": np.int64(0), "axis0": ints(0), "axis1": ints(1),
         "none": np.float32(0), "far": np.float32(-3.4028235e38)},
    ),
    "a part of a table": (
        "g (float[b, s, 6] x) => (float[b, s, 6] y) {"
        " z = Shape(x) n = Slice(z, one, two) p = Slice(P, zero, n, zero) y = Add(x, p) }",
        {"P": normal(40, 6), "one": ints(1), "two": ints(2), "zero": ints(0)},
    ),
    "zeros in front": (
        "g (float[b, s, 6] x) => (float[b, t, 6] y) {"
        " z = Shape(x) n = Slice(z, zero, one) m = Concat<axis=0>(n, rest)"
        " c = ConstantOfShape(m) y = Concat<axis=1>(c, x) }",
        {"zero": ints(0), "one": ints(1), "rest": ints(1, 6)},
    ),
    "one that grows": (
        "g (float[b, s, 6] x) => (float[b, t, 6] y) {"
        " d = Concat<axis=1>(x, x) z = Shape(d) r = Reshape(d, z) f = Expand(P, z)"
        " y = Mul(r, f) }",
        {"P": normal(6)},
    ),
    "flags for each": (
        "g (int64[b, s] x) => (float[b, h, s, s] y) {"
        " m = Cast<to=9>(x) u = Unsqueeze(m, axes) z = Shape(x) n = Gather<axis=0>(z, one)"
        " k = Gather<axis=0>(z, zero) n1 = Unsqueeze(n, axis0) k1 = Unsqueeze(k, axis0)"
        " s4 = Concat<axis=0>(k1, single, n1, n1) e = Expand(u, s4) y = Cast<to=1>(e) }",
        {"axes": ints(1, 2), "axis0": ints(0), "single": ints(2), "one": np.int64(1),
         "zero": np.int64(0)},
    ),
}  # fmt: skip


@pytest.mark.parametrize("precision", ["float32", "float16"])
@pytest.mark.parametrize("case", VARYING)
def test_sizes_may_vary(case, precision, tmp_path):
    text, weights = VARYING[case]
    model = parsed(text, **weights)
    path = tmp_path / "varying.mlpackage"
    write_mlpackage(model, path, precision)
    session = open_session(path)
    for batch, length in ((1, 1), (2, 7), (3, 16)):
        kind = model.graph.inputs[0].dtype
        x = normal(batch, length, *[s for s in model.graph.inputs[0].shape if isinstance(s, int)])
        feeds = {"x": x if kind.is_floating_point() else (abs(x) * 9).astype(np.int64) % 30}
        (wanted,) = with_onnx_runtime(model, feeds).values()
        (found,) = session.run(feeds).values()
        limit = {"float32": 1e-5, "float16": 1e-2}[precision] * max(1, abs(wanted).max())
        np.testing.assert_allclose(found, wanted, rtol=0, atol=limit)


def description(path):
    from export.coreml_io import import_coremltools

    model = import_coremltools().proto.Model_pb2.Model()
    model.ParseFromString((path / "Data/com.apple.CoreML/model.mlmodel").read_bytes())
    return model


def ranges(path):
    """The bounds of each axis of the first input, and the default shape."""
    array = description(path).description.input[0].type.multiArrayType
    sizes = [(r.lowerBound, r.upperBound) for r in array.shapeRange.sizeRanges]
    listed = [tuple(shape.shape) for shape in array.enumeratedShapes.shapes]
    return sizes or listed, tuple(array.shape)


BATCHES = "g (float[batch, length, 6] x) => (float[batch, length, 6] y) { y = Relu(x) }"


@pytest.mark.parametrize(
    ("dimensions", "sizes", "usual"),
    [
        ({}, [(1, 64), (1, 512), (6, 6)], (1, 64, 6)),
        ({"batch": 2, "length": Range(4, 32)}, [(2, 2), (4, 32), (6, 6)], (2, 32, 6)),
        ({"batch": Range(1, 8, 4), "length": 5}, [(1, 8), (5, 5), (6, 6)], (4, 5, 6)),
        ({"batch": (1, 4), "length": 3}, [(1, 3, 6), (4, 3, 6)], (1, 3, 6)),
        ({"batch": (1, 4), "length": (9, 3)},
         [(1, 9, 6), (1, 3, 6), (4, 9, 6), (4, 3, 6)], (1, 9, 6)),
    ],
)  # fmt: skip
def test_the_sizes_of_an_axis_can_be_chosen(dimensions, sizes, usual, tmp_path):
    path = tmp_path / "sizes.mlpackage"
    write_mlpackage(parsed(BATCHES), path, options=CoremlOptions(dimensions=dimensions))
    assert ranges(path) == (sizes, usual)
    x = normal(*usual)
    np.testing.assert_allclose(open_session(path).run({"x": x})["y"], np.maximum(x, 0), atol=1e-3)


@pytest.mark.parametrize(
    ("dimensions", "words"),
    [
        ({"width": 3}, "no dynamic axis is called 'width'; there are: batch, length"),
        ({"batch": Range(4, 2)}, "axis 'batch' cannot have the sizes"),
        ({"batch": (1, 2)}, "has listed sizes on one axis and a range on another"),
        ({"batch": tuple(range(1, 20)), "length": tuple(range(1, 20))}, "would have 361 shapes"),
    ],
)
def test_sizes_that_cannot_be_are_refused(dimensions, words, tmp_path):
    with pytest.raises(LoweringError, match=words):
        write_mlpackage(
            parsed(BATCHES), tmp_path / "m.mlpackage", options=CoremlOptions(dimensions=dimensions)
        )


# ---- more axes than Core ML has ---------------------------------------------------------------

WINDOWS = (
    "g (float[b, 8, 12, 3] x) => (float[n, 16, 3] y, float[b, 8, 12, 3] z) {"
    " r = Reshape(x, six) t = Transpose<perm=[0, 1, 3, 2, 4, 5]>(r) y = Reshape(t, three)"
    " q = Reshape(y, back) u = Transpose<perm=[0, 1, 3, 2, 4, 5]>(q) z = Reshape(u, four) }"
)
SHAPES = {
    "six": ints(-1, 2, 4, 3, 4, 3), "three": ints(-1, 16, 3), "back": ints(-1, 2, 3, 4, 4, 3),
    "four": ints(-1, 8, 12, 3),
}  # fmt: skip


def test_windows_of_an_image_need_six_axes_in_onnx_alone(tmp_path):
    model = parsed(WINDOWS, **SHAPES)
    feeds = {"x": normal(2, 8, 12, 3)}
    expected = with_onnx_runtime(model, feeds)
    found = with_core_ml(model, feeds, tmp_path / "windows.mlpackage")
    for name, wanted in expected.items():
        np.testing.assert_array_equal(found[name], wanted)


def test_a_computed_tensor_of_six_axes_is_refused(tmp_path):
    model = parsed(
        "g (float[b, 8, 12, 3] x) => (float[b, 2, 4, 3, 4, 3] y) {"
        " r = Reshape(x, six) y = Relu(r) }",
        six=SHAPES["six"],
    )
    with pytest.raises(LoweringError, match="a tensor of 6 axes; Core ML has 5"):
        write_mlpackage(model, tmp_path / "six.mlpackage")


# ---- numbers beyond float16 -------------------------------------------------------------------


def test_masks_stay_finite_and_epsilons_above_zero_in_float16(tmp_path):
    model = parsed(
        "g (float[b, 4, 6] x, int64[b, 4] m) => (float[b, 4, 4] y, float[b, 4, 6] z) {"
        " k = Cast<to=9>(m) u = Unsqueeze(k, one) w = Where(u, none, far) v = Add(w, w)"
        " t = Transpose<perm=[0, 2, 1]>(x) s = MatMul(x, t) a = Add(s, v) y = Softmax(a)"
        " o = Mul(x, zero) z = LayerNormalization<axis=-1, epsilon=1e-12>(o, g, h) }",
        one=ints(1), none=np.float32(0), far=np.float32(-3.4028235e38), zero=np.float32(0),
        g=np.ones(6, np.float32), h=np.zeros(6, np.float32),
    )  # fmt: skip
    feeds = {"x": normal(2, 4, 6), "m": np.asarray([[1, 1, 0, 1], [0, 0, 0, 0]])}
    found = with_core_ml(model, feeds, tmp_path / "m.mlpackage", "float16")
    expected = with_onnx_runtime(model, {**feeds, "m": np.asarray([[1, 1, 0, 1], [1, 1, 1, 1]])})
    np.testing.assert_allclose(found["y"][0], expected["y"][0], atol=1e-2)
    assert np.isfinite(found["y"]).all()
    assert (found["z"] == 0).all()


def test_weights_beyond_float16_become_its_largest_number(tmp_path, monkeypatch):
    monkeypatch.setattr("export.lower.coreml.package._INLINE_BYTES", 0)
    weight = np.asarray([[1e6, -1e5, 1.0, 7e4]] * 3, np.float32)
    model = parsed("g (float[b, 3] x) => (float[b, 4] y) { y = MatMul(x, W) }", W=weight)
    path = tmp_path / "m.mlpackage"
    write_mlpackage(model, path)
    (stored,) = blobs_of(path)
    np.testing.assert_array_equal(stored.reshape(4, 3).T[0], [65504, -65504, 1, 65504])


WRITTEN_OUT = (
    "g (float[b, s, 12] x) => (float[b, s, 12] y) {"
    " m = ReduceMean<keepdims=1>(x, last) d = Sub(x, m) q = Pow(d, two)"
    " v = ReduceMean<keepdims=1>(q, last) e = Add(v, eps) r = Sqrt(e) n = Div(d, r)"
    " w = Mul(n, g) y = Add(w, h) }"
)
NORM = {
    "last": ints(-1), "two": np.float32(2), "eps": np.float32(1e-12), "g": normal(12),
    "h": normal(12),
}  # fmt: skip


@pytest.mark.parametrize(
    "text",
    [
        WRITTEN_OUT,
        WRITTEN_OUT.replace("Pow(d, two)", "Mul(d, d)").replace("Add(v, eps)", "Add(eps, v)"),
        WRITTEN_OUT.replace(" w = Mul(n, g) y = Add(w, h)", " y = Identity(n)"),
        WRITTEN_OUT.replace("y = Add(w, h)", "y = Identity(w)"),
    ],
)
def test_a_norm_that_is_written_out_is_one_operator(text, tmp_path):
    model = parsed(text, **NORM)
    feeds = {"x": 1000 * normal(2, 3, 12)}  # whose squares are beyond float16
    path = tmp_path / "norm.mlpackage"
    (wanted,) = with_onnx_runtime(model, feeds).values()
    (found,) = with_core_ml(model, feeds, path, "float16").values()
    np.testing.assert_allclose(found, wanted, rtol=0, atol=2e-2)
    assert set(operators_of(path)) == {"const", "cast", "layer_norm"}


@pytest.mark.parametrize(
    ("part", "other"),
    [
        ("Sub(x, m)", "Sub(m, x)"), ("Pow(d, two)", "Mul(d, x)"), ("Div(d, r)", "Div(x, r)"),
        ("ReduceMean<keepdims=1>(q, last)", "ReduceMean<keepdims=1>(q, first)"),
    ],
)  # fmt: skip
def test_what_is_no_norm_is_not_taken_for_one(part, other, tmp_path):
    model = parsed(WRITTEN_OUT.replace(part, other), **NORM, first=ints(1))
    feeds = {"x": 3 + abs(normal(2, 3, 12))}
    path = tmp_path / "norm.mlpackage"
    (wanted,) = with_onnx_runtime(model, feeds).values()
    (found,) = with_core_ml(model, feeds, path, "float32").values()
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-4)
    assert "layer_norm" not in operators_of(path)


# ---- metadata ---------------------------------------------------------------------------------

IMAGE = (
    "g (float[batch, 3, 8, 8] image) => (float[batch, 10] logits) {"
    " f = Flatten(image) logits = Gemm<transB=1>(f, W, c) }"
)
CLASSIFIER = {"W": 0.1 * normal(10, 192), "c": normal(10)}
LABELS = tuple(f"class {i}" for i in range(10))


def test_a_classifier_of_images_says_what_it_is(tmp_path):
    model = parsed(IMAGE, **CLASSIFIER)
    path = tmp_path / "m.mlpackage"
    scale, bias = (0.01, 0.02, 0.03), (-1.0, -1.5, -2.0)
    write_mlpackage(
        model, path, "float32",
        options=CoremlOptions(
            deployment_target="iOS16", image=ImageInput("image", scale, bias, "BGR"),
            class_labels=LABELS, author="An author", licence="MIT", description="What it does",
            version="1.2", metadata={"trained on": "images"},
            input_descriptions={"image": "8 by 8"}, output_descriptions={"logits": "raw"},
        ),
    )  # fmt: skip
    spec = description(path)
    told = spec.description
    assert spec.specificationVersion == 7
    assert [f.name for f in told.input] == ["image"]
    kind = told.input[0].type.imageType
    assert (kind.width, kind.height, kind.ColorSpace.Name(kind.colorSpace)) == (8, 8, "BGR")
    assert told.input[0].shortDescription == "8 by 8"
    assert {f.name: f.shortDescription for f in told.output}["logits"] == "raw"
    assert told.predictedFeatureName == "classLabel"
    assert told.metadata.author == "An author"
    assert told.metadata.license == "MIT"
    assert told.metadata.shortDescription == "What it does"
    assert told.metadata.versionString == "1.2"
    assert told.metadata.userDefined["trained on"] == "images"
    pixels = R.integers(0, 256, (1, 3, 8, 8)).astype(np.float32)
    seen = pixels * np.reshape(scale, (3, 1, 1)) + np.reshape(bias, (3, 1, 1))
    wanted = with_onnx_runtime(model, {"image": seen.astype(np.float32)})["logits"]
    found = open_session(path).run({"image": pixels})
    np.testing.assert_allclose(found["logits"], wanted, rtol=1e-4, atol=1e-4)
    assert str(np.asarray(found["classLabel"]).item()) == LABELS[wanted.argmax()]
    shares = np.exp(wanted - wanted.max())
    probabilities = np.ravel(found["classLabel_probs"])
    np.testing.assert_allclose(probabilities, np.ravel(shares / shares.sum()), atol=1e-4)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (CoremlOptions(image=ImageInput("photo")), "no input is called 'photo'; there are: image"),
        (CoremlOptions(image=ImageInput("image", colour="GRAYSCALE")), r"needs \(1, 1, height"),
        (CoremlOptions(image=ImageInput("image", colour="CMYK")), "RGB, BGR, GRAYSCALE"),
        (CoremlOptions(image=ImageInput("image", bias=(1, 2))), "2 numbers for the 3 channels"),
        (CoremlOptions(class_labels=("a", "b")), "2 class labels for output 'logits'"),
    ],
)
def test_options_that_do_not_fit_are_refused(options, words, tmp_path):
    with pytest.raises(LoweringError, match=words):
        write_mlpackage(parsed(IMAGE, **CLASSIFIER), tmp_path / "m.mlpackage", options=options)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("target", ["iOS15", "iOS16", "iOS17", "iOS18", "iOS26"])
def test_older_and_newer_systems(target, tmp_path):
    path = tmp_path / "m.mlpackage"
    model = parsed(VARYING["positions"][0], **VARYING["positions"][1])
    options = CoremlOptions(deployment_target=target)
    found = with_core_ml(model, {"x": np.asarray([[1, 2, 3]])}, path, options=options)
    expected = with_onnx_runtime(model, {"x": np.asarray([[1, 2, 3]])})
    np.testing.assert_allclose(found["y"], expected["y"], atol=1e-6)


def test_names_keep_to_what_core_ml_allows(tmp_path):
    model = parsed("g (float[b, 3] x) => (float[b, 3] y) { y = Relu(x) }")
    model.graph.inputs[0].name, model.graph.outputs[0].name = "in.put:0", "0/out put"
    session = open_session(_written(model, tmp_path))
    assert [spec.name for spec in session.inputs] == ["in_put_0"]
    assert [spec.name for spec in session.outputs] == ["_0_out_put"]


def test_outputs_that_are_inputs_constants_or_each_other(tmp_path):
    model = parsed(
        "g (float[b, 12] x, bool[b] f) => (float[b, 12] x1, float[b, 12] y, float[b, 12] z,"
        " int64[b, 12] i, bool[b] n) {"
        " x1 = Identity(x) y = Relu(x) z = Identity(y) i = Cast<to=7>(x) n = Not(f) }"
    )
    feeds = {"x": normal(2, 12), "f": np.asarray([True, False])}
    path = _written(model, tmp_path, "float32")
    expected = with_onnx_runtime(model, feeds)
    found = open_session(path).run({**feeds, "f": feeds["f"].astype(np.float32)})
    assert list(found) == list(expected)
    for name, wanted in expected.items():
        np.testing.assert_array_equal(found[name], wanted)
    assert [str(found[name].dtype) for name in ("y", "i", "n")] == ["float32", "int32", "float32"]


def _written(model, folder, precision="float16"):
    path = folder / "m.mlpackage"
    write_mlpackage(model, path, precision)
    return path


# ---- what is refused, and how -----------------------------------------------------------------


def test_everything_without_a_form_is_named_at_once_and_nothing_is_written(tmp_path):
    model = parsed(
        "g (float[b, 12] x) => (float[b, 12] y, float[c] d, float[b, 12] s) {"
        " h = MatMul(x, W) q = Reshape(h, three) d = Det(q) r = Relu(h)"
        " s = Shrink(r) y = Relu(r) }",
        **{"W": normal(12, 12), "three": ints(-1, 2, 2)},
    )
    model.graph.initializers["W"].name = "body.layer.weight"
    for node in model.graph:
        node.name = f"node_{node.op_type}"
    with pytest.raises(LoweringError) as caught:
        write_mlpackage(model, tmp_path / "m.mlpackage")
    assert str(caught.value) == (
        "2 nodes have no Core ML form: Det 'node_Det' near 'body.layer': no such operator; "
        "Shrink 'node_Shrink' near 'body.layer': no such operator"
    )
    assert list(tmp_path.iterdir()) == []


def test_precisions_and_targets_that_are_not_known_are_refused(tmp_path):
    model = parsed(BATCHES)
    with pytest.raises(UnknownNameError, match="precision 'int8' is not known"):
        write_mlpackage(model, tmp_path / "m.mlpackage", "int8")
    with pytest.raises(UnknownNameError, match="iOS15, iOS16, iOS17, iOS18, iOS26"):
        write_mlpackage(
            model, tmp_path / "m.mlpackage", options=CoremlOptions(deployment_target="iOS9")
        )


def test_a_package_that_cannot_be_written_leaves_the_previous_one(tmp_path, monkeypatch):
    model = parsed(BATCHES)
    path = _written(model, tmp_path)
    before = {file: file.read_bytes() for file in path.rglob("*") if file.is_file()}

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("export.lower.coreml.package._settle_identifiers", full)
    with pytest.raises(OutputError, match="the disk is full"):
        write_mlpackage(model, path)
    assert {file: file.read_bytes() for file in path.rglob("*") if file.is_file()} == before
    assert [file.name for file in tmp_path.iterdir()] == ["m.mlpackage"]


def test_writing_again_gives_the_same_bytes(tmp_path):
    model = parsed(VARYING["positions"][0], **VARYING["positions"][1])
    first = _written(model, tmp_path)
    kept = {f.relative_to(first): f.read_bytes() for f in first.rglob("*") if f.is_file()}
    assert {str(name) for name in kept} == {
        "Manifest.json",
        "Data/com.apple.CoreML/model.mlmodel",
        "Data/com.apple.CoreML/weights/weight.bin",
    }
    _written(parsed(WINDOWS, **SHAPES), tmp_path)  # another in between, in the same place
    again = _written(model, tmp_path)
    assert {f.relative_to(again): f.read_bytes() for f in again.rglob("*") if f.is_file()} == kept


def test_the_graph_is_left_as_it_was(tmp_path):
    model = parsed(IMAGE, **CLASSIFIER)
    before = str(model)
    write_mlpackage(
        model, tmp_path / "m.mlpackage", options=CoremlOptions(image=ImageInput("image"))
    )
    assert str(model) == before


ROOT = Path(__file__).parents[3]
QUIETLY = """
import sys
sys.path.insert(0, sys.argv[1])
from pathlib import Path
from export.lower.coreml import write_mlpackage
from export.onnx_io import load_model
write_mlpackage(load_model(Path("model.onnx")), Path("m.mlpackage"))
"""


def test_nothing_is_said_on_the_terminal_and_no_temporary_files_stay(tmp_path):
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    save_model(parsed(BATCHES), tmp_path / "model.onnx")
    done = subprocess.run(
        [sys.executable, "-c", QUIETLY, str(ROOT)],
        capture_output=True, text=True, check=False, cwd=tmp_path,
        env={"TMPDIR": str(scratch), "PATH": "/usr/bin:/bin"},
    )  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert list(scratch.iterdir()) == []
    assert operators_of(tmp_path / "m.mlpackage")[-1] == "cast"


def test_a_missing_coremltools_names_its_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "coremltools", None)
    from export.errors import MissingExtraError

    with pytest.raises(MissingExtraError, match=r"pip install 'weightspace\[coreml\]'"):
        write_mlpackage(parsed(BATCHES), tmp_path / "m.mlpackage")
