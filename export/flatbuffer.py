"""Reading FlatBuffers that nobody vouches for: every offset is checked before it is followed.

The whole structure becomes plain records in one pass, so nothing can be read that was not checked.
Offsets point forward and no table holds itself, so reading ends; a budget that grows with the file
keeps it from taking long where a hostile file makes many offsets lead to one place.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from mmap import mmap
from typing import Any

import numpy as np

Record = dict[str, Any]

# What one table costs of the budget, as against one element of a vector. At most a million tables
# are read, as many as the runtimes' own verifiers allow.
TABLE_COST = 16
MAX_COST = 1_000_000 * TABLE_COST

_OFFSET = struct.Struct("<I")
_TO_VTABLE = struct.Struct("<i")
_VTABLE = struct.Struct("<HH")
_SLOT = struct.Struct("<H")
_SCALARS = {letter: struct.Struct(f"<{letter}") for letter in "?bBhHiIqQfd"}
# Vectors of bools stay bytes: numpy trusts that a bool is 0 or 1.
_DTYPES = {letter: np.dtype(f"<{letter.replace('?', 'B')}") for letter in _SCALARS}


class FlatBufferError(ValueError):
    """The bytes are no such FlatBuffer; the message says where and why."""


@dataclass(frozen=True, slots=True)
class Field:
    """One field of a table.

    Args:
        kind: a letter of `struct`, ``s`` for a string, the name of a table or union, or any of
            these in brackets for a vector.
    """

    name: str
    kind: str


@dataclass(frozen=True, slots=True)
class Schema:
    """The fields of each table, by slot, and the tables of each union, by tag."""

    tables: dict[str, tuple[Field | None, ...]]
    unions: dict[str, tuple[str, ...]]

    @classmethod
    def parse(cls, tables: str, unions: str) -> Schema:
        """Read a schema from text: ``Name = field:kind ...`` and ``Name = Table ...``."""
        return cls(
            {
                name: tuple(Field(*word.split(":", 1)) if word != "-" else None for word in words)
                for name, words in _definitions(tables)
            },
            {name: ("", *words) for name, words in _definitions(unions)},  # tag 0 is no table
        )


# The bytes of a table, and its fields: each with its place and the name of the field before it.
_Layout = tuple[int, list[tuple[Field, int, str]]]


def _definitions(text: str) -> list[tuple[str, list[str]]]:
    found: list[tuple[str, list[str]]] = []
    for line in text.strip().splitlines():
        if not line.startswith(" "):
            name, line = line.split(" = ")
            found.append((name, []))
        found[-1][1].extend(line.split())
    return found


def read_flatbuffer(data: bytes | mmap, schema: Schema, root: str) -> Record:
    """Check a FlatBuffer and read it.

    Returns:
        The root table: a dictionary of the fields that are there. Tables are dictionaries, vectors
        of scalars are views of ``data``, other vectors are lists. A union whose tag is not known
        is left out, unread.

    Raises:
        FlatBufferError: something leads outside ``data`` or to itself, or the same parts are
            read far more often than they could be in an honest file of this size.
    """
    return _Reader(data, schema).root(root)


class _Reader:
    def __init__(self, data: bytes | mmap, schema: Schema) -> None:
        self.data = data
        self.bytes = np.frombuffer(data, np.uint8)
        self.schema = schema
        # An honest table takes eight bytes or more and an element one: four times that is ample.
        self.left = min(4 * len(data), MAX_COST) + 64 * TABLE_COST
        self.layouts: dict[tuple[int, str], _Layout] = {}
        self.strings: dict[int, str] = {}

    def root(self, name: str) -> Record:
        self.need(0, 8, name)
        record: Record = self.value(0, name, name)
        return record

    def need(self, at: int, count: int, what: str, align: int = 1) -> None:
        """Refuse ``count`` bytes that do not all lie in the file, or begin at an odd place."""
        if at < 0 or at + count > len(self.data):
            far = min(at, 0) or at + count
            raise FlatBufferError(f"{what} leads to byte {far:,} of {len(self.data):,}")
        if at % align:
            raise FlatBufferError(f"{what} is not aligned")

    def spend(self, cost: int, what: str) -> None:
        self.left -= cost
        if self.left < 0:
            raise FlatBufferError(f"{what} is read far too often for a file of this size")

    def value(self, at: int, kind: str, what: str) -> Any:
        """Read a value whose own bytes are known to lie in the file."""
        scalar = _SCALARS.get(kind)
        if scalar is not None:
            return scalar.unpack_from(self.data, at)[0]
        offset = _OFFSET.unpack_from(self.data, at)[0]
        if offset == 0:
            raise FlatBufferError(f"{what} leads to itself")
        at += offset
        if kind == "s":
            return self.string(at, what)
        if kind[0] == "[":
            return self.vector(at, kind[1:-1], what)
        return self.table(at, kind, what)

    def table(self, at: int, name: str, what: str) -> Record:
        self.spend(TABLE_COST, what)
        self.need(at, 4, what, align=4)
        vtable = at - _TO_VTABLE.unpack_from(self.data, at)[0]
        layout = self.layouts.get((vtable, name))
        if layout is None:
            layout = self.layouts[vtable, name] = self.layout(vtable, name, what)
        size, fields = layout
        self.need(at, size, what)
        record: Record = {}
        for field, offset, tag in fields:
            kind = field.kind
            if kind in self.schema.unions:
                tables = self.schema.unions[kind]
                place = record.get(tag, 0)
                kind = tables[place] if place < len(tables) else ""
            if kind:
                record[field.name] = self.value(at + offset, kind, f"{name}.{field.name}")
        return record

    def layout(self, vtable: int, name: str, what: str) -> _Layout:
        """Read a vtable: the table's size and where each field that is there lies in it."""
        what = f"the vtable of {what}"
        self.need(vtable, 4, what, align=2)
        length, size = _VTABLE.unpack_from(self.data, vtable)
        if length < 4 or length % 2 or size < 4:
            raise FlatBufferError(f"{what} is none")
        self.need(vtable, length, what)
        fields, before = [], ""
        for slot, field in enumerate(self.schema.tables.get(name, ())[: (length - 4) // 2]):
            offset = _SLOT.unpack_from(self.data, vtable + 4 + 2 * slot)[0]
            if field is not None and offset != 0:
                if offset < 4 or offset + _width(field.kind) > size:
                    raise FlatBufferError(f"{name}.{field.name} lies outside its table")
                fields.append((field, offset, before))
            before = field.name if field is not None else ""
        return size, fields

    def vector(self, at: int, kind: str, what: str) -> Any:
        self.need(at, 4, what, align=4)
        count, width = _OFFSET.unpack_from(self.data, at)[0], _width(kind)
        end = at + 4 + count * width
        self.need(at, end - at, f"{what} of {count:,} elements")
        if width > 1:
            self.spend(count, what)
        if kind in _DTYPES:
            return self.bytes[at + 4 : end].view(_DTYPES[kind])
        return [self.value(each, kind, what) for each in range(at + 4, end, width)]

    def string(self, at: int, what: str) -> str:
        if at not in self.strings:
            self.need(at, 4, what, align=4)
            count = _OFFSET.unpack_from(self.data, at)[0]
            self.need(at, 4 + count + 1, f"{what} of {count:,} characters")
            self.spend(count, what)
            if self.data[at + 4 + count] != 0:
                raise FlatBufferError(f"{what} does not end")
            self.strings[at] = self.data[at + 4 : at + 4 + count].decode(errors="replace")
        return self.strings[at]


def _width(kind: str) -> int:
    scalar = _SCALARS.get(kind)
    return scalar.size if scalar is not None else 4
