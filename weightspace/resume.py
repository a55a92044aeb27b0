"""The state of an interrupted training: weights, the optimizer's numbers, and how far it was."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from weightspace.checkpoint import (
    CheckpointError,
    load_checkpoint,
    read_tensors,
    save_checkpoint,
    write_tensors,
)


def save_state(
    module: nn.Module, optimizer: Optimizer, path: Path, run: Mapping[str, Any], done: int
) -> None:
    """Write the state; the file appears whole or not at all.

    Args:
        run: the settings that must be the same to go on.
        done: epochs or steps.

    Raises:
        CheckpointError: the file cannot be written.
    """
    weights = path.with_name(f".{path.name}.weights.{os.getpid()}")
    try:
        save_checkpoint(module, weights)
        tensors, metadata = read_tensors(weights)
    finally:
        weights.unlink(missing_ok=True)
    state = {f"model.{name}": tensor for name, tensor in tensors.items()}
    for index, slots in optimizer.state_dict()["state"].items():
        state |= {f"optimizer.{index}.{name}": value.contiguous() for name, value in slots.items()}
    header = {"run": json.dumps(dict(run)), "done": str(done), "model": json.dumps(metadata)}
    write_tensors(state, path, header)


def restore_state(
    module: nn.Module, optimizer: Optimizer, path: Path, run: Mapping[str, Any]
) -> int:
    """Read the state of an interrupted run, if there is one; returns how far it was.

    Raises:
        CheckpointError: the file is of another run, or of another kind.
    """
    if not path.exists():
        return 0
    state, header = read_tensors(path)
    if not {"run", "done", "model"} <= header.keys():
        raise CheckpointError(f"{path} is not the state of a training; move it away, or delete it")
    before = json.loads(header["run"])
    if before != run:
        raise CheckpointError(
            f"{path} is an interrupted training with other settings ({before}); "
            "finish it with those, or delete it"
        )
    weights = path.with_name(f".{path.name}.weights.{os.getpid()}")
    tensors = {n.removeprefix("model."): t for n, t in state.items() if n.startswith("model.")}
    try:
        write_tensors(tensors, weights, json.loads(header["model"]))
        load_checkpoint(module, weights)
    finally:
        weights.unlink(missing_ok=True)
    slots: dict[int, dict[str, Tensor]] = {}
    for name, tensor in state.items():
        if name.startswith("optimizer."):
            _, index, slot = name.split(".")
            slots.setdefault(int(index), {})[slot] = tensor
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": slots, "param_groups": groups})
    return int(header["done"])
