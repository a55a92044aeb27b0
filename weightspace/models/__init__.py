"""Models by name; every row of ``MODELS`` is tested alike."""

from functools import partial

from weightspace.models.compact import compact
from weightspace.models.minilm import POSITIONS, VOCABULARY, minilm
from weightspace.models.resnet import resnet8_fmnist, resnet18_fmnist
from weightspace.models.resnet_pe import resnet50_pe, resnet_pe_small
from weightspace.models.spec import ImageEncoderSpec, ImageSpec, ModelSpec, TextSpec
from weightspace.models.vit_pe import vit_pe_b16, vit_pe_s16, vit_pe_small, vit_pe_ti16

_FMNIST = (1, 28, 28)
_IMAGENET = (3, 224, 224)

# Converted from resnet8-fmnist and fine-tuned: structure, in words, source.
_STRUCTURES = (
    ("basis", "basis convolutions", "arXiv:2408.06024"),
    ("bilinear", "bilinear", "arXiv:2011.01391"),
    ("acdc", "ACDC", "arXiv:1906.00859"),
    ("tensor-train", "tensor train", "arXiv:1906.00859"),
    ("tucker", "Tucker", "arXiv:1906.00859"),
    ("cp", "CP", "arXiv:1906.00859"),
    ("hashed", "hashed", "arXiv:1906.00859"),
    ("shuffle", "LinearShuffle", "arXiv:1906.00859"),
    ("low-rank-tied", "tied low rank", "arXiv:1906.00859"),
)

_ROWS: tuple[ModelSpec, ...] = (
    # trained on Fashion-MNIST and shipped
    ImageSpec(
        "vit-pe-fmnist", "small ViT-PE, Fashion-MNIST", vit_pe_small, _FMNIST, 10,
        "vit-fmnist", "vit-pe-fmnist.safetensors",
    ),
    ImageSpec(
        "vit-fmnist", "small ViT, untied twin", partial(vit_pe_small, tied=False), _FMNIST, 10,
        None, "vit-fmnist.safetensors",
    ),
    ImageSpec(
        "resnet-pe-fmnist", "small ResNet-PE, Fashion-MNIST", resnet_pe_small, _FMNIST, 10,
        "resnet-fmnist", "resnet-pe-fmnist.safetensors",
    ),
    ImageSpec(
        "resnet-fmnist", "small ResNet, untied twin", partial(resnet_pe_small, tied=False),
        _FMNIST, 10, None, "resnet-fmnist.safetensors",
    ),
    ImageSpec(
        "resnet8-fmnist", "ResNet-8, Fashion-MNIST", resnet8_fmnist, _FMNIST, 10, None,
        "resnet8-fmnist.safetensors", source="arXiv:1512.03385",
    ),
    *(
        ImageSpec(
            f"resnet8-{structure}-fmnist", f"ResNet-8, {words}, Fashion-MNIST",
            partial(compact, resnet8_fmnist, f"resnet8-{structure}-fmnist.safetensors"),
            _FMNIST, 10, "resnet8-fmnist", f"resnet8-{structure}-fmnist.safetensors", source=source,
        )
        for structure, words, source in _STRUCTURES
    ),
    # the same weights without the head
    ImageEncoderSpec(
        "vit-pe-fmnist-features", "small ViT-PE, image embeddings",
        partial(vit_pe_small, classes=None), _FMNIST, 80, "vit-fmnist-features",
        "vit-pe-fmnist.safetensors",
    ),
    ImageEncoderSpec(
        "vit-fmnist-features", "small ViT, image embeddings",
        partial(vit_pe_small, tied=False, classes=None), _FMNIST, 80, None,
        "vit-fmnist.safetensors",
    ),
    # architectures at random weights
    ImageSpec(
        "resnet18-fmnist", "ResNet-18, Fashion-MNIST", resnet18_fmnist, _FMNIST, 10, None,
        source="arXiv:1512.03385",
    ),
    ImageSpec("vit-pe-ti16", "ViT-PE-Ti/16", vit_pe_ti16, _IMAGENET, 1000, "vit-ti16"),
    ImageSpec("vit-pe-s16", "ViT-PE-S/16", vit_pe_s16, _IMAGENET, 1000, "vit-s16"),
    ImageSpec("vit-pe-b16", "ViT-PE-B/16, all ties", vit_pe_b16, _IMAGENET, 1000, "vit-b16"),
    ImageSpec(
        "vit-pe-b16-ffn", "ViT-PE-B/16, tied FFNs", partial(vit_pe_b16, ties=frozenset({"ffn"})),
        _IMAGENET, 1000, "vit-b16",
    ),
    ImageSpec(
        "vit-ti16", "ViT-Ti/16", partial(vit_pe_ti16, tied=False), _IMAGENET, 1000, None
    ),
    ImageSpec("vit-s16", "ViT-S/16", partial(vit_pe_s16, tied=False), _IMAGENET, 1000, None),
    ImageSpec("vit-b16", "ViT-B/16", partial(vit_pe_b16, tied=False), _IMAGENET, 1000, None),
    ImageSpec("resnet50-pe", "ResNet50-PE", resnet50_pe, _IMAGENET, 1000, "resnet50"),
    ImageSpec(
        "resnet50-pe-staged", "ResNet50-PE, staged", partial(resnet50_pe, staged=True),
        _IMAGENET, 1000, "resnet50",
    ),
    ImageSpec("resnet50", "ResNet-50", partial(resnet50_pe, tied=False), _IMAGENET, 1000, None),
    # distilled from all-MiniLM-L6-v2
    TextSpec(
        "minilm-pe", "MiniLM-PE, text embeddings", minilm, VOCABULARY, POSITIONS, "minilm",
        "minilm-pe.safetensors",
    ),
    TextSpec(
        "minilm-pe-small", "MiniLM-PE, factorised table", partial(minilm, rank=128), VOCABULARY,
        POSITIONS, "minilm",
    ),
    # their controls: two matrices for each FFN, narrower, so that parameters are as many
    TextSpec(
        "minilm-narrow", "MiniLM, narrow FFNs", partial(minilm, tied=False, hidden=962),
        VOCABULARY, POSITIONS, None,
    ),
    TextSpec(
        "minilm-narrow-small", "MiniLM, narrow FFNs, factorised table",
        partial(minilm, tied=False, hidden=962, rank=128), VOCABULARY, POSITIONS, None,
    ),
    # the architecture of the teacher
    TextSpec(
        "minilm", "MiniLM, untied twin", partial(minilm, tied=False), VOCABULARY, POSITIONS, None
    ),
)  # fmt: skip

MODELS: dict[str, ModelSpec] = {row.name: row for row in _ROWS}
IMAGE_MODELS = {name: spec for name, spec in MODELS.items() if isinstance(spec, ImageSpec)}
IMAGE_ENCODERS = {name: spec for name, spec in MODELS.items() if isinstance(spec, ImageEncoderSpec)}
TEXT_MODELS = {name: spec for name, spec in MODELS.items() if isinstance(spec, TextSpec)}
