"""The whole story on real models: export, audit, parity, profile, report."""

from __future__ import annotations

import csv
import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from devices.deploy import add_run, capture_canonical, deploy, operators_by_artifact, profile
from devices.golden import read_golden
from devices.options import Options
from devices.report.json_form import read_json
from devices.source import resolve
from devices.target import find_target
from export.audit import LIMIT, audit_file
from export.audit_onnx import audit_model
from export.errors import BadFileError
from export.lower import SETTINGS
from export.lower.coreml import write_mlpackage
from export.lower.ort import CANDIDATES, REPACKED, write_form
from export.lower.tflite import write_tflite
from export.parity import limit_of
from runtimes import open_artifact
from runtimes.bench import BRIEF
from runtimes.ort import open_session
from weightspace.layers import TiedFFN
from weightspace.models import MODELS
from weightspace.models.spec import is_for_fashion_mnist

# Those with structured layers are in test_deploy_structures.py.
TRAINED = [
    name
    for name, spec in MODELS.items()
    if spec.checkpoint and is_for_fashion_mnist(spec) and spec.twin != "resnet8-fmnist"
]
# Both precisions of what is tied, one of its untied twins.
BY_PRECISION = [
    (name, precision)
    for name in TRAINED
    for precision in ("float32", "float16")
    if MODELS[name].twin is not None or precision == "float16"
]
QUIET = Options(profile=False)
BRIEFLY = Options(budget=BRIEF, keep_naive=True)


def silent(_: str) -> None:
    """Take no notice of the steps."""


