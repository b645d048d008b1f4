"""A way to PostgreSQL that can fall silent: it stays open, and carries nothing. So it is when a host has gone."""

import contextlib
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

SOCKET = ".s.PGSQL.5432"


class SilentProxy:
    """Carries connections from a socket in `folder` to the server whose sockets are in `server`."""

    def __init__(self, server: Path, folder: Path) -> None:
        """Listen, and carry everything."""
        self._server, self.folder = server, folder
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(folder / SOCKET))
        self._listener.listen(64)
        self._carries, self._ended = threading.Event(), threading.Event()
        self._carries.set()
        self._dead: set[socket.socket] = set()
        self._open: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def url(self, url: str) -> str:
        """The URL of the same database by this way."""
        return url.replace(str(self._server), str(self.folder))

    def silence(self) -> None:
        """Carry nothing from now on; connections are accepted still."""
        self._carries.clear()

    def lift(self) -> None:
        """Carry new connections. Those from before stay silent for ever."""
        self._dead.update(self._open)
        self._carries.set()

    def close(self) -> None:
        """Close everything."""
        self._ended.set()
        self._carries.set()
        for end in [self._listener, *self._open]:
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):  # closed
            while True:
                client, _ = self._listener.accept()
                server = socket.socket(socket.AF_UNIX)
                server.connect(str(self._server / SOCKET))
                self._open += [client, server]
                for ends in ((client, server), (server, client)):
                    threading.Thread(target=self._carry, args=ends, daemon=True).start()

    def _carry(self, source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65_536):
                self._carries.wait()
                if source in self._dead:
                    self._ended.wait()
                target.sendall(data)
            target.shutdown(socket.SHUT_WR)


@contextlib.contextmanager
def silent_proxy(server: Path, folder: Path) -> Iterator[SilentProxy]:
    """A proxy in this folder."""
    folder.mkdir()
    proxy = SilentProxy(server, folder)
    try:
        yield proxy
    finally:
        proxy.close()
