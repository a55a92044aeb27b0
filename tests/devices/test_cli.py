from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from devices.target import load_targets
from weightspace.models import MODELS


def test_one_command_prints_the_table_and_the_report(cli, tmp_path):
    out = tmp_path / "out"
    outcome = cli("export", "--model", "resnet-pe-fmnist", "--no-profile", "--out", out)
    assert outcome.code == 0
    for words in ("naive", "latency-first", "memory-first", "1.00x", str(out)):
        assert words in outcome.out
    assert (out / "report.html").is_file()


def test_json_goes_to_standard_output_alone(cli, tmp_path):
    outcome = cli(
        "export", "--model", "vit-pe-fmnist", "--no-profile", "--setting", "memory-first",
        "--out", tmp_path / "out", "--json",
    )  # fmt: skip
    manifest = json.loads(outcome.out)
    assert [a["setting"] for a in manifest["artifacts"]] == ["memory-first"]
    assert manifest == json.loads((tmp_path / "out" / "manifest.json").read_text())


def test_audit_tells_ours_from_naive_by_its_exit_status(cli, tmp_path):
    out = tmp_path / "out"
    cli("export", "--model", "vit-pe-fmnist", "--no-profile", "--keep-naive", "--out", out)
    ours = cli("audit", out / "model.latency-first.onnx")
    assert (ours.code, "1.00x of the unique bytes" in ours.out) == (0, True)
    assert "Gemm (identity), Gemm (transpose)" in ours.out.replace(
        "Gemm (transpose), Gemm (identity)", "Gemm (identity), Gemm (transpose)"
    )
    naive = cli("audit", out / "naive" / "model.onnx")
    assert naive.code == 1
    assert "stored twice" in naive.out
    listed = json.loads(cli("audit", out / "naive" / "model.onnx", "--json").out)
    assert listed["ratio"] > 1.3
    assert {d["view"] for d in listed["duplicates"]} == {"transpose"}


def test_models_and_targets_are_listed(cli):
    models = json.loads(cli("models", "--json").out)
    assert [row["name"] for row in models] == list(MODELS)
    assert set(json.loads(cli("targets", "--json").out)) == set(load_targets())
    lines = cli("models").out.splitlines()
    shown = {words[0]: line for line in lines if (words := line.split())}
    assert "random" in shown["vit-pe-b16"]
    assert "random" not in shown["vit-pe-fmnist-features"]
    assert "raspberry-pi-5" in cli("targets").out


@pytest.mark.parametrize(
    "command", [[], ["export"], ["train"], ["audit"], ["profile"], ["models"], ["targets"]]
)
def test_help_shows_what_to_type(cli, command):
    outcome = cli(*command, "--help")
    assert outcome.code == 0
    assert "Usage:" in outcome.out


def test_a_factory_in_the_working_folder_is_found_by_the_installed_program(tmp_path):
    (tmp_path / "mynets.py").write_text(
        "import torch\n"
        "from weightspace.layers import TiedFFN\n"
        "def make():\n"
        "    axes = ({0: 'batch', 1: 'sequence'},)\n"
        "    return TiedFFN(384, 1536).eval(), (torch.randn(1, 16, 384),), axes\n"
    )
    program = Path(sys.executable).with_name("weightspace")
    command = [program, "export", "--model", "mynets:make", "--no-profile", "--json"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    manifest = json.loads(done.stdout)
    assert [a["ratio"] <= 1.01 for a in manifest["artifacts"]] == [True, True]
    assert manifest["artifacts"][0]["naive_bytes"] / manifest["model"]["unique_bytes"] > 1.9
    assert (tmp_path / "out" / "make-local" / "report.html").is_file()


def test_python_dash_m_export_is_the_same_command():
    done = subprocess.run(
        [sys.executable, "-m", "export", "--help"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0
    assert "raspberry-pi" in done.stdout


def test_training_through_the_command_line_is_refused_clearly(cli, tmp_path):
    outcome = cli("train", "vit-pe-fmnist", "--data", tmp_path, "--out", tmp_path / "runs")
    assert outcome.code == 2
    assert "dataset-fashion-mnist" in outcome.error_lines[0]
    assert cli("train", "vit-pe-b16", "--out", tmp_path / "runs").code == 2
    assert not (tmp_path / "runs").exists()


def test_a_reader_that_goes_away_is_no_error():
    command = f"{sys.executable} -m export --help | head -1"
    done = subprocess.run(
        ["bash", "-o", "pipefail", "-c", command], capture_output=True, text=True, check=False,
        cwd=Path(__file__).parents[2],
    )  # fmt: skip
    assert "Traceback" not in done.stderr
