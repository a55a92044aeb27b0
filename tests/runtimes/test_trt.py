"""Engines, as far as that goes without a GPU; the rest runs where there is one."""

from __future__ import annotations

import mmap
import re
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest

from export.errors import BadFileError, MeasureError, MissingExtraError, UnknownNameError
from export.lower.tensorrt.api import (
    RTX_MAGIC,
    import_tensorrt,
    installed,
    version_of,
)
from export.lower.tensorrt.build_engine import make_logger, network_flags
from export.lower.tensorrt.errors import explain
from export.records import TensorSpec
from runtimes import trt
from runtimes.bench import BRIEF
from runtimes.cuda_driver import PROTOTYPES, Gpu, has_gpu
from runtimes.ort import open_session as open_onnx
from runtimes.trt import DTYPES, buffer_bytes, is_here, open_session, spec_of, warm_up_model
from tests.runtimes.models import random_weight, save, tied_ffn

WEIGHT = random_weight(64, 256)
needs_package = pytest.mark.skipif(not installed(), reason="no TensorRT package is installed")
needs_gpu = pytest.mark.skipif(not is_here(), reason="needs a GPU and a TensorRT package")
without_gpu = pytest.mark.skipif(has_gpu(), reason="this machine has a GPU")


@pytest.fixture(scope="module")
def tensorrt():
    return import_tensorrt(installed()[0])


def build(tensorrt, model, sizes=(1, 2, 8)):
    """Build an engine for a first axis of these sizes: least, best and most."""
    logger = make_logger(tensorrt)
    messages = logger.errors
    builder = tensorrt.Builder(logger)
    network = builder.create_network(network_flags(tensorrt, typed=False))
    assert tensorrt.OnnxParser(network, logger).parse(model.SerializeToString()), messages
    config, profile = builder.create_builder_config(), builder.create_optimization_profile()
    rows = network.get_input(0).shape[1]
    profile.set_shape(network.get_input(0).name, *((size, rows) for size in sizes))
    config.add_optimization_profile(profile)
    return bytes(builder.build_serialized_network(network, config))


# ---- refusals ------------------------------------------------------------------------------------


def test_a_missing_file_is_named(tmp_path):
    path = tmp_path / "net.engine"
    with pytest.raises(BadFileError) as caught:
        open_session(path)
    assert str(caught.value) == f"{path} is not a file; give the path of a serialized engine"


def test_a_file_of_a_few_bytes_is_no_engine(tmp_path):
    path = tmp_path / "net.engine"
    path.write_bytes(RTX_MAGIC)
    with pytest.raises(BadFileError, match=r"net\.engine is no TensorRT engine: it has 4 bytes$"):
        open_session(path)


def test_an_option_is_refused_as_there_are_none(tmp_path):
    with pytest.raises(UnknownNameError, match=r"^session option 'speed' is not known to TensorRT"):
        open_session(tmp_path / "net.engine", options={"speed": "1"})


@pytest.mark.parametrize(
    ("head", "package", "words"),
    [
        (b"vtrt", "tensorrt_rtx", r"^package 'tensorrt-rtx-cu13' is not .*\[tensorrt\]'$"),
        (b"ftrt", "tensorrt", r"^package 'tensorrt' is not installed; JetPack brings it to"),
    ],
)
def test_the_package_that_an_engine_is_for_is_told_by_its_first_bytes(
    tmp_path, monkeypatch, head, package, words
):
    monkeypatch.setitem(sys.modules, package, None)  # importing it fails as if not installed
    path = tmp_path / "net.engine"
    path.write_bytes(head + bytes(1000))
    with pytest.raises(MissingExtraError, match=words):
        open_session(path)


@needs_package
@without_gpu
def test_a_real_engine_on_a_machine_without_a_driver_is_one_clear_line(tmp_path):
    path = warm_up_model(tmp_path)
    assert path.stat().st_size > 1000
    with pytest.raises(MeasureError) as caught:
        open_session(path)
    no_driver = r"there is no NVIDIA driver here \(\S+ cannot be loaded\); .*"
    no_device = r"the NVIDIA driver failed at cuInit: CUDA_ERROR_\w+"
    assert re.fullmatch(f"{no_driver}|{no_device}", str(caught.value))
    assert not is_here()


