"""Bad input: one clear line, a non-zero exit, nothing written, nothing lost."""

from __future__ import annotations

import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from weightspace.zoo import path_of

ZOO = path_of("vit-pe-fmnist.safetensors")
EXPORT = ("export", "--no-profile", "--target", "local")


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "place" / "out"


def refused(outcome, out: Path, message: str, code: int = 2) -> None:
    assert outcome.code == code, outcome.err
    assert len(outcome.error_lines) == 1, outcome.err
    assert message in outcome.error_lines[0]
    assert "Traceback" not in outcome.err
    assert not out.exists()
    assert not out.parent.exists() or list(out.parent.iterdir()) == []


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("vit-pe-fmnits", "did you mean 'vit-pe-fmnist'"),
        ("no-such-thing", "`weightspace models` lists all"),
        ("nowhere.at_all:make", "cannot be imported"),
        ("collections:OrderedDict", "not a torch module"),
        ("absent.safetensors", "is not a file"),
        ("absent.pt2", "is not a file"),
        ("weights.pth", "may hold a pickle"),
    ],
)
def test_a_model_that_is_not_there(cli, out, model, message):
    refused(cli(*EXPORT, "--model", model, "--out", out), out, message)


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("jetson-nano", "did you mean"),
        ("toaster", "`weightspace targets` lists all"),
    ],
)
def test_a_target_that_is_not_there(cli, out, target, message):
    outcome = cli("export", "--model", "vit-pe-fmnist", "--target", target, "--out", out)
    refused(outcome, out, message)


def test_a_truncated_checkpoint(cli, out, tmp_path):
    path = tmp_path / "cut.safetensors"
    path.write_bytes(ZOO.read_bytes()[:5000])
    refused(cli(*EXPORT, "--model", path, "--out", out), out, "not a whole safetensors file")


def test_a_checkpoint_of_other_shapes(cli, out, tmp_path):
    tensors = load_file(ZOO)
    tensors["head.weight"] = torch.zeros(7, 80)
    path = tmp_path / "other.safetensors"
    save_file(tensors, path, {"model": "vit-pe-fmnist", "aliases": "{}"})
    outcome = cli(*EXPORT, "--model", path, "--out", out)
    refused(outcome, out, "'head.weight' has shape (7, 80), the model needs (10, 80)")


def test_a_checkpoint_that_names_no_model(cli, out, tmp_path):
    path = tmp_path / "anonymous.safetensors"
    save_file({"a": torch.zeros(2)}, path)
    refused(cli(*EXPORT, "--model", path, "--out", out), out, "does not say which model")


class _Bomb:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return (os.mkdir, (str(self.path),))


@pytest.mark.parametrize("name", ["bomb.safetensors", "bomb.pt2"])
@pytest.mark.parametrize("save", ["pickle", "torch"])
def test_a_pickle_with_code_is_never_run(cli, out, tmp_path, name, save):
    path, proof = tmp_path / name, tmp_path / "was run"
    if save == "pickle":
        path.write_bytes(pickle.dumps(_Bomb(proof)))
    else:
        torch.save(_Bomb(proof), path)
    outcome = cli(*EXPORT, "--model", path, "--out", out)
    assert outcome.code == 2
    assert len(outcome.error_lines) == 1
    assert not proof.exists()
    assert not out.exists()


def test_a_program_with_a_pickled_part_is_never_run(cli, out, tmp_path):
    """A whole .pt2, one of whose parts was exchanged for a pickle with code."""
    import zipfile

    good, bad, proof = tmp_path / "good.pt2", tmp_path / "bad.pt2", tmp_path / "was run"
    program = torch.export.export(torch.nn.Linear(4, 2), (torch.zeros(1, 4),))
    torch.export.save(program, good)
    with zipfile.ZipFile(good) as source, zipfile.ZipFile(bad, "w") as copy:
        parts = source.namelist()
        assert any("sample_inputs" in name for name in parts)
        for name in parts:
            content = source.read(name)
            if "sample_inputs" in name and not name.endswith("/"):
                content = pickle.dumps(_Bomb(proof), protocol=2)  # as torch writes them
            copy.writestr(name, content)
    refused(cli(*EXPORT, "--model", bad, "--out", out), out, "holds a pickle with code")
    assert not proof.exists()


def test_a_corrupt_onnx_file(cli, tmp_path):
    path = tmp_path / "model.onnx"
    path.write_bytes(np.random.default_rng(0).bytes(5000))
    outcome = cli("audit", path)
    assert (outcome.code, len(outcome.error_lines)) == (2, 1)
    assert "model.onnx" in outcome.error_lines[0]


def test_a_folder_that_is_no_bundle(cli, tmp_path):
    outcome = cli("profile", tmp_path)
    assert (outcome.code, len(outcome.error_lines)) == (2, 1)
    assert "is no bundle" in outcome.error_lines[0]


@pytest.mark.parametrize("sizes", ["1,x", "0", "-4", ""])
def test_sizes_that_are_none(cli, out, sizes):
    outcome = cli(*EXPORT, "--model", "vit-pe-fmnist", "--out", out, f"--sizes={sizes}")
    refused(outcome, out, "--sizes")


def test_a_folder_of_other_files_is_left_alone(cli, tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    outcome = cli(*EXPORT, "--model", "vit-pe-fmnist", "--out", tmp_path)
    assert outcome.code == 2
    assert "would be lost" in outcome.error_lines[0]
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


@pytest.fixture
def mount(tmp_path):
    """Mount a small file system, as root; gives its folder."""
    made: list[Path] = []

    def make(options: str) -> Path:
        folder = tmp_path / f"mount{len(made)}"
        folder.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", options, "none", str(folder)]
        if os.geteuid() or subprocess.run(command, check=False, capture_output=True).returncode:
            pytest.skip("a file system can only be mounted by root")
        made.append(folder)
        return folder

    yield make
    for folder in made:
        subprocess.run(["umount", str(folder)], check=True)


def test_a_disk_that_fills_up(cli, mount):
    folder = mount("size=600k")
    outcome = cli(*EXPORT, "--model", "vit-pe-fmnist", "--out", folder / "out")
    assert outcome.code == 1
    assert "disk is full" in outcome.error_lines[0]
    assert list(folder.iterdir()) == []


def test_a_folder_that_cannot_be_written(cli, mount):
    folder = mount("size=1m,ro")
    outcome = cli(*EXPORT, "--model", "vit-pe-fmnist", "--out", folder / "out")
    assert outcome.code == 1
    assert len(outcome.error_lines) == 1
    assert "no permission" in outcome.error_lines[0]


@pytest.mark.parametrize("after", ["tracing", "timing"])
def test_control_c_leaves_the_previous_bundle(tmp_path, after):
    out = tmp_path / "out"
    shutil.copytree(Path(__file__).parent, out / "old")
    (out / "manifest.json").write_text("{}")
    before = sorted(path.name for path in out.rglob("*"))
    process = subprocess.Popen(
        [sys.executable, "-m", "export", "--model", "vit-pe-fmnist", "--out", str(out)],
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        # Tests that run in the background may have been told to ignore it.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    seen = []
    for line in process.stderr:
        seen.append(line)
        if line.startswith(after):
            time.sleep(0.3)
            process.send_signal(signal.SIGINT)
            break
    rest = process.communicate(timeout=60)[1]
    assert process.returncode == 130, "".join(seen) + rest
    assert rest.strip().splitlines()[-1] == "interrupted; nothing was written"
    assert "Traceback" not in rest
    assert sorted(path.name for path in out.rglob("*")) == before
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
