"""The text encoder of the zoo, alone and with the weights of its teacher."""

from __future__ import annotations

import pytest
import torch

from tests.text_encoders import DIM, POSITIONS, small_encoder, token_inputs
from weightspace.models import TEXT_MODELS
from weightspace.teacher import load_teacher, teacher_folder
from weightspace.tokens import encode, load_tokenizer, padded, sample_texts
from weightspace.zoo import path_of

SPEC = TEXT_MODELS["minilm-pe"]


@torch.no_grad()
def embedded(module, *inputs):
    return module(*inputs)


@pytest.mark.parametrize("name", TEXT_MODELS)
def test_a_text_model_maps_tokens_to_one_vector_on_the_meta_device(name):
    spec = TEXT_MODELS[name]
    with torch.device("meta"):
        module = spec.build().eval()
    inputs = [tensor.to("meta") for tensor in spec.example_inputs(batch=3, tokens=spec.positions)]
    assert module(*inputs).shape == (3, 384)


@pytest.mark.parametrize("rank", [None, 16])
def test_an_embedding_has_length_1_and_depends_on_the_text(rank):
    found = embedded(small_encoder(rank), *token_inputs(4, 12))
    assert found.shape == (4, DIM)
    torch.testing.assert_close(found.norm(dim=-1), torch.ones(4))
    assert (found @ found.T).fill_diagonal_(0).max() < 0.9999


@pytest.mark.parametrize("rank", [None, 16])
def test_padding_changes_no_embedding(rank):
    encoder = small_encoder(rank)
    ids, mask = token_inputs(3, 20)
    together = embedded(encoder, ids, mask)
    for row, tokens in enumerate(mask.sum(1).tolist()):
        alone = embedded(encoder, ids[row : row + 1, :tokens], mask[row : row + 1, :tokens])
        torch.testing.assert_close(together[row : row + 1], alone, rtol=0, atol=2e-6)
    # Whatever stands in the place of padding.
    other = torch.where(mask.bool(), ids, 7)
    torch.testing.assert_close(embedded(encoder, other, mask), together, rtol=0, atol=2e-6)


def test_a_row_of_padding_alone_gives_zeros():
    ids, mask = token_inputs(2, 6)
    mask[1] = 0
    assert embedded(small_encoder(), ids, mask)[1].abs().max() == 0


def test_a_factorised_table_is_the_plain_one_of_its_product():
    thin, plain = small_encoder(16), small_encoder()
    state = thin.state_dict()
    table = state.pop("embedding.table.weight") @ state.pop("embedding.expand.weight").T
    plain.load_state_dict(state | {"embedding.weight": table})
    inputs = token_inputs(3, 20)
    torch.testing.assert_close(embedded(thin, *inputs), embedded(plain, *inputs), rtol=0, atol=1e-5)


def test_a_text_longer_than_the_positions_is_refused():
    with pytest.raises(RuntimeError, match=f"{POSITIONS + 1}.*{POSITIONS}"):
        small_encoder()(*token_inputs(1, POSITIONS + 1))


def test_with_the_teachers_weights_it_is_the_teacher_of_transformers():
    transformers = pytest.importorskip("transformers")
    theirs = transformers.AutoModel.from_pretrained(teacher_folder()).eval()
    ids, mask = padded(encode(load_tokenizer(path_of(SPEC.tokenizer)), sample_texts())[::3])
    with torch.no_grad():
        states = theirs(ids, attention_mask=mask).last_hidden_state
    wide = mask[:, :, None].float()
    expected = torch.nn.functional.normalize((states * wide).sum(1) / wide.sum(1), dim=-1)
    torch.testing.assert_close(embedded(load_teacher(), ids, mask), expected, rtol=0, atol=2e-6)


def test_the_sample_texts_are_of_every_length():
    lengths = [len(ids) for ids in encode(load_tokenizer(path_of(SPEC.tokenizer)), sample_texts())]
    assert len(lengths) == len(set(sample_texts())) == 64
    assert (min(lengths), max(lengths)) == (3, 129)
    assert len(set(lengths)) > 25


def test_the_tokenizer_is_the_teachers_but_cuts_at_the_positions_and_pads_nothing():
    transformers = pytest.importorskip("transformers")
    theirs = transformers.AutoTokenizer.from_pretrained(teacher_folder())
    texts = [*sample_texts(), "so " * 400]
    found = encode(load_tokenizer(path_of(SPEC.tokenizer)), texts)
    assert found == theirs(texts, truncation=True, max_length=SPEC.positions)["input_ids"]
    assert len(found[-1]) == SPEC.positions
