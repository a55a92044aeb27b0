"""The process in which ``runtimes.litert.operator_profile`` times operators; prints one JSON line.

The package's C library is called, as its Python interface has no profiler. Its structures may
change with a version, and a wrong one may crash: hence a process of its own.
"""

from __future__ import annotations

import ctypes
import json
import sys
from collections.abc import Mapping, Sequence
from ctypes import byref, c_bool, c_char_p, c_int, c_int32, c_size_t, c_uint32, c_uint64, c_void_p
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from export.errors import MeasureError
from export.records import UNUSED
from runtimes.fresh import load_feeds

_LIBRARIES = ("libLiteRt.so", "libLiteRt.dylib", "libLiteRt.dll")
_WARM_UP_RUNS = 3
_CPU = 1
_HOST_MEMORY = 1
_WRITE = 1
_MOST_DIMENSIONS = 8
# Kinds of event: a node that the interpreter ran, and an operator inside a delegate.
_NODE, _IN_DELEGATE, _OF_DELEGATE = 1 << 1, 1 << 2, 1 << 3
_KINDS = {1 << bit for bit in range(9)}


class _Layout(ctypes.Structure):
    _fields_ = (
        ("rank_and_flags", c_uint32),  # the rank is in the lower seven bits
        ("dimensions", c_int32 * _MOST_DIMENSIONS),
        ("strides", c_uint32 * _MOST_DIMENSIONS),
    )


class _TensorType(ctypes.Structure):
    _fields_ = (("element_type", c_int), ("layout", _Layout))


class _Event(ctypes.Structure):
    _fields_ = (
        ("tag", c_char_p),
        ("kind", c_int),
        ("start_us", c_uint64),
        ("elapsed_us", c_uint64),
        ("memory_before", c_uint64 * 3),
        ("memory_after", c_uint64 * 3),
        ("index", c_uint64),
        ("more", c_uint64),
        ("source", c_int),
    )


class _Library:
    """The C library; every call that fails raises with the function's name."""

    def __init__(self) -> None:
        import ai_edge_litert

        folder = Path(ai_edge_litert.__path__[0])
        found = [folder / name for name in _LIBRARIES if (folder / name).is_file()]
        if not found:
            raise MeasureError("this ai-edge-litert has no C library and so no profiler")
        self._library = ctypes.CDLL(str(found[0]))

    def call(self, function: str, *arguments: Any) -> None:
        try:
            status = getattr(self._library, f"LiteRt{function}")(*arguments)
        except AttributeError as error:
            raise MeasureError(f"this ai-edge-litert has no LiteRt{function}") from error
        if status != 0:
            raise MeasureError(f"LiteRt{function} failed with status {status}")

    def make(self, function: str, *arguments: Any) -> c_void_p:
        """Call a function whose last argument takes the handle of what it makes or finds."""
        handle = c_void_p()
        self.call(function, *arguments, byref(handle))
        return handle


def main(request: dict[str, Any]) -> list[dict[str, Any]]:
    """Profile a file.

    Args:
        request: ``path``, ``feeds`` (an .npz), ``names`` of the feeds, ``threads``, ``runs`` and
            ``optimize``.

    Returns:
        Of each operator in the order of execution: ``index``, ``op``, ``mean_ms``, ``delegated``.
    """
    library = _Library()
    feeds = load_feeds(request)
    environment = library.make("CreateEnvironment", c_int(0), None)
    model = library.make("CreateModelFromFile", environment, str(request["path"]).encode())
    compiled = _compile(library, environment, model, request["threads"], request["optimize"])
    place, names = _signature_of(library, model, feeds)
    signature = library.make("GetModelSignature", model, place)
    unread = np.zeros_like(next(iter(feeds.values())))
    arrays = [unread if name.startswith(UNUSED) else feeds[name] for name in names]
    inputs = _inputs(library, environment, compiled, signature, place, arrays)
    outputs = _outputs(library, environment, compiled, signature, place)
    run = compiled, place, c_size_t(len(inputs)), inputs, c_size_t(len(outputs)), outputs
    for _ in range(_WARM_UP_RUNS):
        library.call("RunCompiledModel", *run)
    profiler = library.make("CompiledModelGetProfiler", compiled)
    each_run = []
    for _ in range(request["runs"]):
        library.call("ResetProfiler", profiler)  # stops it as well
        library.call("StartProfiler", profiler)
        library.call("RunCompiledModel", *run)
        each_run.append(_operators(library, profiler))
    return _means(each_run)


def _compile(
    library: _Library, environment: c_void_p, model: c_void_p, threads: int, optimize: bool
) -> c_void_p:
    options = library.make("CreateOptions")
    library.call("SetOptionsHardwareAccelerators", options, c_int(_CPU))
    kernels = "xnnpack" if optimize else "builtin"
    payloads = {
        "runtime_options_string": "enable_profiling = true\n",
        "xnnpack": f'num_threads = {threads}\nkernel_mode = "{kernels}"\n',
    }
    for identifier, text in payloads.items():
        payload = ctypes.create_string_buffer(text.encode())
        _kept.append(payload)
        opaque = library.make(
            "CreateOpaqueOptions", identifier.encode(), ctypes.cast(payload, c_void_p), _no_deleter
        )
        library.call("AddOpaqueOptions", options, opaque)
    return library.make("CreateCompiledModel", environment, model, options)


