"""The recipe, the script that builds by it, and what is said where nothing can be built."""

from __future__ import annotations

import ast
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from export.errors import LoweringError, MissingExtraError, UserError
from export.lower.tensorrt import build as building
from export.lower.tensorrt import build_engine, recipe_of, write_tensorrt
from export.lower.tensorrt.build import build, usable_module
from export.lower.tensorrt.profiles import Profile, Range, profiles_of
from export.lower.tensorrt.recipe import RecipeOptions, write_recipe
from export.records import TensorSpec
from tests.export.lower.coreml_models import parsed

W = np.random.default_rng(0).normal(size=(64, 32)).astype(np.float32)
FFN = (
    "g (float[batch, 5, 32] x) => (float[batch, 5, 32] y) {"
    " t = Transpose<perm=[1, 0]>(W) h = MatMul(x, t) a = Relu(h) y = MatMul(a, W) }"
)


def prepared(folder, precision="float16", **options):
    model = write_tensorrt(parsed(FFN, W=W), folder / "net.tensorrt.onnx", precision)
    recipe = recipe_of(model, "net.tensorrt.onnx", precision, options=RecipeOptions(**options))
    write_recipe(recipe, folder)
    return recipe


def rtx():
    pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX builds on Linux x86-64 alone")


# ---- the recipe -------------------------------------------------------------------------------


def test_a_recipe_says_how_each_version_builds_and_times(tmp_path):
    commands = prepared(tmp_path).as_dict()["trtexec"]
    assert set(commands) == {"8.6", "10", "11"}
    for version, steps in commands.items():
        for command in steps.values():
            assert command[0] == "{trtexec}"
            assert all(isinstance(word, str) and word.startswith("--") for word in command[1:])
            assert not any("/" in word for word in command), "file names must be relative"
        words = steps["build"]
        assert "--onnx=net.tensorrt.onnx" in words
        assert "--minShapes=x:1x5x32" in words
        assert "--maxShapes=x:16x5x32" in words
        assert ("--fp16" in words) == (version == "8.6")
        assert ("--stronglyTyped" in words) == (version == "10")
        older = {"--useCudaGraph", "--useSpinWait", "--noDataTransfers"}
        assert older.issubset(steps["run"]) == (version != "11")
        assert not any(flag in steps["run"] for flag in ("--noCudaGraph", "--noSpinWait"))


def test_options_of_a_builder_stand_in_the_recipe(tmp_path):
    recipe = prepared(
        tmp_path, workspace_bytes=2**28, tf32=True, dla_core=1, version_compatible=True,
        timing_cache=False,
    ).as_dict()  # fmt: skip
    build_words = recipe["trtexec"]["10"]["build"]
    assert "--memPoolSize=workspace:256" in build_words
    assert {"--useDLACore=1", "--allowGPUFallback", "--versionCompatible"} <= {*build_words}
    assert "--noTF32" not in build_words
    assert not any("timing" in word for word in build_words)
    assert "--useDLACore=1" in recipe["trtexec"]["10"]["run"]
    assert "--noTF32" in prepared(tmp_path).as_dict()["trtexec"]["11"]["build"]


def test_a_dla_does_not_compute_in_float32(tmp_path):
    with pytest.raises(UserError, match="--precision float16"):
        prepared(tmp_path, "float32", dla_core=0)


INPUTS = (
    TensorSpec("ids", "int64", ("batch", "sequence")),
    TensorSpec("table", "float32", (4, 8)),
)


def test_a_profile_is_chosen_by_what_an_axis_is_and_by_the_sizes_that_are_timed():
    assert profiles_of(INPUTS) == {"ids": Profile((1, 1), (1, 128), (16, 512))}
    assert profiles_of(INPUTS, sizes=(1, 700)) == {"ids": Profile((1, 1), (1, 700), (16, 700))}
    few = profiles_of(INPUTS, largest={INPUTS[0].shape[1]: 100})
    assert few == {"ids": Profile((1, 1), (1, 100), (16, 100))}
    only = {"batch": Range(2, 4, 8)}
    assert profiles_of(INPUTS, only)["ids"] == Profile((2, 1), (4, 128), (8, 512))
    assert profiles_of(INPUTS[1:]) == {}


@pytest.mark.parametrize(
    ("ranges", "message"),
    [
        ({"width": Range(1, 1, 1)}, "no input has an axis 'width'; dynamic axes: batch, sequence"),
        ({"batch": Range(4, 1, 8)}, "must be in order"),
        ({"batch": Range(0, 1, 8)}, "must be in order"),
    ],
)
def test_a_range_that_makes_no_sense_is_refused(ranges, message):
    with pytest.raises(UserError, match=message):
        profiles_of(INPUTS, ranges)


# ---- the script --------------------------------------------------------------------------------


