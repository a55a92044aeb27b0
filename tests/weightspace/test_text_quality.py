from __future__ import annotations

import numpy as np
import pytest
import torch

from weightspace import text_quality, zoo
from weightspace.checkpoint import load_checkpoint
from weightspace.corpora import held_out_texts
from weightspace.models import TEXT_MODELS
from weightspace.models.minilm import POSITIONS
from weightspace.teacher import load_teacher, teacher_folder
from weightspace.text_quality import Texts, embed, gather_texts, measure_quality
from weightspace.tokens import encode, load_tokenizer, padded

SENTENCES = [
    "A cat sleeps on the warm roof.",
    "Stocks fell for a third day.",
    "Bread is baked from flour, water and salt.",
    "The bridge was closed after the storm.",
    "short",
]


@pytest.fixture(scope="module")
def teacher():
    return load_teacher()


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer(teacher_folder() / "tokenizer.json")


def test_the_teacher_gives_what_transformers_gives(teacher, tokenizer, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    from transformers import AutoModel

    original = AutoModel.from_pretrained(str(teacher_folder())).eval()
    ids, mask = padded(encode(tokenizer, SENTENCES))
    with torch.no_grad():
        states = original(input_ids=ids, attention_mask=mask).last_hidden_state
        mean = (states * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
        expected = torch.nn.functional.normalize(mean, dim=-1)
        torch.testing.assert_close(teacher(ids, mask), expected, atol=1e-6, rtol=0)


def test_padding_changes_no_embedding(teacher, tokenizer):
    together = embed(teacher, tokenizer, SENTENCES)
    alone = np.concatenate([embed(teacher, tokenizer, [text]) for text in SENTENCES])
    np.testing.assert_allclose(together, alone, atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(together, axis=1), 1, atol=1e-6)


def test_embeddings_come_in_the_order_of_the_texts(teacher, tokenizer, monkeypatch):
    monkeypatch.setattr(text_quality, "_BATCH", 2)
    one = embed(teacher, tokenizer, SENTENCES)
    np.testing.assert_allclose(one, embed(teacher, tokenizer, SENTENCES[::-1])[::-1], atol=1e-6)


def test_long_texts_are_cut_at_the_positions(tokenizer):
    (ids,) = encode(tokenizer, ["word " * 1000])
    assert len(ids) == POSITIONS
    assert tokenizer.decode([ids[-1]], skip_special_tokens=False) == "[SEP]"


def test_the_teacher_beside_itself_is_equal(teacher, tokenizer):
    texts = Texts(
        kinds={"few": SENTENCES},
        words=["cat", "bread", "bridge"],
        definitions=["a small pet that purrs", "food made of dough", "a way across a river"],
        rated={"good and bad": (["wonderful", "terrible"] * 40, [3.0, -3.0] * 40)},
    )
    targets = {"few": embed(teacher, tokenizer, SENTENCES)}
    found = measure_quality(teacher, tokenizer, texts, targets)
    assert found.similarity["few"].texts == len(SENTENCES)
    assert found.similarity["few"].mean == pytest.approx(1, abs=1e-5)
    assert found.similarity["few"].percentile_5 == pytest.approx(1, abs=1e-5)
    assert found.retrieval == 1
    assert found.sentiment["good and bad"] == pytest.approx(1, abs=1e-3)
    shuffled = Texts({}, texts.words, texts.definitions[1:] + texts.definitions[:1], {})
    assert measure_quality(teacher, tokenizer, shuffled, {}).retrieval == 0


def test_ratings_that_do_not_follow_the_text_are_not_predicted():
    generator = np.random.default_rng(0)
    embeddings = generator.standard_normal((2000, 8)).astype(np.float32)
    assert abs(text_quality._correlation(embeddings, generator.standard_normal(2000))) < 0.15
    follows = embeddings[:, 0] + 0.1 * generator.standard_normal(2000)
    assert text_quality._correlation(embeddings, follows.astype(np.float64)) > 0.95


def test_words_do_not_stand_in_their_own_definitions(npm, english):
    texts = gather_texts(npm, limit=300)
    assert len(texts.words) == len(texts.definitions) == 300
    pairs = zip(texts.words, texts.definitions, strict=True)
    assert not [word for word, text in pairs if word.lower() in text.lower()]
    assert {"definitions", "computing", "novel"} <= set(texts.kinds)


SHIPPED = [name for name, spec in TEXT_MODELS.items() if spec.checkpoint]


@pytest.mark.parametrize("name", SHIPPED)
@pytest.mark.parametrize("kind", ["definitions", "examples", "computing"])
def test_a_shipped_student_is_as_near_to_its_teacher_as_its_card_says(
    name, kind, teacher, tokenizer, npm, english
):
    card = zoo.card_of(name)
    student = TEXT_MODELS[name].build()
    load_checkpoint(student.eval(), zoo.path_of(TEXT_MODELS[name].checkpoint))
    texts = held_out_texts(kind, npm, 150)
    cosines = (embed(student, tokenizer, texts) * embed(teacher, tokenizer, texts)).sum(1)
    assert cosines.mean() == pytest.approx(card["quality"]["similarity"][kind]["mean"], abs=0.01)
    assert cosines.mean() > 0.92
    assert sum(p.numel() for p in student.parameters()) == card["parameters"]
    assert card["encoder_parameters"] < 0.9 * sum(p.numel() for p in teacher.blocks.parameters())
    assert zoo.path_of(TEXT_MODELS[name].checkpoint).stat().st_size < 40e6