_kept: list[Any] = []  # what the library points to: it must live as long as the process
_no_deleter = ctypes.CFUNCTYPE(None, c_void_p)(lambda _: None)


def _signature_of(
    library: _Library, model: c_void_p, feeds: Mapping[str, Any]
) -> tuple[c_size_t, list[str]]:
    """Find the signature that takes these feeds; gives its place and its inputs in order."""
    count = c_size_t()
    library.call("GetNumModelSignatures", model, byref(count))
    found: list[str] = []
    for place in range(count.value):
        signature = library.make("GetModelSignature", model, c_size_t(place))
        number = c_size_t()
        library.call("GetNumSignatureInputs", signature, byref(number))
        found = []
        for i in range(number.value):
            name = c_char_p()
            library.call("GetSignatureInputName", signature, c_size_t(i), byref(name))
            found.append((name.value or b"").decode())
        if {name for name in found if not name.startswith(UNUSED)} == set(feeds):
            return c_size_t(place), found
    raise MeasureError(f"it takes the inputs {found}; given were {list(feeds)}")


def _inputs(
    library: _Library,
    environment: c_void_p,
    compiled: c_void_p,
    signature: c_void_p,
    place: c_size_t,
    arrays: Sequence[NDArray[np.generic]],
) -> Any:
    """Resize the inputs where that is needed, and make buffers that hold the arrays."""
    buffers = []
    for i, array in enumerate(arrays):
        layout = _Layout()
        get = "GetCompiledModelInputTensorLayout", compiled, place, c_size_t(i), byref(layout)
        library.call(*get)
        if _shape(layout) != array.shape:
            shape = (c_int * array.ndim)(*array.shape)
            resize = "CompiledModelResizeInputTensor", compiled, place, c_size_t(i), shape
            library.call(*resize, c_size_t(array.ndim))
            library.call(*get)
        tensor = library.make("GetSignatureInputTensorByIndex", signature, c_size_t(i))
        buffer = _buffer(library, environment, tensor, layout, array.nbytes)
        address = c_void_p()
        library.call("LockTensorBuffer", buffer, byref(address), c_int(_WRITE))
        ctypes.memmove(address, np.ascontiguousarray(array).ctypes.data, array.nbytes)
        library.call("UnlockTensorBuffer", buffer)
        buffers.append(buffer)
    return (c_void_p * len(buffers))(*buffers)


def _outputs(
    library: _Library,
    environment: c_void_p,
    compiled: c_void_p,
    signature: c_void_p,
    place: c_size_t,
) -> Any:
    count = c_size_t()
    library.call("GetNumSignatureOutputs", signature, byref(count))
    layouts = (_Layout * count.value)()
    library.call(
        "GetCompiledModelOutputTensorLayouts", compiled, place, count, layouts, c_bool(True)
    )
    buffers = []
    for i, layout in enumerate(layouts):
        tensor = library.make("GetSignatureOutputTensorByIndex", signature, c_size_t(i))
        needed = library.make(
            "GetCompiledModelOutputBufferRequirements", compiled, place, c_size_t(i)
        )
        size = c_size_t()
        library.call("GetTensorBufferRequirementsBufferSize", needed, byref(size))
        buffers.append(_buffer(library, environment, tensor, layout, size.value))
    return (c_void_p * len(buffers))(*buffers)


def _buffer(
    library: _Library, environment: c_void_p, tensor: c_void_p, layout: _Layout, size_bytes: int
) -> c_void_p:
    kind = _TensorType()
    library.call("GetRankedTensorType", tensor, byref(kind))
    kind.layout = layout  # after resizing
    return library.make(
        "CreateManagedTensorBuffer",
        environment,
        c_int(_HOST_MEMORY),
        byref(kind),
        c_size_t(size_bytes),
    )


def _shape(layout: _Layout) -> tuple[int, ...]:
    return tuple(layout.dimensions[: layout.rank_and_flags & 0x7F])


def _operators(library: _Library, profiler: c_void_p) -> list[tuple[int, str, bool, int]]:
    """Read one run: index, type, whether delegated, and microseconds of each operator."""
    count = c_int()
    library.call("GetNumProfilerEvents", profiler, byref(count))
    events = (_Event * count.value)()
    library.call("GetProfilerEvents", profiler, count, events)
    if any(event.kind not in _KINDS for event in events):
        raise MeasureError("the profiler of this ai-edge-litert writes events of another form")
    return [
        (event.index, (event.tag or b"").decode(), event.kind != _NODE, event.elapsed_us)
        for event in events
        if event.kind in (_NODE, _IN_DELEGATE, _OF_DELEGATE)
    ]


def _means(each_run: Sequence[Sequence[tuple[int, str, bool, int]]]) -> list[dict[str, Any]]:
    """Average operators over runs; the same ones must have run in the same order."""
    first = [operator[:3] for operator in each_run[0]]
    if any([operator[:3] for operator in run] != first for run in each_run):
        raise MeasureError("the runs did not execute the same operators")
    times_us = np.array([[operator[3] for operator in run] for run in each_run], np.float64)
    means_ms = times_us.mean(axis=0) / 1000 if first else []
    return [
        {"index": index, "op": op, "mean_ms": float(mean), "delegated": delegated}
        for (index, op, delegated), mean in zip(first, means_ms, strict=True)
    ]


if __name__ == "__main__":
    sys.stdout.write(json.dumps(main(json.loads(sys.argv[1]))) + "\n")
