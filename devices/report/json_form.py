"""report.json: every figure of a report, raw samples included, read back without loss."""

from __future__ import annotations

import dataclasses
import json
import math
import typing
from pathlib import Path
from typing import Any

from devices.report.decode import MismatchError, decode
from devices.report.old_schemas import OLD_SCHEMAS, OldReport, upgraded
from devices.report.record import SCHEMA, Report
from export.errors import BadFileError, OutputError


def report_to_dict(report: Report) -> dict[str, Any]:
    """Turn a report into plain dicts, lists, strings and finite numbers."""
    return typing.cast("dict[str, Any]", _encode(report))


def report_from_dict(data: Any) -> Report:
    """Turn what :func:`report_to_dict` gave back into the report.

    A report of an older schema is read as well, and becomes one of this schema.

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
    if schema not in (*OLD_SCHEMAS, SCHEMA) or isinstance(schema, bool):
        known = ", ".join(str(each) for each in OLD_SCHEMAS)
        raise BadFileError(f"the report has schema {schema!r}; it must be {known} or {SCHEMA}")
    try:
        if schema == SCHEMA:
            return typing.cast("Report", decode(Report, data, "report"))
        return upgraded(typing.cast("OldReport", decode(OldReport, data, "report")))
    except (MismatchError, ValueError) as error:
        raise BadFileError(f"the report is corrupt: {error}") from error


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
