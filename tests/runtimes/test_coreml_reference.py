from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import nn

from export.coreml_io import quiet_coremltools
from export.errors import BadFileError, MeasureError, UnknownNameError
from runtimes.coreml_reference import EVALUATED_BY, NAME, ROUNDING, open_session
from tests.runtimes.coreml_programs import ct, mb, operators_of, run, save, types
from weightspace.models import MODELS

RANDOM = np.random.default_rng(0)


def floats(*shape):
    return RANDOM.standard_normal(shape).astype(np.float32)


def spec(*shape, dtype=types.fp32):
    return mb.TensorSpec(shape, dtype)


# ---- whole programs, as coremltools' own converter makes them of torch ---------------------------


class Transformer(nn.Module):
    def __init__(self):
        super().__init__()
        self.patches = nn.Conv2d(3, 32, 4, 4)
        self.token = nn.Parameter(torch.randn(1, 1, 32))
        self.places = nn.Parameter(torch.randn(1, 17, 32) / 4)
        layer = nn.TransformerEncoderLayer(32, 4, 64, 0.0, "gelu", batch_first=True)
        self.layers = nn.TransformerEncoder(layer, 2)
        self.head = nn.Linear(32, 7)

    def forward(self, x):
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1) + self.places
        return self.head(self.layers(x)[:, 0])


def convolutions():
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.Hardswish(),
        nn.Conv2d(8, 8, 3, padding=1, groups=4), nn.GroupNorm(2, 8), nn.SiLU(),
        nn.MaxPool2d(3, 2, 1), nn.ConvTranspose2d(8, 6, 3, 2, 1, 1), nn.ReLU6(),
        nn.Upsample(scale_factor=2, mode="bilinear"), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(6, 5), nn.Softmax(-1),
    )  # fmt: skip


class Tokens(nn.Module):
    """Looks tokens up, attends to those before each, and has the looked up matrix for its head."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(50, 16)
        self.norm = nn.LayerNorm(16)

    def forward(self, tokens):
        x = self.embedding(tokens)
        scores = (x @ x.transpose(1, 2)) / 4
        before = torch.ones(tokens.shape[1], tokens.shape[1], dtype=torch.bool).tril()
        x = self.norm(x + scores.masked_fill(~before, -1e4).softmax(-1) @ x)
        return x @ self.embedding.weight.T


def foreign(name):
    """Build a small model of the transformers package, at random weights."""
    import transformers

    sizes = {
        "Swin": {"image_size": 32, "embed_dim": 8, "depths": [1, 2], "num_heads": [2, 4],
                 "window_size": 4},
        "Segformer": {"hidden_sizes": [8] * 4, "depths": [1] * 4, "decoder_hidden_size": 8,
                      "num_attention_heads": [1, 2, 2, 2]},
        "ConvNext": {"hidden_sizes": [8, 16], "depths": [1, 1], "num_stages": 2},
        "RegNet": {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1],
                   "groups_width": 4},
    }[name]  # fmt: skip
    kind = "SemanticSegmentation" if name == "Segformer" else "ImageClassification"
    model = getattr(transformers, f"{name}For{kind}")
    return Logits(model(getattr(transformers, f"{name}Config")(**sizes)))


class Logits(nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, pixels):
        return self.model(pixels).logits


NETS = {
    **{
        name: (lambda name=name: foreign(name), lambda: torch.randn(1, 3, 32, 32))
        for name in ("Swin", "Segformer", "ConvNext", "RegNet")
    },
    "transformer": (Transformer, lambda: torch.randn(2, 3, 16, 16)),
    "convolutions": (convolutions, lambda: torch.randn(2, 3, 16, 16)),
    "tokens": (Tokens, lambda: torch.randint(0, 50, (2, 9))),
    **{
        name: (MODELS[name].build, lambda: torch.randn(2, 1, 28, 28))
        for name in ("vit-pe-fmnist", "resnet-pe-fmnist")
    },
}


@pytest.fixture(scope="module")
def converted(tmp_path_factory):
    """Convert a net; gives the path, an input and torch's output."""
    done = {}

    def convert(name, target, half):
        if (name, target, half) not in done:
            torch.manual_seed(0)
            make, draw = NETS[name]
            net, x = make().eval(), draw()
            with torch.no_grad():  # norms that are not at their initial values
                for each in net.modules():
                    if isinstance(each, nn.BatchNorm2d):
                        each.running_mean.normal_()
                        each.running_var.uniform_(0.5, 2.0)
                expected = net(x).numpy()
            program = torch.export.export(net, (x,)).run_decompositions({})
            with quiet_coremltools():
                model = ct.convert(
                    program,
                    minimum_deployment_target=getattr(ct.target, target),
                    compute_precision=ct.precision.FLOAT16 if half else ct.precision.FLOAT32,
                    skip_model_load=True,
                )
            path = tmp_path_factory.mktemp("nets") / f"{name}.mlpackage"
            model.save(str(path))
            done[name, target, half] = path, x.numpy(), expected
        return done[name, target, half]

    return convert


