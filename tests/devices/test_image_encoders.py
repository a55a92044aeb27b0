"""The zoo's image encoder from end to end: one copy, torch's embeddings, pixels, golden images."""

from __future__ import annotations

import json
from dataclasses import replace

import coremltools
import numpy as np
import pytest
import torch

from devices.deploy import deploy
from devices.golden import EMBEDDINGS, read_golden
from devices.options import Options
from devices.target import find_target
from export.audit import LIMIT, audit_file
from export.errors import UserError
from export.flatbuffer import Schema, read_flatbuffer
from export.lower import LATENCY_FIRST
from export.tflite_io import read_tflite
from runtimes import open_artifact
from weightspace.data import load_slice, preprocess
from weightspace.load import load_zoo_model
from weightspace.models import IMAGE_ENCODERS
from weightspace.retrieval import finds_its_class

# The part of mediapipe/tasks/metadata/metadata_schema.fbs that tells of images.
METADATA = Schema.parse(
    """
ModelMetadata = name:s description:s version:s subgraphs:[SubGraphMetadata] author:s license:s
    associated_files:[AssociatedFile] min_parser_version:s
SubGraphMetadata = name:s description:s inputs:[TensorMetadata] outputs:[TensorMetadata]
AssociatedFile = name:s
TensorMetadata = name:s description:s dimension_names:[s] content:Content
    process_units:[ProcessUnit]
Content = content_properties_type:B content_properties:ContentProperties
ImageProperties = color_space:b
ProcessUnit = options_type:B options:ProcessUnitOptions
NormalizationOptions = mean:[f] std:[f]
""",
    "ContentProperties = - ImageProperties\nProcessUnitOptions = NormalizationOptions",
)
SPEC = IMAGE_ENCODERS["vit-pe-fmnist-features"]
FORMATS = {"float32": ("onnx", "tflite"), "float16": ("mlpackage",)}
COSINES = {"float32": 0.9999, "float16": 0.999}
IMAGES = load_slice()


@pytest.fixture(scope="module", params=FORMATS)
def bundle(request, tmp_path_factory):
    target = replace(find_target("raspberry-pi"), formats=FORMATS[request.param])
    out = tmp_path_factory.mktemp("images") / "out"
    options = Options(profile=False, settings=(LATENCY_FIRST,), precisions=(request.param,))
    return deploy(SPEC.name, target, out, options)


@pytest.fixture(scope="module")
def expected():
    module = load_zoo_model(SPEC.name).module.eval()
    with torch.no_grad():
        return module(torch.from_numpy(preprocess(IMAGES.pixels))).numpy()


def embed(path, takes_pixels):
    pixels = IMAGES.pixels[:, None].astype(np.float32)
    session = open_artifact(path)
    given = pixels if takes_pixels else preprocess(IMAGES.pixels)
    # a package for images takes one at a time
    step = 1 if takes_pixels else 250
    (name,) = (spec.name for spec in session.inputs)
    parts = [session.run({name: given[i : i + step]}) for i in range(0, len(given), step)]
    session.close()
    return np.concatenate([part["embedding"] for part in parts])


def test_an_image_encoder_arrives_in_every_format_at_one_copy(bundle):
    assert all(variant.accuracy is None for variant in bundle.report.variants)
    for artifact in bundle.manifest["artifacts"]:
        assert artifact["weight_bytes"] <= LIMIT * artifact["unique_bytes"]
        assert artifact["naive_bytes"] > 1.7 * artifact["unique_bytes"]
        assert artifact["parity"]["cosine"] >= COSINES[artifact["precision"]]
        assert artifact["parity"]["inputs"] == 1000
        assert list(artifact["outputs"][0]["shape"]) == ["batch", SPEC.dimension]
        duplicates = audit_file(bundle.folder / artifact["path"]).duplicates
        assert [found for found in duplicates if found.bytes >= 1024] == []


def test_an_artifact_finds_the_images_that_torch_finds(bundle, expected):
    by_torch = finds_its_class(expected, IMAGES.labels)
    assert by_torch.mean() >= 0.89  # measured: 0.901; by their pixels alone 0.768
    for artifact in bundle.manifest["artifacts"]:
        found = embed(bundle.folder / artifact["path"], artifact["format"] == "mlpackage")
        np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=2e-3)
        assert (found * expected).sum(1).min() >= COSINES[artifact["precision"]]
        agreed = np.mean(finds_its_class(found, IMAGES.labels) == by_torch)
        assert agreed >= {"float32": 0.999, "float16": 0.99}[artifact["precision"]]


@pytest.mark.parametrize("bundle", ["float32"], indirect=True)
def test_the_tflite_file_and_the_manifest_tell_how_pixels_become_the_input(bundle):
    file = read_tflite(bundle.folder / "model.latency-first.tflite")
    ((name, place),) = file.metadata
    assert name == "TFLITE_METADATA"
    data = file.buffers[place].data.tobytes()
    assert data[4:8] == b"M001"
    metadata = read_flatbuffer(data, METADATA, "ModelMetadata")
    assert (metadata["name"], metadata["license"]) == (SPEC.name, "Apache-2.0")
    (graph,) = metadata["subgraphs"]
    assert [output["name"] for output in graph["outputs"]] == ["embedding"]
    (image,) = graph["inputs"]
    assert image["name"] == "image"
    assert image["content"]["content_properties"]["color_space"] == 2  # grey
    (unit,) = image["process_units"]
    (mean,), (std,) = unit["options"]["mean"], unit["options"]["std"]
    normalised = preprocess(IMAGES.pixels)
    pixels = IMAGES.pixels[:, None].astype(np.float32)
    np.testing.assert_allclose((pixels - mean) / std, normalised, atol=1e-5)
    told = bundle.manifest["model"]["pixels"]
    assert (told["input"], told["colour"]) == ("image", "GRAYSCALE")
    np.testing.assert_allclose(pixels * told["scale"] + told["bias"], normalised, atol=1e-5)


def test_an_app_is_made_of_text_encoders_alone(tmp_path):
    with pytest.raises(UserError, match=r"'vit-pe-fmnist-features' takes images: leave --app out"):
        deploy(SPEC.name, find_target("android"), tmp_path / "out", Options(app=True))
    assert not (tmp_path / "out").exists()


def test_golden_images_are_pixels_beside_their_embeddings(bundle, expected):
    golden = json.loads((bundle.folder / EMBEDDINGS).read_text())
    assert set(golden) == {"images", "embeddings"}
    images = np.asarray(golden["images"])
    assert np.array_equal(images[:, 0], IMAGES.pixels[:8])
    np.testing.assert_allclose(golden["embeddings"], expected[:8], rtol=0, atol=1e-5)
    assert np.array_equal(read_golden(bundle.folder).pixels[0][:8], images)


@pytest.mark.parametrize("bundle", ["float16"], indirect=True)
def test_a_package_takes_an_image_and_names_no_classes(bundle):
    package = coremltools.models.MLModel(
        str(bundle.folder / "model.mlpackage"), skip_model_load=True
    )
    description = package.get_spec().description
    assert description.input[0].type.WhichOneof("Type") == "imageType"
    assert [output.name for output in description.output] == ["embedding"]
    assert description.predictedFeatureName == ""
