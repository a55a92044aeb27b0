from __future__ import annotations

import pytest
import torch

from export.ties import tie_map, unique_parameters
from weightspace.layers import Structured
from weightspace.models import IMAGE_ENCODERS, IMAGE_MODELS, MODELS
from weightspace.models.vit_pe import ALL_TIES, vit_pe_b16, vit_pe_small

# The published networks: ViT-Ti and -S (arXiv:2012.12877), ViT-B (arXiv:2010.11929) and ResNet-50
# (arXiv:1512.03385); ViT-B with tied FFNs has 58.2 M in arXiv:2401.16438.
COUNTS = {
    "vit-ti16": 5_717_416,
    "vit-s16": 22_050_664,
    "vit-b16": 86_567_656,
    "vit-pe-b16-ffn": 58_256_104,
    "vit-pe-b16": 44_100_328,
    "resnet50": 25_557_032,
}
TIED = [name for name, spec in MODELS.items() if spec.twin]
CONVERTED = [name for name, spec in MODELS.items() if spec.twin == "resnet8-fmnist"]
SMALL = [name for name in MODELS if name.endswith("-fmnist")]


def on_meta(name):
    with torch.device("meta"):
        return MODELS[name].build()


@pytest.mark.parametrize("name", MODELS)
def test_a_row_has_the_name_and_a_name_and_axes_for_each_input(name):
    spec = MODELS[name]
    assert spec.name == name
    assert len(spec.example_inputs()) == len(spec.input_names) == len(spec.dynamic_axes)
    assert all(axes[0] == "batch" for axes in spec.dynamic_axes)


def test_there_are_tied_models_and_small_ones():
    assert len(TIED) >= 7
    assert SMALL[:4] == ["vit-pe-fmnist", "vit-fmnist", "resnet-pe-fmnist", "resnet-fmnist"]


def test_there_is_a_converted_net_of_each_family_of_structures():
    families = {name.removeprefix("resnet8-").removesuffix("-fmnist") for name in CONVERTED}
    assert families == {
        "basis", "bilinear", "acdc", "tensor-train", "tucker", "cp", "hashed", "shuffle",
        "low-rank-tied",
    }  # fmt: skip
    for name in CONVERTED:
        module = MODELS[name].build()
        assert any(isinstance(layer, Structured) for layer in module.modules())


@pytest.mark.parametrize("name", IMAGE_MODELS)
def test_a_model_maps_a_batch_to_logits_on_the_meta_device(name):
    spec = MODELS[name]
    for batch in (1, 3):
        image = torch.empty(batch, *spec.input_shape, device="meta")
        assert on_meta(name).eval()(image).shape == (batch, spec.classes)


