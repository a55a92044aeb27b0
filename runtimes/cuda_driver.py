"""The part of NVIDIA's driver that running an engine takes: memory, a stream, events, graphs.

It is called through ctypes in ``libcuda``, which is there wherever a GPU can be used: on a Jetson
it comes with the system, on a PC with the driver. The CUDA runtime (``libcudart``) changes its file
name with every major version and the TensorRT packages of PyPI hold it inside their own libraries;
PyTorch and cuda-python are no part of JetPack. What is called here is in every driver since
CUDA 11.4 (JetPack 5).

Memory and stream belong to the device's primary context, which is the one that TensorRT uses.
"""

from __future__ import annotations

import ctypes
import functools
import sys
from collections.abc import Callable
from ctypes import POINTER, byref, c_char_p, c_float, c_int, c_size_t, c_uint, c_uint64, c_void_p
from typing import Any

import numpy as np
from numpy.typing import NDArray

from export.errors import MeasureError

_LIBRARY = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
_NON_BLOCKING_STREAM = 1
_THREAD_LOCAL_CAPTURE = 1
_OUT_OF_MEMORY = 2
_HANDLE = POINTER(c_void_p)

# Each gives a CUresult, 0 for success. Names end in _v2 where the header's macros say so.
PROTOTYPES: dict[str, tuple[Any, ...]] = {
    "cuInit": (c_uint,),
    "cuDeviceGetCount": (POINTER(c_int),),
    "cuDeviceGet": (POINTER(c_int), c_int),
    "cuDevicePrimaryCtxRetain": (_HANDLE, c_int),
    "cuDevicePrimaryCtxRelease_v2": (c_int,),
    "cuCtxSetCurrent": (c_void_p,),
    "cuMemAlloc_v2": (POINTER(c_uint64), c_size_t),
    "cuMemFree_v2": (c_uint64,),
    "cuMemcpyHtoDAsync_v2": (c_uint64, c_void_p, c_size_t, c_void_p),
    "cuMemcpyDtoHAsync_v2": (c_void_p, c_uint64, c_size_t, c_void_p),
    "cuStreamCreate": (_HANDLE, c_uint),
    "cuStreamSynchronize": (c_void_p,),
    "cuStreamDestroy_v2": (c_void_p,),
    "cuStreamBeginCapture_v2": (c_void_p, c_int),
    "cuStreamEndCapture": (c_void_p, _HANDLE),
    "cuGraphInstantiateWithFlags": (_HANDLE, c_void_p, c_uint64),
    "cuGraphLaunch": (c_void_p, c_void_p),
    "cuGraphDestroy": (c_void_p,),
    "cuGraphExecDestroy": (c_void_p,),
    "cuEventCreate": (_HANDLE, c_uint),
    "cuEventRecord": (c_void_p, c_void_p),
    "cuEventSynchronize": (c_void_p,),
    "cuEventElapsedTime": (POINTER(c_float), c_void_p, c_void_p),
    "cuEventDestroy_v2": (c_void_p,),
    "cuGetErrorName": (c_int, POINTER(c_char_p)),
}


class Driver:
    """The loaded library; every call that fails raises with the driver's own name of the error.

    Raises:
        MeasureError: there is no driver, no GPU, or the driver is too old.
    """

    def __init__(self) -> None:
        try:
            self._library = ctypes.CDLL(_LIBRARY)
        except OSError as error:
            raise MeasureError(
                f"there is no NVIDIA driver here ({_LIBRARY} cannot be loaded); an engine runs on "
                "the device it was built for"
            ) from error
        for name, arguments in PROTOTYPES.items():
            try:
                function = getattr(self._library, name)
            except AttributeError as error:
                raise MeasureError(f"the NVIDIA driver is too old: it has no {name}") from error
            function.argtypes, function.restype = arguments, c_int
        self.call("cuInit", 0)

    def call(self, name: str, *arguments: Any) -> None:
        """Call a function of ``PROTOTYPES``.

        Raises:
            MeasureError: it failed.
        """
        code = getattr(self._library, name)(*arguments)
        if code == _OUT_OF_MEMORY:
            raise MeasureError("the GPU has no memory left; close other programs that use it")
        if code != 0:
            said = c_char_p()
            self._library.cuGetErrorName(code, byref(said))
            reason = said.value.decode() if said.value else f"error {code}"
            raise MeasureError(f"the NVIDIA driver failed at {name}: {reason}")

    def make(self, name: str, *arguments: Any) -> int:
        """Call a function whose first argument takes the handle of what it makes."""
        handle = c_void_p()
        self.call(name, byref(handle), *arguments)
        return handle.value or 0

    def device_count(self) -> int:
        """Count the GPUs that programs may use."""
        count = c_int()
        self.call("cuDeviceGetCount", byref(count))
        return count.value


