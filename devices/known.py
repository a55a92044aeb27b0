"""The devices that the user has named, in a TOML file of theirs."""

from __future__ import annotations

import difflib
import os
import re
import sys
import tempfile
import tomllib
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from devices.device import Device
from devices.transports import open_transport
from export.errors import BadFileError, OutputError, UnknownNameError, UserError

ENVIRONMENT = "WEIGHTSPACE_DEVICES"
LOCAL = Device("local", "local", python=sys.executable)
LISTING = "weightspace devices list"

# What a device has where nothing else is said.
DEFAULTS: dict[str, str] = {
    each.name: each.default for each in fields(Device) if isinstance(each.default, str)
}
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_KEYS = ("address", *DEFAULTS)


def known_file() -> Path:
    """Where the names are kept: ``$WEIGHTSPACE_DEVICES``, or the user's folder for settings."""
    given = os.environ.get(ENVIRONMENT)
    if given:
        return Path(given)
    import typer

    return Path(typer.get_app_dir("weightspace")) / "devices.toml"


def known_devices() -> dict[str, Device]:
    """Read the file; none where there is no file.

    Raises:
        BadFileError: it is not what ``add_device`` writes.
    """
    path = known_file()
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise BadFileError(f"device file '{path}' cannot be read: {error.strerror}") from error
    except ValueError as error:  # of TOML, or of UTF-8
        raise BadFileError(f"device file '{path}' is not TOML: {error}") from error
    return {name: _device(path, name, table) for name, table in data.items()}


def find_device(name_or_address: str) -> Device:
    """Give ``local``, a named device, or the device of an address.

    Raises:
        UnknownNameError: it is none of these.
        BadFileError: the file of names is damaged.
    """
    if name_or_address == LOCAL.name:
        return LOCAL
    if "://" in name_or_address:
        device = Device(name_or_address, name_or_address)
        open_transport(device)  # which refuses an address that cannot be
        return device
    known = known_devices()
    if name_or_address not in known:
        names = (LOCAL.name, *known)
        raise UnknownNameError.near("device", name_or_address, names, LISTING)
    return known[name_or_address]


def add_device(device: Device) -> None:
    """Name a device, or change what its name stands for.

    Raises:
        UserError: the name or the address is none.
        BadFileError: the file of names is damaged.
        OutputError: it cannot be written.
    """
    if device.name == LOCAL.name or not _NAME.fullmatch(device.name):
        raise UserError(
            f"{device.name!r} cannot be a device's name; it must be of letters, digits, '.', '_' "
            "and '-', begin with a letter or digit, and not be 'local'"
        )
    open_transport(device)
    _write({**known_devices(), device.name: device})


def remove_device(name: str) -> None:
    """Forget a name.

    Raises:
        UnknownNameError: it is not known.
        BadFileError: the file of names is damaged.
        OutputError: it cannot be written.
    """
    known = known_devices()
    if name not in known:
        raise UnknownNameError.near("device", name, known, LISTING)
    del known[name]
    _write(known)


def _device(path: Path, name: str, table: Any) -> Device:
    if not isinstance(table, dict) or "address" not in table:
        raise BadFileError(f"device file '{path}': [{name}] must be a table with an address")
    for key, value in table.items():
        if key not in _KEYS:
            close = difflib.get_close_matches(key, _KEYS, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"known: {', '.join(_KEYS)}"
            raise BadFileError(f"device file '{path}': key '{name}.{key}' is not known; {hint}")
        if not isinstance(value, str):
            raise BadFileError(f"device file '{path}': '{name}.{key}' must be a text")
    return Device(name=name, **table)


def _write(devices: dict[str, Device]) -> None:
    """Write all names, or leave the file as it was."""
    import tomli_w

    tables: dict[str, dict[str, str]] = {}
    for name, device in sorted(devices.items()):
        values = asdict(device)
        tables[name] = {key: values[key] for key in _KEYS if values[key] != DEFAULTS.get(key)}
    path = known_file()
    part = ""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, part = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        with os.fdopen(descriptor, "wb") as file:
            tomli_w.dump(tables, file)
        os.replace(part, path.resolve())  # a link stays one
    except OSError as error:
        raise OutputError(f"device file '{path}' cannot be written: {error.strerror}") from error
    finally:
        if part:
            Path(part).unlink(missing_ok=True)
