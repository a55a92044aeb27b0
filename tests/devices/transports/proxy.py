"""A link that is slow, that breaks, or that goes silent: a proxy in front of a port."""

from __future__ import annotations

import socket
import threading
import time
from contextlib import suppress


class Proxy:
    """Passes on what it is given.

    Args:
        to_port: on the loopback.
        bytes_per_s: how fast it passes on what the client sends.
        cut_after_bytes: closes the link after so many bytes of the client.
    """

    def __init__(
        self, to_port: int, bytes_per_s: float | None = None, cut_after_bytes: int | None = None
    ) -> None:
        self._to_port = to_port
        self._bytes_per_s = bytes_per_s
        self._left_bytes = cut_after_bytes
        self._silent = threading.Event()
        self._sockets: list[socket.socket] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def go_silent(self) -> None:
        """Pass on nothing any more, not even that an end was closed."""
        self._silent.set()

    def close(self) -> None:
        self._listener.close()
        self._hang_up(*self._sockets)

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            server = socket.create_connection(("127.0.0.1", self._to_port))
            self._sockets += [client, server]
            for pair in ((client, server), (server, client)):
                threading.Thread(target=self._pass_on, args=pair, daemon=True).start()

    def _pass_on(self, source: socket.socket, target: socket.socket) -> None:
        try:
            while block := source.recv(16384):
                from_client = target.getpeername()[1] == self._to_port
                if from_client and self._bytes_per_s:
                    time.sleep(len(block) / self._bytes_per_s)
                if from_client and self._left_bytes is not None:
                    self._left_bytes -= len(block)
                    if self._left_bytes < 0:
                        break
                if self._silent.is_set():
                    return
                target.sendall(block)
        except OSError:
            pass
        if not self._silent.is_set():
            self._hang_up(source, target)

    def _hang_up(self, *sockets: socket.socket) -> None:
        for each in sockets:
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
