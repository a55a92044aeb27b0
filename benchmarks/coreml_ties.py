"""Tied models as Core ML packages: ours beside coremltools' own conversion of the torch model.

Bytes of the stored weights over those of the unique parameters, and seconds from the torch model to
the package, in one run. Nothing is timed but the conversion: Core ML runs on Apple's systems only.
"""

from __future__ import annotations

import argparse
import logging
import sys
import tempfile
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter

import torch
from models import NAMES, Model, make
from rich.console import Console
from rich.table import Table

from export.audit import audit_file
from export.capture import capture, trace
from export.coreml_io import quiet_coremltools
from export.errors import WeightspaceError
from export.lower.coreml import write_mlpackage
from export.passes import run_pipeline
from runtimes.environment import cpu_name

QUICK_NAMES = ("vit-pe-fmnist", "resnet-pe-fmnist", "ffn-6x384-s16", "conv-bottleneck")
PRECISIONS = ("float32", "float16")
_BYTES = {"float32": 4, "float16": 2}


@dataclass
class Row:
    """What is known of one model; a conversion that failed is missing."""

    name: str
    parameters: int
    stored: dict[tuple[str, str], int] = field(default_factory=dict)
    seconds: dict[tuple[str, str], float] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)


def convert_ours(row: Row, model: Model, folder: Path) -> None:
    """Capture once for both precisions, as a bundle does; each is timed from the torch model."""
    start = perf_counter()
    captured = capture(trace(model.module, model.inputs), input_names=model.input_names)
    run_pipeline("canonical", captured.model)
    captured_s = perf_counter() - start
    for precision in PRECISIONS:
        start = perf_counter()
        path = folder / f"ours.{precision}.mlpackage"
        try:
            write_mlpackage(captured.model, path, precision)
        except WeightspaceError as error:
            row.failures.append(f"ours, {precision}: {error}")
            continue
        row.seconds["ours", precision] = captured_s + perf_counter() - start
        row.stored["ours", precision] = audit_file(path).weight_bytes


def convert_theirs(row: Row, model: Model, folder: Path) -> None:
    """Convert with coremltools from torch.export, as its guide says."""
    import coremltools as ct

    for precision in PRECISIONS:
        start = perf_counter()
        path = folder / f"theirs.{precision}.mlpackage"
        try:
            program = torch.export.export(model.module, model.inputs).run_decompositions({})
            converted = ct.convert(
                program,
                convert_to="mlprogram",
                minimum_deployment_target=ct.target.iOS17,
                compute_precision=getattr(ct.precision, precision.upper()),
                skip_model_load=True,
            )
            converted.save(str(path))
        except Exception as error:  # the tool raises many kinds
            reason = str(error).strip().splitlines()[-1] if str(error).strip() else ""
            row.failures.append(f"theirs, {precision}: {type(error).__name__} {reason}")
            continue
        row.seconds["theirs", precision] = perf_counter() - start
        row.stored["theirs", precision] = audit_file(path).weight_bytes


def tables(rows: list[Row]) -> list[Table]:
    """Lay out what was found."""
    columns = [(tool, precision) for precision in PRECISIONS for tool in ("ours", "theirs")]
    titles = [f"{tool} {precision}" for tool, precision in columns]
    stored = Table("model", "unique MB", *titles, title="stored bytes / unique bytes")
    seconds = Table("model", *titles, title="from torch model to package, s")
    for row in rows:
        ratios = [
            f"{row.stored[key] / (row.parameters * _BYTES[key[1]]):.3f}"
            if key in row.stored
            else "-"
            for key in columns
        ]
        stored.add_row(row.name, f"{row.parameters * 4 / 1e6:.2f}", *ratios)
        times = [f"{row.seconds[key]:.1f}" if key in row.seconds else "-" for key in columns]
        seconds.add_row(row.name, *times)
    return [stored, seconds]


def main() -> int:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a few small models")
    parser.add_argument("--only", default="", help="models whose name holds this text")
    arguments = parser.parse_args()
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    among = NAMES if arguments.only or not arguments.quick else QUICK_NAMES
    names = [name for name in among if arguments.only in name]
    if not names:
        parser.error(f"no model's name holds {arguments.only!r}; there are {', '.join(NAMES)}")
    console = Console()
    console.print(cpu_name())
    rows: list[Row] = []
    try:
        with console.status("starting") as status:
            for name in names:
                model = make(name)
                row = Row(name, model.unique_bytes // 4)
                rows.append(row)
                with tempfile.TemporaryDirectory(prefix="weightspace-") as scratch:
                    status.update(f"{name}: ours")
                    convert_ours(row, model, Path(scratch))
                    status.update(f"{name}: coremltools")
                    with quiet_coremltools():
                        convert_theirs(row, model, Path(scratch))
                for failure in row.failures:
                    console.print(f"{name}, {failure}", markup=False)
    except KeyboardInterrupt:
        console.print(f"interrupted; {len(rows)} of {len(names)} models were begun")
        return 130
    console.print(*tables(rows), sep="\n")
    return int(any(failure.startswith("ours") for row in rows for failure in row.failures))


if __name__ == "__main__":
    sys.exit(main())