@needs_package
@without_gpu
def test_what_tensorrt_says_without_a_driver_is_explained(tensorrt):
    logger = make_logger(tensorrt)
    messages = logger.errors
    runtime = tensorrt.Runtime(logger)
    assert runtime.deserialize_cuda_engine(build(tensorrt, tied_ffn(WEIGHT))) is None
    assert messages
    assert explain(messages) == (
        "CUDA finds no usable GPU and driver here (CUDA driver version is insufficient for CUDA "
        "runtime version)"
    )


@needs_package
@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda plan: plan[:5000], "the engine's file is damaged or cut short; "),
        (lambda plan: plan + bytes(8), "the engine's file is damaged or cut short; "),
        (lambda plan: b"ftrt" + plan[4:], "this is an engine of another kind of TensorRT, or none"),
        (lambda plan: b"<!DOCTYPE html>" + plan[15:], "this is an engine of another kind of "),
    ],
)
def test_what_tensorrt_says_of_a_damaged_file_is_explained(tensorrt, damage, words):
    logger = make_logger(tensorrt)
    messages = logger.errors
    runtime = tensorrt.Runtime(logger)
    plan = damage(build(tensorrt, tied_ffn(WEIGHT)))
    assert runtime.deserialize_cuda_engine(plan) is None
    assert explain(messages).startswith(words)


@needs_package
@pytest.mark.parametrize("operator", ["Unique", "Reluctant"])
def test_an_operator_that_the_parser_lacks_is_explained(tensorrt, operator):
    model = onnx.parser.parse_model(
        '<ir_version: 10, opset_import: ["" : 17]> '
        f"g (float[8] x) => (float[n] y) {{ y = {operator}(x) }}"
    )
    logger = make_logger(tensorrt)
    messages = logger.errors
    network = tensorrt.Builder(logger).create_network(network_flags(tensorrt, typed=False))
    assert not tensorrt.OnnxParser(network, logger).parse(model.SerializeToString())
    assert explain(messages) == f"operator {operator} (node 0): not supported"


# ---- the interface that is used ------------------------------------------------------------------


@needs_package
def test_every_name_that_is_used_is_in_the_real_package(tensorrt):
    """What only a GPU would reach: a misspelt name would show there first."""
    used = {
        tensorrt: ["Runtime", "Logger", "ILogger", "Builder", "OnnxParser", "__version__"],
        tensorrt.Runtime: ["deserialize_cuda_engine"],
        tensorrt.ICudaEngine: [
            "num_io_tensors", "get_tensor_name", "get_tensor_location", "get_tensor_format",
            "get_tensor_dtype", "get_tensor_shape", "get_tensor_mode", "get_tensor_profile_shape",
            "create_execution_context",
        ],
        tensorrt.IExecutionContext: [
            "set_input_shape", "get_tensor_shape", "set_tensor_address", "execute_async_v3",
        ],
        tensorrt.TensorLocation: ["DEVICE"],
        tensorrt.TensorFormat: ["LINEAR"],
        tensorrt.TensorIOMode: ["INPUT", "OUTPUT"],
        tensorrt.DataType: list(DTYPES),
    }  # fmt: skip
    if hasattr(tensorrt, "DynamicShapesKernelSpecializationStrategy"):
        used[tensorrt.ICudaEngine].append("create_runtime_config")
        used[tensorrt.IExecutionContext].append("is_stream_capturable")
        used[tensorrt.IRuntimeConfig] = ["dynamic_shapes_kernel_specialization_strategy"]
        used[tensorrt.DynamicShapesKernelSpecializationStrategy] = ["EAGER"]
    assert [(owner, name) for owner, names in used.items()
            for name in names if not hasattr(owner, name)] == []  # fmt: skip
    assert version_of(tensorrt) >= (1, 0, 0)


@needs_package
def test_types_of_tensors_agree_with_numpy_in_size(tensorrt):
    for name, dtype in DTYPES.items():
        assert getattr(tensorrt.DataType, name).itemsize == np.dtype(dtype).itemsize