@pytest.mark.parametrize(
    ("name", "target"),
    [(name, "iOS18") for name in NETS]
    + [(name, "iOS15") for name in ("transformer", "convolutions", "tokens", "Swin")],
)
def test_a_converted_net_gives_what_torch_gives(converted, name, target):
    path, x, expected = converted(name, target, False)
    (found,) = run(path, [x])
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, atol=2e-5 * np.abs(expected).max())


@pytest.mark.parametrize("name", ["transformer", "convolutions", "tokens", "resnet-pe-fmnist"])
def test_half_precision_is_rounded_at_each_operator(converted, name):
    path, x, expected = converted(name, "iOS17", True)
    (found,) = run(path, [x])
    scale = np.abs(expected).max()
    assert found.dtype == np.float16 or "cast" in operators_of(path)
    assert np.abs(found - expected).max() < 2e-2 * scale
    # Without rounding what is left is that of the stored weights.
    (unrounded,) = run(path, [x], options={ROUNDING: "none"})
    assert 0 < np.abs(unrounded - expected).max() < 1e-2 * scale
    assert not np.array_equal(found, unrounded)


def test_rounding_is_to_the_nearest_half(tmp_path):
    x = np.float16([1.0, 1.0009765625, 2047.0, 60000.0])
    y = np.float16([0.0004, 0.0005, 1.5, 60000.0])
    path = save(tmp_path / "m.mlpackage", lambda x, y: mb.add(x=x, y=y), [x, y], half=True)
    (found,) = run(path, [x, y])
    assert found.dtype == np.float16
    np.testing.assert_array_equal(found, x + y)
    (wide,) = run(path, [x, y], options={ROUNDING: "none"})
    assert wide.dtype == np.float32
    np.testing.assert_array_equal(wide, x.astype(np.float32) + y)


# ---- inputs and outputs --------------------------------------------------------------------------


def test_a_session_names_its_inputs_and_outputs(tmp_path):
    path = save(
        tmp_path / "m.mlpackage",
        lambda tokens, x: (mb.gather(x=x, indices=tokens, name="picked"), mb.exp(x=x, name="e")),
        [spec(3, dtype=types.int32), spec(7, 4)],
    )
    session = open_session(path)
    assert [(s.name, s.dtype, s.shape) for s in session.inputs] == [
        ("tokens", "int32", (3,)), ("x", "float32", (7, 4)),
    ]  # fmt: skip
    assert [(s.name, s.dtype, s.shape) for s in session.outputs] == [
        ("picked", "float32", (3, 4)), ("e", "float32", (7, 4)),
    ]  # fmt: skip
    x = floats(7, 4)
    before = torch.get_num_threads()
    out = session.run({"x": x.astype(np.float64), "tokens": np.array([6, 0, 2], np.int64)})
    assert torch.get_num_threads() == before
    np.testing.assert_array_equal(out["picked"], x[[6, 0, 2]])
    with pytest.raises(MeasureError, match=r"'tokens' .* int32 \[3\]; .* 0 to 5,000,000,000"):
        session.run({"x": x, "tokens": np.array([0, 1, 5 * 10**9])})
    with pytest.raises(MeasureError, match=r"'tokens' .* is int32 \[3\]; given was float32 \[3\]"):
        session.run({"x": x, "tokens": np.zeros(3, np.float32)})
    with pytest.raises(MeasureError, match=r"'x' .* is float32 \[7, 4\]; given was float32 \[4\]"):
        session.run({"x": floats(4), "tokens": np.zeros(3, np.int32)})
    with pytest.raises(MeasureError, match="takes the inputs 'tokens', 'x'; given were 'x'"):
        session.run({"x": x})
    with pytest.raises(MeasureError, match=r"^gather 'picked' of m\.mlpackage failed under ref"):
        session.run({"x": x, "tokens": np.array([0, 1, 9])})
    session.close()


