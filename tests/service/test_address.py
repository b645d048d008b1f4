"""The address of the API is taken, or refused with a remedy."""

import socket

import pytest

from service.address import listen, url
from service.domain.errors import CannotStart


def test_it_listens_where_it_was_told_to():
    """Port 0 picks a free one, and the URL has it."""
    with listen("127.0.0.1", 0) as listener:
        port = listener.getsockname()[1]
        assert url(listener) == f"http://127.0.0.1:{port}"
        socket.create_connection(("127.0.0.1", port)).close()


@pytest.mark.skipif(not socket.has_dualstack_ipv6(), reason="this machine has no IPv6")
def test_an_address_of_version_6_is_in_brackets():
    """As RFC 3986 has it."""
    with listen("::1", 0) as listener:
        assert url(listener) == f"http://[::1]:{listener.getsockname()[1]}"


def test_a_taken_port_is_refused():
    """A second program on the port would answer in its place."""
    with listen("127.0.0.1", 0) as first, pytest.raises(CannotStart, match=r"EADDRINUSE.*choose another port"):
        listen("127.0.0.1", first.getsockname()[1])


def test_a_privileged_port_is_refused(monkeypatch):
    """The system's refusal is played, because root is not refused."""

    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(socket, "create_server", refuse)
    with pytest.raises(CannotStart, match=r"port 80: .*EACCES.*1024"):
        listen("127.0.0.1", 80)


@pytest.mark.parametrize(
    ("host", "expected"),
    [("nowhere.invalid", "--host nowhere.invalid"), ("x" * 80, "--host xxx"), ("192.0.2.1", "EADDRNOTAVAIL")],
)
def test_an_impossible_host_is_refused(host, expected):
    """It is no address, or none of this machine."""
    with pytest.raises(CannotStart, match=expected):
        listen(host, 0)