def test_every_function_of_the_driver_is_one_that_nvidias_own_library_names():
    packages = Path(np.__file__).parents[1]
    libraries = list(packages.glob("tensorrt_rtx_libs/libtensorrt_rtx.so*"))
    if not libraries:
        pytest.skip("tensorrt_rtx, which names the driver's functions, is not installed")
    with libraries[0].open("rb") as file:
        data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)

    def named(name):
        place = data.find(name.encode())
        while place >= 0:
            around = data[place - 1], data[place + len(name)]
            if not any(32 <= byte < 127 for byte in around):
                return True
            place = data.find(name.encode(), place + 1)
        return False

    # It asks for some by name and version, and so without the suffix.
    names = {name: {name, name.removesuffix("_v2")} for name in PROTOTYPES}
    missing = [name for name, spellings in names.items() if not any(map(named, spellings))]
    assert missing == []
    assert not named("cuNotAFunction")


@without_gpu
def test_without_a_gpu_nothing_is_opened():
    with pytest.raises(MeasureError, match="NVIDIA driver"):
        Gpu()


# ---- shapes and sizes ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dtype", "shape", "size_bytes"),
    [
        ("float32", (1, 3, 224, 224), 602_112),
        ("float16", (2, 5), 20),
        ("bool", (7,), 7),
        ("int64", (), 8),
        ("float32", (0, 4), 1),
    ],
)
def test_memory_is_what_the_shape_takes_and_never_nothing(dtype, shape, size_bytes):
    assert buffer_bytes("x", dtype, shape) == size_bytes


def test_a_shape_that_depends_on_values_is_refused():
    with pytest.raises(MeasureError, match=r"^the shape of 'boxes' depends on the values"):
        buffer_bytes("boxes", "float32", (-1, 4))


def test_a_dimension_that_may_change_is_marked():
    assert spec_of("x", "HALF", (-1, 64)) == TensorSpec("x", "float16", ("?", 64))


@pytest.mark.parametrize("name", ["BF16", "FP8", "INT4", "FP4"])
def test_a_type_that_no_array_holds_is_refused(name):
    with pytest.raises(MeasureError, match=rf"^'x' is of type {name}, for which numpy has none"):
        spec_of("x", name, (1,))


def test_nothing_stands_for_an_engine_without_weights(tmp_path):
    assert trt.write_without_weights(tmp_path / "net.engine", tmp_path) is None


# ---- on a GPU ------------------------------------------------------------------------------------


@needs_gpu
def test_an_engine_agrees_with_onnx_runtime_at_every_size_of_its_profile(tensorrt, tmp_path):
    model = tied_ffn(WEIGHT)
    path = tmp_path / "net.engine"
    path.write_bytes(build(tensorrt, model))
    reference = open_onnx(save(model, tmp_path / "net.onnx"))
    session = open_session(path)
    try:
        for rows in (2, 8, 1):
            x = random_weight(rows, 64)
            expected = reference.run({"x": x})["y"]
            np.testing.assert_allclose(session.run({"x": x})["y"], expected, rtol=2e-2, atol=2e-1)
        with pytest.raises(
            MeasureError, match=r"takes \[1, 64\] to \[8, 64\]; given was \[9, 64\]"
        ):
            session.run({"x": random_weight(9, 64)})
    finally:
        session.close()


@needs_gpu
@pytest.mark.parametrize("cuda_graph", [False, True])
def test_an_engine_is_timed_on_the_device_and_as_a_whole(tensorrt, tmp_path, cuda_graph):
    path = tmp_path / "net.engine"
    path.write_bytes(build(tensorrt, tied_ffn(WEIGHT)))
    session = open_session(path)
    try:
        times = session.time({"x": random_weight(2, 64)}, BRIEF, cuda_graph=cuda_graph)
    finally:
        session.close()
    assert times.device.runs == times.wall.runs == BRIEF.runs
    assert times.device.min > 0
    assert times.cuda_graph is cuda_graph


@needs_gpu
def test_a_damaged_engine_is_refused_in_one_line(tensorrt, tmp_path):
    path = tmp_path / "net.engine"
    path.write_bytes(build(tensorrt, tied_ffn(WEIGHT))[:5000])
    with pytest.raises(BadFileError) as caught:
        open_session(path)
    assert "\n" not in str(caught.value)