@pytest.fixture(scope="module")
def bundle(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("bundles") / "out"
    deploy("vit-pe-fmnist", find_target("raspberry-pi"), out, BRIEFLY)
    return out


@pytest.mark.parametrize("name", TRAINED)
def test_a_trained_model_arrives_at_one_copy_and_agrees_with_torch(name, tmp_path):
    done = deploy(name, find_target("local"), tmp_path / "out", QUIET)
    tied = bool(done.report.ties.ties)
    assert tied == (MODELS[name].twin is not None)
    naive, *ours = done.report.variants
    assert (naive.ratio > 1.1) == tied
    for variant in ours:
        assert variant.ratio <= LIMIT
        assert variant.parity.max_rel <= 1e-4
        assert variant.parity.inputs == 1000
        assert variant.parity.top1_agreement == 1.0
        assert variant.accuracy >= 0.88
        path = tmp_path / "out" / variant.path
        onnx.checker.check_model(str(path), full_check=True)
        assert audit_file(path).duplicates == ()


def test_float16_halves_an_onnx_file_and_is_timed_beside_naive(tmp_path):
    options = replace(BRIEFLY, precisions=("float16",), sizes=(1,))
    done = deploy("vit-pe-fmnist", find_target("local"), tmp_path / "out", options)
    assert (tmp_path / "out" / "naive" / "model.float16.onnx").is_file()
    naive, *ours = done.report.variants
    assert naive.ratio > 1.1
    for variant in ours:
        assert variant.ratio <= LIMIT
        assert variant.weight_bytes <= LIMIT * done.report.ties.unique_bytes / 2
        assert variant.parity.max_rel <= 1e-2
        assert "stored as float16 and made float32" in variant.form
        assert done.report.runs[0].results[variant.id].latency_ms_by_size
        assert not variant.session_options  # the one-pass kernel reads float32


@pytest.mark.parametrize(("name", "precision"), BY_PRECISION)
def test_a_trained_model_arrives_on_android_at_one_copy(name, precision, tmp_path):
    options = replace(QUIET, precisions=(precision,))
    done = deploy(name, find_target("android"), tmp_path / "out", options)
    tied = bool(done.report.ties.ties)
    naive, *ours = done.report.variants
    assert {v.format for v in done.report.variants} == {"tflite"}
    assert (naive.ratio > 1.1) == tied
    for variant in ours:
        assert variant.precision == precision
        assert variant.ratio <= LIMIT
        assert variant.parity.max_rel <= {"float32": 1e-4, "float16": 1e-2}[precision]
        assert variant.parity.top1_agreement >= {"float32": 1.0, "float16": 0.995}[precision]
        assert variant.parity.inputs == 1000
        assert variant.parity.reference == "ai-edge-litert"
        path = tmp_path / "out" / variant.path
        assert audit_file(path).duplicates == ()
        bytes_each = {"float32": 4, "float16": 2}[precision]
        assert variant.weight_bytes <= LIMIT * bytes_each * done.report.ties.unique_parameters
    (entry, _) = done.manifest["artifacts"]
    assert list(entry["inputs"][0]["shape"]) == ["batch", 1, 28, 28]
    assert "ai-edge-litert" in entry["producer"]


@pytest.mark.parametrize(("name", "precision"), BY_PRECISION)
@pytest.mark.skipif(sys.platform == "darwin", reason="Core ML itself is measured here")
def test_a_trained_model_arrives_on_an_iphone_at_one_copy(name, precision, tmp_path):
    options = replace(BRIEFLY, precisions=(precision,))
    done = deploy(name, find_target("iphone"), tmp_path / "out", options)
    tied = bool(done.report.ties.ties)
    naive, variant = done.report.variants
    assert {v.format for v in done.report.variants} == {"mlpackage"}
    assert (naive.ratio > 1.1) == tied
    assert variant.precision == precision
    assert variant.ratio <= LIMIT
    assert variant.parity.max_rel <= {"float32": 1e-4, "float16": 2e-2}[precision]
    assert variant.parity.top1_agreement >= {"float32": 1.0, "float16": 0.995}[precision]
    assert variant.parity.inputs == 1000
    assert "not Core ML" in variant.parity.reference
    # Nothing is timed here, whatever was asked: Core ML is not on this system.
    assert done.report.runs == ()
    assert done.manifest["profile"] == []
    package = tmp_path / "out" / variant.path
    assert audit_file(package).duplicates == ()
    weights = package / "Data/com.apple.CoreML/weights/weight.bin"
    unique = done.report.ties.unique_bytes_at(precision)
    assert weights.stat().st_size <= LIMIT * unique
    (entry,) = done.manifest["artifacts"]
    assert "model.mlpackage/Manifest.json" in entry["sha256"]
    again = profile(tmp_path / "out", BRIEFLY)
    assert again.manifest["profile"] == []
    weights.write_bytes(b"cut")
    with pytest.raises(BadFileError, match="sha256 differs"):
        profile(tmp_path / "out", BRIEFLY)


@pytest.fixture(scope="module", params=["vit-pe-b16", "resnet50-pe", "resnet50-pe-staged"])
def full_size(request):
    """A model of full size: its ties, its graph, an image and torch's answer to it."""
    source = resolve(request.param)
    ties, canonical = capture_canonical(source, silent)
    image = MODELS[request.param].example_inputs(batch=1)[0].numpy()
    (expected,) = source.reference([image])
    return ties, canonical, image, expected


def test_a_full_size_model_arrives_at_one_copy(full_size, tmp_path):
    ties, canonical, image, expected = full_size
    assert audit_model(canonical, ties.unique_bytes).ratio <= LIMIT
    for forms in CANDIDATES.values():
        for form in forms:
            path = tmp_path / f"{form.pipeline}.onnx"
            write_form(canonical, form, path)
            audit = audit_file(path)
            assert audit.weight_bytes <= LIMIT * ties.unique_bytes
            assert audit.duplicates == ()
    agrees(path, image, expected, 1e-4)


@pytest.mark.parametrize("precision", ["float32", "float16"])
def test_a_full_size_model_is_lowered_to_one_copy(full_size, precision, tmp_path):
    ties, canonical, image, expected = full_size
    for setting in SETTINGS:
        path = tmp_path / "model.tflite"
        write_tflite(canonical, path, setting, precision)
        assert audit_file(path).weight_bytes <= LIMIT * ties.unique_bytes_at(precision)
        agrees(path, image, expected, limit_of("tflite", precision))


@pytest.mark.parametrize("precision", ["float32", "float16"])
def test_a_full_size_model_is_packed_to_one_copy(full_size, precision, tmp_path):
    ties, canonical, image, expected = full_size
    path = tmp_path / "model.mlpackage"
    write_mlpackage(canonical, path, precision)
    weights = path / "Data/com.apple.CoreML/weights/weight.bin"
    assert weights.stat().st_size <= LIMIT * ties.unique_bytes_at(precision)
    assert audit_file(path).weight_bytes <= LIMIT * ties.unique_bytes_at(precision)
    if precision == "float32" or abs(expected).max() < 1e3:  # random weights may overflow float16
        agrees(path, image, expected, limit_of("mlpackage", precision))


def agrees(path: Path, image: np.ndarray, expected: np.ndarray, limit: float) -> None:
    session = open_artifact(path)
    (found,) = session.run({"image": image}).values()
    session.close()
    np.testing.assert_allclose(found, expected, rtol=0, atol=limit * abs(expected).max())


def test_the_manifest_of_a_bundle_holds_what_the_contract_says(bundle):
    manifest = json.loads((bundle / "manifest.json").read_text())
    assert manifest["target"] == {"name": "raspberry-pi-5", "precision": "float32"}
    assert manifest["model"]["name"] == "vit-pe-fmnist"
    # six blocks, in each one FFN, one query and one value matrix
    assert len(manifest["model"]["ties"]) == 18
    views = {use["view"] for tie in manifest["model"]["ties"] for use in tie["uses"]}
    assert views == {"identity", "transpose"}
    settings = [artifact["setting"] for artifact in manifest["artifacts"]]
    assert settings == ["latency-first", "memory-first"] * 2
    formats = [artifact["format"] for artifact in manifest["artifacts"]]
    assert formats == ["onnx"] * 2 + ["tflite"] * 2
    for artifact in manifest["artifacts"]:
        assert artifact["ratio"] <= 1.01 < artifact["naive_bytes"] / artifact["unique_bytes"]
        assert (bundle / artifact["path"]).is_file()
        assert artifact["inputs"][0]["shape"] == ["batch", 1, 28, 28]
        assert artifact["session_options"] == {}
        runtime = {"onnx": "onnxruntime", "tflite": "ai-edge-litert"}[artifact["format"]]
        assert {"torch", "onnx", "onnxsim", runtime} <= set(artifact["producer"])
    kinds = {(entry["kind"], entry["device"]) for entry in manifest["profile"]}
    assert kinds == {("measured", "local"), ("estimated", "raspberry-pi-5")}
    assert {entry["artifact"] for entry in manifest["profile"]} == {
        "naive/model.onnx", "model.latency-first.onnx", "model.memory-first.onnx",
        "naive/model.tflite", "model.latency-first.tflite", "model.memory-first.tflite",
    }  # fmt: skip
    entry = manifest["profile"][0]
    assert {"first", "min", "p50", "p90", "p99", "mean", "std"} <= set(entry["latency_ms"])
    assert entry["peak_rss_bytes"] >= entry["weights_resident_bytes"] > 0


def test_another_architecture_gets_the_safe_form_and_says_so(bundle):
    variants = {v.id: v for v in read_json(bundle / "report.json").variants}
    assert variants["onnx latency-first"].form.startswith(REPACKED.words)
    assert "not timed on aarch64 here" in variants["onnx latency-first"].form


def test_the_reports_are_there_and_name_what_was_not_measured(bundle):
    report = read_json(bundle / "report.json")
    run, estimated = report.runs
    assert (run.device, run.kind) == ("local", "measured")
    assert (estimated.device, estimated.kind) == ("raspberry-pi-5", "estimated")
    assert set(estimated.results) == set(run.results)
    for result in estimated.results.values():
        assert set(result.estimate_ms_by_size) == {1, 4, 16}
    assert report.target == "raspberry-pi-5"
    assert set(run.results) == {variant.id for variant in report.variants}
    assert set(run.of(report.variants[0]).latency_ms_by_size) == {1, 4, 16}
    page = (bundle / "report.html").read_text()
    assert "not a figure of the target" in page
    labels = [step.label for step in report.waterfall]
    assert labels == [
        "unique parameters", "checkpoint", "ONNX", "TFLite", "artifact",
        "resident after load", "peak while running",
    ]  # fmt: skip


def test_a_bundle_can_be_profiled_again(bundle):
    before = (bundle / "model.latency-first.onnx").read_bytes()
    done = profile(bundle, replace(BRIEFLY, sizes=(2,)))
    run, estimated = done.report.runs
    assert [set(run.of(v).latency_ms_by_size) for v in done.report.variants] == [{2}] * 6
    assert estimated.kind == "estimated"  # it is of other sizes, and is left as it was
    measured = [one for one in done.manifest["profile"] if one["kind"] == "measured"]
    assert {entry["batch"] for entry in measured} == {2}
    assert (bundle / "model.latency-first.onnx").read_bytes() == before
    assert done.report.waterfall[1].label == "checkpoint"


def test_what_other_devices_measured_survives_a_new_profile(bundle, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(bundle, copy)
    local, estimated = read_json(copy / "report.json").runs
    elsewhere = replace(local, device="pi-on-desk", measured_on="Raspberry Pi 5 Model B")
    added = add_run(copy, elsewhere)
    assert added.report.runs == (local, estimated, elsewhere)
    done = profile(copy, replace(BRIEFLY, sizes=(3,)))
    assert read_json(copy / "report.json") == done.report
    here, *others = done.report.runs
    assert others == [estimated, elsewhere]
    assert {size for r in here.results.values() for size in r.latency_ms_by_size} == {3}
    manifest = json.loads((copy / "manifest.json").read_text())
    sizes = {(entry["device"], entry["batch"]) for entry in manifest["profile"]}
    assert ("local", 3) in sizes
    assert {size for device, size in sizes if device == "pi-on-desk"}.isdisjoint({3})
    assert "pi-on-desk (Raspberry Pi 5 Model B)" in (copy / "report.html").read_text()


def test_operators_are_timed_where_the_runtime_can(bundle):
    found = operators_by_artifact(bundle, 1)
    assert found["model.latency-first.onnx"] == ()
    kinds = {one.op for one in found["model.latency-first.tflite"]}
    assert any("Fully Connected" in kind for kind in kinds)
    assert any(one.delegated for one in found["model.memory-first.tflite"])


def test_a_changed_artifact_is_not_profiled(bundle, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(bundle, copy)
    path = copy / "model.latency-first.onnx"
    path.write_bytes(path.read_bytes()[:-1] + b"\0")
    with pytest.raises(BadFileError, match="sha256 differs"):
        profile(copy, BRIEFLY)
    path.unlink()
    with pytest.raises(BadFileError, match=r"lacks model\.latency-first\.onnx"):
        profile(copy, BRIEFLY)


def make_stack():
    torch.manual_seed(0)
    ffn = TiedFFN(32, 64)
    torch.nn.init.normal_(ffn.bias)
    axes = ({0: "batch", 1: "sequence"},)
    return torch.nn.Sequential(ffn, torch.nn.Tanh(), ffn), (torch.randn(2, 5, 32),), axes


def make_plain():
    module = torch.nn.Linear(8, 4)
    module.example_inputs = (torch.randn(3, 8),)
    return module


def make_without_inputs():
    return torch.nn.Linear(8, 4)


@pytest.fixture
def factories(monkeypatch):
    """Make this file importable, as a user's module is from the working folder."""
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    return "test_deploy"


def test_a_factory_with_a_dynamic_sequence(factories, tmp_path):
    options = replace(BRIEFLY, sizes=(1, 7))
    done = deploy(f"{factories}:make_stack", find_target("local"), tmp_path / "out", options)
    assert done.report.axis == "sequence"
    uses = {tensor.name: len(tensor.uses) for tensor in done.report.ties.ties}
    # the same layer twice, its matrix each time both ways
    assert sorted(uses.values()) == [2, 2, 4]
    assert all(v.ratio <= LIMIT for v in done.report.variants[1:])
    assert "timed here" in done.report.variants[1].form
    session = open_session(tmp_path / "out" / "model.latency-first.onnx")
    assert session.inputs[0].shape == ("batch", "sequence", 32)


def test_a_factory_with_fixed_shapes(factories, tmp_path):
    done = deploy(f"{factories}:make_plain", find_target("local"), tmp_path / "out", QUIET)
    assert done.report.variants[1].parity.inputs == 3


def test_an_exported_program_and_a_checkpoint_give_the_same_as_the_zoo(tmp_path):
    source = resolve("vit-pe-fmnist")
    torch.export.save(source.program, tmp_path / "net.pt2")
    (tmp_path / "copy.safetensors").write_bytes(
        (Path(resolve.__code__.co_filename).parents[1] / "weightspace/zoo")
        .joinpath("vit-pe-fmnist.safetensors")
        .read_bytes()
    )
    for name in ("net.pt2", "copy.safetensors"):
        done = deploy(str(tmp_path / name), find_target("local"), tmp_path / f"{name}.out", QUIET)
        assert done.report.ties.unique_parameters == 304_202
        assert done.report.variants[1].ratio <= LIMIT
        assert done.report.variants[1].parity.max_rel <= 1e-4


def test_several_precisions_stand_side_by_side_in_folders_of_their_own(tmp_path):
    options = Options(
        settings=("latency-first",), precisions=("float32", "float16"), sizes=(1,), budget=BRIEF,
        keep_naive=True,
    )  # fmt: skip
    out = tmp_path / "out"
    done = deploy("vit-pe-fmnist", find_target("android"), out, options)
    assert [variant.id for variant in done.report.variants] == [
        "tflite float32 naive", "tflite float32 latency-first",
        "tflite float16 naive", "tflite float16 latency-first",
    ]  # fmt: skip
    single, half = (entry["path"] for entry in done.manifest["artifacts"])
    assert (single, half) == (
        "float32/model.latency-first.tflite", "float16/model.latency-first.tflite",
    )  # fmt: skip
    assert (out / half).stat().st_size < 0.6 * (out / single).stat().st_size
    assert all(v.keeps_rule for v in done.report.variants if v.name != "naive")
    again = profile(out, options)
    assert set(again.report.runs[0].results) == {variant.id for variant in done.report.variants}


def test_golden_vectors_travel_with_the_bundle(bundle, tmp_path):
    golden = read_golden(bundle)
    session = open_artifact(bundle / "model.latency-first.tflite")
    (name,) = [spec.name for spec in session.inputs]
    (found,) = session.run({name: golden.inputs[0]}).values()
    np.testing.assert_allclose(found, golden.outputs[0], atol=1e-4)
    assert golden.pixels[0].max() > 200  # an image's own values, for artifacts that take those
    assert 16 <= len(golden.inputs[0]) <= 64
    assert read_golden(tmp_path) is None
    (tmp_path / "golden.npz").write_bytes((bundle / "golden.npz").read_bytes()[:1000])
    with pytest.raises(BadFileError, match=r"golden\.npz is damaged"):
        read_golden(tmp_path)


def test_the_csv_has_a_row_for_each_variant_size_and_device(bundle):
    done = profile(bundle, BRIEFLY)
    with (bundle / "report.csv").open() as file:
        rows = list(csv.DictReader(file))
    measured = [row for row in rows if row["kind"] == "measured"]
    sizes = done.report.runs[0].results[done.report.variants[0].id].latency_ms_by_size
    assert len(measured) == len(done.report.variants) * len(sizes)
    assert {row["device"] for row in measured} == {"local"}
