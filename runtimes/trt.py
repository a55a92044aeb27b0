"""Serialized TensorRT engines, on a GPU.

Works with the classic ``tensorrt`` package from 8.6 on, which JetPack brings, and with
``tensorrt_rtx`` of PyPI; which of them an engine is for stands in its first bytes. An engine runs
only with the version that built it, on the kind of GPU that it was built for.

What is used is what all of these have under one name: named tensors, ``set_input_shape``,
``execute_async_v3``. Memory and times come from the driver, see `runtimes.cuda_driver`.

Written against the real packages; **not tried on hardware**.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from export.errors import BadFileError, MeasureError, UnknownNameError
from export.lower.tensorrt.api import (
    PACKAGE,
    RTX_MAGIC,
    import_tensorrt,
    installed,
    make_context,
    version_of,
)
from export.lower.tensorrt.build_engine import CLASSIC, RTX, make_logger, network_flags
from export.lower.tensorrt.errors import explain
from export.records import TensorSpec
from runtimes.bench import QUICK, Budget, summarise, time_session
from runtimes.cuda_driver import Gpu, has_gpu
from runtimes.feeds import check_feeds, shape_words
from runtimes.records import Latency
from runtimes.session import Arrays

NAME = PACKAGE
SUFFIX = ".engine"
_FEWEST_BYTES = 64
_DYNAMIC = "?"
# tensorrt.DataType by name -> numpy. The others have no numpy type: engines for edge devices keep
# their inputs and outputs in one that has.
DTYPES = {
    "FLOAT": "float32",
    "HALF": "float16",
    "INT8": "int8",
    "UINT8": "uint8",
    "INT32": "int32",
    "INT64": "int64",
    "BOOL": "bool",
}


@dataclass(frozen=True, slots=True)
class EngineTimes:
    """Times of one engine on one input.

    Args:
        device: between two events around the engine's own work; no copies.
        wall: of ``run``, from arrays in the host's memory to arrays there, both copies included.
        cuda_graph: whether ``device`` was measured with the work captured as a CUDA graph.
    """

    device: Latency
    wall: Latency
    cuda_graph: bool


class TrtSession:
    """An engine with its memory on the GPU; use ``open_session`` to make one."""

    def __init__(self, engine: Any, context: Any, gpu: Gpu, name: str, messages: list[str]) -> None:
        self._engine, self._context, self._gpu = engine, context, gpu
        self._name = name
        self._messages = messages
        self.inputs, self.outputs = _specs(engine, name)
        self._buffers: dict[str, tuple[int, int]] = {}  # of each tensor: address, bytes
        self._shapes: dict[str, tuple[int, ...]] = {}  # of each tensor at the last feeds
        self._accepted: list[tuple[str, np.dtype[Any], tuple[int, ...]]] | None = None

    def run(self, feeds: Mapping[str, NDArray[np.generic]]) -> Arrays:
        """Run once: input name to array in, output name to array out.

        Raises:
            MeasureError: the feeds do not fit the inputs, or TensorRT fails on them.
        """
        arrays = self._load(feeds)
        self._enqueue()
        outputs: Arrays = {
            spec.name: np.empty(self._shapes[spec.name], spec.dtype) for spec in self.outputs
        }
        for name, array in outputs.items():
            if array.nbytes:
                self._gpu.copy_out(array, self._buffers[name][0])
        self._gpu.synchronize()
        del arrays  # they had to live until here
        return outputs

    def time(
        self,
        feeds: Mapping[str, NDArray[np.generic]],
        budget: Budget = QUICK,
        *,
        cuda_graph: bool = False,
    ) -> EngineTimes:
        """Time the engine on one input: first whole runs, then its work on the device alone.

        Args:
            cuda_graph: captures the work once and replays it, which spares the host's part of
                every launch; small engines are bound by that.

        Raises:
            MeasureError: the feeds do not fit, or the engine cannot be captured.
        """
        wall = time_session(self, feeds, budget)
        arrays = self._load(feeds)
        self._gpu.synchronize()
        graph = self._capture() if cuda_graph else None

        def queue() -> None:
            if graph is None:
                self._enqueue()
            else:
                self._gpu.launch(graph)

        try:
            device = self._time_on_device(queue, budget)
        finally:
            if graph is not None:
                self._gpu.drop(graph)
        del arrays
        return EngineTimes(device, wall, cuda_graph)

    def close(self) -> None:
        """Free the engine and its memory; may be called twice."""
        self._context = None  # before its engine, and both before the driver's context
        self._engine = None
        self._gpu.close()

    def _load(self, feeds: Mapping[str, NDArray[np.generic]]) -> list[NDArray[np.generic]]:
        """Queue the copies to the device; gives the arrays, which must live until synchronized."""
        self._gpu.use()
        given = [(name, array.dtype, array.shape) for name, array in feeds.items()]
        if given != self._accepted:  # checks would be timed along with every run of a small model
            self._accepted = None  # until all went well: the next run starts over after a failure
            check_feeds(self._name, self.inputs, feeds)
            self._reshape({name: array.shape for name, array in feeds.items()})
            self._accepted = given
        arrays = []
        for name, array in feeds.items():
            contiguous = np.ascontiguousarray(array)
            if contiguous.nbytes:
                self._gpu.copy_in(self._buffers[name][0], contiguous)
            arrays.append(contiguous)
        return arrays

    def _reshape(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        for name, shape in shapes.items():
            if not self._context.set_input_shape(name, shape):
                least, _, most = self._engine.get_tensor_profile_shape(name, 0)
                raise MeasureError(
                    f"input {name!r} of {self._name} takes {shape_words(tuple(least))} to "
                    f"{shape_words(tuple(most))}; given was {shape_words(shape)}"
                )
        for spec in (*self.inputs, *self.outputs):
            shape = tuple(int(size) for size in self._context.get_tensor_shape(spec.name))
            needed = buffer_bytes(spec.name, spec.dtype, shape)
            self._provide(spec.name, needed)
            self._shapes[spec.name] = shape

    def _provide(self, name: str, needed_bytes: int) -> None:
        address, size_bytes = self._buffers.get(name, (0, 0))
        if size_bytes < needed_bytes:
            if address:
                del self._buffers[name]
                self._gpu.free(address)
            address = self._gpu.allocate(needed_bytes)
            self._buffers[name] = address, needed_bytes
        if not self._context.set_tensor_address(name, address):
            raise MeasureError(f"TensorRT refuses memory for {name!r} of {self._name}")

    def _enqueue(self) -> None:
        self._messages.clear()
        if not self._context.execute_async_v3(self._gpu.stream):
            raise MeasureError(f"TensorRT cannot run {self._name}: {explain(self._messages)}")

    def _capture(self) -> int:
        can = getattr(self._context, "is_stream_capturable", None)  # of RTX alone
        if can is not None and not can(self._gpu.stream):
            raise MeasureError(f"{self._name} cannot be captured as a CUDA graph at this shape")
        self._enqueue()  # what a first run at a shape does besides must not be captured
        self._gpu.synchronize()
        return self._gpu.capture(self._enqueue)

    def _time_on_device(self, queue: Callable[[], None], budget: Budget) -> Latency:
        start, end = self._gpu.make_event(), self._gpu.make_event()

        def once() -> float:
            self._gpu.record(start)
            queue()
            self._gpu.record(end)
            return self._gpu.elapsed_ms(start, end)

        first = once()
        warmup, spent_ms = 0, 0.0
        while warmup < budget.warmup_runs or spent_ms < budget.warmup_s * 1000:
            spent_ms += max(once(), _LEAST_MS)
            warmup += 1
        samples: list[float] = []
        spent_ms = 0.0
        while len(samples) < budget.most_runs and (
            len(samples) < budget.runs or spent_ms < budget.seconds * 1000
        ):
            samples.append(once())
            spent_ms += max(samples[-1], _LEAST_MS)
        return summarise(samples, first, warmup)


_LEAST_MS = 1e-3  # so that an engine of no work ends as well


def open_session(
    path: Path,
    *,
    threads: int = 1,
    options: Mapping[str, str] | None = None,
    optimize: bool = True,
) -> TrtSession:
    """Load an engine onto the first GPU.

    Args:
        threads: not used: the engine runs on the GPU.
        options: session options, as in the manifest; there are none.
        optimize: not used: an engine was optimised when it was built.

    Raises:
        MissingExtraError: the package that the engine is for is not installed.
        BadFileError: the file is missing, is no engine, or one of another version or device.
        MeasureError: there is no GPU or driver, or the engine has inputs that are not run here.
        UnknownNameError: an option is given.
    """
    for key in options or {}:
        raise UnknownNameError(f"session option {key!r} is not known to TensorRT, which has none")
    plan = _read_plan(path)
    tensorrt = import_tensorrt(RTX if plan.startswith(RTX_MAGIC) else CLASSIC)
    gpu = Gpu()
    try:
        logger = make_logger(tensorrt)
        messages: list[str] = logger.errors
        runtime = tensorrt.Runtime(logger)
        engine = runtime.deserialize_cuda_engine(plan)
        if engine is None:
            reason = explain(messages, version=version_of(tensorrt))
            raise BadFileError(f"TensorRT cannot load {path}: {reason}")
        context = make_context(tensorrt, engine)
        if context is None:
            raise MeasureError(f"TensorRT cannot prepare {path.name}: {explain(messages)}")
        return TrtSession(engine, context, gpu, path.name, messages)
    except BaseException:
        gpu.close()
        raise


def is_here() -> bool:
    """Whether an engine could be run here: a package and a GPU."""
    return bool(installed()) and has_gpu()


def warm_up_model(folder: Path) -> Path:
    """Build a small engine that loads the runtime's own code when it is run.

    Raises:
        MissingExtraError: no TensorRT package is installed.
        MeasureError: it cannot be built.
    """
    model = onnx.parser.parse_model(
        '<ir_version: 10, opset_import: ["" : 17]> '
        "g (float[64, 64] x) => (float[64, 64] z) "
        "{ y = Softmax(x) u = Transpose<perm=[1,0]>(x) v = MatMul(y, u) z = MatMul(v, x) }"
    )
    tensorrt = import_tensorrt(next(iter(installed()), RTX))
    logger = make_logger(tensorrt)
    builder = tensorrt.Builder(logger)
    network = builder.create_network(network_flags(tensorrt, typed=False))
    parsed = tensorrt.OnnxParser(network, logger).parse(model.SerializeToString())
    config = builder.create_builder_config()
    plan = builder.build_serialized_network(network, config) if parsed else None
    if plan is None:
        raise MeasureError(f"TensorRT cannot build the engine to warm up: {explain(logger.errors)}")
    path = folder / f"warm-up{SUFFIX}"
    path.write_bytes(bytes(plan))
    return path


def write_without_weights(path: Path, folder: Path) -> Path | None:
    """Give None: an engine's kernels are chosen for its weights, and it does not load without."""
    return None


