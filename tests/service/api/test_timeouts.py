"""Slow clients are cut while everybody else is served."""

import socket
import time

import httpx
import pytest
from sqlalchemy import text

from service.local.process import wait_until
from tests.service.served import SECONDS, served


def gone(client: socket.socket) -> bool:
    """Whether the other side has closed, whatever it said before."""
    client.settimeout(10 * SECONDS)
    try:
        while client.recv(1 << 16):
            pass
    except ConnectionResetError:
        return True
    except TimeoutError:
        return False
    return True


@pytest.mark.parametrize(
    "sent",
    [
        b"",
        b"GET /livez HTTP/1.1\r\nHost: x\r\nX-Slow: ",
        b"POST /connect/datagrail/tiny HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{",
    ],
    ids=["nothing", "half a header", "half a body"],
)
def test_a_request_that_does_not_arrive_is_cut(services, sent):
    """Nothing, half a header, half a body: closed after the time, and others are answered meanwhile."""
    with served(services) as address, socket.create_connection(address) as client:
        client.sendall(sent)
        assert httpx.get(f"http://{address[0]}:{address[1]}/livez", trust_env=False, timeout=60).status_code == 200
        assert gone(client)


def test_an_answer_that_is_not_taken_is_cut(services, model, new_key):
    """A reader that stops reading is cut; one that reads slowly but does read gets everything."""
    with services.db.transaction() as session:
        digest, path = session.execute(text("SELECT digest, files->0->>'path' FROM versions")).one()
        size = 32 * 2**20
        (services.storage.release(digest) / path).write_bytes(bytes(size))
    target = f"/v1/models/tiny/versions/0/files/{path}"
    request = f"GET {target} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {new_key('download')}\r\n\r\n".encode()
    with served(services) as address:
        with socket.create_connection(address) as stuck:
            stuck.sendall(request)
            assert stuck.recv(1) == b"H"
            time.sleep(4 * SECONDS)  # what is measured is that nothing is read for so long
            received = 1
            with pytest.raises(ConnectionResetError):
                while chunk := stuck.recv(1 << 20):
                    received += len(chunk)
                raise ConnectionResetError if received < size else AssertionError("everything came")
        with socket.create_connection(address) as slow:
            slow.sendall(request)
            received, began = 0, time.monotonic()
            while received < size:
                received += len(slow.recv(1 << 18))
                time.sleep(0.02)
            assert time.monotonic() - began > 2 * SECONDS


def test_connections_are_bounded(services):
    """One too many is closed at once; when another goes there is room again."""
    with served(services, max_connections=3) as address:
        held = [socket.create_connection(address) for _ in range(3)]
        with socket.create_connection(address) as fourth:
            assert gone(fourth)
        held.pop().close()
        url = f"http://{address[0]}:{address[1]}/livez"

        def answered() -> bool:
            try:
                return httpx.get(url, trust_env=False).status_code == 200
            except httpx.TransportError:
                return False

        assert wait_until(answered, 10)
        for client in held:
            client.close()
