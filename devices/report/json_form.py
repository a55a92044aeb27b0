"""report.json: every figure of a report, raw samples included, read back without loss."""

from __future__ import annotations

import dataclasses
import json
import math
import types
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Any

from devices.report.record import SCHEMA, Report
from export.errors import BadFileError, OutputError

_OLD_SCHEMA = 1  # the waterfall names variants by their setting; all are of one format
_NOT_FINITE = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}  # JSON has none


class _MismatchError(Exception):
    """A value does not fit its field; the message says where and why."""


def report_to_dict(report: Report) -> dict[str, Any]:
    """Turn a report into plain dicts, lists, strings and finite numbers."""
    return typing.cast("dict[str, Any]", _encode(report))


def report_from_dict(data: Any) -> Report:
    """Turn what :func:`report_to_dict` gave back into the report.

    A report of schema 1 is read as well, and becomes one of this schema.

    Raises:
        BadFileError: the schema is another one, or a field is missing, unknown or of a wrong type.
    """
    if not isinstance(data, dict) or "schema" not in data:
        raise BadFileError("this is not a report: it has no 'schema'")
    schema = data["schema"]
    if isinstance(schema, int) and not isinstance(schema, bool) and schema > SCHEMA:
        raise BadFileError(
            f"the report has schema {schema}, and this version reads schema {SCHEMA}; "
            "update weightspace, or write the report anew"
        )
    if schema not in (_OLD_SCHEMA, SCHEMA) or isinstance(schema, bool):
        raise BadFileError(
            f"the report has schema {schema!r}; it must be {_OLD_SCHEMA} or {SCHEMA}"
        )
    try:
        report = typing.cast("Report", _decode(Report, data, "report"))
    except (_MismatchError, ValueError) as error:
        raise BadFileError(f"the report is corrupt: {error}") from error
    return _upgraded(report) if schema == _OLD_SCHEMA else report


def _upgraded(report: Report) -> Report:
    """Name the variants in an old report's waterfall as they are named now."""
    id_by_name = {variant.name: variant.id for variant in report.variants}
    steps = tuple(
        dataclasses.replace(
            step,
            bytes_by_variant={
                id_by_name.get(name, name): size for name, size in step.bytes_by_variant.items()
            },
        )
        for step in report.waterfall
    )
    return dataclasses.replace(report, waterfall=steps, schema=SCHEMA)


def write_json(report: Report, path: Path) -> None:
    """Write a report to a file.

    Raises:
        OutputError: the file cannot be written.
    """
    try:
        path.write_text(_layout(report_to_dict(report), "") + "\n", encoding="utf-8")
    except OSError as error:
        raise OutputError(f"report '{path}' cannot be written: {error.strerror}") from error


def read_json(path: Path) -> Report:
    """Read a report from a file.

    Raises:
        BadFileError: the file is missing, is not JSON, or is not a report of this schema.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise BadFileError(f"report '{path}' cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise BadFileError(f"report '{path}' is not valid JSON: {error}") from error
    try:
        return report_from_dict(data)
    except BadFileError as error:
        raise BadFileError(f"report '{path}': {error}") from error


def _layout(value: Any, indent: str) -> str:
    """Write JSON with a line for each entry, but lists of plain values, such as samples, on one."""
    nested = [value] if not isinstance(value, dict | list) else list(_children(value))
    if not isinstance(value, dict | list) or not nested:
        return json.dumps(value, ensure_ascii=False, allow_nan=False)
    if isinstance(value, list) and not any(isinstance(item, dict | list) for item in nested):
        return json.dumps(value, ensure_ascii=False, allow_nan=False)
    deeper = indent + " "
    if isinstance(value, dict):
        lines = [
            f"{json.dumps(key, ensure_ascii=False)}: {_layout(item, deeper)}"
            for key, item in value.items()
        ]
        return "{\n" + ",\n".join(deeper + line for line in lines) + f"\n{indent}}}"
    lines = [_layout(item, deeper) for item in value]
    return "[\n" + ",\n".join(deeper + line for line in lines) + f"\n{indent}]"


def _children(value: dict[str, Any] | list[Any]) -> typing.Iterable[Any]:
    return value.values() if isinstance(value, dict) else value


def _encode(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return {
            field.name: _encode(getattr(value, field.name)) for field in dataclasses.fields(value)
        }
    if isinstance(value, dict):
        return {str(key): _encode(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [_encode(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    return value


def _decode(kind: Any, value: Any, where: str) -> Any:
    """Rebuild a value of a type from plain JSON; the types are those of the records."""
    if dataclasses.is_dataclass(kind):
        return _decode_record(typing.cast("type[Any]", kind), value, where)
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if origin is types.UnionType or origin is typing.Union:
        return _decode_union(args, value, where)
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
        raise _MismatchError(f"{where} has the unknown field {unknown[0]!r}")
    for field in dataclasses.fields(kind):
        optional = (field.default, field.default_factory) != (dataclasses.MISSING,) * 2
        if field.name not in value and not optional:
            raise _MismatchError(f"{where} lacks the field {field.name!r}")
    return kind(
        **{name: _decode(hints[name], item, f"{where}.{name}") for name, item in value.items()}
    )


def _decode_union(args: tuple[Any, ...], value: Any, where: str) -> Any:
    if value is None and type(None) in args:
        return None
    members = [arg for arg in args if arg is not type(None)]
    for member in members[:-1]:
        try:
            return _decode(member, value, where)
        except _MismatchError:
            continue
    return _decode(members[-1], value, where)


def _decode_tuple(args: tuple[Any, ...], value: Any, where: str) -> tuple[Any, ...]:
    _expect(isinstance(value, list), value, where, "a list")
    if len(args) == 2 and args[1] is Ellipsis:
        return tuple(_decode(args[0], item, f"{where}[{i}]") for i, item in enumerate(value))
    _expect(len(value) == len(args), value, where, f"a list of {len(args)}")
    pairs = zip(args, value, strict=True)
    return tuple(_decode(arg, item, f"{where}[{i}]") for i, (arg, item) in enumerate(pairs))


def _decode_dict(args: tuple[Any, ...], value: Any, where: str) -> dict[Any, Any]:
    _expect(isinstance(value, dict), value, where, "an object")
    found: dict[Any, Any] = {}
    for key, item in value.items():
        if args[0] is int:
            _expect(key.isascii() and key.isdigit(), key, where, "whole numbers as keys")
        found[int(key) if args[0] is int else key] = _decode(args[1], item, f"{where}[{key}]")
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
        raise _MismatchError(f"{where} must be {wanted}, and is {value!r:.60}")
