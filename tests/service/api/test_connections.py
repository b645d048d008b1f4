"""What a client without a key can send: a server process stays small, and others are answered meanwhile."""

import json
import socket

import pytest

from service.api.connections import MAX_HEAD_BYTES, MAX_HEADERS, MAX_PIPELINED, MAX_URL_BYTES
from tests.service.served import server_process

MIB = 2**20
MOST_GROWTH = 48  # MiB; what is sent is many times as much


@pytest.fixture
def server(services):
    """A server process with twenty places for connections, five of them for each address."""
    with server_process(services, max_connections=20) as server:
        yield server


def sent_until_closed(client: socket.socket, begin: bytes, more: bytes, most: int) -> tuple[int, bytes]:
    """Send until the other side closes or `most` bytes are sent; returns how many were, and what was answered."""
    sent, answer = 0, b""
    try:
        client.sendall(begin)
        while sent < most:
            client.sendall(more)
            sent += len(more)
    except (ConnectionResetError, BrokenPipeError):
        pass
    try:
        while part := client.recv(65_536):
            answer += part
    except (ConnectionResetError, TimeoutError):
        pass
    return sent, answer


POST = b"POST /connect/datagrail/x HTTP/1.1\r\nHost: x\r\n"
ENDLESS = {
    "one header": (b"GET /livez HTTP/1.1\r\nHost: x\r\nX-Long: ", b"x" * MIB),
    "many headers": (b"GET /livez HTTP/1.1\r\nHost: x\r\n", b"a:b\r\n" * 200_000),
    "the URL": (b"GET /", b"x" * MIB),
    "the headers of a request with a body": (POST + b"Content-Length: 9\r\nX-Long: ", b"x" * MIB),
    "a trailer": (POST + b"Transfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\nX-Long: ", b"x" * MIB),
    "requests in advance": (b"", b"GET /readyz HTTP/1.1\r\nHost: x\r\n\r\n" * 30_000),
}


def test_what_has_no_end_is_cut_and_takes_no_memory(server):
    """Megabytes of each kind, on several connections; somebody else is answered after each."""
    for name, (begin, more) in ENDLESS.items():
        for _ in range(4):
            with server.connect() as client:
                client.settimeout(5)
                sent, _ = sent_until_closed(client, begin, more, 100 * MIB)
                assert sent < 20 * MIB, name  # what the buffers of both sides hold
        assert server.get("/livez", source="127.0.0.2").status_code == 200, name
    assert server.grown_mib < MOST_GROWTH


TOO_LARGE = {
    b"GET /livez?" + b"x" * MAX_URL_BYTES + b" HTTP/1.1\r\n": 414,
    b"GET /livez HTTP/1.1\r\nX-Long: " + b"x" * MAX_HEAD_BYTES + b"\r\n": 431,
    b"GET /livez HTTP/1.1\r\n" + b"a: b\r\n" * MAX_HEADERS: 431,
    b"not HTTP\r\n": 400,
}


def test_a_client_is_told_what_was_too_large(server):
    """A problem document, then the connection is closed."""
    for sent, status in TOO_LARGE.items():
        with server.connect() as client:
            client.sendall(sent + b"Host: x\r\n\r\n")
            answer = b""
            while part := client.recv(65_536):
                answer += part
        head, _, body = answer.partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 %d " % status)
        assert b"content-type: application/problem+json" in head.lower()
        assert json.loads(body)["status"] == status


def test_what_is_within_the_limits_is_answered(server):
    """A long URL, long headers, a body in small chunks, and a few requests in advance."""
    assert server.get("/v1/jobs?cursor=" + "x" * (MAX_URL_BYTES - 100)).status_code == 401
    assert server.get("/livez", **{"X-Long": "x" * (MAX_HEAD_BYTES - 1000)}).status_code == 200
    with server.client() as client:
        answer = client.post("/connect/datagrail/x", content=(b"x" for _ in range(20_000)))
        assert answer.status_code == 422  # the headers with the signature are missing
    with server.connect() as client:
        client.sendall(b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n" * MAX_PIPELINED)
        answers = b""
        while answers.count(b'{"status":"ok"}') < MAX_PIPELINED:
            answers += client.recv(65_536)


def test_one_address_cannot_hold_all_connections(server):
    """It keeps a quarter of them, and another address is answered."""
    held = [server.connect() for _ in range(30)]
    assert server.get("/livez", source="127.0.0.2").status_code == 200
    for client in held:
        client.settimeout(0.01)
    assert sum(not is_closed(client) for client in held) == 5
    for client in held:
        client.close()


def is_closed(client: socket.socket) -> bool:
    """Whether the other side has closed."""
    try:
        return client.recv(1) == b""
    except ConnectionResetError:
        return True
    except TimeoutError:
        return False


def test_a_trusted_proxy_has_connections_for_many(services):
    """Its connections have no share. Those whom it forwards have theirs, and nobody else names an address."""
    with server_process(services, max_connections=20, trusted_proxies='["127.0.0.3"]') as server:
        held = [server.connect("127.0.0.3") for _ in range(15)]
        assert server.get("/livez", source="127.0.0.3").status_code == 200
        for client in held:
            client.settimeout(0.01)
        assert not any(is_closed(client) for client in held)
        for client in held:
            client.close()
