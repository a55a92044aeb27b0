"""Checkpoints as safetensors, in which shared parameters stay shared."""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from weightspace.layout import layout, shared_bytes

_ALIASES = "aliases"
_MOST_HEADER_BYTES = 100_000_000  # the format's own limit


class CheckpointError(ValueError):
    """A checkpoint cannot be read, or does not fit the module."""


def save_checkpoint(
    module: nn.Module, path: Path, metadata: Mapping[str, str] | None = None
) -> None:
    """Write parameters and buffers, each storage once.

    A parameter that is another one in the same memory, straight, transposed or in another shape,
    is written as an alias in the file's metadata. The file appears whole or not at all.

    Args:
        metadata: short texts to keep in the file's header.

    Raises:
        CheckpointError: parameters overlap in part, or the file cannot be written.
    """
    tensors, aliases = _stored_once(module.state_dict(keep_vars=True))
    header = {**(metadata or {}), _ALIASES: json.dumps(aliases)}
    write_tensors(tensors, path, header)


def write_tensors(tensors: Mapping[str, Tensor], path: Path, metadata: Mapping[str, str]) -> None:
    """Write tensors to a temporary sibling and rename it.

    Raises:
        CheckpointError: the file cannot be written there.
    """
    if not path.parent.is_dir():
        raise CheckpointError(f"{path} cannot be written: its folder is missing; create it first")
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        save_file(dict(tensors), temporary, dict(metadata))
        temporary.chmod(0o666 & ~_umask())  # the library keeps all others out
        temporary.replace(path)
    except SafetensorError as error:
        raise CheckpointError(
            f"{path} cannot be written ({error}); see that there is room and permission"
        ) from error
    finally:
        temporary.unlink(missing_ok=True)


def _umask() -> int:
    mask = os.umask(0)  # there is no way to read it but to set it
    os.umask(mask)
    return mask


