"""The folder that an export leaves: complete, or not there at all."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from export.errors import OutputError, UserError
from export.manifest import MANIFEST
from export.onnx_io import reason_of


@contextmanager
def new_bundle(out: Path) -> Iterator[Path]:
    """Give a temporary folder beside ``out`` that takes its place when the block ends well.

    A bundle that stood at ``out`` stays until the new one is whole. When the block raises, or is
    interrupted, the temporary folder goes and ``out`` is as it was.

    Raises:
        UserError: ``out`` is a file, or a folder that holds something else than a bundle.
        OutputError: the folder cannot be written or is full.
    """
    out = out.absolute()
    _check_place(out)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    except OSError as error:
        raise OutputError(reason_of(error, out)) from error
    try:
        yield temporary
        temporary.chmod(0o755)  # mkdtemp keeps others out; a bundle is an ordinary folder
        _swap(temporary, out)
    except OSError as error:
        raise OutputError(reason_of(error, out)) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _check_place(out: Path) -> None:
    if out.is_symlink() or (out.exists() and not out.is_dir()):
        raise UserError(f"{out} is not a folder; choose another --out")
    if out.is_dir() and any(out.iterdir()) and not (out / MANIFEST).is_file():
        raise UserError(
            f"{out} holds files that are no bundle and would be lost; choose another --out"
        )


def _swap(temporary: Path, out: Path) -> None:
    if not out.exists():
        temporary.rename(out)
        return
    previous = Path(tempfile.mkdtemp(prefix=f".{out.name}.old.", dir=out.parent))
    out.rename(previous / "bundle")
    try:
        temporary.rename(out)
    except BaseException:
        (previous / "bundle").rename(out)
        raise
    finally:
        shutil.rmtree(previous, ignore_errors=True)
