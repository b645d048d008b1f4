"""Callbacks do not go to addresses inside the network."""

import socket
import threading

import httpcore
import pytest

from service.callbacks.webhooks import OutgoingCall, RefusedTarget, send
from service.domain.addresses import INFRASTRUCTURE_PORTS, is_public_address

INSIDE = (
    "127.0.0.1",
    "::1",
    "10.0.0.1",
    "169.254.169.254",
    "fe80::1",
    "0.0.0.0",
    "::ffff:127.0.0.1",
    "192.168.1.1",
    "100.64.0.1",
    "224.0.0.1",
    "fd00::1",
    "2002:7f00:1::",
    "64:ff9b::7f00:1",
    "64:ff9b:1::7f00:1",
    "::ffff:0:127.0.0.1",
    "::7f00:1",
    "fec0::1",
    "192.88.99.1",
)


def resolve_to(monkeypatch, *addresses: str) -> None:
    """Let every name resolve to these addresses."""
    answers = [(0, 0, 0, "", (address, 8080)) for address in addresses]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: answers)


@pytest.fixture
def connected(monkeypatch) -> list[tuple[str, int]]:
    """The addresses and ports that calls try to connect to; nobody is there."""
    tried = []

    async def connect(_, host, port, *__):
        tried.append((host, port))
        raise httpcore.ConnectError("nobody there")

    monkeypatch.setattr(httpcore.AnyIOBackend, "connect_tcp", connect)
    return tried


@pytest.mark.parametrize("address", INSIDE)
def test_callbacks_do_not_go_inside(address, monkeypatch):
    """By address or by a name that resolves to it, also if only one of its addresses is inside."""
    assert not is_public_address(address)
    host = f"[{address}]" if ":" in address else address
    with pytest.raises(RefusedTarget):
        send(OutgoingCall("POST", f"http://{host}:8080/", {}, b"{}"), seconds=5, allow_private=False)
    resolve_to(monkeypatch, "93.184.216.34", address)
    with pytest.raises(RefusedTarget):
        send(OutgoingCall("POST", "http://example.org:8080/", {}, b"{}"), seconds=5, allow_private=False)


def test_an_allow_list_opens_a_network_and_nothing_else(connected):
    """What is on it is called, what is beside it is not."""
    allowed = {"seconds": 5, "allow_private": False, "allow": ["10.2.0.0/16", "fd00::/8"]}
    for host in ("10.2.3.4", "[fd00::7]"):
        with pytest.raises(httpcore.ConnectError):
            send(OutgoingCall("POST", f"http://{host}:8080/", {}, b"{}"), **allowed)
    for host in ("10.3.0.1", "127.0.0.1", "169.254.169.254"):
        with pytest.raises(RefusedTarget):
            send(OutgoingCall("POST", f"http://{host}:8080/", {}, b"{}"), **allowed)
    assert connected == [("10.2.3.4", 8080), ("fd00::7", 8080)]


def test_a_name_that_changes_its_mind_gains_nothing(monkeypatch):
    """What was looked at is what is connected to: a second look-up, which would say something else, is not made."""
    asked, connected = [], []

    def resolve(host, port, **_):
        asked.append(host)
        return [(0, 0, 0, "", ("93.184.216.34" if len(asked) == 1 else "127.0.0.1", port))]

    async def connect(_, host, *__):
        connected.append(host)
        raise httpcore.ConnectError("no way out of here")

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    monkeypatch.setattr(httpcore.AnyIOBackend, "connect_tcp", connect)
    with pytest.raises(httpcore.ConnectError):
        send(OutgoingCall("POST", "http://rebind.example:8080/", {}, b"{}"), seconds=5, allow_private=False)
    assert (asked, connected) == (["rebind.example"], ["93.184.216.34"])


METADATA = (
    "169.254.169.254",
    "169.254.170.2",
    "100.100.100.200",
    "168.63.129.16",
    "192.0.0.192",
    "fd00:ec2::254",
    "fd20:ce::254",
    "fe80::a9fe:a9fe",
    "::ffff:169.254.169.254",
    "::ffff:0:169.254.169.254",
    "::a9fe:a9fe",
    "2002:a9fe:a9fe::1",
    "2002:a83f:8110::1",
    "64:ff9b::169.254.169.254",
    "64:ff9b:1::168.63.129.16",
    "2001:0:a9fe:a9fe::1",
    "2001:db8::5efe:169.254.169.254",
)


@pytest.mark.parametrize("address", METADATA)
@pytest.mark.parametrize("trusted", [False, True], ids=["a submitter's", "an operator's"])
def test_a_metadata_address_is_never_called(address, trusted, monkeypatch, connected):
    """Whatever an operator allows, and in whatever form it is written or resolved."""
    allowed = {"seconds": 5, "allow_private": True, "allow": ["0.0.0.0/0", "::/0"]}
    host = f"[{address}]" if ":" in address else address
    with pytest.raises(RefusedTarget):
        send(OutgoingCall("POST", f"http://{host}/latest/meta-data", {}, b"{}", trusted), **allowed)
    resolve_to(monkeypatch, "93.184.216.34", address)
    with pytest.raises(RefusedTarget):
        send(OutgoingCall("POST", "http://metadata.google.internal/", {}, b"{}", trusted), **allowed)
    assert not connected


@pytest.mark.parametrize("port", [22, 25, 53, 143, 389, 445, 587, 993, *sorted(INFRASTRUCTURE_PORTS)])
def test_a_port_of_infrastructure_is_not_called(port, monkeypatch, connected):
    """Neither at a public address nor at one that an operator allows; the operator's own URLs may have any port."""
    resolve_to(monkeypatch, "93.184.216.34")
    call = OutgoingCall("POST", f"http://example.org:{port}/", {}, b"{}")
    with pytest.raises(RefusedTarget):
        send(call, seconds=5, allow_private=True)
    assert not connected
    trusted = OutgoingCall("POST", call.url, {}, b"{}", trusted=True)
    with pytest.raises(httpcore.ConnectError):
        send(trusted, seconds=5, allow_private=False)
    assert connected == [("93.184.216.34", port)]


def test_a_slow_name_server_costs_no_more_than_the_time_of_a_call(monkeypatch):
    """The call ends while the name is still being looked up."""
    answered, resolved = threading.Event(), []

    def resolve(*_, **__):
        answered.wait(20)
        resolved.append("at last")
        return [(0, 0, 0, "", ("93.184.216.34", 443))]

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    with pytest.raises(TimeoutError):
        send(OutgoingCall("POST", "https://slow.example/", {}, b"{}"), seconds=0.2, allow_private=False)
    assert not resolved
    answered.set()