def test_the_script_is_python_of_a_jetson_and_needs_nothing_but_tensorrt():
    source = Path(build_engine.__file__).read_text(encoding="utf-8")
    tree = ast.parse(source, feature_version=(3, 8))
    modules = {
        name.split(".")[0]
        for node in ast.walk(tree)
        for name in (
            [alias.name for alias in node.names] if isinstance(node, ast.Import)
            else [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        )
    }  # fmt: skip
    assert modules <= set(sys.stdlib_module_names)


def test_every_name_that_the_script_takes_of_tensorrt_exists():
    rtx()
    import tensorrt_rtx

    source = Path(build_engine.__file__).read_text(encoding="utf-8")
    taken = set(re.findall(r"\btrt\.([A-Za-z]\w*)", source))
    assert {"Builder", "OnnxParser", "ILogger", "Runtime"} <= taken
    assert [name for name in sorted(taken) if not hasattr(tensorrt_rtx, name)] == []


@pytest.mark.parametrize("precision", ["float32", "float16"])
def test_the_script_builds_alone_in_its_folder(precision, tmp_path):
    rtx()
    prepared(tmp_path, precision)
    done = subprocess.run(
        [sys.executable, "-I", "build_engine.py", "recipe.json", "--module", "tensorrt_rtx",
         "--facts", "facts.json"],
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "model.engine").read_bytes()[:4] == b"vtrt"
    assert (tmp_path / "model.timings").is_file()
    facts = json.loads((tmp_path / "facts.json").read_text())
    assert facts["bytes"] == (tmp_path / "model.engine").stat().st_size
    assert W.size * (4 if precision == "float32" else 2) <= facts["weights_bytes"]
    assert facts["precision"] in done.stdout
    assert not list(tmp_path.glob("*.part"))


def test_a_graph_that_the_parser_refuses_is_named_with_its_nodes(tmp_path):
    rtx()
    recipe = prepared(tmp_path)
    text = (
        "g (float[4] x) => (float[n] y, float[m] z)"
        " { y, a, b, c = Unique(x) w = Relu(x) z, d, e, f = Unique(w) }"
    )
    model = parsed(text)
    for place, node in enumerate(model.graph):
        node.name = f"node{place}"
    ir.save(model, tmp_path / recipe.model)
    (tmp_path / "recipe.json").write_text(json.dumps({**recipe.as_dict(), "profiles": {}}))
    with pytest.raises(LoweringError) as caught:
        build(tmp_path / "recipe.json", tmp_path / "model.rtx.engine", "tensorrt_rtx")
    assert "model.rtx.engine was not built" in str(caught.value)
    for name in ("node0", "node2"):
        assert f"Unique '{name}'" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "model.rtx.engine").exists()


@pytest.mark.parametrize(
    ("kinds", "wanted", "right"),
    [
        (["Half", "Float"], "float16", True),
        (["Float", "Float"], "float16", False),
        (["Float"], "float32", True),
    ],
)
def test_an_engine_labelled_float16_that_is_not_is_found_out(kinds, wanted, right):
    layers = [
        {"Name": str(i), "Outputs": [{"Name": "o", "Format/Datatype": f"Row major linear {k}"}]}
        for i, k in enumerate(kinds)
    ]
    counts = build_engine.count_precisions({"Layers": [*layers, "a name alone"]})
    assert sum(counts.values()) == len(kinds)
    assert build_engine.precision_words(wanted, counts)[0] is right


# ---- building here -----------------------------------------------------------------------------


def test_a_build_gives_the_same_engine_twice_and_leaves_no_timings(tmp_path):
    rtx()
    prepared(tmp_path)
    first = build(tmp_path / "recipe.json", tmp_path / "a.rtx.engine", "tensorrt_rtx")
    second = build(tmp_path / "recipe.json", tmp_path / "b.rtx.engine", "tensorrt_rtx")
    assert (tmp_path / "a.rtx.engine").read_bytes() == (tmp_path / "b.rtx.engine").read_bytes()
    assert first.weights_bytes == second.weights_bytes >= W.size * 2
    assert first.bytes > first.empty_bytes > 0
    assert "runs on no Jetson" in first.words
    assert not list(tmp_path.glob("*.timings"))


def as_builder(monkeypatch, tmp_path, code):
    script = tmp_path / "stand_in.py"
    script.write_text(code)
    monkeypatch.setattr(building.build_engine, "__file__", str(script))


def test_a_builder_that_the_system_kills_is_told_as_such(tmp_path, monkeypatch):
    as_builder(monkeypatch, tmp_path, "import os; os.kill(os.getpid(), 9)")
    with pytest.raises(LoweringError, match=r"a\.engine was not built: .* killed, .* memory"):
        build(tmp_path / "recipe.json", tmp_path / "a.engine", "tensorrt_rtx")


def test_a_builder_that_crashes_is_told_with_its_signal(tmp_path, monkeypatch):
    as_builder(monkeypatch, tmp_path, "import os; os.kill(os.getpid(), 11)")
    with pytest.raises(LoweringError, match="signal SIGSEGV"):
        build(tmp_path / "recipe.json", tmp_path / "a.engine", "tensorrt_rtx")


def test_control_c_ends_the_builder(tmp_path):
    code = (
        "import sys\n"
        "from pathlib import Path\n"
        "from export.lower.tensorrt import build as b\n"
        f"b.build_engine.__file__ = {str(tmp_path / 'slow.py')!r}\n"
        "try:\n"
        f"    b.build(Path('r.json'), Path('a.engine'), 'tensorrt_rtx')\n"
        "except KeyboardInterrupt:\n"
        "    sys.exit(130)\n"
    )
    (tmp_path / "slow.py").write_text(
        f"import os, time\nopen({str(tmp_path / 'pid')!r}, 'w').write(str(os.getpid()))\n"
        "time.sleep(60)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=Path(__file__).parents[3],
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    pid = tmp_path / "pid"
    for _ in range(300):
        if pid.is_file() and pid.read_text():
            break
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    assert process.wait(30) == 130
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid.read_text()), 0)


def test_without_any_package_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'weightspace\[tensorrt\]'"):
        usable_module()


def test_a_script_without_tensorrt_says_what_to_install(tmp_path):
    prepared(tmp_path)
    done = subprocess.run(
        [sys.executable, "-I", "-S", "build_engine.py"],  # no installed packages
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr.startswith("error: no TensorRT was found (tensorrt, tensorrt_rtx)")
    assert not (tmp_path / "model.engine").exists()
