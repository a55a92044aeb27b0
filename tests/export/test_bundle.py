from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from export.bundle import new_bundle
from export.errors import OutputError, UserError


def fill(folder: Path, text: str) -> None:
    (folder / "manifest.json").write_text("{}")
    (folder / "model.onnx").write_text(text)


def leftovers(out: Path) -> list[str]:
    return [path.name for path in out.parent.iterdir() if path != out]


def test_a_bundle_appears_whole(tmp_path):
    out = tmp_path / "deep" / "out"
    with new_bundle(out) as folder:
        fill(folder, "new")
        assert not out.exists()
    assert (out / "model.onnx").read_text() == "new"
    assert leftovers(out) == []


def test_a_new_bundle_replaces_the_old_one(tmp_path):
    out = tmp_path / "out"
    for text in ("old", "new"):
        with new_bundle(out) as folder:
            fill(folder, text)
    assert (out / "model.onnx").read_text() == "new"
    assert leftovers(out) == []


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, SystemExit])
def test_an_interrupted_export_harms_nothing(tmp_path, error):
    out = tmp_path / "out"
    with new_bundle(out) as folder:
        fill(folder, "old")

    def fail_half_way():
        with new_bundle(out) as folder:
            fill(folder, "half")
            raise error

    with pytest.raises(error):
        fail_half_way()
    assert (out / "model.onnx").read_text() == "old"
    assert leftovers(out) == []


def test_a_disk_that_fills_up_is_one_line_and_leaves_the_old_bundle(tmp_path):
    out = tmp_path / "out"
    with new_bundle(out) as folder:
        fill(folder, "old")
    with pytest.raises(OutputError, match="disk is full"), new_bundle(out) as folder:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert (out / "model.onnx").read_text() == "old"
    assert leftovers(out) == []


def test_a_folder_of_other_files_is_not_replaced(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(UserError, match="would be lost"), new_bundle(tmp_path):
        pass
    assert (tmp_path / "thesis.tex").exists()


def test_a_file_is_not_a_place_for_a_bundle(tmp_path):
    (tmp_path / "out").write_text("")
    with pytest.raises(UserError, match="is not a folder"), new_bundle(tmp_path / "out"):
        pass
    with pytest.raises(OutputError, match="cannot be written"), new_bundle(tmp_path / "out" / "x"):
        pass
