"""What adbd on the board cannot be: a phone that never allows debugging, one that never answers."""

from __future__ import annotations

import os
import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

HEADER = struct.Struct("<6I")  # command, two arguments, the data's length and sum, ~command


def _message(command: bytes, first: int, second: int, data: bytes) -> bytes:
    number = int.from_bytes(command, "little")
    header = HEADER.pack(number, first, second, len(data), sum(data), number ^ 0xFFFFFFFF)
    return header + data


def _ask_for_ever(link: socket.socket) -> None:
    """Answer each greeting and each signature with a new token to sign."""
    stream = link.makefile("rb")
    while len(header := stream.read(HEADER.size)) == HEADER.size:
        command, kind, _, length, _, _ = HEADER.unpack(header)
        stream.read(length)
        name = command.to_bytes(4, "little")
        if name == b"CNXN" or (name == b"AUTH" and kind == 2):  # 2: a signature; 3: a public key
            link.sendall(_message(b"AUTH", 1, 0, os.urandom(20)))


def _say_nothing(link: socket.socket) -> None:
    while link.recv(4096):
        pass


@contextmanager
def phone(*, allows: bool | None) -> Iterator[str]:
    """Listen on the loopback as a phone would; gives its serial.

    Args:
        allows: False never allows debugging, None never answers at all.
    """
    talk = _say_nothing if allows is None else _ask_for_ever
    server = socket.create_server(("127.0.0.1", 0))
    links: list[socket.socket] = []

    def serve() -> None:
        with suppress(OSError):
            while True:
                link, _ = server.accept()
                links.append(link)
                threading.Thread(target=quietly, args=(link,), daemon=True).start()

    def quietly(link: socket.socket) -> None:
        with suppress(OSError):
            talk(link)

    threading.Thread(target=serve, daemon=True).start()
    try:
        yield f"127.0.0.1:{server.getsockname()[1]}"
    finally:
        for each in (server, *links):
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()
