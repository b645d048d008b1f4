"""The application on a real socket, with short times."""

import socket
import threading
from contextlib import contextmanager

import uvicorn

from service.api.timeouts import timeout_protocol
from service.local.supervisor import wait_until
from service.main import create_app

SECONDS = 0.5


@contextmanager
def served(services, *, connections=20):
    """The application on a real socket, with short times."""
    listener = socket.create_server(("127.0.0.1", 0))
    protocol = timeout_protocol(seconds=SECONDS, connections=connections)
    config = uvicorn.Config(create_app(services), http=protocol, log_level="warning", timeout_keep_alive=30)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        assert wait_until(lambda: server.started, 20)
        yield listener.getsockname()
    finally:
        server.should_exit = True
        thread.join()
        listener.close()
