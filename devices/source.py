"""Where a model comes from: a zoo name, a factory, a program, a checkpoint or an ONNX file."""

from __future__ import annotations

import importlib
import io
import json
import sys
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import onnx_ir as ir
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.export import ExportedProgram

from devices.app.wordpiece import read_wordpiece
from devices.onnx_source import OnnxSource
from export.capture import DynamicShapes, capture, example_inputs_of, trace
from export.errors import BadFileError, MissingExtraError, UnknownNameError, UserError
from export.naive import write_naive
from export.onnx_io import load_model
from export.records import TieMap
from export.ties import tie_map
from weightspace.checkpoint import CheckpointError
from weightspace.data import CLASS_NAMES, MEAN, STD, Images, load_slice, preprocess
from weightspace.load import load_zoo_model
from weightspace.models import MODELS
from weightspace.models.spec import ImageSpec, TextSpec, takes_fashion_mnist
from weightspace.tokens import encode, load_tokenizer, padded, sample_texts
from weightspace.zoo import path_of

BATCH, SEQUENCE = "batch", "sequence"


@dataclass(frozen=True, slots=True)
class Pixels:
    """How a model's input is made of pixels from 0 to 255: ``pixel * scale + bias``."""

    scale: float
    bias: float
    colour: str

    def of(self, inputs: Sequence[NDArray[np.generic]]) -> list[NDArray[np.generic]]:
        """Turn the first of a model's inputs back into the pixels that it was made of."""
        first = (np.asarray(inputs[0], np.float64) - self.bias) / self.scale
        return [first.round().astype(np.float32), *inputs[1:]]


@dataclass(frozen=True, slots=True)
class Texts:
    """Texts that a model's inputs are made of, and what makes them.

    Args:
        input_ids: token ids of each text, without padding.
        tokenizer: file in the format of the tokenizers library.
    """

    texts: tuple[str, ...]
    input_ids: tuple[tuple[int, ...], ...]
    tokenizer: Path


@dataclass(frozen=True, slots=True)
class TorchSource:
    """A traced model and all that an export needs to know of it.

    Args:
        name: for the bundle and the report.
        origin: where it came from, in words.
        dynamic_shapes: for each input its varying axes, as axis to name.
        classes: number of classes of a classifier; None otherwise.
        images: labelled samples that the model was made for, if any.
        checkpoint_bytes: size of the checkpoint file; None without one.
        class_names: of a classifier, in order; None where they are not known.
        pixels: how the first input is made of pixels; None where it is no image.
        licence: of the weights; empty where it is not known.
        texts: what the samples are made of; None where the inputs are no texts.
        largest: sizes that dynamic axes have at most, by the axis' name, where that is known.
    """

    name: str
    origin: str
    program: ExportedProgram
    dynamic_shapes: DynamicShapes
    input_names: tuple[str, ...] | None
    output_names: tuple[str, ...] | None
    classes: int | None = None
    images: Images | None = None
    checkpoint_bytes: int | None = None
    class_names: tuple[str, ...] | None = None
    pixels: Pixels | None = None
    licence: str = ""
    texts: Texts | None = None
    largest: Mapping[str, int] = field(default_factory=dict)

    @property
    def pipeline(self) -> str:
        """The passes that make the graph canonical."""
        return "canonical"

    @property
    def naive_words(self) -> str:
        """What the naive export is."""
        return "exporter, then onnxsim"

    def capture(self) -> ir.Model:
        """Write the program as an ONNX graph, each stored tensor stamped with its torch name."""
        return capture(
            self.program,
            input_names=self.input_names,
            output_names=self.output_names,
            dynamic_shapes=self.dynamic_shapes,
        ).model

    def ties(self, canonical: ir.Model) -> TieMap:
        """List the program's stored tensors and their uses."""
        return tie_map(self.program)

    def write_naive(self, path: Path) -> None:
        """Export as everyone does."""
        write_naive(
            self.program, path, input_names=self.input_names, output_names=self.output_names
        )

    def reference(self, inputs: Sequence[NDArray[np.generic]]) -> list[NDArray[np.generic]]:
        """Run torch on the inputs, in parts of 250 samples where the batch may vary."""
        module = self.program.module()
        tensors = [torch.from_numpy(np.ascontiguousarray(array)) for array in inputs]
        varies = bool(self.dynamic_shapes) and 0 in (self.dynamic_shapes[0] or {})
        step = 250 if varies else max(1, len(tensors[0]))
        parts: list[list[Tensor]] = []
        with torch.no_grad():
            for start in range(0, len(tensors[0]), step):
                output = module(*(tensor[start : start + step] for tensor in tensors))
                parts.append([output] if isinstance(output, Tensor) else _flat(output))
        return [
            torch.cat(part).numpy() if varies else part[0].numpy()
            for part in zip(*parts, strict=True)
        ]

    def parity_inputs(self) -> tuple[list[NDArray[np.generic]], str]:
        """Give the samples to compare on, and words for where they are from."""
        if self.images is not None:
            return [preprocess(self.images.pixels)], "Fashion-MNIST, first 1,000 test images"
        if self.texts is not None:
            lengths = sorted(map(len, self.texts.input_ids))
            words = f"{len(lengths)} English texts of {lengths[0]} to {lengths[-1]} tokens"
            return [tensor.numpy() for tensor in padded(self.texts.input_ids)], words
        examples = [tensor.numpy() for tensor in example_inputs_of(self.program)]
        return list(examples), "the model's example inputs"


