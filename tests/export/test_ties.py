from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from export.errors import CaptureError
from export.records import Use
from export.ties import tie_map, unique_parameters
from tests.export.nets import TiedBlock, TiedConvs, TiedEmbedding, Untied


def views_of(ties, name):
    (stored,) = [tensor for tensor in ties.stored if tensor.name == name]
    return [(use.op, use.view) for use in stored.uses]


def test_each_use_is_listed_with_its_view():
    ties = tie_map(TiedBlock(), (torch.randn(2, 5, 32),))
    assert {tensor.name for tensor in ties.ties} == {"query", "weight"}
    assert views_of(ties, "weight") == [("linear", "identity"), ("linear", "transpose")]
    assert views_of(ties, "norm.bias") == [("layer_norm", "identity")]


def test_a_convolution_reads_its_weight_permuted_or_is_transposed_itself():
    x = torch.randn(2, 32, 7, 7)
    assert views_of(tie_map(TiedConvs(), (x,)), "weight") == [
        ("conv2d", "identity"),
        ("conv2d", "permute(1,0,2,3)"),
    ]
    ties = tie_map(TiedConvs(as_transposed=True), (x,))
    assert [op for op, _ in views_of(ties, "weight")] == ["conv2d", "conv_transpose2d"]


def test_aliases_are_found_by_memory_and_keep_their_view():
    ties = tie_map(TiedEmbedding())
    aliases = {tensor.name: tensor.aliases for tensor in ties.ties}
    assert aliases == {
        "embedding.weight": (("output.weight", "identity"),),
        "block.weight": (("alias", "transpose"),),
    }
    used = tie_map(TiedEmbedding(), (torch.randint(0, 100, (2, 5)),))
    # the alias holds the transpose: reading it straight reads the stored tensor transposed
    assert views_of(used, "block.weight")[:2] == [("matmul", "transpose"), ("matmul", "identity")]
    assert ("embedding", "identity") in views_of(used, "embedding.weight")


def test_looking_at_a_module_leaves_its_mode_alone():
    module = TiedBlock().train()
    tie_map(module, (torch.randn(2, 5, 32),))
    assert module.training


def test_parameters_are_counted_once_each():
    module = TiedEmbedding()
    by_hand = 100 * 32 + 32 * 32 + 64 * 32 + 64 + 32 + 2 * 32
    assert unique_parameters(module) == by_hand == tie_map(module).unique_bytes // 4
    untied = Untied()
    assert unique_parameters(untied) == sum(p.numel() for p in untied.parameters())


def test_equal_values_in_different_memory_are_no_tie():
    module = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    module[1].load_state_dict(module[0].state_dict())
    assert tie_map(module).ties == ()


def test_a_chain_of_views_is_followed_and_cancels():
    uses = tie_map(_Chain(), (torch.randn(3, 6),)).stored[0].uses
    assert Use("linear", "identity", "linear") in uses
    assert any(use.view == "transpose>reshape" for use in uses)


class _Chain(nn.Module):
    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.randn(4, 6))

    def forward(self, x):
        return F.linear(x, self.w.t().t()) + self.w.T.reshape(24).sum()


@pytest.mark.parametrize(
    "make",
    [
        lambda base: (base[:6], base[2:8]),  # overlap in part
        lambda base: (base[:6], base[:6].view(2, 3)),  # the same memory in another shape
    ],
)
def test_other_overlaps_are_refused_with_both_names(make):
    one, other = make(torch.randn(12))
    module = nn.Module()
    module.first, module.second = nn.Parameter(one), nn.Parameter(other)
    with pytest.raises(CaptureError, match=r"'first' and 'second' overlap in memory"):
        tie_map(module)


def test_neighbours_in_one_memory_are_separate_tensors():
    base = torch.randn(12)
    module = nn.Module()
    module.first, module.second = nn.Parameter(base[:6]), nn.Parameter(base[6:])
    assert [tensor.elements for tensor in tie_map(module).stored] == [6, 6]


def test_a_view_with_gaps_is_refused():
    module = nn.Module()
    module.gaps = nn.Parameter(torch.randn(4, 6)[:, ::2])
    with pytest.raises(CaptureError, match="'gaps' is a view with gaps"):
        tie_map(module)


def test_a_module_on_the_meta_device_is_counted():
    with torch.device("meta"):
        module = TiedEmbedding()
    assert unique_parameters(module) == unique_parameters(TiedEmbedding())


def _tiny(name):
    transformers = pytest.importorskip("transformers")
    small = {"vocab_size": 100, "hidden_size": 32, "num_attention_heads": 2}
    if name == "BertForMaskedLM":
        config = transformers.BertConfig(num_hidden_layers=2, intermediate_size=64, **small)
    elif name == "AlbertForMaskedLM":
        config = transformers.AlbertConfig(
            num_hidden_layers=3, intermediate_size=64, embedding_size=16, **small
        )
    else:
        config = transformers.GPT2Config(
            vocab_size=100, n_embd=32, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=0
        )
    return getattr(transformers, name)(config)


@pytest.mark.parametrize(
    ("name", "embedding"),
    [
        ("BertForMaskedLM", "bert.embeddings.word_embeddings.weight"),
        ("AlbertForMaskedLM", "albert.embeddings.word_embeddings.weight"),
        ("GPT2LMHeadModel", "transformer.wte.weight"),
    ],
)
def test_models_of_transformers_share_their_embedding(name, embedding):
    module = _tiny(name)
    ties = tie_map(module)
    assert embedding in {tensor.name for tensor in ties.ties}
    # parameters() lists each Parameter object once, and these models share objects
    assert ties.unique_parameters == sum(p.numel() for p in module.parameters())


def test_layers_that_albert_repeats_are_uses_of_one_tensor():
    module = _tiny("AlbertForMaskedLM")
    ties = tie_map(module, (torch.randint(0, 100, (1, 6)),))
    name = "albert.encoder.albert_layer_groups.0.albert_layers.0.ffn.weight"
    assert views_of(ties, name) == [("linear", "identity")] * 3
