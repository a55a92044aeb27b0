"""Core ML's session with a stand-in for the vendor's classes: no test here runs Core ML."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from export.coreml_io import quiet_coremltools
from export.errors import BadFileError, MeasureError, UnknownNameError
from runtimes import coreml
from runtimes.coreml_reference import open_session as open_reference
from tests.runtimes.coreml_programs import ct, mb, save, types

elsewhere = pytest.mark.skipif(sys.platform == "darwin", reason="Core ML is here")


def build(tokens, x):
    return mb.gather(x=x, indices=tokens, name="picked"), mb.relu(x=x, name="r")


@pytest.fixture
def package(tmp_path):
    specs = [mb.TensorSpec((3,), types.int32), mb.TensorSpec((7, 4))]
    return save(tmp_path / "m.mlpackage", build, specs)


class Model:
    """Answers as MLModel does, by the reference evaluation."""

    refuses = None

    def __init__(self, path, compute_units):
        if self.refuses is not None:
            raise RuntimeError(self.refuses)
        self.path, self.units = path, compute_units
        self.seen = []

    def predict(self, feeds):
        self.seen.append({name: array.dtype.name for name, array in feeds.items()})
        return open_reference(self.path).run(feeds)

    def get_compiled_model_path(self):
        return f"{self.path}c"


@pytest.fixture
def macos(monkeypatch):
    """Take this system for macOS, and the stand-in for the vendor's class."""
    monkeypatch.setattr(coreml, "SYSTEM", sys.platform)
    made, original = [], ct.models.MLModel

    def make(path, **others):
        if others.keys() != {"compute_units"}:  # the converter's own
            return original(path, **others)
        made.append(Model(Path(path), **others))
        return made[-1]

    monkeypatch.setattr(ct.models, "MLModel", make)
    return made


@elsewhere
@pytest.mark.parametrize(
    "call",
    [coreml.open_session, coreml.read_plan, lambda path: coreml.measure_times(path, {})],
)
def test_elsewhere_it_says_where_it_runs_and_how_parity_is_checked(package, call):
    with pytest.raises(MeasureError, match=r"runs on macOS only; .* parity by the reference eval"):
        call(package)


def test_a_session_casts_what_goes_in(package, macos):
    session = coreml.open_session(package, options={"compute_units": "CPU_ONLY"})
    assert [(s.name, s.dtype, s.shape) for s in session.inputs] == [
        ("tokens", "int32", (3,)), ("x", "float32", (7, 4)),
    ]  # fmt: skip
    assert [s.name for s in session.outputs] == ["picked", "r"]
    x = np.random.default_rng(0).standard_normal((7, 4))
    out = session.run({"tokens": np.array([6, 0, 2]), "x": x})
    assert macos[0].units == ct.ComputeUnit.CPU_ONLY
    assert macos[0].seen == [{"tokens": "int32", "x": "float32"}]
    np.testing.assert_array_equal(out["picked"], x.astype(np.float32)[[6, 0, 2]])
    with pytest.raises(MeasureError, match="takes the inputs 'tokens', 'x'; given were 'x'"):
        session.run({"x": x})
    session.close()


def test_the_probabilities_of_a_classifier_come_in_the_order_of_its_classes(tmp_path, macos):
    net = nn.Sequential(nn.Linear(5, 3), nn.Softmax(-1)).eval()
    with quiet_coremltools():
        model = ct.convert(
            torch.jit.trace(net, torch.zeros(1, 5)),
            inputs=[ct.TensorType("x", (1, 5))],
            classifier_config=ct.ClassifierConfig(["cat", "dog", "eel"]),
            compute_precision=ct.precision.FLOAT32,
            skip_model_load=True,
        )
    path = tmp_path / "m.mlpackage"
    model.save(str(path))
    session = coreml.open_session(path)

    def predict(feeds):
        assert feeds["x"].shape == (1, 5)
        return {"classLabel": "dog", "classLabel_probs": {"dog": 0.7, "eel": 0.2, "cat": 0.1}}

    macos[0].predict = predict
    out = session.run({"x": np.ones((1, 5), np.float32)})
    assert out["classLabel"].item() == "dog"
    np.testing.assert_array_equal(out["classLabel_probs"], np.float32([0.1, 0.7, 0.2]))


