from __future__ import annotations

import io
import itertools
import json

import numpy as np
import pytest
import torch
from rich.console import Console
from torch import nn

from weightspace import distill as distillation
from weightspace.checkpoint import CheckpointError, load_checkpoint, read_metadata
from weightspace.distill import (
    BATCH,
    Run,
    distill,
    distill_model,
    factorised,
    start_from_student,
    start_from_teacher,
)
from weightspace.layers import TiedAttention, TiedFFN
from weightspace.models import TEXT_MODELS
from weightspace.models.minilm import FactorisedEmbedding, PostNormBlock, TextEncoder
from weightspace.tokens import padded

VOCABULARY, DIM = 50, 16
QUIET = Console(file=io.StringIO())
RUN = Run("small", steps=6, seed=0, texts=100, start="")


def encoder(*, tied, hidden=32, rank=None):
    """Build two small blocks; biases and norms are no zeros and ones."""
    embedding = (
        nn.Embedding(VOCABULARY, DIM)
        if rank is None
        else FactorisedEmbedding(VOCABULARY, rank, DIM)
    )
    blocks = [
        PostNormBlock(
            TiedAttention(DIM, 2, tie_value_output=False, tie_query_key=False),
            TiedFFN(DIM, hidden, tied=tied, gain=tied, output_map=tied),
            DIM,
        )
        for _ in range(2)
    ]
    made = TextEncoder(embedding, blocks, dim=DIM, positions=12)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return made.eval()


@pytest.fixture
def teacher():
    return encoder(tied=False)


@pytest.fixture
def ids():
    generator = np.random.default_rng(0)
    return [list(generator.integers(1, VOCABULARY, generator.integers(1, 13))) for _ in range(100)]


def embeddings(module, ids):
    with torch.no_grad():
        return module(*padded(ids))


def cosine(one, other, ids):
    return (embeddings(one, ids) * embeddings(other, ids)).sum(1).mean().item()


# ---- where a student starts ---------------------------------------------------------------------


def test_a_student_of_the_teachers_own_shape_starts_as_the_teacher(teacher, ids):
    student = encoder(tied=False)
    start_from_teacher(student, teacher, ids, QUIET)
    assert cosine(student, teacher, ids) > 0.99999


@pytest.mark.parametrize("shape", [{"tied": True}, {"tied": False, "hidden": 16}])
def test_a_smaller_student_starts_nearer_to_the_teacher_than_by_chance(teacher, ids, shape):
    student, seen, unseen = encoder(**shape), ids[:80], ids[80:]
    before = cosine(student, teacher, unseen)
    start_from_teacher(student, teacher, seen, QUIET)
    assert cosine(student, teacher, unseen) > max(0.9, before)


def test_a_table_that_is_factorised_at_full_rank_is_the_table(ids):
    table = nn.Embedding(VOCABULARY, DIM)
    made = factorised(table, DIM, ids)
    every = torch.arange(VOCABULARY)
    torch.testing.assert_close(made(every), table(every))


def test_a_factorised_table_is_nearer_for_words_that_are_used(ids):
    table = nn.Embedding(VOCABULARY, DIM)
    often = [[1, 2, 3, 4]] * 1000
    made = factorised(table, 4, often)
    errors = (made(torch.arange(VOCABULARY)) - table.weight).square().sum(1)
    assert errors[1:5].max() < 0.01 * errors[5:].mean()


def test_a_student_starts_from_another_with_its_table_factorised(ids):
    other, student = encoder(tied=True), encoder(tied=True, rank=DIM)
    start_from_student(student, other, ids)
    assert cosine(student, other, ids) > 0.99999


# ---- training -----------------------------------------------------------------------------------


def test_every_text_is_shown_once_in_an_epoch_in_batches_of_like_lengths(ids):
    run = Run("small", steps=4, seed=0, texts=100, start="")
    batches = [batch for _, batch in distillation._batches(ids, run, 0)]
    assert sorted(itertools.chain(*batches)) == sorted(ids)
    assert sorted(map(len, batches)) == [4, BATCH, BATCH, BATCH]
    spans = [max(map(len, batch)) - min(map(len, batch)) for batch in batches]
    assert np.mean(spans) < 6  # of 12


