from __future__ import annotations

from dataclasses import fields

import pytest
import torch

from export.ties import unique_parameters
from weightspace import zoo
from weightspace.checkpoint import CheckpointError, load_checkpoint, read_tensors
from weightspace.data import DEFAULT_FOLDER, load_fashion_mnist, load_slice
from weightspace.load import load_zoo_model
from weightspace.models import IMAGE_ENCODERS, MODELS
from weightspace.models.spec import is_for_fashion_mnist
from weightspace.train import Card, accuracy_of

SHIPPED = [name for name, spec in MODELS.items() if spec.checkpoint and is_for_fashion_mnist(spec)]
CONVERTED = [name for name in SHIPPED if MODELS[name].twin == "resnet8-fmnist"]
TRAINED = [name for name in SHIPPED if name not in CONVERTED]


def card_of(name):
    card = zoo.card_of(name)
    assert card is not None, f"the card of {name} is missing"
    return Card(**card)


def trained(name):
    module = MODELS[name].build()
    path = zoo.path_of(MODELS[name].checkpoint)
    assert path.is_file(), f"the checkpoint of {name} is missing"
    return module, load_checkpoint(module, path)


def test_all_models_for_fashion_mnist_but_the_large_one_are_shipped_and_no_other():
    small = [name for name, spec in MODELS.items() if is_for_fashion_mnist(spec)]
    assert [name for name in small if name != "resnet18-fmnist"] == SHIPPED
    assert TRAINED == [
        "vit-pe-fmnist", "vit-fmnist", "resnet-pe-fmnist", "resnet-fmnist", "resnet8-fmnist",
    ]  # fmt: skip
    files = {path.name for path in zoo.path_of("").glob("*fmnist.safetensors")}
    assert files == {MODELS[name].checkpoint for name in SHIPPED}


@pytest.mark.parametrize("name", SHIPPED)
def test_a_checkpoint_loads_and_names_its_model(name):
    module, metadata = trained(name)
    # A converted net's file names what it was made from, and the recipe.
    assert metadata["model"] == (MODELS[name].twin if name in CONVERTED else name)
    assert ("recipe" in metadata) == (name in CONVERTED)
    stored, _ = read_tensors(zoo.path_of(MODELS[name].checkpoint))
    parameters = dict(module.named_parameters())
    assert sum(stored[key].numel() for key in parameters) == unique_parameters(module)


@pytest.mark.parametrize("name", IMAGE_ENCODERS)
def test_an_image_encoder_is_its_classifier_without_the_head(name):
    encoder = load_zoo_model(name)
    classifier = load_zoo_model(name.removesuffix("-features"))
    assert encoder.checkpoint == classifier.checkpoint
    weights = {k: v for k, v in classifier.module.state_dict().items() if k[:5] != "head."}
    assert weights.keys() == encoder.module.state_dict().keys()
    inputs = encoder.spec.example_inputs()
    with torch.no_grad():
        embedding, logits = (each.module.eval()(*inputs) for each in (encoder, classifier))
        classifier.module.head = torch.nn.Identity()
        features = classifier.module(*inputs)
    assert logits.shape == (2, 10)
    torch.testing.assert_close(embedding * features.norm(dim=1, keepdim=True), features)


def test_a_checkpoint_is_the_classifier_it_was_trained_as():
    path = zoo.path_of(MODELS["vit-pe-fmnist-features"].checkpoint)
    assert load_zoo_model(str(path)).name == "vit-pe-fmnist"


def test_a_head_is_passed_over_only_where_there_is_none():
    path = zoo.path_of("vit-pe-fmnist.safetensors")
    with pytest.raises(CheckpointError, match=r"holds the unknown 'head\.bias'"):
        load_checkpoint(MODELS["vit-pe-fmnist-features"].build(), path)
    with pytest.raises(CheckpointError, match=r"lacks 'head\.bias'"):
        load_checkpoint(MODELS["vit-pe-fmnist"].build(), path, without="head")


@pytest.mark.parametrize("name", SHIPPED)
def test_a_card_tells_all_that_is_needed_to_train_again(name):
    card = zoo.card_of(name)
    assert card is not None, f"the card of {name} is missing"
    assert set(card) == {field.name for field in fields(Card)}
    spec = MODELS[name]
    assert (card["model"], card["title"], card["twin"]) == (name, spec.title, spec.twin)
    assert card["parameters"] == unique_parameters(spec.build())
    if name in CONVERTED:
        assert card["command"].startswith(f"weightspace convert --model {spec.twin} --structure ")
        assert card["command"].endswith(
            f" --epochs {card['epochs']} --threads 1 --out {spec.checkpoint}"
        )
    else:
        assert card["command"] == (
            f"weightspace train {name} --epochs {card['epochs']} --seed {card['seed']}"
        )
    assert card["steps"] == card["epochs"] * 469  # 60,000 images in batches of 128
    assert card["data"] == "Fashion-MNIST, 60,000 training images"


@pytest.mark.parametrize("name", SHIPPED)
def test_the_shipped_images_are_classified_as_well_as_the_card_says(name):
    module, _ = trained(name)
    assert accuracy_of(module, load_slice()) == pytest.approx(card_of(name).test_accuracy, abs=0.03)


# One of each kind; the others differ by their weights alone, and a model takes some seconds.
@pytest.mark.skipif(not DEFAULT_FOLDER.is_dir(), reason=f"the data set is not in {DEFAULT_FOLDER}")
@pytest.mark.parametrize("name", ["vit-pe-fmnist", "resnet-pe-fmnist"])
def test_all_test_images_are_classified_as_well_as_the_card_says(name):
    module, _ = trained(name)
    accuracy = accuracy_of(module, load_fashion_mnist(train=False))
    assert accuracy == pytest.approx(card_of(name).test_accuracy, abs=0.002)


@pytest.mark.parametrize("name", TRAINED)
def test_nine_of_ten_test_images_are_classified_right(name):
    assert 0.90 <= card_of(name).test_accuracy < 1


@pytest.mark.parametrize("name", CONVERTED)
def test_a_converted_net_is_a_fifth_of_its_twin_and_within_five_points_of_it(name):
    card, twin = card_of(name), card_of(MODELS[name].twin)
    assert card.test_accuracy >= twin.test_accuracy - 0.05
    assert card.parameters < 0.21 * twin.parameters


@pytest.mark.parametrize("name", [name for name in TRAINED if MODELS[name].twin])
def test_a_tied_model_is_within_a_point_of_its_twin_that_was_trained_alike(name):
    card, twin = card_of(name), card_of(MODELS[name].twin)
    assert card.test_accuracy >= twin.test_accuracy - 0.01
    assert card.parameters < twin.parameters
    assert (card.epochs, card.seed, card.steps) == (twin.epochs, twin.seed, twin.steps)


def test_all_checkpoints_together_are_small():
    paths = [zoo.path_of(MODELS[name].checkpoint) for name in SHIPPED]
    assert all(path.is_file() for path in paths), "a checkpoint is missing"
    assert sum(path.stat().st_size for path in paths) < 16_000_000


def test_a_model_without_a_checkpoint_has_no_card():
    assert zoo.card_of("vit-b16") is None
