"""Values under reference evaluation: how constants are held, rounded and given out."""

from __future__ import annotations

import warnings

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from export.coreml_records import Constant
from runtimes.coreml_ops.call import Value
from runtimes.coreml_ports import FLOATS

_HELD_WIDE = frozenset({"uint32", "int64", "uint64"})


def given(array: NDArray[np.generic]) -> Tensor:
    """Hold an array as it was given; the array itself is not kept."""
    if array.dtype.kind == "f":
        return torch.from_numpy(array.astype(np.float32))
    if array.dtype.kind == "b":
        return torch.from_numpy(array.astype(np.bool_))
    wide = array.dtype.name in _HELD_WIDE
    return torch.from_numpy(array.astype(np.int64 if wide else np.int32))


def held(constant: Constant) -> Value:
    """Make a constant a value; float32 ones stay views of the file."""
    if constant.type.dtype in {"list", "tuple", "dictionary"}:
        return tuple(_item(each) for each in constant.items)
    if constant.type.dtype == "string":
        texts = tuple(str(each) for each in constant.items)
        return texts if constant.type.shape else texts[0]
    values = constant.values
    dtype = constant.type.dtype
    if dtype == "bfloat16":
        wide = values.astype(np.uint32) << 16
        return torch.from_numpy(wide.view(np.float32))
    if dtype == "bool":
        return torch.from_numpy(values.astype(np.bool_))
    if dtype in FLOATS:
        values = values.astype(np.float32, copy=False)
    elif dtype in _HELD_WIDE:
        values = values.astype(np.int64)
    elif dtype.startswith("float"):  # float8, which torch operators here do not take
        return torch.from_numpy(values.copy()).view(getattr(torch, dtype)).float()
    else:
        values = values.astype(np.int32)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that the file cannot be written to: nothing does
        return torch.from_numpy(values)


def _item(item: Constant | str) -> object:
    value = held(item) if isinstance(item, Constant) else item
    return value if isinstance(value, str | tuple) else value.item()


def kind_of(value: Tensor) -> str:
    """Tell whether a tensor holds floats, whole numbers or truth values."""
    if value.dtype == torch.bool:
        return "bool"
    return "float" if value.is_floating_point() else "int"


def kind_named(dtype: str) -> str:
    """Tell it of a declared type."""
    return "float" if "float" in dtype else "bool" if dtype == "bool" else "int"


def rounded(value: Tensor, dtype: str, to_half: bool) -> Tensor:
    """Round to a declared type; whole numbers wrap around as they would in memory."""
    if dtype == "float16":
        return value.half().float() if to_half else value.float()
    if dtype == "bfloat16":
        return value.bfloat16().float() if to_half else value.float()
    if dtype in FLOATS or dtype == "bool":
        return value.float() if dtype != "bool" else value
    if dtype in _HELD_WIDE:
        return value.long()
    if dtype in {"int8", "int16", "uint8"}:
        return value.to(getattr(torch, dtype)).int()
    return value.long().bitwise_and(0xFFFF).int() if dtype == "uint16" else value.int()


def to_numpy(value: Value, dtype: str) -> NDArray[np.generic]:
    """Give a value out as an array of its own, of a declared type."""
    if not isinstance(value, torch.Tensor):
        return np.array(value)
    return np.array(value.numpy(), "float32" if dtype == "bfloat16" else dtype)
