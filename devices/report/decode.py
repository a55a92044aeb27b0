"""Records from plain JSON, each value checked against the type of its field."""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from collections.abc import Callable
from typing import Any

_NOT_FINITE = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}  # JSON has none


class MismatchError(Exception):
    """A value does not fit its field; the message says where and why."""


def decode(kind: Any, value: Any, where: str) -> Any:
    """Rebuild a value of a type from plain JSON; the types are those of the records.

    Args:
        where: names the value in messages.

    Raises:
        MismatchError: the value does not fit the type.
        TypeError: the type is none that can be read.
        ValueError: a record refuses its values.
    """
    if dataclasses.is_dataclass(kind):
        return _decode_record(typing.cast("type[Any]", kind), value, where)
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if origin is types.UnionType or origin is typing.Union:
        return _decode_union(args, value, where)
    if origin is typing.Literal:
        return _decode_literal(args, value, where)
    if origin is tuple:
        return _decode_tuple(args, value, where)
    if origin is dict:
        return _decode_dict(args, value, where)
    decode = _PLAIN.get(kind)
    if decode is None:  # a record gained a field of a type that this module does not know
        raise TypeError(f"{where}: no way to read {kind!r}")
    return decode(value, where)


def _decode_record(kind: type[Any], value: Any, where: str) -> Any:
    _expect(isinstance(value, dict), value, where, "an object")
    hints = typing.get_type_hints(kind)
    unknown = sorted(set(value) - set(hints))
    if unknown:
        raise MismatchError(f"{where} has the unknown field {unknown[0]!r}")
    for field in dataclasses.fields(kind):
        optional = (field.default, field.default_factory) != (dataclasses.MISSING,) * 2
        if field.name not in value and not optional:
            raise MismatchError(f"{where} lacks the field {field.name!r}")
    return kind(
        **{name: decode(hints[name], item, f"{where}.{name}") for name, item in value.items()}
    )


def _decode_union(args: tuple[Any, ...], value: Any, where: str) -> Any:
    if value is None and type(None) in args:
        return None
    members = [arg for arg in args if arg is not type(None)]
    for member in members[:-1]:
        try:
            return decode(member, value, where)
        except MismatchError:
            continue
    return decode(members[-1], value, where)


def _decode_literal(args: tuple[Any, ...], value: Any, where: str) -> Any:
    fits = any(type(value) is type(arg) and value == arg for arg in args)
    _expect(fits, value, where, " or ".join(repr(arg) for arg in args))
    return value


def _decode_tuple(args: tuple[Any, ...], value: Any, where: str) -> tuple[Any, ...]:
    _expect(isinstance(value, list), value, where, "a list")
    if len(args) == 2 and args[1] is Ellipsis:
        return tuple(decode(args[0], item, f"{where}[{i}]") for i, item in enumerate(value))
    _expect(len(value) == len(args), value, where, f"a list of {len(args)}")
    pairs = zip(args, value, strict=True)
    return tuple(decode(arg, item, f"{where}[{i}]") for i, (arg, item) in enumerate(pairs))


def _decode_dict(args: tuple[Any, ...], value: Any, where: str) -> dict[Any, Any]:
    _expect(isinstance(value, dict), value, where, "an object")
    found: dict[Any, Any] = {}
    for key, item in value.items():
        if args[0] is int:
            _expect(key.isascii() and key.isdigit(), key, where, "whole numbers as keys")
        found[int(key) if args[0] is int else key] = decode(args[1], item, f"{where}[{key}]")
    return found


def _decode_float(value: Any, where: str) -> float:
    if isinstance(value, str) and value in _NOT_FINITE:
        return _NOT_FINITE[value]
    fits = isinstance(value, int | float) and not isinstance(value, bool)
    _expect(fits, value, where, "a number")
    return float(value)


def _decode_int(value: Any, where: str) -> int:
    _expect(isinstance(value, int) and not isinstance(value, bool), value, where, "a whole number")
    return typing.cast("int", value)


def _decode_bool(value: Any, where: str) -> bool:
    _expect(isinstance(value, bool), value, where, "true or false")
    return typing.cast("bool", value)


def _decode_text(value: Any, where: str) -> str:
    _expect(isinstance(value, str), value, where, "a text")
    return typing.cast("str", value)


_PLAIN: dict[Any, Callable[[Any, str], Any]] = {
    float: _decode_float, int: _decode_int, bool: _decode_bool, str: _decode_text,
}  # fmt: skip


def _expect(fits: bool, value: Any, where: str, wanted: str) -> None:
    if not fits:
        raise MismatchError(f"{where} must be {wanted}, and is {value!r:.60}")