def test_what_core_ml_refuses_is_one_line(package, macos, monkeypatch):
    session = coreml.open_session(package)

    def predict(feeds):
        raise RuntimeError("out of memory\nand more")

    macos[0].predict = predict
    feeds = {"tokens": np.zeros(3, np.int32), "x": np.zeros((7, 4), np.float32)}
    with pytest.raises(MeasureError, match=r"^Core ML cannot run m\.mlpackage: out of memory$"):
        session.run(feeds)
    monkeypatch.setattr(Model, "refuses", "Failed to load\nat line 3")
    with pytest.raises(BadFileError, match=r"^Core ML cannot load .*m\.mlpackage: Failed to load$"):
        coreml.open_session(package)


def test_options_that_are_not_known_are_named(package, macos):
    with pytest.raises(UnknownNameError, match="'gpu' is not known; Core ML has compute_units"):
        coreml.open_session(package, options={"gpu": "yes"})
    with pytest.raises(UnknownNameError, match="'TPU' are not known; they are ALL, CPU_ONLY"):
        coreml.open_session(package, options={"compute_units": "TPU"})


def test_a_package_is_read_before_core_ml_does(package, macos):
    (package / "Manifest.json").write_text("{}")
    with pytest.raises(BadFileError, match="names no model"):
        coreml.open_session(package)
    with pytest.raises(BadFileError, match=r"is no folder; give the path of a \.mlpackage"):
        coreml.open_session(package / "Manifest.json")
    assert macos == []


def test_a_plan_is_summed_up_by_device(package, macos, monkeypatch):
    from coremltools.models import compute_plan
    from coremltools.models.compute_device import MLComputeDevice

    class MLNeuralEngineComputeDevice(MLComputeDevice):
        pass

    class MLCPUComputeDevice(MLComputeDevice):
        pass

    engine, processor = (
        object.__new__(each) for each in (MLNeuralEngineComputeDevice, MLCPUComputeDevice)
    )
    usage = {"a": engine, "b": processor, "c": engine}
    costs = {"a": 0.5, "b": 0.125, "c": 0.25}

    class Plan:
        model_structure = SimpleNamespace(
            program=SimpleNamespace(
                functions={"main": SimpleNamespace(block=SimpleNamespace(operations="abcd"))}
            )
        )

        def get_compute_device_usage_for_mlprogram_operation(self, name):
            found = usage.get(name)
            return found and SimpleNamespace(preferred_compute_device=found)

        def get_estimated_cost_for_mlprogram_operation(self, name):
            return SimpleNamespace(weight=costs[name])

    def load(path, compute_units):
        assert path == f"{package}c"
        assert compute_units == ct.ComputeUnit.CPU_AND_NE
        return Plan()

    monkeypatch.setattr(compute_plan.MLComputePlan, "load_from_path", load)
    assert coreml.read_plan(package, compute_units="CPU_AND_NE") == (
        coreml.DeviceShare("NeuralEngine", 2, 0.75),
        coreml.DeviceShare("CPU", 1, 0.125),
    )


def test_times_are_those_that_core_ml_reports(package, macos, monkeypatch):
    from coremltools.models.ml_program.experimental import perf_utils

    class Benchmarker:
        def __init__(self, model):
            assert model is macos[0]

        async def benchmark_load(self, iterations):
            return SimpleNamespace(samples=[9.0] * iterations)

        async def benchmark_predict(self, inputs, iterations, warmup):
            assert warmup
            assert inputs["tokens"].dtype == np.int32
            return SimpleNamespace(samples=[0.5] * iterations)

    monkeypatch.setattr(perf_utils, "MLModelBenchmarker", Benchmarker)
    feeds = {"tokens": np.zeros(3, np.int64), "x": np.zeros((7, 4), np.float32)}
    times = coreml.measure_times(package, feeds, runs=4, loads=2)
    assert times == coreml.CoremlTimes((9.0, 9.0), (0.5,) * 4)