@pytest.fixture(scope="module")
def flexible(tmp_path_factory):
    folder = tmp_path_factory.mktemp("flexible")
    program = torch.export.export(
        Tokens().eval(),
        (torch.zeros(2, 9, dtype=torch.int64),),
        dynamic_shapes=(
            {0: torch.export.Dim("batch", max=8), 1: torch.export.Dim("size", max=64)},
        ),
    ).run_decompositions({})
    paths = {}
    for name, shape in {
        "range": ct.Shape((ct.RangeDim(1, 8), ct.RangeDim(2, 64))),
        "enumerated": ct.EnumeratedShapes([(1, 4), (2, 9)]),
    }.items():
        with quiet_coremltools():
            model = ct.convert(
                program,
                inputs=[ct.TensorType("tokens", shape, dtype=np.int32)],
                compute_precision=ct.precision.FLOAT32,
                skip_model_load=True,
            )
        paths[name] = folder / f"{name}.mlpackage"
        model.save(str(paths[name]))
    return paths


def test_sizes_may_be_flexible(flexible):
    session = open_session(flexible["range"])
    assert session.inputs[0].shape == ("?", "?")
    assert session.outputs[0].shape[-1] == 50
    for shape in ((1, 2), (8, 64), (3, 5)):
        (found,) = session.run({"tokens": RANDOM.integers(0, 50, shape)}).values()
        assert found.shape == (*shape, 50)
    for shape in ((9, 9), (1, 1)):
        with pytest.raises(
            MeasureError, match=r"int32 \[\?, \?\].* allowed are \[1\.\.8, 2\.\.64\]"
        ):
            session.run({"tokens": np.zeros(shape, np.int32)})


def test_sizes_may_be_a_choice(flexible):
    session = open_session(flexible["enumerated"])
    for shape in ((1, 4), (2, 9)):
        (found,) = session.run({"tokens": np.ones(shape, np.int64)}).values()
        assert found.shape == (*shape, 50)
    with pytest.raises(MeasureError, match=r"allowed are \[1, 4\], \[2, 9\]"):
        session.run({"tokens": np.zeros((1, 9), np.int32)})


@pytest.mark.parametrize("labels", [["cat", "dog", "eel"], [4, 7, 9]])
def test_images_and_classes(tmp_path, labels):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 3, 8), nn.Flatten(), nn.Softmax(-1)).eval()
    with quiet_coremltools():
        model = ct.convert(
            torch.jit.trace(net, torch.zeros(1, 3, 8, 8)),
            inputs=[ct.ImageType("photo", (1, 3, 8, 8), scale=1 / 255, bias=[-0.5, -0.4, -0.3])],
            classifier_config=ct.ClassifierConfig(labels),
            compute_precision=ct.precision.FLOAT32,
            minimum_deployment_target=ct.target.iOS16,
            skip_model_load=True,
        )
    path = tmp_path / "m.mlpackage"
    model.save(str(path))
    pixels = RANDOM.integers(0, 256, (1, 3, 8, 8)).astype(np.uint8)
    session = open_session(path)
    assert session.inputs[0].shape == (1, 3, 8, 8)
    bias = torch.tensor([-0.5, -0.4, -0.3]).view(1, 3, 1, 1)
    expected = net(torch.from_numpy(pixels) / 255 + bias)[0].detach().numpy()
    out = session.run({"photo": pixels})
    by_name = {spec.name: (spec.dtype, spec.shape) for spec in session.outputs}
    kind = "str" if labels[0] == "cat" else "int64"
    assert by_name == {"classLabel": (kind, ()), "classLabel_probs": ("float32", (3,))}
    assert out["classLabel"].item() == labels[int(expected.argmax())]
    np.testing.assert_allclose(out["classLabel_probs"], expected, atol=1e-6)