Source: TypeAlias = TorchSource | OnnxSource


def resolve(name: str) -> Source:
    """Find a model; one of torch is traced.

    Args:
        name: a zoo name, ``package.module:factory``, a ``.pt2``, ``.safetensors`` or
            ``.onnx`` file.

    Raises:
        UnknownNameError: no model has this name.
        UserError: the factory cannot be imported or gives something else than a model.
        BadFileError: a file is missing, corrupt, unsafe to read or of another architecture.
        CaptureError: torch cannot trace the model.
    """
    if name in MODELS or name.endswith(".safetensors"):
        return _from_zoo(name)
    if name.endswith(".onnx"):
        load_model(Path(name))  # what is wrong with it is said before anything is made
        return OnnxSource(Path(name))
    if name.endswith(".pt2"):
        return _from_program(Path(name))
    if Path(name).suffix in (".pt", ".pth", ".bin", ".ckpt", ".pkl"):
        raise BadFileError(
            f"{name} may hold a pickle, which can run code when it is read; "
            "save the weights as .safetensors, or the program with torch.export.save as .pt2"
        )
    if ":" in name:
        return _from_factory(name)
    raise UnknownNameError.near("model", name, MODELS, "weightspace models")


def _from_zoo(name: str) -> TorchSource:
    """Build a model of the zoo, or what was made of one."""
    try:
        model = load_zoo_model(name)
    except CheckpointError as error:
        raise BadFileError(str(error)) from error
    spec, checkpoint = model.spec, model.checkpoint
    texts = None
    if isinstance(spec, TextSpec):  # before the slow part
        texts = _texts_of(path_of(spec.tokenizer), spec.positions)
    small = takes_fashion_mnist(spec) and checkpoint is not None
    origin = name if name in MODELS else Path(name).name
    source = TorchSource(
        name=model.name,
        origin=origin if checkpoint is not None else f"{origin} (random weights)",
        program=trace(
            model.module, spec.example_inputs(batch=8 if small else 2), spec.dynamic_axes
        ),
        dynamic_shapes=spec.dynamic_axes,
        input_names=spec.input_names,
        output_names=spec.output_names,
        checkpoint_bytes=checkpoint.stat().st_size if checkpoint is not None else None,
        licence="Apache-2.0" if checkpoint is not None and (small or texts is not None) else "",
    )
    if isinstance(spec, TextSpec):
        return replace(source, texts=texts, largest={SEQUENCE: spec.positions})
    if isinstance(spec, ImageSpec):
        names = CLASS_NAMES if small else None
        source = replace(source, classes=spec.classes, class_names=names)
    if not small:
        return source
    pixels = Pixels(1 / (255 * STD), -MEAN / STD, "GRAYSCALE")
    return replace(source, images=load_slice(), pixels=pixels)


def _texts_of(tokenizer: Path, longest: int) -> Texts:
    """Tokenise the texts that ship.

    Raises:
        MissingExtraError: the package ``tokenizers`` is not installed.
    """
    texts = sample_texts()
    try:
        ids = encode(load_tokenizer(tokenizer), texts, longest)
    except ImportError as error:
        raise MissingExtraError.of("tokenizers", "text") from error
    return Texts(tuple(texts), tuple(map(tuple, ids)), tokenizer)


