"""A submitter's callback endpoint."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class Callbacks(ThreadingHTTPServer):
    """Takes callbacks and remembers them: request id -> [(webhook-id, status)]."""

    def __init__(self) -> None:
        """Listen on a free port."""
        self.calls: dict[str, list[tuple[str, str]]] = {}
        super().__init__(("127.0.0.1", 0), _Callback)
        threading.Thread(target=self.serve_forever, daemon=True).start()


class _Callback(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.calls.setdefault(body["id"], []).append((self.headers["webhook-id"], body["status"]))
        self.send_response(204)
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        pass
