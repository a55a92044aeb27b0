"""The one error tree of the toolkit; the CLI turns an error into one line and its exit code.

WeightspaceError                exit code 1
├── UserError                   exit code 2: something the user can put right
│   ├── UnknownNameError        a model, target or device that is not known; near matches are named
│   ├── MissingExtraError       an optional package is not installed; the command is named
│   └── BadFileError            a file that is missing, corrupt, unsafe or of another kind
├── CaptureError                torch.export or the ONNX exporter failed
├── PassError                   a pass failed, or broke a rule that every pass keeps
├── TieLostError                the 1.00 rule is broken: a shared weight is stored more than once
├── LoweringError               a backend's format cannot express the model, or its converter failed
├── ParityError                 an artifact's outputs differ from torch's
├── OutputError                 an output folder cannot be written, or the disk is full
├── MeasureError                a measurement could not be made
├── DeviceError                 a device cannot be reached, or failed at what it was asked for
│   └── DeviceLostError         the link to a device broke; trying again may help
└── RegressionGateError         exit code 3: a comparison tripped its gate
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class WeightspaceError(Exception):
    """Anything this toolkit reports to its user as a failure."""

    exit_code = 1


class UserError(WeightspaceError):
    """The request cannot be met as it was made."""

    exit_code = 2


class UnknownNameError(UserError):
    """A name that is not known."""

    @classmethod
    def near(cls, kind: str, name: str, known: Iterable[str], listing: str) -> UnknownNameError:
        """Build the message from the known names.

        Args:
            kind: what was asked for, such as ``target``.
            name: the name that was given.
            known: all names that would have been right.
            listing: the command that lists them.
        """
        close = difflib.get_close_matches(name.lower(), list(known), n=3, cutoff=0.5)
        hint = f"; did you mean {' or '.join(repr(match) for match in close)}?" if close else ";"
        return cls(f"{kind} {name!r} is not known{hint} `{listing}` lists all")


class MissingExtraError(UserError):
    """An optional package is not installed."""

    @classmethod
    def of(cls, package: str, extra: str) -> MissingExtraError:
        """Name the missing ``package`` and the ``extra`` that brings it."""
        return cls(f"package {package!r} is not installed; run: pip install 'weightspace[{extra}]'")


class BadFileError(UserError):
    """A file is missing, corrupt, unsafe to read or not of the expected kind."""


class CaptureError(WeightspaceError):
    """The torch program could not be turned into an ONNX graph."""


class PassError(WeightspaceError):
    """A graph pass failed or broke one of the rules that every pass keeps."""


class TieLostError(WeightspaceError):
    """A weight that torch stores once would be stored more than once."""


class LoweringError(WeightspaceError):
    """The graph cannot be written in a backend's format."""


class ParityError(WeightspaceError):
    """An artifact computes something else than the torch model."""


class OutputError(WeightspaceError):
    """The output could not be written."""


class MeasureError(WeightspaceError):
    """A measurement could not be made."""


class DeviceError(WeightspaceError):
    """A device could not be reached, or could not do what it was asked for."""


class DeviceLostError(DeviceError):
    """The link to a device broke."""


class RegressionGateError(WeightspaceError):
    """A comparison is over its limit."""

    exit_code = 3