def _from_factory(name: str) -> TorchSource:
    """Call a user's factory; see docs/models.md for what it may return."""
    module_name, _, attribute = name.partition(":")
    if (here := str(Path.cwd())) not in sys.path:
        sys.path.append(here)  # a console script does not look there; last, so nothing is shadowed
    try:
        factory = getattr(importlib.import_module(module_name), attribute)
    except (ImportError, AttributeError) as error:
        raise UserError(f"factory {name!r} cannot be imported: {error}") from error
    made = factory()
    parts = made if isinstance(made, tuple) else (made,)
    module = parts[0]
    if not isinstance(module, nn.Module):
        raise UserError(f"factory {name!r} gave a {type(module).__name__}, not a torch module")
    inputs = parts[1] if len(parts) > 1 else getattr(module, "example_inputs", None)
    inputs = inputs() if callable(inputs) else inputs
    if not isinstance(inputs, tuple) or not all(isinstance(x, Tensor) for x in inputs):
        raise UserError(
            f"factory {name!r} gave no example inputs; return (module, (tensor, ...)) or "
            "(module, (tensor, ...), ({0: 'batch'}, ...))"
        )
    shapes: DynamicShapes = parts[2] if len(parts) > 2 else ()
    program = trace(module, inputs, shapes or None)
    source = TorchSource(attribute, name, program, shapes, None, None)
    if (tokenizer := getattr(module, "tokenizer", None)) is None:
        return source
    tokens = read_wordpiece(Path(tokenizer)).tokens
    texts = _texts_of(Path(tokenizer), tokens)
    return replace(source, texts=texts, largest={SEQUENCE: tokens})


def _from_program(path: Path) -> TorchSource:
    _check_archive(path)
    try:
        program = torch.export.load(path)
    except Exception as error:
        raise BadFileError(f"{path} is not a readable exported program: {error}") from error
    named = {node.name: node for node in program.graph.nodes if node.op == "placeholder"}
    shapes: list[Mapping[int, str]] = []
    for name in program.graph_signature.user_inputs:
        value = named[str(name)].meta.get("val")
        axes = {} if value is None else _varying(value)
        shapes.append(axes)
    return TorchSource(path.stem, path.name, program, shapes, None, None)


def _varying(value: Tensor) -> dict[int, str]:
    """Name a program's symbolic axes: the first is the batch, the next the sequence."""
    axes = [axis for axis, size in enumerate(value.shape) if not isinstance(size, int)]
    return {axis: BATCH if axis == 0 else SEQUENCE if axis == 1 else f"d{axis}" for axis in axes}


_PICKLE_STARTS = (b"\x80", b"PK")


def _check_archive(path: Path) -> None:
    """Refuse an exported program that holds a pickle with anything but plain tensors.

    torch.export.load unpickles some parts of the archive without restrictions, so every part
    that is a pickle is first read with ``weights_only=True``, which runs no code.

    Raises:
        BadFileError: the file is missing, is no archive, or holds such a pickle.
    """
    if not path.is_file():
        raise BadFileError(f"{path} is not a file; save one with torch.export.save")
    try:
        with zipfile.ZipFile(path) as archive:
            for name in archive.namelist():
                content = archive.read(name)
                if "custom_obj" in name or _is_unsafe(name, content):
                    raise BadFileError(
                        f"{path} holds a pickle with code ({name}) and is not read; "
                        "save the program again without custom objects"
                    )
    except (zipfile.BadZipFile, EOFError, OSError) as error:
        raise BadFileError(
            f"{path} is not a whole exported program ({error}); save it again"
        ) from error


def _is_unsafe(name: str, content: bytes) -> bool:
    if name.endswith(".json"):
        return _names_pickles(content)
    if not content.startswith(_PICKLE_STARTS):
        return False
    try:
        torch.load(io.BytesIO(content), weights_only=True)
    except Exception:  # whatever is wrong with it, it is not plain tensors
        return True
    return False


def _names_pickles(content: bytes) -> bool:
    """Whether an archive's index says that one of its parts is a pickle."""
    try:
        return '"use_pickle": true' in json.dumps(json.loads(content))
    except ValueError:
        return False


def _flat(output: Any) -> list[Tensor]:
    leaves, _ = torch.utils._pytree.tree_flatten(output)
    return [leaf for leaf in leaves if isinstance(leaf, Tensor)]
