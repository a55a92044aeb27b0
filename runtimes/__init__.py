"""Run, time and measure an artifact with the runtime of its target."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Backend:
    """A format that artifacts can have, and what runs it.

    Args:
        suffix: of the artifact's file.
        module: where its ``open_session`` is; imported when it is needed.
        package: the vendor's package.
        extra: the extra of this project that installs it.
    """

    format: str
    suffix: str
    module: str
    package: str
    extra: str


BACKENDS: dict[str, Backend] = {
    "onnx": Backend("onnx", ".onnx", "runtimes.ort", "onnxruntime", "ort"),
}