def buffer_bytes(name: str, dtype: str, shape: Sequence[int]) -> int:
    """Count the bytes of a tensor's memory; at least one, as no address may be null.

    Raises:
        MeasureError: the shape is not known before the engine has run.
    """
    if any(size < 0 for size in shape):
        raise MeasureError(
            f"the shape of {name!r} depends on the values of the inputs, which is not run here"
        )
    return max(1, math.prod(shape) * np.dtype(dtype).itemsize)


def spec_of(name: str, data_type: str, shape: Sequence[int]) -> TensorSpec:
    """Describe a tensor of an engine.

    Args:
        data_type: the name of its ``tensorrt.DataType``.
        shape: with -1 for what may change.

    Raises:
        MeasureError: no array can hold its type.
    """
    if data_type not in DTYPES:
        raise MeasureError(
            f"{name!r} is of type {data_type}, for which numpy has none; build the engine with "
            "inputs and outputs in float32 or float16"
        )
    sizes = tuple(_DYNAMIC if size < 0 else int(size) for size in shape)
    return TensorSpec(name, DTYPES[data_type], sizes)


def _specs(engine: Any, file: str) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
    inputs: list[TensorSpec] = []
    outputs: list[TensorSpec] = []
    for index in range(engine.num_io_tensors):
        name = engine.get_tensor_name(index)
        if engine.get_tensor_location(name).name != "DEVICE":
            raise MeasureError(f"{name!r} of {file} is a shape, given by value: not run here")
        if engine.get_tensor_format(name).name != "LINEAR":
            form = engine.get_tensor_format(name).name
            raise MeasureError(f"{name!r} of {file} is laid out as {form}, not row by row")
        spec = spec_of(name, engine.get_tensor_dtype(name).name, engine.get_tensor_shape(name))
        (inputs if engine.get_tensor_mode(name).name == "INPUT" else outputs).append(spec)
    return tuple(inputs), tuple(outputs)


def _read_plan(path: Path) -> bytes:
    if not path.is_file():
        raise BadFileError(f"{path} is not a file; give the path of a serialized engine")
    try:
        plan = path.read_bytes()
    except OSError as error:
        raise BadFileError(f"{path} cannot be read: {error.strerror}") from error
    if len(plan) < _FEWEST_BYTES:
        raise BadFileError(f"{path} is no TensorRT engine: it has {len(plan)} bytes")
    return plan
