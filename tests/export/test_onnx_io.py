from __future__ import annotations

import errno
from pathlib import Path

import numpy as np
import pytest

from export.errors import BadFileError, OutputError
from export.onnx_io import load_model, reason_of, save_model
from tests.export.test_audit import model_with, weights


@pytest.mark.parametrize("external", [False, True])
def test_a_saved_model_reads_back_equal(tmp_path, external):
    array = weights(64, 128)
    files = save_model(model_with({"w": array}), tmp_path / "m.onnx", external=external)
    assert [file.name for file in files] == ["m.onnx", "m.onnx.data"][: 1 + external]
    loaded = load_model(tmp_path / "m.onnx").graph.initializers["w"].const_value.numpy()
    np.testing.assert_array_equal(loaded, array)


@pytest.mark.parametrize("keep", [0, 1, 17, 500, 5000, -1])
def test_a_file_cut_short_is_one_clear_line(tmp_path, keep):
    path = tmp_path / "m.onnx"
    save_model(model_with({"w": weights(64, 32)}), path)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(BadFileError, match=r"m\.onnx") as caught:
        load_model(path)
    assert "\n" not in str(caught.value)


def test_text_and_missing_files_are_refused(tmp_path):
    (tmp_path / "notes.onnx").write_text("this is not a model " * 20)
    with pytest.raises(BadFileError, match=r"notes\.onnx"):
        load_model(tmp_path / "notes.onnx")
    with pytest.raises(BadFileError, match="is not a file"):
        load_model(tmp_path / "absent.onnx")
    with pytest.raises(BadFileError, match="is not a file"):
        load_model(tmp_path)


@pytest.mark.parametrize("damage", ["cut", "gone"])
def test_external_data_is_checked_against_its_header(tmp_path, damage):
    path = tmp_path / "m.onnx"
    _, data = save_model(model_with({"w": weights(64, 128)}), path, external=True)
    if damage == "cut":
        data.write_bytes(data.read_bytes()[:-8])
    else:
        data.unlink()
    with pytest.raises(BadFileError, match=r"data of 'w' is missing from m\.onnx\.data"):
        load_model(path)


def test_a_full_disk_says_so():
    error = OSError(errno.ENOSPC, "No space left on device")
    assert "disk is full" in reason_of(error, Path("out"))
    assert "no permission" in reason_of(OSError(errno.EACCES, "denied"), Path("out"))


def test_a_folder_that_cannot_be_written_is_an_output_error(tmp_path):
    with pytest.raises(OutputError, match="cannot be written"):
        save_model(model_with({"w": weights(8, 8)}), tmp_path / "absent" / "m.onnx")
