"""A server that takes down whatever it is told, for callbacks and webhooks of ours."""

import json
import threading
import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from service.local.process import wait_until


@dataclass
class Call:
    """A call that arrived."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        """What it says."""
        return json.loads(self.body)


@dataclass
class Receiver:
    """What arrived, and what is answered: `answers` are used up first, then 204."""

    url: str
    calls: list[Call] = field(default_factory=list)
    answers: list[int] = field(default_factory=list)

    def to(self, path: str) -> list[Call]:
        """Calls to a path."""
        return [call for call in self.calls if call.path == path]

    def until(self, path: str, count: int, seconds: float = 120) -> list[Call]:
        """The calls to a path once there are so many."""
        assert wait_until(lambda: len(self.to(path)) >= count, seconds), (path, self.calls)
        return self.to(path)


@contextmanager
def receiving():
    """A running receiver."""
    receiver = Receiver("")

    class Handler(BaseHTTPRequestHandler):
        def _receive(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            headers = {name.lower(): value for name, value in self.headers.items()}
            receiver.calls.append(Call(self.command, self.path, headers, body))
            self.send_response(receiver.answers.pop(0) if receiver.answers else 204)
            self.end_headers()

        do_POST = do_PUT = _receive  # noqa: N815

        def log_message(self, *_):
            pass

    with _serving(receiver, Handler):
        yield receiver


@contextmanager
def tar_pit():
    """A running receiver that takes each call, sends a header now and then, and never ends its answer."""
    receiver = Receiver("")

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            receiver.calls.append(Call("POST", self.path, {}, body))
            with suppress(OSError):
                self.wfile.write(b"HTTP/1.1 200 OK\r\n")
                while True:
                    self.wfile.write(b"x: y\r\n")
                    time.sleep(0.05)  # busy, as slow as it likes, until the caller hangs up

        def log_message(self, *_):
            pass

    with _serving(receiver, Handler):
        yield receiver


@contextmanager
def _serving(receiver: Receiver, handler: type[BaseHTTPRequestHandler]):
    """A server that serves meanwhile; it fills in the receiver's URL."""
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        receiver.url = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield
        finally:
            server.shutdown()
            thread.join()