def test_batches_depend_on_the_seed_and_the_step_alone(ids):
    whole = list(distillation._batches(ids, RUN, 0))
    assert list(distillation._batches(ids, RUN, 4)) == whole[4:]
    other = Run("small", steps=6, seed=1, texts=100, start="")
    assert list(distillation._batches(ids, other, 0)) != whole


def test_distilling_moves_a_student_to_its_teacher(teacher, ids, tmp_path):
    student = encoder(tied=True)
    before = cosine(student, teacher, ids)
    run = Run("small", steps=150, seed=0, texts=100, start="")
    table = student.embedding.weight.clone()
    distill(student, teacher, ids, run, tmp_path / "resume", QUIET)
    assert cosine(student, teacher, ids) > before + 0.1
    assert torch.equal(student.embedding.weight, table)  # a plain table is the teacher's


def test_a_resumed_distillation_ends_with_the_same_weights(teacher, ids, tmp_path, monkeypatch):
    monkeypatch.setattr(distillation, "SAVED_EVERY", 2)
    whole = encoder(tied=True, rank=4)
    parts, again = (encoder(tied=True, rank=4) for _ in range(2))
    parts.load_state_dict(whole.state_dict())
    distill(whole, teacher, ids, RUN, tmp_path / "whole", QUIET)
    with monkeypatch.context() as patch:
        count, real = itertools.count(), distillation._loss

        def interrupted(*given):
            if next(count) == 5:
                raise KeyboardInterrupt
            return real(*given)

        patch.setattr(distillation, "_loss", interrupted)
        with pytest.raises(KeyboardInterrupt):
            distill(parts, teacher, ids, RUN, tmp_path / "resume", QUIET)
    distill(again, teacher, ids, RUN, tmp_path / "resume", QUIET)
    for one, other in zip(whole.parameters(), again.parameters(), strict=True):
        assert torch.equal(one, other)


def test_the_state_of_another_run_is_refused(teacher, ids, tmp_path, monkeypatch):
    monkeypatch.setattr(distillation, "SAVED_EVERY", 2)
    distill(encoder(tied=True), teacher, ids, RUN, tmp_path / "resume", QUIET)
    other = Run("small", steps=6, seed=1, texts=100, start="")
    with pytest.raises(CheckpointError, match="an interrupted training with other settings"):
        distill(encoder(tied=True), teacher, ids, other, tmp_path / "resume", QUIET)


# ---- the whole command --------------------------------------------------------------------------


def test_a_student_of_minilm_is_distilled_measured_and_saved(npm, english, tmp_path, monkeypatch):
    for name, value in (("_FIT_STEPS", 1), ("_FITTED_TOKENS", 64)):
        monkeypatch.setattr(distillation, name, value)
    out = tmp_path / "out"
    card = distill_model("minilm-pe", out, npm=npm, steps=1, limit=40, console=QUIET)
    assert sorted(path.name for path in out.iterdir()) == [
        "minilm-pe.json",
        "minilm-pe.safetensors",
    ]
    path = out / "minilm-pe.safetensors"
    assert read_metadata(path)["model"] == "minilm-pe"
    student = TEXT_MODELS["minilm-pe"].build()
    load_checkpoint(student, path)
    assert path.stat().st_size < 2.02 * card.parameters  # float16
    assert card.parameters == sum(p.numel() for p in student.parameters())
    assert card.encoder_parameters < 0.9 * 10_646_784  # the teacher's blocks
    assert json.loads((out / "minilm-pe.json").read_text())["steps"] == 1
    assert card.quality.similarity["definitions"].mean > 0.2  # of unrelated encoders it is about 0
    small = distill_model(
        "minilm-pe-small", out, npm=npm, steps=1, limit=40, start=path, console=QUIET
    )
    assert small.parameters < 0.65 * card.parameters
    assert small.command.endswith("--start minilm-pe.safetensors")


@pytest.mark.parametrize(
    ("name", "settings", "words"),
    [
        ("vit-pe-fmnist", {}, "is no text encoder; there are minilm-pe"),
        ("minilm-pe", {"steps": 0}, "steps is 0; train for at least one"),
        ("minilm-pe", {"limit": 0}, "limit is 0"),
    ],
)
def test_what_cannot_be_distilled_is_refused(tmp_path, npm, name, settings, words):
    with pytest.raises(ValueError, match=words):
        distill_model(name, tmp_path / "out", npm=npm, **settings)
    assert not (tmp_path / "out").exists()
