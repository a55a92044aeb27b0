"""Why TensorRT failed, in one line, from the many that it prints.

The lines are the same from trtexec and from the Python package. One cause leaves a dozen of them,
and many of those that call themselves errors are attempts that the builder survives.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

Version = tuple[int, int, int]

_MOST_CHARS = 240
_MEMORY = (
    "out of memory",
    "OutOfMemory",
    "insufficient memory",
    "insuficient memory",  # so in TensorRT 8
    "could not be allocated",
    "Device memory is insufficient",
    "allocator error allocating",
)
# What follows from a cause that stands above.
_CONSEQUENCES = (
    "Failed to parse onnx file",
    "Parsing model failed",
    "Failed to create engine from model",
    "Engine could not be created",
    "Engine set up failed",
    "Engine deserialization failed",
    "Got invalid engine",
    "Inference set up failed",
)
# Removed in TensorRT 11.
_PRECISION_OPTIONS = frozenset(
    {"--fp16", "--bf16", "--int8", "--best", "--calib", "--layerPrecisions"}
    | {"--precisionConstraints"}
)
_LIBRARY = re.compile(r"expecting library version (\S{1,40}) got (\S{1,40}?)[,.]? please rebuild")
_COMPUTE = re.compile(
    r"incompatible device[,.] expecting compute (\d\d?\.\d) got compute (\d\d?\.\d)"
)
# CUDA's own: driver too old, no device, invalid device, initialisation, system or driver mismatch.
_CUDA = re.compile(
    r"CUDA initialization failure with error:? (\d{1,4})"
    r"|cudaError (3|35|100|101|802|803|804): ([^)]{1,120})"
)
_PARSING = re.compile(r"While parsing node number (\d{1,9}) \[(\S{1,60})")
_NO_KERNEL = re.compile(r"Could not find any implementation for node (.{1,160}?)\.\)?$")
_IN_NODE = re.compile(r"In node (-?\d{1,9}) with name: .{0,200}? and operator: ?(\w{0,60})")
_UNSUPPORTED = {7, 8}  # nvonnxparser::ErrorCode: a graph, a node
_BYTES = re.compile(r"GPU memory \((\d{1,18}) bytes\)|Requested size was (\d{1,18}) bytes")


def is_out_of_memory(line: str) -> bool:
    """Whether a line tells of memory that was not to be had, for an attempt or for good."""
    return any(words in line for words in _MEMORY)


def explain(
    errors: Sequence[str],
    lines: Sequence[str] = (),
    version: Version | None = None,
    *,
    broke_off: bool = False,
) -> str:
    """Name the cause of a failure in one line, and the remedy.

    Args:
        errors: the lines of severity error, in order.
        lines: all lines of the log.
        version: of the TensorRT that failed.
        broke_off: the log ends before a verdict.
    """
    causes = (
        _unknown_options(errors, version),
        _missing_file(errors),
        _other_engine(errors, version),
        _no_gpu(errors),
        _no_memory(errors, lines),
        _unsupported(errors, lines),
    )
    for cause in causes:
        if cause:
            return cause
    for line in errors:
        if not line.startswith(_CONSEQUENCES):
            return _short(line)
    if broke_off:
        return (
            "it ended without a verdict; a process that is killed, mostly for want of memory, "
            "leaves such a log"
        )
    return _short(errors[0]) if errors else "it failed without saying why"


def _unknown_options(errors: Sequence[str], version: Version | None) -> str | None:
    start = "Unknown option: "
    rests = [line.removeprefix(start).split() for line in errors if line.startswith(start)]
    names = [rest[0] for rest in rests if rest]
    if not names:
        return None
    program = f"the trtexec of TensorRT {_dotted(version)}" if version else "this trtexec"
    remedy = "its versions differ in them; see trtexec --help on the device"
    if version and version >= (11, 0, 0) and _PRECISION_OPTIONS.intersection(names):
        remedy = "since TensorRT 11 the ONNX file alone sets the precision: export it in that one"
    return _short(f"{program} does not know {', '.join(names)}; {remedy}")


def _missing_file(errors: Sequence[str]) -> str | None:
    for line in errors:
        found = re.search(
            r"(?:not a regular file|Could not open file|Error opening engine file): ?(\S.*)", line
        )
        if found:
            return _short(f"there is no readable file {found.group(1)}")
    return None


def _other_engine(errors: Sequence[str], version: Version | None) -> str | None:
    """Tell an engine of another version or device; TensorRT calls what it is ``expecting``."""
    remedy = "build it again on the device that runs it"
    this = f" (this is {_dotted(version)})" if version else ""
    for line in errors:
        library = _LIBRARY.search(line)
        if library:
            here, there = library.groups()
            return f"the engine was built by TensorRT {there} and this is {here}; {remedy}"
        compute = _COMPUTE.search(line)
        if compute:
            here, there = compute.groups()
            return (
                f"the engine was built for a GPU of compute capability {there} and this one has "
                f"{here}; {remedy}"
            )
        if "magic" in line.lower() and "tag" in line.lower():
            return f"this is an engine of another kind of TensorRT{this}, or none; {remedy}"
        if "Version tag does not match" in line or "incompatible serialization version" in line:
            return f"the engine was built by another version of TensorRT{this}; {remedy}"
        if "Serialization assertion" in line:
            return f"the engine's file is damaged or cut short; {remedy}"
    return None


def _no_gpu(errors: Sequence[str]) -> str | None:
    for line in errors:
        found = _CUDA.search(line)
        if found:
            reason = found.group(3) or f"error {found.group(1)}"
            return f"CUDA finds no usable GPU and driver here ({reason})"
    return None


def _no_memory(errors: Sequence[str], lines: Sequence[str]) -> str | None:
    """Tell a build that memory ended; one that merely skipped candidates has other errors too."""
    if not any(map(is_out_of_memory, errors)):
        return None
    asked = [int(a or b) for line in lines or errors for a, b in _BYTES.findall(line)]
    largest = f" ({max(asked)} bytes asked for at most)" if asked else ""
    return (
        f"the device ran out of memory{largest}; close other programs, or limit the builder by "
        "--memPoolSize=workspace:MIB"
    )


def _unsupported(errors: Sequence[str], lines: Sequence[str]) -> str | None:
    for line in errors:
        found = _NO_KERNEL.search(line)
        if found:
            return _short(f"TensorRT has no kernel for {found.group(1)}")
    for line in errors:
        found = _IN_NODE.search(line)
        if found and found.group(2):
            why = "not supported" if "UNSUPPORTED_NODE" in line else _last_clause(line)
            return _short(f"operator {found.group(2)} (node {found.group(1)}): {why}")
    for line in errors:
        found = _PARSING.search(line)
        if found:
            why = _parsers_reason("\n".join([*errors, *lines]))
            return _short(f"operator {found.group(2)} (node {found.group(1)}): {why}")
    return None


def _parsers_reason(text: str) -> str:
    """Find why a node was refused: a line with TensorRT's own error, or one of the parser's."""
    for line in text.splitlines():
        if ": Error Code" in line:
            return _last_clause(line)
    found = re.search(r"^\[(\d{1,2})\] (.{1,200})$", text, re.MULTILINE)
    if not found:
        return "it cannot be parsed"
    code, words = found.groups()
    unknown = int(code) in _UNSUPPORTED or "Plugin not found" in words
    return "not supported" if unknown else words


def _last_clause(line: str) -> str:
    """Take the reason out of ``Where: Error Code 4: Kind (reason)``."""
    found = re.search(r"Error Code \d{1,3}: [^(]{0,60}\((.+)\)$", line)
    return found.group(1) if found else line.rpartition(": ")[2] or line


def _dotted(version: Version | None) -> str:
    return ".".join(map(str, version)) if version else "unknown"


def _short(text: str) -> str:
    """Make one line of no more than is read at once."""
    text = " ".join(text.split())
    return text if len(text) <= _MOST_CHARS else f"{text[: _MOST_CHARS - 3]}..."