def load_checkpoint(module: nn.Module, path: Path, without: str | None = None) -> dict[str, str]:
    """Read a checkpoint into a module of the same architecture; its ties are kept.

    Args:
        without: name of a part that the module does without, whose tensors are passed over.

    Returns:
        The texts in the file's header.

    Raises:
        CheckpointError: the file is missing, cut short, a pickle, or of another architecture.
    """
    tensors, metadata = read_tensors(path)
    if without is not None:
        tensors = {k: v for k, v in tensors.items() if not k.startswith(f"{without}.")}
    try:
        aliases = json.loads(metadata.pop(_ALIASES, "{}"))
    except ValueError:
        aliases = None
    if not isinstance(aliases, dict):
        raise CheckpointError(f"{path} holds a list of ties that is not readable; save it again")
    expected = module.state_dict(keep_vars=True)
    stored, expected_aliases = _stored_once(expected)
    if aliases != expected_aliases:
        tied, wanted = (
            sorted(n for n, owner in one.items() if other.get(n) != owner) or "nothing"
            for one, other in ((aliases, expected_aliases), (expected_aliases, aliases))
        )
        raise CheckpointError(f"{path} ties {tied}, the model ties {wanted}; use its own model")
    missing, extra = sorted(set(stored) - set(tensors)), sorted(set(tensors) - set(stored))
    if missing or extra:
        name, verb = (missing[0], "lacks") if missing else (extra[0], "holds the unknown")
        raise CheckpointError(
            f"{path} {verb} {name!r} ({len(missing)} missing, {len(extra)} unknown); "
            "it belongs to another architecture"
        )
    for name, tensor in tensors.items():
        if tensor.shape != stored[name].shape:
            raise CheckpointError(
                f"{path}: {name!r} has shape {tuple(tensor.shape)}, "
                f"the model needs {tuple(stored[name].shape)}; it belongs to another architecture"
            )
        # Integers are quantised weights: without their scales they would be loaded as nonsense.
        if tensor.is_floating_point() != stored[name].is_floating_point():
            raise CheckpointError(
                f"{path}: {name!r} holds {_name(tensor.dtype)}, the model needs "
                f"{_name(stored[name].dtype)}; save it in that type"
            )
    with torch.no_grad():
        for name, tensor in tensors.items():
            expected[name].copy_(tensor)
    return metadata


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read all tensors and the texts of a safetensors file.

    Raises:
        CheckpointError: the file is missing, cut short, a pickle or of another kind.
    """
    _check_kind(path)
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            return tensors, dict(file.metadata() or {})
    except (SafetensorError, ValueError) as error:
        raise CheckpointError(
            f"{path} is not a whole safetensors file ({error}); copy it again"
        ) from error


def read_metadata(path: Path) -> dict[str, str]:
    """Read the texts in a checkpoint's header.

    Raises:
        CheckpointError: as ``read_tensors``.
    """
    _check_kind(path)
    try:
        with safe_open(path, framework="pt") as file:
            return dict(file.metadata() or {})
    except (SafetensorError, ValueError) as error:
        raise CheckpointError(
            f"{path} is not a whole safetensors file ({error}); copy it again"
        ) from error


def _check_kind(path: Path) -> None:
    """Refuse by content what must not be unpickled, before any library looks at it."""
    if not path.is_file():
        raise CheckpointError(f"{path} is not a file; give the path of a .safetensors checkpoint")
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(9)
    header = struct.unpack("<Q", start[:8])[0] if len(start) == 9 else 0
    whole = start[8:9] == b"{" and header <= min(size - 8, _MOST_HEADER_BYTES)
    if not whole and (start[:2] == b"PK" or start[:1] == b"\x80"):
        kind = "zip archive that may hold a pickle" if start[:2] == b"PK" else "pickle"
        raise CheckpointError(
            f"{path} is a {kind}, which may run code when it is read; load it where it is trusted "
            "with torch.load(..., weights_only=True) and save it as safetensors"
        )
    if not whole:
        raise CheckpointError(
            f"{path} is not a whole safetensors file (its header does not fit in {size} bytes); "
            "copy it again"
        )


def _stored_once(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Split a state dict into tensors to store and names that are views of one of them."""
    owners: dict[int, list[tuple[str, Tensor]]] = {}  # by storage
    stored: dict[str, Tensor] = {}
    aliases: dict[str, str] = {}
    for name in sorted(state, key=lambda n: not state[n].is_contiguous()):  # owners first
        tensor = state[name]
        if any(size > 1 and stride == 0 for size, stride in layout(tensor)):
            raise CheckpointError(
                f"parameter {name!r} is an expanded view, several of its elements are one; "
                "give it its own memory"
            )
        storage = tensor.untyped_storage()
        family = owners.setdefault(storage.data_ptr() or storage._cdata, [])
        for owner, other in family:
            if shared_bytes(tensor, other):
                aliases[name] = owner + _view(tensor, other, names=(owner, name))
                break
        else:
            stored[name] = tensor.detach().contiguous()
            family.append((name, tensor))
    return stored, aliases


def _view(tensor: Tensor, owner: Tensor, *, names: tuple[str, str]) -> str:
    """Say how a tensor reads the memory of its owner; empty where it is the same tensor."""
    same_place = tensor.storage_offset() == owner.storage_offset() and tensor.dtype == owner.dtype
    if same_place and layout(tensor) == layout(owner):
        return ""
    if same_place and tensor.dim() == 2 and layout(tensor.t()) == layout(owner):
        return ">transpose"
    if tensor.dtype == owner.dtype and tensor.nbytes == owner.nbytes == shared_bytes(tensor, owner):
        return f">shape{tuple(tensor.shape)} strides{tuple(s for _, s in layout(tensor))}"
    raise CheckpointError(
        f"parameters {names[0]!r} and {names[1]!r} overlap in memory in part; "
        "give one of them its own memory"
    )


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