class Gpu:
    """The first GPU, with one stream; ``close`` frees whatever was taken.

    Raises:
        MeasureError: there is no driver or no GPU.
    """

    def __init__(self) -> None:
        self._driver = Driver()
        device = c_int()
        self._driver.call("cuDeviceGet", byref(device), 0)
        self._device = device.value
        self._context = self._driver.make("cuDevicePrimaryCtxRetain", self._device)
        self._buffers: set[int] = set()
        self._events: list[int] = []
        self._graphs: list[int] = []
        self.stream = 0
        self.use()
        self.stream = self._driver.make("cuStreamCreate", _NON_BLOCKING_STREAM)

    def use(self) -> None:
        """Make this GPU the calling thread's; each thread needs it once."""
        self._driver.call("cuCtxSetCurrent", self._context)

    def allocate(self, size_bytes: int) -> int:
        """Take memory on the device; gives its address."""
        address = c_uint64()
        self._driver.call("cuMemAlloc_v2", byref(address), size_bytes)
        self._buffers.add(address.value)
        return address.value

    def free(self, address: int) -> None:
        """Give memory back."""
        self._buffers.remove(address)
        self._driver.call("cuMemFree_v2", address)

    def copy_in(self, address: int, array: NDArray[np.generic]) -> None:
        """Queue a copy to the device; the array must live until ``synchronize``."""
        self._driver.call(
            "cuMemcpyHtoDAsync_v2", address, array.ctypes.data, array.nbytes, self.stream
        )

    def copy_out(self, array: NDArray[np.generic], address: int) -> None:
        """Queue a copy from the device; the array holds it after ``synchronize``."""
        self._driver.call(
            "cuMemcpyDtoHAsync_v2", array.ctypes.data, address, array.nbytes, self.stream
        )

    def synchronize(self) -> None:
        """Wait for all that was queued."""
        self._driver.call("cuStreamSynchronize", self.stream)

    def make_event(self) -> int:
        """Make an event that keeps the time at which the stream reaches it."""
        self._events.append(self._driver.make("cuEventCreate", 0))
        return self._events[-1]

    def record(self, event: int) -> None:
        """Queue an event."""
        self._driver.call("cuEventRecord", event, self.stream)

    def elapsed_ms(self, start: int, end: int) -> float:
        """Wait for an event and give the time since another, by the device's clock."""
        self._driver.call("cuEventSynchronize", end)
        elapsed = c_float()
        self._driver.call("cuEventElapsedTime", byref(elapsed), start, end)
        return float(elapsed.value)

    def capture(self, queue: Callable[[], None]) -> int:
        """Record what a function queues as a graph, without running it; gives the graph.

        Raises:
            MeasureError: what it queues cannot be captured.
        """
        self._driver.call("cuStreamBeginCapture_v2", self.stream, _THREAD_LOCAL_CAPTURE)
        graph = c_void_p()
        try:
            queue()
        finally:
            self._driver.call("cuStreamEndCapture", self.stream, byref(graph))
        try:
            self._graphs.append(self._driver.make("cuGraphInstantiateWithFlags", graph, 0))
        finally:
            self._driver.call("cuGraphDestroy", graph)
        return self._graphs[-1]

    def launch(self, graph: int) -> None:
        """Queue a graph."""
        self._driver.call("cuGraphLaunch", graph, self.stream)

    def drop(self, graph: int) -> None:
        """Free a graph."""
        self._graphs.remove(graph)
        self._driver.call("cuGraphExecDestroy", graph)

    def close(self) -> None:
        """Free everything and let go of the device; may be called twice."""
        if not self._context:
            return
        self.use()
        for graph in self._graphs:
            self._driver.call("cuGraphExecDestroy", graph)
        for event in self._events:
            self._driver.call("cuEventDestroy_v2", event)
        for address in self._buffers:
            self._driver.call("cuMemFree_v2", address)
        if self.stream:
            self._driver.call("cuStreamDestroy_v2", self.stream)
        self._context = self.stream = 0
        self._buffers, self._events, self._graphs = set(), [], []
        self._driver.call("cuDevicePrimaryCtxRelease_v2", self._device)


@functools.cache
def has_gpu() -> bool:
    """Whether a driver and a GPU are here; asked once in a process."""
    try:
        return Driver().device_count() > 0
    except MeasureError:
        return False
