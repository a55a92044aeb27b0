"""LiteRT (TensorFlow Lite), on the CPU."""

from __future__ import annotations

import importlib
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from export.errors import BadFileError, MeasureError, MissingExtraError, UnknownNameError
from export.records import UNUSED, TensorSpec
from runtimes.feeds import check_feeds, narrowed, shape_words
from runtimes.fresh import in_fresh_process, save_feeds
from runtimes.records import OperatorTime
from runtimes.session import Arrays

NAME = "ai-edge-litert"
_MODULES = ("ai_edge_litert.interpreter", "tflite_runtime.interpreter")
_SIGNATURE = "serving_default"
_IDENTIFIER = b"TFL3"
_DYNAMIC = "?"

Details = Mapping[str, Any]
"""What the interpreter tells of one tensor: its index, name, type and shape."""


class LitertSession:
    """A .tflite model in the LiteRT interpreter; use ``open_session`` to make one."""

    def __init__(self, interpreter: Any, name: str) -> None:
        self._interpreter = interpreter
        self._name = name
        inputs, outputs = _named_tensors(interpreter)
        inputs = [(name, details) for name, details in inputs if not name.startswith(UNUSED)]
        self.inputs, self._input_indices = _specs(inputs)
        self.outputs, self._output_indices = _specs(outputs)
        self._accepted: list[tuple[str, np.dtype[Any], tuple[int, ...]]] | None = None
        self._shapes = {name: tuple(map(int, details["shape"])) for name, details in inputs}

    def run(self, feeds: Mapping[str, NDArray[np.generic]]) -> Arrays:
        """Run once: input name to array in, output name to array out.

        Integers of 64 bits are narrowed for an input of 32. Memory is planned anew only when a
        shape differs from the last run's.

        Raises:
            MeasureError: the feeds do not fit the inputs, or the runtime fails on them.
        """
        feeds = narrowed(self._name, self.inputs, feeds)
        given = [(name, array.dtype, array.shape) for name, array in feeds.items()]
        if given != self._accepted:  # checks would be timed along with every run of a small model
            self._accepted = None
            check_feeds(self._name, self.inputs, feeds)
            self._resize({name: array.shape for name, array in feeds.items()})
            self._accepted = given
        try:
            for name, array in feeds.items():
                self._interpreter.set_tensor(self._input_indices[name], array)
            self._interpreter.invoke()
        except (RuntimeError, ValueError) as error:
            raise MeasureError(f"{NAME} cannot run {self._name}: {_first_line(error)}") from error
        return {
            name: self._interpreter.get_tensor(index)
            for name, index in self._output_indices.items()
        }

    def close(self) -> None:
        """Free the interpreter and what it has mapped."""
        self._interpreter = None

    def _resize(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        changed = [name for name, shape in shapes.items() if self._shapes.get(name) != shape]
        if not changed:
            return
        self._shapes = {}  # until all went well: the next run starts over after a failure
        try:
            for name in changed:
                self._interpreter.resize_tensor_input(self._input_indices[name], shapes[name])
            self._interpreter.allocate_tensors()
        except (RuntimeError, ValueError) as error:
            words = ", ".join(f"{name!r} as {shape_words(shapes[name])}" for name in changed)
            raise MeasureError(
                f"{NAME} cannot run {self._name} with {words}: {_first_line(error)}"
            ) from error
        self._shapes = dict(shapes)


def open_session(
    path: Path,
    *,
    threads: int = 1,
    options: Mapping[str, str] | None = None,
    optimize: bool = True,
) -> LitertSession:
    """Load a .tflite file; its memory is planned and its weights are packed on return.

    The file is mapped, not read. Inputs and outputs are in the order of the graph, under the
    names of the signature where there is one.

    Args:
        threads: threads of one operator.
        options: session options, as in the manifest; this runtime has none.
        optimize: False leaves out the default delegate, XNNPACK.

    Raises:
        MissingExtraError: neither ai-edge-litert nor tflite_runtime is installed.
        BadFileError: the file is missing, corrupt, or uses what the runtime does not have.
        UnknownNameError: an option is given.
    """
    module = _interpreter_module()
    for key in options or {}:
        raise UnknownNameError(f"session option {key!r} is not known to {NAME}, which has none")
    _check_file(path)
    resolvers = module.OpResolverType
    resolver = resolvers.AUTO if optimize else resolvers.BUILTIN_WITHOUT_DEFAULT_DELEGATES
    try:
        with _quiet():
            interpreter = module.Interpreter(
                model_path=str(path), num_threads=threads, experimental_op_resolver_type=resolver
            )
            interpreter.allocate_tensors()
        return LitertSession(interpreter, path.name)
    except Exception as error:  # the runtime raises several kinds, without a common base
        raise BadFileError(f"{NAME} cannot load {path}: {_first_line(error)}") from error


def operator_profile(
    path: Path,
    feeds: Mapping[str, NDArray[np.generic]],
    *,
    threads: int = 1,
    runs: int = 50,
    optimize: bool = True,
) -> tuple[OperatorTime, ...]:
    """Time each operator of a .tflite file, in the order of execution.

    The interpreter's Python interface has no profiler, and neither has the package's benchmark
    tool. Its C library has one, so the file is run through that, in a process of its own; the
    kernels are the same. The profiler counts whole microseconds: what takes less shows as 0.

    Args:
        feeds: input name to array.
        runs: timed inferences, after three that are not.
        optimize: False leaves out the default delegate, XNNPACK.

    Raises:
        MissingExtraError: ai-edge-litert is not installed.
        BadFileError: the file is missing, corrupt, or uses what the runtime does not have.
        MeasureError: the feeds do not fit, or the installed package has no profiler.
    """
    if not _interpreter_module().__name__.startswith("ai_edge_litert"):
        raise MissingExtraError.of(NAME, "litert")
    feeds = narrowed(path.name, open_session(path).inputs, feeds)
    with tempfile.TemporaryDirectory(prefix="weightspace-") as folder:
        request = {
            "path": str(path.resolve()),
            **save_feeds(feeds, Path(folder)),
            "threads": threads,
            "runs": runs,
            "optimize": optimize,
        }
        operators = in_fresh_process("runtimes.litert_profile", request, path.name)
    whole_ms = sum(operator["mean_ms"] for operator in operators)
    return tuple(
        OperatorTime(**operator, share=operator["mean_ms"] / whole_ms if whole_ms else 0.0)
        for operator in operators
    )


def warm_up_model(folder: Path) -> Path:
    """Give a small model that loads the runtime's own code and pools when it is run.

    It is a file of this package: boards with tflite_runtime have nothing to write one with.
    """
    return Path(__file__).with_name("warm_up.tflite")


def write_without_weights(path: Path, folder: Path) -> Path | None:
    """Give None: a .tflite graph cannot be loaded without its weights in an honest way.

    As plain inputs they would get memory of their own when tensors are allocated, and other
    kernels would be chosen. So weights of .tflite files are counted with the interpreter's own
    structures, some 0.1 MB for a small graph.
    """
    return None


def _interpreter_module() -> Any:
    for name in _MODULES:
        try:
            return importlib.import_module(name)
        except ImportError:
            continue
    raise MissingExtraError.of(NAME, "litert")


@contextmanager
def _quiet() -> Iterator[None]:
    """Hold back what the runtime's C++ code writes to standard error: it names its delegate."""
    try:
        kept = os.dup(2)
    except OSError:  # a process without standard error
        yield
        return
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def _check_file(path: Path) -> None:
    """Refuse what is no .tflite file at all, from its size and its first eight bytes.

    The interpreter refuses most damage itself. The whole structure is checked by
    ``export.tflite_io.check_tflite``, for files from elsewhere; here it would count as load time.
    """
    if not path.is_file():
        raise BadFileError(f"{path} is not a file; give the path of a .tflite file")
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            head = file.read(8)
    except OSError as error:
        raise BadFileError(f"{path} cannot be read: {error.strerror}") from error
    if head[4:] != _IDENTIFIER:
        raise BadFileError(f"{path} is not a .tflite file: it lacks the mark TFL3")
    root = int.from_bytes(head[:4], "little")
    if not 8 <= root <= size - 4:
        raise BadFileError(f"{path} is cut short or corrupt: its root is outside its {size} bytes")


def _named_tensors(
    interpreter: Any,
) -> tuple[list[tuple[str, Details]], list[tuple[str, Details]]]:
    """Name the inputs and outputs of the main graph by a signature of it, or by their tensors."""
    inputs, outputs = interpreter.get_input_details(), interpreter.get_output_details()
    for key in _signatures_in_order(interpreter):
        signature = interpreter.get_signature_runner(key)
        by_name = signature.get_input_details(), signature.get_output_details()
        if _same_tensors(by_name[0], inputs) and _same_tensors(by_name[1], outputs):
            return _in_order_of(inputs, by_name[0]), _in_order_of(outputs, by_name[1])
    return _by_tensor_names(inputs, "input"), _by_tensor_names(outputs, "output")


def _signatures_in_order(interpreter: Any) -> Iterator[str]:
    keys = list(interpreter.get_signature_list())
    yield from sorted(keys, key=lambda key: key != _SIGNATURE)


def _same_tensors(by_name: Mapping[str, Details], tensors: Sequence[Details]) -> bool:
    """Whether a signature names just these tensors; one of another graph has other tensors."""

    def keys(details: Sequence[Details]) -> set[tuple[int, str]]:
        return {(int(one["index"]), str(one["name"])) for one in details}

    return keys(list(by_name.values())) == keys(tensors)


def _in_order_of(
    tensors: Sequence[Details], by_name: Mapping[str, Details]
) -> list[tuple[str, Details]]:
    """Order the names of a signature, which come sorted, as the graph lists their tensors."""
    places = {int(one["index"]): place for place, one in reversed(list(enumerate(tensors)))}
    return sorted(by_name.items(), key=lambda item: places[int(item[1]["index"])])


def _by_tensor_names(tensors: Sequence[Details], kind: str) -> list[tuple[str, Details]]:
    names = [str(one["name"]) for one in tensors]
    if len(set(names)) < len(names) or "" in names:
        names = [f"{kind}_{place}" for place in range(len(tensors))]
    return list(zip(names, tensors, strict=True))


def _specs(
    named: Sequence[tuple[str, Details]],
) -> tuple[tuple[TensorSpec, ...], dict[str, int]]:
    """Describe tensors; gives their indices in the interpreter as well, by name."""
    specs = tuple(
        TensorSpec(name, np.dtype(details["dtype"]).name, _shape_of(details))
        for name, details in named
    )
    return specs, {name: int(details["index"]) for name, details in named}


def _shape_of(details: Details) -> tuple[int | str, ...]:
    # The format does not name its dynamic dimensions.
    return tuple(_DYNAMIC if size < 0 else int(size) for size in details["shape_signature"])


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__