@pytest.mark.parametrize("name", IMAGE_ENCODERS)
def test_an_image_encoder_gives_a_batch_of_different_embeddings_of_length_1(name):
    spec = MODELS[name]
    module = spec.build().eval()
    for batch in (1, 3):
        with torch.no_grad():
            found = module(*spec.example_inputs(batch=batch))
        assert found.shape == (batch, spec.dimension)
        torch.testing.assert_close(found.norm(dim=1), torch.ones(batch))
    assert not torch.allclose(found[0], found[1], rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", COUNTS)
def test_parameters_are_as_many_as_published(name):
    assert unique_parameters(on_meta(name)) == COUNTS[name]


def test_parameters_are_as_many_as_in_transformers_own_networks():
    transformers = pytest.importorskip("transformers")
    with torch.device("meta"):
        vit = transformers.ViTForImageClassification(transformers.ViTConfig(num_labels=1000))
        resnet = transformers.ResNetForImageClassification(
            transformers.ResNetConfig(num_labels=1000)
        )
    assert unique_parameters(on_meta("vit-b16")) == sum(p.numel() for p in vit.parameters())
    assert unique_parameters(on_meta("resnet50")) == sum(p.numel() for p in resnet.parameters())


def test_untied_resnet_50_has_the_same_tensors_as_transformers_own():
    transformers = pytest.importorskip("transformers")
    with torch.device("meta"):
        config = transformers.ResNetConfig(num_labels=1000)
        resnet = transformers.ResNetForImageClassification(config)
    ours = sorted(tuple(tensor.shape) for tensor in on_meta("resnet50").parameters())
    assert ours == sorted(tuple(tensor.shape) for tensor in resnet.parameters())


@pytest.mark.parametrize("name", TIED)
def test_a_tied_model_is_smaller_than_its_twin_on_the_same_input(name):
    spec = MODELS[name]
    twin = MODELS[spec.twin]
    assert twin.twin is None
    assert [x.shape for x in twin.example_inputs()] == [x.shape for x in spec.example_inputs()]
    assert (twin.input_names, twin.output_names) == (spec.input_names, spec.output_names)
    assert unique_parameters(on_meta(name)) < unique_parameters(on_meta(twin.name))


def test_sharing_a_filter_in_a_stage_saves_more_than_sharing_it_in_a_block():
    counts = {name: unique_parameters(on_meta(name)) for name in MODELS if "resnet50" in name}
    assert counts["resnet50-pe-staged"] < counts["resnet50-pe"] < counts["resnet50"]
    # two, three, five and two blocks after the first; each filter is 4n² for n inner channels
    plan = [(2, 64), (3, 128), (5, 256), (2, 512)]
    saved_in_blocks = sum(blocks * 4 * inner**2 for blocks, inner in plan)
    assert counts["resnet50"] - counts["resnet50-pe"] == saved_in_blocks
    saved_in_stages = sum((blocks - 1) * 4 * inner**2 for blocks, inner in plan)
    assert counts["resnet50-pe"] - counts["resnet50-pe-staged"] == saved_in_stages


@pytest.mark.parametrize("tie", sorted(ALL_TIES))
def test_each_tie_of_a_vit_saves_its_own_matrices(tie):
    with torch.device("meta"):
        tied, untied = vit_pe_b16(ties=frozenset({tie})), vit_pe_b16(tied=False)
    matrix = 4 * 768 * 768 if tie == "ffn" else 768 * 768
    assert unique_parameters(untied) - unique_parameters(tied) == 12 * matrix


@pytest.mark.parametrize("name", [name for name in SMALL if name not in CONVERTED])
def test_the_tied_twin_alone_has_matrices_that_are_read_twice(name):
    spec = MODELS[name]
    ties = tie_map(spec.build(), spec.example_inputs())
    views = [{use.view for use in tensor.uses} for tensor in ties.ties]
    if spec.twin is None:
        assert views == []
    else:
        transposed = "transpose" if name.startswith("vit") else "permute(1,0,2,3)"
        # the ViT: an FFN, values and queries in each of six blocks; the ResNet: two blocks a stage
        assert len(views) == (3 * 6 if name.startswith("vit") else 2 * 2)
        assert all(view == {"identity", transposed} for view in views)


@pytest.mark.parametrize("name", [*SMALL, "vit-pe-ti16", "vit-ti16"])
def test_a_model_gives_finite_logits_that_depend_on_the_image(name):
    spec = MODELS[name]
    module = spec.build().eval()
    with torch.no_grad():
        logits = module(*spec.example_inputs(batch=3))
    assert logits.shape == (3, spec.classes)
    assert torch.isfinite(logits).all()
    assert not torch.allclose(logits[0], logits[1], rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", SMALL)
def test_an_exported_program_takes_another_batch_size(name):
    spec = MODELS[name]
    module = spec.build().eval()
    program = torch.export.export(
        module, spec.example_inputs(), dynamic_shapes=({0: torch.export.Dim("batch")},)
    )
    for batch in (1, 5):
        inputs = spec.example_inputs(batch=batch, seed=batch)
        with torch.no_grad():
            torch.testing.assert_close(program.module()(*inputs), module(*inputs))


def test_example_inputs_follow_their_seed():
    spec = MODELS["vit-pe-fmnist"]
    (one,), (same,), (other,) = (spec.example_inputs(seed=seed) for seed in (0, 0, 1))
    assert one.shape == (2, 1, 28, 28)
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


@pytest.mark.parametrize("build", [vit_pe_small, vit_pe_b16])
def test_an_unknown_tie_is_refused_with_the_known_ones(build):
    with (
        torch.device("meta"),
        pytest.raises(
            ValueError,
            match=r"^ties \['keys'\] are not known; there are "
            r"\['ffn', 'query-key', 'value-output'\]$",
        ),
    ):
        build(ties=frozenset({"ffn", "keys"}))