# ---- what is refused -----------------------------------------------------------------------------


def edited(path, edit):
    """Change the program of a package in place."""
    file = path / "Data/com.apple.CoreML/model.mlmodel"
    model = ct.proto.Model_pb2.Model()
    model.ParseFromString(file.read_bytes())
    function = model.mlProgram.functions["main"]
    edit(function.block_specializations[function.opset].operations)
    file.write_bytes(model.SerializeToString())
    return path


@pytest.fixture
def simple(tmp_path):
    return save(
        tmp_path / "m.mlpackage",
        lambda x: mb.add(x=mb.exp(x=x, name="e"), y=mb.log(x=x, name="l"), name="y"),
        [spec(2, 3)],
    )


def named(operations, name):
    return next(each for each in operations if each.outputs[0].name == name)


def test_an_operator_that_is_not_known_is_named(simple):
    def edit(operations):
        named(operations, "e").type = "levitate"

    with pytest.raises(BadFileError, match=r"operator 'levitate' \('e'\), which .* on macOS$"):
        open_session(edited(simple, edit))


def test_an_output_is_held_to_its_declared_shape(simple):
    def edit(operations):
        named(operations, "l").outputs[0].type.tensorType.dimensions[1].constant.size = 4

    session = open_session(edited(simple, edit))
    words = r"log 'l' of m\.mlpackage gives float \[2, 3\], the program declares float32 \[2, 4\]"
    with pytest.raises(BadFileError, match=words):
        session.run({"x": np.ones((2, 3), np.float32)})


@pytest.mark.parametrize("code", [23, 1])
def test_an_output_is_held_to_its_declared_type(simple, code):
    def edit(operations):
        named(operations, "l").outputs[0].type.tensorType.dataType = code

    session = open_session(edited(simple, edit))
    with pytest.raises(
        BadFileError, match=r"log 'l' .* gives float \[2, 3\], .* declares (int32|bo)"
    ):
        session.run({"x": np.ones((2, 3), np.float32)})


def test_float_types_are_not_mixed(simple):
    def edit(operations):
        named(operations, "l").outputs[0].type.tensorType.dataType = 10

    with pytest.raises(BadFileError, match="log 'l' mixes float16 and float32"):
        open_session(edited(simple, edit))


def test_a_parameter_that_is_missing_is_named(simple):
    def edit(operations):
        del named(operations, "y").inputs["y"]

    session = open_session(edited(simple, edit))
    with pytest.raises(MeasureError, match=r"add 'y' .* its parameter 'y' has 0 values, not 1$"):
        session.run({"x": np.ones((2, 3), np.float32)})


def test_an_option_that_is_not_known_is_named(simple):
    with pytest.raises(UnknownNameError, match=r"rounding=up is not known; .*rounding=declared"):
        open_session(simple, options={ROUNDING: "up"})


@pytest.mark.parametrize(("package", "extra"), [("torch", "torch"), ("coremltools", "coreml")])
def test_a_package_that_is_not_installed_is_named(simple, package, extra):
    code = (
        f"import sys; sys.modules[{package!r}] = None\n"
        "from pathlib import Path\n"
        "from runtimes.coreml_reference import open_session\n"
        f"open_session(Path({str(simple)!r}))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert f"pip install 'weightspace[{extra}]'" in done.stderr.splitlines()[-1]


def test_it_says_what_it_is():
    assert "reference evaluation" in EVALUATED_BY
    assert "not Core ML" in EVALUATED_BY
    assert NAME == "coremltools"


def test_nothing_is_printed_by_loading(simple):
    code = (
        "from pathlib import Path\n"
        "from runtimes.coreml_reference import open_session, warm_up_model\n"
        f"open_session(Path({str(simple)!r}))\n"
        f"warm_up_model(Path({str(simple.parent)!r}))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("", "")
