"""The packages import one way only, and heavy packages stay out of the core."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ALLOWED = {
    "weightspace": set(),
    "export": set(),
    "runtimes": {"export"},
    "devices": {"weightspace", "export", "runtimes"},
}
HANDS_OVER = {ROOT / "export" / "__main__.py"}  # python -m export is the command line
VENDORS = {
    "PIL",
    "adbutils",
    "ai_edge_litert",
    "asyncssh",
    "coremltools",
    "flatbuffers",
    "matplotlib",
    "onnxruntime",
    "onnxscript",
    "onnxsim",
    "tensorrt",
    "tensorrt_rtx",
    "tflite_runtime",
    "transformers",
}


def modules() -> list[Path]:
    return [path for package in ALLOWED for path in sorted((ROOT / package).rglob("*.py"))]


def imported(tree: ast.AST) -> set[str]:
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add((node.module or "").split(".")[0])
    return names


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_go_one_way(path):
    package = path.relative_to(ROOT).parts[0]
    ours = imported(ast.parse(path.read_text())) & set(ALLOWED)
    if path not in HANDS_OVER:
        assert ours <= ALLOWED[package] | {package}


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(ROOT)))
def test_vendor_packages_are_imported_inside_functions(path):
    top = ast.Module(
        [n for n in ast.parse(path.read_text()).body if isinstance(n, ast.Import | ast.ImportFrom)],
        [],
    )
    assert not imported(top) & VENDORS


def test_the_command_line_starts_without_any_heavy_package():
    code = (
        "import sys\n"
        "heavy = 'torch onnxruntime onnxsim onnxscript matplotlib ai_edge_litert flatbuffers '\n"
        "heavy += 'coremltools tensorrt tensorrt_rtx asyncssh adbutils'\n"
        "for name in heavy.split():\n"
        "    sys.modules[name] = None\n"  # importing it fails as if it were not installed
        "import devices.cli, export, runtimes, weightspace, export.audit, devices.target\n"
        "devices.cli.app(['targets'], standalone_mode=False)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "raspberry-pi-5" in done.stdout


@pytest.mark.parametrize(
    ("package", "model", "extra"),
    [("onnxruntime", "vit-pe-fmnist", "ort"), ("tokenizers", "minilm-narrow-small", "text")],
)
def test_a_missing_extra_names_its_install_command(package, model, extra):
    code = (
        "import sys\n"
        f"sys.modules['{package}'] = None\n"
        f"sys.argv = ['weightspace', 'export', '--model', '{model}', '--out', 'absent']\n"
        "from devices.cli import main\n"
        "main()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert done.returncode == 2
    assert f"pip install 'weightspace[{extra}]'" in done.stderr
    assert not (ROOT / "absent").exists()
